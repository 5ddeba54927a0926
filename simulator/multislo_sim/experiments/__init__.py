"""The experiments: one module each, with its command. `cli` registers what `EXPERIMENTS` lists; a new one is a module and a line here."""

import click

from multislo_sim.experiments.goodput import goodput
from multislo_sim.experiments.tune import tune

EXPERIMENTS: tuple[click.Command, ...] = (goodput, tune)
