"""Who may lead, as each replica sees it by its own clock. The Lease is a value here that replicas write in turns."""

from datetime import UTC, datetime, timedelta
from typing import Any

from multislo_operator.kubernetes.lease import DURATION_S, RENEW_S, Claim, Move

Lease = dict[str, Any]
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def step(claim: Claim, lease: Lease | None, now: float) -> tuple[Move, Lease | None]:
    """One try; the Lease after it. The replica's wall clock is its monotonic one here."""
    move = claim.see(lease, now)
    if move is Move.WAIT:
        return move, lease
    after = {"spec": claim.spec(lease, move, BEGAN + timedelta(seconds=now))}
    claim.see(after, now)
    claim.wrote(now)
    return move, after


def test_the_first_creates_it_and_the_second_waits() -> None:
    a, b = Claim("a"), Claim("b")
    move, lease = step(a, None, 0.0)
    assert move is Move.CREATE
    assert step(b, lease, 0.5)[0] is Move.WAIT
    assert a.leading(1.0)
    assert not b.leading(1.0)
    assert lease is not None
    assert lease["spec"]["leaseTransitions"] == 0


def test_a_renewed_lease_is_never_taken() -> None:
    a, b = Claim("a"), Claim("b")
    lease: Lease | None = None
    for second in range(0, 120, 2):
        _, lease = step(a, lease, float(second))
        move, lease = step(b, lease, second + 1.0)
        assert move is Move.WAIT
        assert a.leading(second + 1.0)


def test_a_dead_holders_lease_is_taken_after_its_duration_as_the_watcher_saw_it() -> None:
    a, b = Claim("a"), Claim("b")
    _, lease = step(a, None, 0.0)
    # b's own clock is far ahead, and counts from when it saw the last renewal.
    ahead = 1e6
    assert step(b, lease, ahead)[0] is Move.WAIT
    assert step(b, lease, ahead + DURATION_S - 0.1)[0] is Move.WAIT
    move, lease = step(b, lease, ahead + DURATION_S)
    assert move is Move.TAKE
    assert b.leading(ahead + DURATION_S)
    assert lease is not None
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("b", 1)


def test_a_holder_that_cannot_renew_gives_up_before_another_can_take_it() -> None:
    a, b = Claim("a"), Claim("b")
    _, lease = step(a, None, 0.0)
    assert a.leading(RENEW_S - 0.1)
    assert not a.leading(RENEW_S)
    step(b, lease, 0.0)
    assert step(b, lease, RENEW_S)[0] is Move.WAIT


def test_a_lease_that_was_given_back_is_taken_at_once() -> None:
    b = Claim("b")
    free = {"spec": {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": "x", "leaseTransitions": 4}}
    move, lease = step(b, free, 0.0)
    assert move is Move.TAKE
    assert lease is not None
    assert lease["spec"]["leaseTransitions"] == 5


def test_a_holder_that_was_frozen_sees_that_another_leads() -> None:
    a, b = Claim("a"), Claim("b")
    _, lease = step(a, None, 0.0)
    step(b, lease, 1.0)
    _, lease = step(b, lease, 1.0 + DURATION_S)
    assert not a.leading(60.0)
    assert step(a, lease, 60.0)[0] is Move.WAIT
    assert not a.leading(60.0)
