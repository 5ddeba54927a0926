"""What must always hold in the router's core, stated once. `RouterCore.check()` runs it; tests and the simulator after every event."""

from collections.abc import Sequence
from math import inf

from multislo_router.core.admissions import Admissions
from multislo_router.core.instance import Instance
from multislo_router.core.ladder import bucket_of
from multislo_router.core.pace import CALIBRATION_MAX, CALIBRATION_MIN
from multislo_router.core.request import DECODE, HELD, PREFILL
from multislo_router.core.sequences import on_books
from multislo_router.core.tier import Tier


def check_books(books: Admissions, tiers: Sequence[Tier], wake_at: float | None) -> None:
    """Raise AssertionError with the first invariant that is broken."""
    requests = books.requests.values()
    held = [r for r in requests if r.stage is HELD]
    placed = [r for r in requests if r.id in books.places]
    assert len(held) + len(placed) == len(books.requests), "a request is held or placed"
    assert len(placed) == len(books.places), "what is placed is known"
    assert books.pending.count == len(held), f"pending counts {books.pending.count}, held are {len(held)}"
    assert {r.id for r in books.pending} == {r.id for r in held}, "the queue holds exactly the held requests"
    assert not held or wake_at is not None, "something held will be looked at again"
    for tier in tiers:
        counts = books.counts[tier.index]
        assert counts.pending == sum([r.tier is tier for r in held]), f"tier {tier.name}: pending"
        assert counts.in_flight == sum([r.tier is tier for r in placed]), f"tier {tier.name}: in flight"
        ended = sum(counts.outcomes.values()) + sum(counts.refusals.values())
        assert counts.arrived == ended + counts.pending + counts.in_flight, f"tier {tier.name}: arrivals"


def check_instance(instance: Instance, books: Admissions, listed: bool) -> None:
    """`listed`: whether it belongs on a ladder."""
    name, bookings, row = instance.id, instance.bookings, instance.queue.row
    here = [r for id, on in books.places.items() if on is instance for r in on_books(books.requests[id])]
    assert {r.id for r in here} == {*[r.id for r in row], *bookings.decodes}, f"{name}: its requests are the core's"
    assert bookings.requests == sum([r.sequences for r in here]), f"{name}: requests"
    assert bookings.prefills == len(row), f"{name}: prefills"
    assert all([r.stage is PREFILL for r in row]), f"{name}: stages of prefills"
    assert all([r.stage is DECODE for r in bookings.decodes.values()]), f"{name}: stages of decodes"
    assert bookings.kv_reserved == sum([r.kv_reserved for r in here]), f"{name}: KV reserved"
    decoding = bookings.kv_held()
    assert bookings.kv_decode_tokens == decoding, f"{name}: KV of decodes {bookings.kv_decode_tokens}, not {decoding}"
    assert sum(bookings.tpot_counts.values()) == sum([not r.lost for r in here]), f"{name}: counts by TPOT"
    tightest = min([r.tpot_s for r in here if not r.lost], default=inf)
    assert bookings.tpot_tightest_s == tightest, f"{name}: tightest TPOT {bookings.tpot_tightest_s}, not {tightest}"
    for index, count in enumerate(bookings.tier_counts):
        assert count == sum([r.sequences for r in here if r.tier.index == index]), f"{name}: count of tier {index}"
    assert (bookings.empty_since is None) == bool(here), f"{name}: empty or not"
    calibration = instance.pace.calibration
    assert CALIBRATION_MIN <= calibration <= CALIBRATION_MAX, f"{name}: calibration {calibration}"
    assert 0.0 <= instance.load < inf, f"{name}: load {instance.load}"
    assert listed == (instance.bucket >= 0), f"{name}: listed iff placeable"
    if listed:
        assert instance.bucket == bucket_of(instance.load), f"{name}: in the bucket of its load"
