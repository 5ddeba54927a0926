"""A manifest's fleet under a user's own traffic: its attainment, its accelerators, and the effect of another SLO, tier or accelerator.
Used by `multislo simulate --manifest` and `multislo plan`."""
