"""Renders the table of metrics as Prometheus text, a slice at a time: called by the admin listener on a scrape."""

import asyncio
from collections.abc import AsyncIterator, Iterator

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from multislo_router.core.status import Histogram
from multislo_router.shell.metrics import METRICS, Scrape

SAMPLES_A_SLICE = 1000
"""Samples rendered before the event loop gets its turn: a scrape of a big fleet delays no token by more than ~4 ms."""


def families(scrape: Scrape) -> Iterator[Family]:
    """The metrics of one scrape, in the order of the table."""
    for metric in METRICS:
        name = metric.name.removesuffix("_total") if metric.type == "counter" else metric.name
        family = Family(name, metric.meaning, metric.type)
        for values, value in metric.rows(scrape):
            labels = dict(zip(metric.labels, values, strict=True))
            if isinstance(value, Histogram):
                family.samples.extend(_buckets(name, labels, value))
            else:
                family.samples.append(Sample(metric.name, labels, float(value)))
        yield family


def _buckets(name: str, labels: dict[str, str], histogram: Histogram) -> Iterator[Sample]:
    cumulative = 0
    for edge, count in zip((*histogram.edges, float("inf")), histogram.counts, strict=True):
        cumulative += count
        le = "+Inf" if edge == float("inf") else f"{edge:.9g}"  # 0.03, not 0.030000000000000002
        yield Sample(f"{name}_bucket", {**labels, "le": le}, cumulative)
    yield Sample(f"{name}_count", labels, cumulative)
    yield Sample(f"{name}_sum", labels, histogram.sum)


class _Slice(Collector):
    """One family, as the renderer wants it."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterator[Family]:
        yield self._family


async def exposition(scrape: Scrape, others: Collector) -> AsyncIterator[bytes]:
    """The text format of `scrape` and then of `others` (the process), in slices between which the event loop runs."""
    for family in families(scrape):
        for start in range(0, max(1, len(family.samples)), SAMPLES_A_SLICE):
            part = Family(family.name, family.documentation, family.type)
            part.samples = family.samples[start : start + SAMPLES_A_SLICE]
            text = generate_latest(_Slice(part))
            # HELP and TYPE may stand only once over a family.
            yield text if start == 0 else text.split(b"\n", 2)[2]
            await asyncio.sleep(0)
    for family in others.collect():
        yield generate_latest(_Slice(family))
