"""The loop: schedule, run, commit, propose; requests in, events out.

Knows: the order of the stages and what a fault in one of them means. Does not know: arrays, text, how a stage works.

An engine belongs to one thread. Whatever happens to a request, it gets exactly one finish event, and all events come
out of `step`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Set
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol

from legato.core.events import Event
from legato.core.plan import Plan, SliceResult
from legato.core.request import Request
from legato.core.sequence import FinishReason
from legato.errors import EngineError, LegatoError
from legato.measure.ledger import Ledger, StepRecord
from legato.schedule.cache_manager import KvReport
from legato.schedule.limits import Limits
from legato.schedule.scheduler import Budget, Scheduler
from legato.speculate.proposer import NoProposer, Proposer

log = logging.getLogger(__name__)


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
    total       the sum of all steps
    """

    num_waiting: int
    num_running: int
    kv: KvReport
    num_preemptions: int
    num_faults: int
    num_leaks: int
    total: StepRecord


class Engine:
    """Runs requests on `runner`. Raises `UsageError` for impossible sizes.

    eos_ids    tokens that end an answer
    use_cache  False: naive decoding, every token recomputes all before it
    clock      seconds, never going back
    budget     how many prompt rows a step may carry; None: as many as fit in max_tokens
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
        budget: Budget | None = None,
    ) -> None:
        limits = Limits(num_pages, page_size, max_tokens, max_seqs, context_length)
        self.scheduler = Scheduler(limits, eos_ids=eos_ids, use_cache=use_cache, budget=budget)
        self.ledger = Ledger(clock)
        self._runner, self._clock, self._vocab_size = runner, clock, vocab_size
        self._proposer = proposer if proposer is not None else NoProposer()
        self._num_faults = self._num_leaks = 0

    @property
    def has_work(self) -> bool:
        """Whether `step` would do or tell anything."""
        return self.scheduler.has_work

    def add(self, request: Request) -> list[int]:
        """Queues a request; returns the seq_ids of its n answers.

        `RequestError` for ids outside the vocabulary or an id in flight, `CapacityError` if it can never fit.
        """
        request.check_vocab(self._vocab_size)
        return self.scheduler.add(request, self._clock())

    def abort(self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.ABORT) -> None:
        """Ends a request, or one of its answers, for `reason`. The event comes with the next step.

        Unknown ids are fine: the request may just have ended by itself.
        """
        self.scheduler.abort(request_id, self._clock(), index, reason)

    def step(self) -> list[Event]:
        """One step of every sequence that has its turn, and all events since the last one."""
        with self.ledger.step() as lap:
            plan = self.scheduler.schedule(self._clock())
            lap("schedule")
            results = self._run(plan)
            lap("run")
            events = self.scheduler.commit(plan, results, self._clock())
            lap("commit")
            self.scheduler.offer(self._propose())
            lap("propose")
            lap.count(plan, results)
        self._settle(events)
        return events

    def stats(self) -> EngineStats:
        scheduler = self.scheduler
        return EngineStats(
            num_waiting=scheduler.num_waiting,
            num_running=scheduler.num_running,
            kv=scheduler.cache.report(),
            num_preemptions=scheduler.num_preemptions,
            num_faults=self._num_faults,
            num_leaks=self._num_leaks,
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

    def _propose(self) -> dict[int, list[int]]:
        """Drafts for the next step; without them nothing is lost but time, so a faulty proposer costs no request."""
        ready = self.scheduler.ready
        try:
            return self._proposer.propose(ready) if ready else {}
        except Exception:
            log.exception("the proposer failed; this step goes on without drafts")
            return {}

    def _settle(self, events: list[Event]) -> None:
        """What has ended is forgotten everywhere; when nothing is left, every page must be free or cached."""
        ended = [event.seq_id for event in events if event.finish_reason is not None]
        if ended:
            self._runner.forget(ended)
        if ended and not self.scheduler.has_work:
            kv = self.scheduler.cache.report()
            if kv.in_use:
                log.error("%d of %d pages have no owner while idle; the cache is reset", kv.in_use, kv.total)
                self._num_leaks += 1
                self.scheduler.cache.reset()
