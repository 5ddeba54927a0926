"""Instances of one tier by load, in buckets: moving one is O(1) whatever the size of the fleet, and so is finding the fullest or the
emptiest. Used by the placements, which look at a handful of candidates and never at the whole fleet."""

from collections.abc import Iterator
from typing import Final

from multislo_router.core.instance import Instance

BUCKETS: Final = 64
BUCKETS_PER_LOAD: Final = 50.0
"""A bucket is 2 % of load wide; the last one holds everything beyond 1.26."""


def bucket_of(load: float) -> int:
    index = int(load * BUCKETS_PER_LOAD)
    return index if index < BUCKETS else BUCKETS - 1


class Ladder:
    """The placeable instances of one tier (or of the warm pool)."""

    __slots__ = ("_buckets", "_mask")

    def __init__(self) -> None:
        self._buckets: list[dict[Instance, None]] = [{} for _ in range(BUCKETS)]
        self._mask = 0
        """Bit i is set where bucket i holds an instance."""

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets)

    def __bool__(self) -> bool:
        return self._mask != 0

    def add(self, instance: Instance) -> None:
        index = bucket_of(instance.load)
        instance.bucket = index
        self._buckets[index][instance] = None
        self._mask |= 1 << index

    def remove(self, instance: Instance) -> None:
        bucket = self._buckets[instance.bucket]
        del bucket[instance]
        if not bucket:
            self._mask &= ~(1 << instance.bucket)
        instance.bucket = -1

    def clear(self) -> None:
        for bucket in self._buckets:
            bucket.clear()
        self._mask = 0

    def move(self, instance: Instance) -> None:
        """Put an instance where its load says that it belongs now."""
        if bucket_of(instance.load) != instance.bucket:
            self.remove(instance)
            self.add(instance)

    def emptiest(self, most: int) -> list[Instance]:
        """The first `most` from the emptiest bucket up."""
        found: list[Instance] = []
        mask = self._mask
        while mask:
            low = mask & -mask
            for instance in self._buckets[low.bit_length() - 1]:
                found.append(instance)
                if len(found) == most:
                    return found
            mask ^= low
        return found

    def fullest(self, load_max: float, most: int) -> list[Instance]:
        """The first `most` from the fullest bucket whose load is at most about `load_max` down."""
        found: list[Instance] = []
        mask = self._mask & ((2 << int(load_max * BUCKETS_PER_LOAD)) - 1)
        while mask:
            index = mask.bit_length() - 1
            for instance in self._buckets[index]:
                found.append(instance)
                if len(found) == most:
                    return found
            mask ^= 1 << index
        return found

    def __iter__(self) -> Iterator[Instance]:
        for bucket in self._buckets:
            yield from bucket
