"""The experiments: one module each, with its command. `cli` registers what `EXPERIMENTS` lists; a new one is a module and a line here."""

import click

from multislo_sim.experiments.ablation import ablation
from multislo_sim.experiments.beliefs import beliefs
from multislo_sim.experiments.burst import burst
from multislo_sim.experiments.disaggregated import disaggregated
from multislo_sim.experiments.goodput import goodput
from multislo_sim.experiments.sizes import sizes
from multislo_sim.experiments.tune import tune

EXPERIMENTS: tuple[click.Command, ...] = (goodput, disaggregated, sizes, burst, ablation, beliefs, tune)
