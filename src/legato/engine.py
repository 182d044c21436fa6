"""The loop: schedule, run, commit, propose; requests in, events out.

Knows: the order of the stages and what a fault in one of them means. Does not know: arrays, text, how a stage works.

An engine belongs to one thread. Whatever happens to a request, it gets exactly one finish event, and all events come
out of `step`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Set
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from legato.core.events import Event
from legato.core.plan import Plan, SliceResult
from legato.core.request import Request
from legato.core.sequence import FinishReason
from legato.errors import EngineError, LegatoError
from legato.measure.ledger import Ledger, StepRecord
from legato.measure.shares import Shares
from legato.measure.step_time import Load, StepCost, StepTimeModel
from legato.schedule.budget import Budget, Pace
from legato.schedule.cache_manager import KvReport
from legato.schedule.forecast import Forecast, Job
from legato.schedule.limits import Limits
from legato.schedule.scheduler import Scheduler, TenantReport
from legato.speculate.proposer import Proposer

log = logging.getLogger(__name__)

MOST_UNTOLD = 8  # steps of streams whose books are kept together: the first of them warms the caches for the others


class Runner(Protocol):
    """A model on a device, with its sampler: what turns a plan into tokens."""

    def run(self, plan: Plan) -> SequenceOf[SliceResult]:
        """One result a slice, in the plan's order. A fault of one sequence is its result's `error`, no exception."""

    def forget(self, seq_ids: Collection[int]) -> None:
        """These sequences have ended (some may never have run): drop what is kept for them."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts at this moment, and sums since the start.

    num_faults  steps that failed as a whole
    num_leaks   times the idle check found pages without an owner (a fault of ours; they were taken back)
    num_refused  requests turned away at the door: their deadline could not be met
    num_expired  answers ended by their deadline
    step_error   |measured - predicted| / predicted of steps, of late
    tenants      those with unfinished answers, by name
    total       the sum of all steps; total.predicted is what they were expected to take
    """

    num_waiting: int
    num_running: int
    kv: KvReport
    num_preemptions: int
    num_faults: int
    num_leaks: int
    num_refused: int
    num_expired: int
    step_error: float
    tenants: dict[str, TenantReport]
    total: StepRecord


class _Done(NamedTuple):
    """A step that is over and not in the books yet.

    interval  seconds since the end of the step before, or of this one if there was none; None: it teaches nothing
    """

    record: StepRecord
    plan: Plan
    results: SequenceOf[SliceResult]
    interval: float | None


class Engine:
    """Runs requests on `runner`. Raises `UsageError` for impossible sizes.

    eos_ids    tokens that end an answer
    use_cache  False: naive decoding, every token recomputes all before it
    clock      seconds, never going back
    itl_slo_ms   milliseconds between two tokens of a stream that prompts must leave be; None: see `schedule.budget`
    step_cost    what a step is expected to cost before any was measured
    budget       how many prompt rows a step may carry; None: by itl_slo_ms
    continuous   False: static batching, for comparison
    device_laps  see `Ledger`
    """

    def __init__(
        self,
        runner: Runner,
        *,
        num_pages: int,
        page_size: int,
        max_tokens: int,
        max_seqs: int,
        context_length: int,
        vocab_size: int,
        eos_ids: Set[int] = frozenset(),
        clock: Callable[[], float] = time.perf_counter,
        use_cache: bool = True,
        proposer: Proposer | None = None,
        itl_slo_ms: float | None = None,
        step_cost: StepCost | None = None,
        budget: Budget | None = None,
        continuous: bool = True,
        device_laps: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        limits = Limits(num_pages, page_size, max_tokens, max_seqs, context_length)
        self.model = StepTimeModel(step_cost)
        if budget is None:
            budget = Pace(self.model, None if itl_slo_ms is None else itl_slo_ms / 1000)
        self.scheduler = Scheduler(
            limits, eos_ids=eos_ids, use_cache=use_cache, budget=budget, model=self.model, continuous=continuous
        )
        self.in_flight: Plan | None = None  # what is being run; other threads may look at it
        self._ended: float | None = None  # when the last step ended, if there was more to do
        self._untold: list[_Done] = []
        self.ledger, self._shares = Ledger(clock, device_laps=device_laps), Shares()
        self._runner, self._clock, self._vocab_size = runner, clock, vocab_size
        self._proposer = proposer
        self._num_faults = self._num_leaks = self._faults_seen = 0

    @property
    def has_work(self) -> bool:
        """Whether `step` would do or tell anything."""
        return self.scheduler.has_work

    def add(self, request: Request) -> list[int]:
        """Queues a request; returns the seq_ids of its n answers.

        `RequestError` for ids outside the vocabulary or an id in flight, `CapacityError` if it can never fit,
        `OverloadedError` if the deadline cannot be met.
        """
        request.check_vocab(self._vocab_size)
        self._keep_books()
        return self.scheduler.add(request, self._clock())

    def abort(self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.ABORT) -> None:
        """Ends a request, or one of its answers, for `reason`. The event comes with the next step.

        Unknown ids are fine: the request may just have ended by itself.
        """
        self.scheduler.abort(request_id, self._clock(), index, reason)

    def estimate(
        self, num_prompt_tokens: int = 1, max_tokens: int = 1, *, priority: int = 0, tenant: str = ""
    ) -> Forecast:
        """How long a request of so many tokens would wait and run if it came now and nobody after it."""
        self._keep_books()
        return self.scheduler.forecast(Job(num_prompt_tokens, max_tokens), priority, tenant)

    def step(self) -> list[Event]:
        """One step of every sequence that has its turn, and all events since the last one."""
        with self.ledger.step() as lap:
            plan = self.scheduler.schedule(self._clock())
            lap("schedule")
            self.in_flight = plan
            results = self._run(plan)
            self.in_flight = None
            lap("run")
            events = self.scheduler.commit(plan, results, self._clock())
            lap("commit")
            if self._proposer is not None:
                self.scheduler.offer(self._propose(self._proposer))
            lap("propose")
            lap.count(plan, results)
        interval = self._interval(lap.record)
        if plan:
            self._untold.append(_Done(lap.record, plan, results, interval))
        ended = [event.seq_id for event in events if event.finish_reason is not None]
        if ended or len(self._untold) >= MOST_UNTOLD or not self._is_calm(lap.record):
            self._keep_books()
        if ended:
            self._settle(ended)
        return events

    def stats(self) -> EngineStats:
        self._keep_books()
        scheduler = self.scheduler
        return EngineStats(
            num_waiting=scheduler.num_waiting,
            num_running=scheduler.num_running,
            kv=scheduler.cache.report(),
            num_preemptions=scheduler.num_preemptions,
            num_faults=self._num_faults,
            num_leaks=self._num_leaks,
            num_refused=scheduler.door.num_refused,
            num_expired=scheduler.num_expired,
            step_error=self.model.error,
            tenants=scheduler.by_tenant(),
            total=self.ledger.total,
        )

    def _run(self, plan: Plan) -> SequenceOf[SliceResult]:
        """The runner's results; if it fails, an error for each sequence of this step and for no other."""
        if not plan:
            return []
        try:
            results = self._runner.run(plan)
            if len(results) != len(plan.slices):
                raise EngineError(f"the runner gave {len(results)} results for {len(plan.slices)} slices")
            return results
        except Exception as error:
            log.exception("a step of %d sequences failed", len(plan.slices))
            self._num_faults += 1
            # Only our own messages are meant for a caller's eyes; others may name addresses or paths.
            said = str(error) if isinstance(error, LegatoError) else type(error).__name__
            return [SliceResult(error=f"the step failed: {said}") for _ in plan.slices]
        except BaseException:
            self.scheduler.abandon(plan)
            raise

    def _interval(self, record: StepRecord) -> float | None:
        """What a stream has waited for this step; None if the step failed."""
        ended = record.started + record.seconds
        failed, self._faults_seen = self._num_faults != self._faults_seen, self._num_faults
        interval = None if failed else ended - (self._ended or record.started)
        self._ended = ended if self.scheduler.has_work else None
        return interval

    def _is_calm(self, record: StepRecord) -> bool:
        """Whether the next step decides nothing by what this one teaches, and preempts nobody: books can wait."""
        scheduler = self.scheduler
        return not record.prompt_tokens and scheduler.cache.num_available >= scheduler.num_running

    def _keep_books(self) -> None:
        """Tells sequences whose time the last steps were, and learns from them."""
        for record, plan, results, interval in self._untold:
            load = Load.of_record(record)
            record.predicted, record.foreseen = self.model.seconds(load), self.model.foreseen(load)
            self._shares.tell(record, plan, results, self.model.costs)
            if interval is not None:
                self.model.observe(load, record.seconds, interval)
        self._untold.clear()
        self.ledger.sum_up()

    def _propose(self, proposer: Proposer) -> dict[int, list[int]]:
        """Drafts for the next step; without them nothing is lost but time, so a faulty proposer costs no request."""
        ready = self.scheduler.ready
        try:
            return proposer.propose(ready) if ready else {}
        except Exception:
            log.exception("the proposer failed; this step goes on without drafts")
            return {}

    def _settle(self, ended: list[int]) -> None:
        """What has ended is forgotten everywhere; when nothing is left, every page must be free or cached."""
        self._runner.forget(ended)
        if not self.scheduler.has_work:
            kv = self.scheduler.cache.report()
            if kv.in_use:
                log.error("%d of %d pages have no owner while idle; the cache is reset", kv.in_use, kv.total)
                self._num_leaks += 1
                self.scheduler.cache.reset()
