"""Carries out the operator's plans on one machine, with processes: `multislo up`, and `multislo top` to watch it."""
