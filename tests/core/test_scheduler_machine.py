"""Any order of adding, scheduling, committing, abandoning, aborting, guessing and failing: the books always balance."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from page_echo import PageEcho, plain_answer

from legato.core.events import Event
from legato.core.plan import Plan, SliceResult
from legato.core.request import Request, SamplingParams
from legato.core.sequence import FinishReason
from legato.errors import OverloadedError
from legato.schedule.forecast import Job
from legato.schedule.limits import Limits
from legato.schedule.scheduler import Scheduler

VOCAB, CONTEXT = 5, 24
LIMITS = Limits(num_pages=13, page_size=2, max_tokens=6, max_seqs=4, context_length=CONTEXT)


class SchedulerAndCache(RuleBasedStateMachine):
    """Between `schedule` and `commit` a plan is in flight; everything but scheduling may happen then."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(LIMITS, eos_ids={VOCAB - 1})
        self.runner = PageEcho(LIMITS.num_pages, LIMITS.page_size, VOCAB, frozenset({VOCAB - 1}))
        self.plan: Plan | None = None
        self.requests: dict[str, Request] = {}
        self.told: dict[tuple[str, int], list[int]] = {}
        self.ends: dict[tuple[str, int], FinishReason] = {}
        self.now = 0.0

    def right(self, request: Request, index: int) -> tuple[list[int], FinishReason]:
        length = min(CONTEXT, len(request.prompt_ids) + (request.params.max_tokens or CONTEXT))
        ids, reason, _ = plain_answer(request, index, VOCAB, frozenset({VOCAB - 1}), length)
        return ids, reason

    def hear(self, events: list[Event]) -> None:
        for event in events:
            key = event.request_id, event.index
            assert key not in self.ends
            self.told.setdefault(key, []).extend(event.token_ids)
            if event.finish_reason is not None:
                self.ends[key] = event.finish_reason

    @rule(
        ids=st.lists(st.integers(0, 1), min_size=1, max_size=16),
        max_tokens=st.sampled_from([None, 1, 4, 9]),
        n=st.sampled_from([1, 1, 3]),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(["", "", "x"]),
        temperature=st.sampled_from([0.0, 1.0]),
        tenant=st.sampled_from(["", "", "a", "b"]),
        deadline_ms=st.sampled_from([None, None, None, 500.0, 4000.0]),
    )
    def add(
        self,
        ids: list[int],
        max_tokens: int | None,
        n: int,
        priority: int,
        salt: str,
        temperature: float,
        tenant: str,
        deadline_ms: float | None,
    ) -> None:
        params = SamplingParams(max_tokens=max_tokens, n=n, temperature=temperature)
        request = Request(f"r{len(self.requests)}", tuple(ids), params, priority, salt, tenant, deadline_ms)
        before = self.scheduler.num_running + self.scheduler.num_waiting
        try:
            assert len(self.scheduler.add(request, self.now)) == n
            self.requests[request.request_id] = request
        except OverloadedError as error:
            assert error.retry_after_s > 0
            assert deadline_ms is not None
            assert self.scheduler.num_running + self.scheduler.num_waiting == before

    @precondition(lambda self: self.plan is None)
    @rule()
    def schedule(self) -> None:
        self.now += 1.0
        self.plan = self.scheduler.schedule(self.now)
        running = self.scheduler.num_running + self.scheduler.num_waiting
        assert bool(self.plan) == bool(running), "an empty plan although somebody waits"
        assert self.plan.num_tokens <= LIMITS.max_tokens
        assert len({s.seq.seq_id for s in self.plan.slices}) == len(self.plan.slices) <= LIMITS.max_seqs

    @precondition(lambda self: self.plan is not None)
    @rule(failing=st.sampled_from([0, 0, 0, 1, 2]))
    def commit(self, failing: int) -> None:
        assert self.plan is not None
        results = self.runner.run(self.plan)
        results[:failing] = [SliceResult(error="on purpose") for _ in results[:failing]]
        self.hear(self.scheduler.commit(self.plan, results, self.now))
        self.plan = None

    @precondition(lambda self: self.plan is not None)
    @rule()
    def abandon(self) -> None:
        assert self.plan is not None
        self.scheduler.abandon(self.plan)
        self.plan = None

    @rule(seconds=st.floats(0.0, 5.0))
    def tick(self, seconds: float) -> None:
        self.now += seconds

    @rule(prompt=st.integers(1, 30), answer=st.integers(1, 30), priority=st.integers(-1, 1))
    def ask_how_long(self, prompt: int, answer: int, priority: int) -> None:
        said = self.scheduler.forecast(Job(prompt, answer), priority)
        assert said.queue_s >= 0 and said.prefill_s > 0 and said.decode_s >= 0

    @invariant()
    def promises_are_to_those_who_are_here(self) -> None:
        tenants, live = self.scheduler.tenants, [seq for seqs in self.scheduler._live.values() for seq in seqs]
        names = {seq.request.tenant for seq in live}
        assert len(tenants) == len(names)
        owed = sum(tenants.claimed(name) - tenants.service(name) for name in names)
        assert owed == sum(self.scheduler._owed.values())

    @precondition(lambda self: self.plan is None)
    @rule(right=st.booleans(), k=st.integers(1, 5))
    def guess(self, right: bool, k: int) -> None:
        drafts = {}
        for seq in self.scheduler.ready:
            ids = self.right(seq.request, seq.index)[0][seq.num_output_tokens :]
            drafts[seq.seq_id] = [t if right else (t + 1) % VOCAB for t in ids[:k]]
        self.scheduler.offer(drafts)

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 99), index=st.sampled_from([None, 0, 1, 2]))
    def abort(self, which: int, index: int | None) -> None:
        self.scheduler.abort(f"r{which % len(self.requests)}", self.now, index)

    @invariant()
    def every_page_is_accounted_for(self) -> None:
        self.scheduler.check()
        kv = self.scheduler.cache.report()
        assert kv.free + kv.cached + kv.in_use == kv.total == LIMITS.num_pages

    def teardown(self) -> None:
        """Whatever happened, the rest runs to its end, and every answer is right as far as it goes."""
        for _ in range(5000):
            if not self.scheduler.has_work:
                break
            if self.plan is None:
                self.schedule()
            self.commit(failing=0)
        assert not self.scheduler.has_work, "no end"
        assert self.scheduler.cache.report().in_use == 0
        wanted = {(r.request_id, i) for r in self.requests.values() for i in range(r.params.n)}
        assert self.ends.keys() == wanted
        for (request_id, index), reason in self.ends.items():
            ids, natural = self.right(self.requests[request_id], index)
            told = self.told[request_id, index]
            assert told == ids[: len(told)]
            if reason is FinishReason.DEADLINE:
                assert self.requests[request_id].deadline_ms is not None
                continue
            assert reason in (FinishReason.ABORT, FinishReason.ERROR) or (reason, told) == (natural, ids)


SchedulerAndCache.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True
)
TestSchedulerAndCache = SchedulerAndCache.TestCase
