"""What holds of the core whatever happens to it: random lives of a small fleet, told by bytes, with every invariant checked after
every event; and the laws of its parts."""

from collections.abc import Callable
from math import inf, isfinite, nan

import pytest
from h200_law import LAW
from hypothesis import given, settings
from hypothesis import strategies as st

from multislo_router.build import build
from multislo_router.core import decisions as d
from multislo_router.core import events as e
from multislo_router.core.config import CoreConfig, EngineLimits, Overload, Placement, TierConfig
from multislo_router.core.instance import Instance
from multislo_router.core.machine import ATTEMPTS_MAX, SLO_MAX_S, TPOT_MIN_S, RouterCore
from multislo_router.core.status import CoreStatus
from multislo_router.journal import event_line, header_line, status_line
from multislo_router.replay import Replay, Verdict

SEQUENCES = 1_700
"""Lives per placement and scheduler; over the six pairs more than 10,000."""
TPOTS = {"tight": 0.02, "middle": 0.05, "loose": 0.1}
BATCHES = {"tight": 512, "middle": 1024, "loose": 2048}
TTFTS = {"tight": 0.15, "middle": 0.3, "loose": 1.0}
NAMES = [*TPOTS]
INSTANCES = ["a", "b", "c", "d", "e"]
GAPS_S = (0.0, 0.0, 0.0004, 0.003, 0.006, 0.02, 0.02, 0.06, 0.3, 1.5, 70.0)
PROMPTS = (1, 30, 200, 700, 1500, 2400, 2900, 5000)
OUTPUTS = (None, None, 1, 20, 300, 4000)
OVERLOADS = (
    (Overload.REJECT, Overload.QUEUE, Overload.BEST_EFFORT),
    (Overload.QUEUE, Overload.BEST_EFFORT, Overload.REJECT),
    (Overload.BEST_EFFORT, Overload.REJECT, Overload.QUEUE),
    (Overload.QUEUE, Overload.QUEUE, Overload.QUEUE),
)


def config_of(placement: Placement, scheduler: e.Scheduler, shape: int) -> CoreConfig:
    overloads = OVERLOADS[shape % 4]
    tiers = [
        TierConfig(name, TTFTS[name], TPOTS[name], overload, BATCHES[name])
        for name, overload in zip(NAMES, overloads, strict=True)
    ]
    return CoreConfig(
        tiers=tuple(reversed(tiers)),
        default_tier="middle",
        latency=LAW,
        engine=EngineLimits(
            kv_tokens_max=(3_000, 20_000)[shape >> 2 & 1], seqs_max=(3, 64)[shape >> 3 & 1], scheduler=scheduler
        ),
        placement=placement,
        length_max=(None, 4_000)[shape >> 4 & 1],
        pending_max=(3, 1_000)[shape >> 5 & 1],
    )


class Life:
    """A fleet, its clients and its engines, as far as the core can tell; judges every decision that it gets."""

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.core = RouterCore(config)
        self.overloads = {tier.name: tier.overload for tier in config.tiers}
        self.now = 100.0
        self.specs: dict[str, e.InstanceSpec] = {}
        self.failed: set[str] = set()
        self.held: set[int] = set()
        self.placed: dict[int, str] = {}
        self.streaming: dict[int, bool] = {}
        self.attempts: dict[int, int] = {}
        self.talked: set[int] = set()
        """Requests whose clients have got something."""
        self.arrivals = 0
        self.computed = 7
        """What some engines say again and again."""
        self.seen: dict[int, Instance] = {}
        """Every instance that ever was."""

    def send(self, event: e.Event) -> list[d.Decision]:
        made = list(self.core.handle(event))
        self.core.check()
        for decision in made:
            self.judge(decision, event)
        assert self.held == self.core.requests.keys() - self.core.places.keys()
        assert self.placed.keys() == self.core.requests.keys() - self.held
        return made

    def judge(self, decision: d.Decision, event: e.Event) -> None:
        if isinstance(decision, d.Suspect):
            assert isinstance(event, e.InstanceReported | e.InstanceUnreported)
            assert decision.instance in self.placed.values()
            assert decision.instance not in self.failed
            assert self.now >= decision.silent_s > 2.0
            self.failed.add(decision.instance)
            return
        id = decision.request
        asked = isinstance(event, e.RequestArrived | e.SendFailed | e.EngineFull | e.Unanswered) and event.request == id
        assert id not in self.placed, "it has its place already"
        assert asked or id in self.held, "decided about nobody who waits"
        if isinstance(decision, d.Hold):
            assert asked, "held already"
            self.held.add(id)
            return
        self.held.discard(id)
        if isinstance(decision, d.Refuse):
            self.judge_refusal(decision, event)
            self.forget(id)
            return
        spec = self.specs[decision.instance]
        assert spec.state is e.InstanceState.READY
        assert decision.instance not in self.failed
        self.attempts[id] = self.attempts.get(id, 0) + 1
        assert self.attempts[id] <= ATTEMPTS_MAX
        assert (decision.priority is not None) == (self.config.engine.scheduler is e.Scheduler.PRIORITY)
        assert 0.0 <= decision.ttft_predicted_s < inf
        assert 0.0 < decision.iteration_predicted_s < inf
        assert 0.0 < decision.load < inf
        assert isfinite(decision.room_s)
        self.judge_kind(decision, spec)
        self.placed[id] = decision.instance

    def judge_kind(self, decision: d.Place, spec: e.InstanceSpec) -> None:
        kind = decision.kind
        if kind is d.Kind.BEST_EFFORT:
            assert self.overloads[decision.tier] is Overload.BEST_EFFORT
        elif kind is d.Kind.LATE:
            assert self.overloads[decision.tier] is Overload.QUEUE
        elif spec.tier is None:
            assert kind is d.Kind.WARM_POOL
        elif spec.tier == decision.tier:
            assert kind is d.Kind.OWN_TIER
        else:
            tighter = TPOTS[spec.tier] < TPOTS[decision.tier]
            assert kind is (d.Kind.PROMOTED if tighter else d.Kind.DEMOTED)

    def judge_refusal(self, decision: d.Refuse, event: e.Event) -> None:
        cause = decision.cause
        assert (decision.retry_after_s is None) == (cause is d.Cause.TOO_LONG)
        assert decision.retry_after_s is None or 1.0 <= decision.retry_after_s <= 60.0
        if cause in (d.Cause.TOO_LONG, d.Cause.QUEUE_FULL):
            assert isinstance(event, e.RequestArrived)
        elif cause in (d.Cause.ENGINE_FAILED, d.Cause.ENGINE_FULL):
            assert isinstance(event, e.EngineFull if cause is d.Cause.ENGINE_FULL else e.SendFailed)
            assert self.attempts[decision.request] == ATTEMPTS_MAX
        else:
            assert self.overloads[decision.tier] is Overload.REJECT

    def forget(self, id: int) -> None:
        self.held.discard(id)
        self.placed.pop(id, None)
        self.streaming.pop(id, None)
        self.attempts.pop(id, None)
        self.talked.discard(id)

    # -- what may happen -----------------------------------------------------------------------------------------------

    def change_fleet(self) -> None:
        self.send(e.FleetChanged(self.now, list(self.specs.values())))
        self.seen.update((id(instance), instance) for instance in self.core.instances.values())

    def set_instance(self, a: int, b: int) -> None:
        """One comes, or changes its tier or its state."""
        name = INSTANCES[a % 5]
        state = (e.InstanceState.READY, e.InstanceState.READY, e.InstanceState.DRAINING, e.InstanceState.STARTING)[
            b % 4
        ]
        epoch = self.specs[name].epoch if name in self.specs else b
        self.specs[name] = e.InstanceSpec(name, [*NAMES, None][b // 4 % 4], state, (None, 256)[b // 16 % 2], epoch)
        self.change_fleet()

    def restart(self, a: int, b: int) -> None:
        name = INSTANCES[a % 5]
        if name in self.specs:
            old = self.specs[name]
            self.failed.discard(name)
            self.specs[name] = e.InstanceSpec(name, old.tier, e.InstanceState.READY, old.batch_tokens, old.epoch + 1)
            self.change_fleet()

    def leave(self, a: int, b: int) -> None:
        """An instance is gone; what runs there ends later, or never reaches anybody."""
        self.specs.pop(INSTANCES[a % 5], None)
        self.failed.discard(INSTANCES[a % 5])
        self.change_fleet()

    def fail(self, a: int, b: int) -> None:
        name = INSTANCES[a % 5]
        if name in self.specs:
            self.failed.add(name)
        self.send(e.InstanceFailed(self.now, name))
        if b % 2:
            for id in [id for id, at in self.placed.items() if at == name]:
                self.break_off(id)

    def revive(self, a: int, b: int) -> None:
        name = INSTANCES[a % 5]
        self.failed.discard(name)
        self.send(e.InstanceRevived(self.now, name))

    def report(self, a: int, b: int) -> None:
        name = INSTANCES[a % 5]
        believed = self.core.instances.get(name)
        kv = (0, 500, 2_900, believed.bookings.kv_decode_tokens if believed else 0)[b // 16 % 4]
        size, total = ((None, None), (None, self.computed), (2_000, None), (4_000, a + b))[b // 64]
        self.send(e.InstanceReported(self.now, name, b % 4, b // 4 % 4, kv, size, total))

    def unreported(self, a: int, b: int) -> None:
        self.send(e.InstanceUnreported(self.now, INSTANCES[a % 5]))

    def unanswered(self, a: int, b: int) -> None:
        """Its engine gives no sign of life: it is tried once more, if it has a try left."""
        id = self.one_placed(a)
        if id is None or id in self.talked:
            return
        at = self.placed.pop(id)
        last = self.attempts[id] == ATTEMPTS_MAX
        if last:
            self.placed[id] = at
        made = self.send(e.Unanswered(self.now, id))
        assert [decision.request for decision in made] == ([] if last else [id])

    def arrive(self, a: int, b: int) -> None:
        id = self.arrivals
        self.arrivals += 1
        tier = [*NAMES, None][a % 4]
        own = a // 4 % 8
        self.streaming[id] = a >= 64
        event = e.RequestArrived(
            self.now,
            id,
            PROMPTS[b % 8],
            OUTPUTS[b // 8 % 6],
            tier,
            ttft_s=(0.001, 0.05, 5.0)[own] if own < 3 else None,
            tpot_s=(0.004, 0.02, 0.03, 0.3)[own - 2] if 2 <= own < 6 else None,
            streaming=self.streaming[id],
            **self.several(a, PROMPTS[b % 8]),
        )
        made = self.send(event)
        assert [decision.request for decision in made] == [id]

    def several(self, a: int, prompt_tokens: int) -> dict[str, object]:
        """Some requests have several sequences."""
        if a % 16 == 5:
            return {"choices": 3}
        if a % 16 == 6 and prompt_tokens >= 3:
            return {
                "prompts": (prompt_tokens // 3, prompt_tokens // 3, prompt_tokens - 2 * (prompt_tokens // 3)),
                "choices": 1 + a // 16 % 2,
            }
        return {}

    def one_placed(self, a: int) -> int | None:
        ids = [*self.placed]
        return ids[a % len(ids)] if ids else None

    def tokens(self, a: int, b: int) -> None:
        id = self.one_placed(a)
        if id is not None and self.streaming[id]:
            self.talked.add(id)
            self.send(e.TokensReceived(self.now, id, (1, 1, 1, 2, 7)[b % 5], b // 5 % 7))
            if b % 13 == 0:
                self.send(e.SequenceEnded(self.now, id, b // 5 % 7))

    def tokens_of_all(self, a: int, b: int) -> None:
        """An iteration ends."""
        for id in [*self.placed]:
            if id in self.placed and self.streaming[id]:
                self.talked.add(id)
                self.send(e.TokensReceived(self.now, id))

    def end(self, a: int, b: int) -> None:
        id = self.one_placed(a)
        if id is not None:
            tokens = 0 if self.streaming[id] else b
            self.over(id, (e.Outcome.COMPLETED, e.Outcome.COMPLETED, e.Outcome.ENGINE_FAILED)[b % 3], tokens)

    def client_gone(self, a: int, b: int) -> None:
        ids = [*sorted(self.held), *self.placed]
        if ids:
            self.over(ids[a % len(ids)], e.Outcome.CLIENT_GONE)

    def over(self, id: int, outcome: e.Outcome, tokens: int = 0) -> None:
        self.forget(id)
        self.send(e.RequestEnded(self.now, id, outcome, tokens))

    def send_failed(self, a: int, b: int) -> None:
        id = self.one_placed(a)
        if id is not None:
            self.break_off(id, (False, False, True)[b % 3])

    def break_off(self, id: int, full: bool = False) -> None:
        """Its connection broke, or its engine says that it is full: with nothing said yet it comes back, else it is over."""
        if id in self.talked:
            self.over(id, e.Outcome.ENGINE_FAILED)
            return
        del self.placed[id]
        last = self.attempts[id] == ATTEMPTS_MAX
        instance = self.core.places[id]
        made = self.send(e.EngineFull(self.now, id) if full else e.SendFailed(self.now, id))
        assert [decision.request for decision in made] == [id]
        cause = d.Cause.ENGINE_FULL if full else d.Cause.ENGINE_FAILED
        assert last == (isinstance(made[0], d.Refuse) and made[0].cause is cause)
        if isinstance(made[0], d.Place):
            assert self.core.instances[made[0].instance] is not instance, "sent to whom it failed on"

    def measured(self, a: int, b: int) -> None:
        id = self.one_placed(a)
        if id is not None:
            self.send(e.PromptMeasured(self.now, id, PROMPTS[b % 8]))

    def unknown(self, a: int, b: int) -> None:
        strange = 1_000_000 + a
        event = (
            e.TokensReceived(self.now, strange),
            e.RequestEnded(self.now, strange, e.Outcome.COMPLETED, 3),
            e.PromptMeasured(self.now, strange, 10),
            e.EngineFull(self.now, strange) if a % 2 else e.SendFailed(self.now, strange),
            e.InstanceReported(self.now, "nobody", 1, 1, 100),
            e.InstanceFailed(self.now, "nobody"),
            e.InstanceRevived(self.now, "nobody"),
            e.InstanceUnreported(self.now, "nobody"),
            e.Unanswered(self.now, strange),
        )[b % 9]
        assert self.send(event) == []

    def tick(self, a: int, b: int) -> None:
        """The clock that the core asked for, or one that it did not."""
        wake_at = self.core.wake_at
        if wake_at is not None and b % 4:
            self.now = max(self.now, wake_at)
        self.send(e.Tick(self.now))

    def status(self) -> CoreStatus:
        return self.core.status(self.now)

    def look(self, a: int, b: int) -> None:
        status = self.status()
        self.core.check()
        assert sum(tier.pending for tier in status.tiers) == len(self.held)
        assert sum(tier.in_flight for tier in status.tiers) == len(self.placed)
        assert {instance.id for instance in status.instances} == self.specs.keys()
        assert all(instance.kv_tokens >= 0 for instance in status.instances)
        assert all(tier.pending_oldest_s >= 0.0 for tier in status.tiers)

    # -- its end -------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """A healthy fleet comes, and everybody is served, refused, or has an answer already."""
        for index, name in enumerate([*self.specs] or ["a"]):
            epoch = self.specs[name].epoch if name in self.specs else 0
            self.specs[name] = e.InstanceSpec(name, [*NAMES, None][index % 4], e.InstanceState.READY, None, epoch)
        self.change_fleet()
        for name in self.specs:
            self.send(e.InstanceReported(self.now, name, 1_000, 0, 0))
            self.revive(INSTANCES.index(name), 0)
        for _ in range(400):
            if not self.core.requests:
                break
            for id in [*self.placed]:
                if self.streaming[id] and id not in self.talked:
                    self.talked.add(id)
                    self.send(e.TokensReceived(self.now, id))
                self.over(id, e.Outcome.COMPLETED, 0 if self.streaming[id] else 5)
            self.tick(0, 1)
        assert not self.core.requests, f"waiting for ever: {self.held}"
        self.send(e.Tick(self.now))
        assert self.core.wake_at is None
        assert [*self.core.pending] == []
        assert self.core.pending.first_lost() is None
        assert self.core.pending.last_call_at() is None
        for tier in self.core.status(self.now).tiers:
            assert (tier.pending, tier.in_flight) == (0, 0)
        for bookings in [instance.bookings for instance in self.seen.values()]:
            assert (bookings.requests, bookings.kv_reserved, bookings.kv_decode_tokens) == (0, 0, 0)
            assert not any(bookings.tier_counts)


CAN_HAPPEN = [
    *[Life.arrive] * 9,
    *[Life.tokens] * 3,
    *[Life.tokens_of_all] * 4,
    *[Life.end] * 3,
    *[Life.client_gone] * 2,
    *[Life.tick] * 4,
    *[Life.set_instance] * 2,
    *[Life.send_failed] * 2,
    *[Life.report] * 2,
    Life.unreported,
    Life.unanswered,
    Life.restart,
    Life.leave,
    Life.fail,
    Life.revive,
    Life.measured,
    Life.unknown,
    Life.look,
]


def live(config: CoreConfig, told: bytes, kind: Callable[[CoreConfig], Life] = Life) -> Life:
    """Plays a life: four bytes an event (what, when, and two that say which)."""
    life = kind(config)
    for index in range(1 + told[0] % 4):
        life.specs[INSTANCES[index]] = e.InstanceSpec(
            INSTANCES[index], [*NAMES, None][told[1] // 4**index % 4], e.InstanceState.READY
        )
    life.change_fleet()
    for at in range(2, len(told) - 3, 4):
        what, when, a, b = told[at : at + 4]
        life.now += GAPS_S[when % len(GAPS_S)]
        CAN_HAPPEN[what % len(CAN_HAPPEN)](life, a, b)
    return life


@pytest.mark.hypothesis
@pytest.mark.parametrize("scheduler", list(e.Scheduler))
@pytest.mark.parametrize("placement", list(Placement))
def test_whatever_happens_every_invariant_holds_and_nothing_is_left_behind(placement, scheduler):
    @settings(max_examples=SEQUENCES)
    @given(st.integers(0, 63), st.binary(min_size=2 + 4 * 20, max_size=2 + 4 * 45))
    def lives(shape: int, told: bytes) -> None:
        live(config_of(placement, scheduler, shape), told).finish()

    lives()


class Recorded(Life):
    """Writes a journal, from some event on."""

    def __init__(self, config: CoreConfig, begins: int = 0) -> None:
        super().__init__(config)
        self.journal: list[bytes] = []
        self.before = begins

    def record(self, line: bytes) -> None:
        if self.journal:
            self.journal.append(line)

    def begin(self) -> None:
        if not self.before:
            self.journal.append(header_line(self.core, 0.0, self.now))
        self.before -= 1

    def send(self, event: e.Event) -> list[d.Decision]:
        self.begin()
        made = super().send(event)
        self.record(event_line(event, made))
        return made

    def status(self) -> CoreStatus:
        self.record(status_line(self.now))
        return super().status()


@pytest.mark.hypothesis
@pytest.mark.skipif(build() == "compiled", reason="a core is made from its state in the pure build")
@pytest.mark.parametrize("placement", list(Placement))
def test_any_life_plays_again_from_its_journal_to_the_last_bit(placement):
    @settings(max_examples=300)
    @given(
        st.integers(0, 63),
        st.sampled_from(list(e.Scheduler)),
        st.binary(min_size=2 + 4 * 20, max_size=2 + 4 * 45),
        st.integers(0, 44),
    )
    def lives(shape: int, scheduler: e.Scheduler, told: bytes, begins: int) -> None:
        life = Recorded(config_of(placement, scheduler, shape), begins)
        live(life.config, told, lambda config: life)
        replay = Replay(life.journal or [header_line(life.core, 0.0, life.now)])

        assert {compared.verdict for compared in replay} <= {Verdict.SAME}
        replay.core.check()
        assert repr(replay.core.status(life.now)) == repr(life.core.status(life.now))

    lives()


@pytest.mark.hypothesis
@pytest.mark.parametrize("placement", list(Placement))
def test_an_idle_instance_more_never_turns_a_placement_into_a_refusal(placement):
    @settings(max_examples=300)
    @given(
        st.integers(0, 63),
        st.sampled_from(list(e.Scheduler)),
        st.binary(min_size=2 + 4 * 8, max_size=2 + 4 * 30),
        st.sampled_from(NAMES),
        st.sampled_from([*NAMES, None]),
        st.sampled_from(PROMPTS),
    )
    def idle(shape: int, scheduler: e.Scheduler, told: bytes, tier: str, home: str | None, prompt_tokens: int) -> None:
        config = config_of(placement, scheduler, shape)
        without, beside = live(config, told), live(config, told)
        beside.specs["idle"] = e.InstanceSpec("idle", home, e.InstanceState.READY)
        made = []
        for life in (without, beside):
            for id in [*life.held]:  # they would take the new one's room, and some of the others'
                life.over(id, e.Outcome.CLIENT_GONE)
            life.change_fleet()
            made += life.send(e.RequestArrived(life.now, life.arrivals, prompt_tokens, tier=tier))

        assert isinstance(made[1], d.Place) or not isinstance(made[0], d.Place), made

    idle()


NO_NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, 5e-324, 1e-300, 1e300, inf, -inf, nan, -1.0]))
NO_COUNTS = st.one_of(st.integers(), st.sampled_from([0, -1, 10**9, 10**12, 10**400]))


@settings(max_examples=100)
@given(st.sampled_from(list(e.Scheduler)), NO_NUMBERS, NO_NUMBERS, NO_COUNTS, NO_COUNTS, NO_COUNTS, st.booleans())
def test_figures_that_are_none_are_refused_whole_or_bounded(
    scheduler: e.Scheduler, ttft_s: float, tpot_s: float, prompt: int, measured: int, tokens: int, streaming: bool
) -> None:
    life = Life(config_of(Placement.PACK, scheduler, 63))
    life.specs["a"] = e.InstanceSpec("a", "tight", e.InstanceState.READY)
    life.change_fleet()
    core = life.core
    arrives = e.RequestArrived(life.now, 0, prompt, ttft_s=ttft_s, tpot_s=tpot_s, streaming=streaming)
    if -SLO_MAX_S <= ttft_s <= SLO_MAX_S and TPOT_MIN_S <= tpot_s <= SLO_MAX_S:
        core.handle(arrives)
    else:
        with pytest.raises(ValueError, match="must be from"):
            core.handle(arrives)
        assert not core.requests
    core.handle(e.RequestArrived(life.now, 1, 500, streaming=streaming))
    for id in (0, 1):
        core.handle(e.PromptMeasured(life.now, id, measured))
        core.handle(e.TokensReceived(life.now + 0.1, id, min(tokens, 10**12)))
        core.check()
        core.handle(e.RequestEnded(life.now + 0.2, id, e.Outcome.COMPLETED, min(max(tokens, 0), 10**12)))
    core.check()
    status = core.status(life.now + 1.0)
    for tier in status.tiers:
        assert all(map(isfinite, (tier.arrival_rate, tier.work_rate, tier.work_rate_trend)))
    for instance in status.instances:
        assert all(map(isfinite, (instance.load, instance.load_mean, instance.calibration)))
    made = core.handle(e.RequestArrived(life.now + 1.0, 2, 500))
    assert isinstance(made[0], d.Place), "an engine that tells nonsense closes no tier"
