"""Renders the table of metrics as Prometheus text, a slice at a time: called by the admin listener on a scrape."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import islice

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from multislo_router.core.status import Histogram
from multislo_router.shell.metrics import METRICS
from multislo_router.shell.scrape import Metric, Scrape

SAMPLES_A_SLICE = 250
"""Samples made and rendered before the event loop gets its turn, about 1.5 ms: a scrape of a big fleet delays no token longer."""


class _Slice(Collector):
    """One family, as the renderer wants it."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterator[Family]:
        yield self._family


async def exposition(scrape: Scrape, others: Collector) -> AsyncIterator[bytes]:
    """The text format of `scrape` and then of `others` (the process), in slices between which the event loop runs."""
    for metric in METRICS:
        samples = _samples(metric, scrape)
        part = list(islice(samples, SAMPLES_A_SLICE))
        first = True
        while part or first:
            # The name of the family, which for a counter leaves out what its samples add.
            family = Family(metric.name.removesuffix("_total"), metric.meaning, metric.type)
            family.samples = part
            text = generate_latest(_Slice(family))
            # HELP and TYPE may stand only once over a family.
            yield text if first else text.split(b"\n", 2)[2]
            first = False
            await asyncio.sleep(0)
            part = list(islice(samples, SAMPLES_A_SLICE))
    for family in others.collect():
        yield generate_latest(_Slice(family))


def _samples(metric: Metric, scrape: Scrape) -> Iterator[Sample]:
    for values, value in metric.rows(scrape):
        labels = dict(zip(metric.labels, values, strict=True))
        if isinstance(value, Histogram):
            yield from _buckets(metric.name, labels, value)
        else:
            yield Sample(metric.name, labels, float(value))


def _buckets(name: str, labels: dict[str, str], histogram: Histogram) -> Iterator[Sample]:
    cumulative = 0
    for edge, count in zip((*histogram.edges, float("inf")), histogram.counts, strict=True):
        cumulative += count
        le = "+Inf" if edge == float("inf") else f"{edge:.9g}"  # 0.03, not 0.030000000000000002
        yield Sample(f"{name}_bucket", {**labels, "le": le}, cumulative)
    yield Sample(f"{name}_count", labels, cumulative)
    yield Sample(f"{name}_sum", labels, histogram.sum)
