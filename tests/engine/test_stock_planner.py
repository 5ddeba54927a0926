"""vLLM's own scheduling: decodes first, chunks within a static budget, FCFS or priority."""

from multislo_engine.planners import Decodes, EngineView, Fcfs, Job, Planner, Priority


def job(id: int, prompt: int = 100, **more: float) -> Job:
    settings = {"output_tokens": 50, "priority": 0, "arrived_s": float(id), "sequence": id, **more}
    made = Job(id=id, prompt_tokens=prompt, **settings)  # type: ignore[arg-type]
    if made.produced:
        made.context = made.prompt_tokens + made.produced - 1
        made.admitted = id
    return made


def view(planner: Planner, waiting: list[Job], **more: object) -> EngineView:
    settings: dict = {"batch_tokens": 256, "seqs_max": 64, "block_tokens": 16, "blocks_free": 1000, **more}
    settings["decodes"] = Decodes(16, settings.get("decodes", ()))
    made = EngineView(**settings)
    made.waiting = sorted(waiting, key=planner.order)
    return made


def chunks(planner: Planner, seen: EngineView) -> list[tuple[int, int]]:
    return [(job.id, tokens) for job, tokens in planner.plan(0.0, seen).chunks]


def test_decodes_come_first_and_the_prompt_gets_the_rest_of_the_budget() -> None:
    seen = view(Fcfs(), [job(9, prompt=1000)], decodes=[job(i, produced=5) for i in range(56)])
    plan = Fcfs().plan(0.0, seen)
    assert plan.decodes is None
    assert [(job.id, tokens) for job, tokens in plan.chunks] == [(9, 200)]


def test_a_prefill_under_way_is_continued_before_another_begins() -> None:
    begun = job(5, prompt=300, context=200, admitted=5)
    assert chunks(Fcfs(), view(Fcfs(), [job(1), job(2)], prefills=[begun])) == [(5, 100), (1, 100), (2, 56)]


def test_fcfs_admits_in_order_of_arrival_whatever_the_priority() -> None:
    seen = view(Fcfs(), [job(2, priority=-9), job(1, priority=9), job(3)], batch_tokens=150)
    assert chunks(Fcfs(), seen) == [(1, 100), (2, 50)]


def test_priority_admits_the_lowest_number_first_and_the_earlier_of_equals() -> None:
    seen = view(Priority(), [job(1, priority=5), job(2, priority=-1), job(3, priority=-1)], batch_tokens=250)
    assert chunks(Priority(), seen) == [(2, 100), (3, 100), (1, 50)]


def test_priority_does_not_overtake_a_prefill_under_way() -> None:
    begun = job(1, prompt=1000, context=256, admitted=1, priority=9)
    assert chunks(Priority(), view(Priority(), [job(2, priority=-9)], prefills=[begun])) == [(1, 256)]


def test_nobody_is_admitted_beyond_the_seats() -> None:
    seen = view(Fcfs(), [job(8, prompt=10), job(9, prompt=10)], decodes=[job(1, produced=1)], seqs_max=2)
    assert chunks(Fcfs(), seen) == [(8, 10)]


def test_a_prompt_is_admitted_only_if_all_of_it_fits_in_the_cache_and_nobody_passes_it() -> None:
    seen = view(Fcfs(), [job(1, prompt=400), job(2, prompt=16)], blocks_free=24)
    assert chunks(Fcfs(), seen) == []
    seen.blocks_free = 26
    assert chunks(Fcfs(), seen) == [(1, 256)]


def test_blocks_that_a_prefill_under_way_will_need_are_not_given_away() -> None:
    begun = job(1, prompt=640, context=160, blocks=10, admitted=1)
    seen = view(Fcfs(), [job(2, prompt=160)], prefills=[begun], blocks_free=39, batch_tokens=2048)
    assert chunks(Fcfs(), seen) == [(1, 480)]
    seen.blocks_free = 40
    assert chunks(Fcfs(), seen) == [(1, 480), (2, 160)]


def test_nobody_is_admitted_in_an_iteration_that_preempted() -> None:
    seen = view(Fcfs(), [job(2)], decodes=[job(1, produced=1)], admitting=False)
    assert chunks(Fcfs(), seen) == []


def test_more_decodes_than_budget_run_in_order_of_admission() -> None:
    seen = view(Fcfs(), [job(9)], decodes=[job(i, produced=1) for i in range(8)], batch_tokens=5)
    plan = Fcfs().plan(0.0, seen)
    assert [seen.decodes.jobs[slot].id for slot in plan.decodes] == [0, 1, 2, 3, 4]
    assert plan.chunks == []


def test_fcfs_takes_the_memory_of_the_last_admitted_and_priority_that_of_the_least_urgent() -> None:
    running = [job(1, produced=1, priority=7), job(2, produced=1), job(3, produced=1)]
    seen = view(Fcfs(), [], decodes=running)
    assert Fcfs().victim(seen).id == 3
    assert Priority().victim(seen).id == 1
