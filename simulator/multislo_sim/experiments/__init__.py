"""The experiments: one module each, with its command. `cli` registers what `EXPERIMENTS` lists; a new one is a module and a line here."""

import click

from multislo_sim.experiments import ablation, beliefs, burst, cost, day, disaggregated, dynamo, goodput, sizes, tune

EXPERIMENTS: tuple[click.Command, ...] = (
    goodput.goodput,
    disaggregated.disaggregated,
    cost.cost,
    sizes.sizes,
    burst.burst,
    ablation.ablation,
    beliefs.beliefs,
    day.day,
    dynamo.dynamo,
    tune.tune,
)
