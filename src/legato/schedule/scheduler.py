"""What the next step does, and what its results mean for every sequence.

Knows: sequences, pages, priorities, tenants, deadlines, a budget. Does not know: arrays, text; the time is handed in.

There are no phases. A sequence has `num_computed_tokens` and `num_tokens`; every step lets the first catch up with the
second. A step is filled in this order, under a budget of rows:

    1. running sequences with one certain token to go (streams), one row each; then their drafts
    2. running sequences with more to go (prompts, or coming back after preemption), in chunks, and waiting sequences
       if nobody had to be preempted: the lowest priority number first, then the tenant that was served least, then
       the earliest

Where sequences are
    parked  --leader has what they share-->  waiting  --admitted-->  running  --> finished
       ^-------somebody running computes its prefix--|  ^-----preempted-------|

Progress. The best running sequence always gets its page: others are preempted for it. A sequence preempted
MAX_PREEMPTIONS times is pinned: never a victim again, and admitted only when the pages of its whole life fit beside
those of all other pinned ones. So the number of preemptions is bounded, and every step without one makes progress.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from legato.core.events import Event, Usage
from legato.core.plan import Plan, Slice, SliceResult
from legato.core.request import Request
from legato.core.sequence import FinishReason, Sequence
from legato.errors import RequestError
from legato.measure.step_time import Load, StepTimeModel
from legato.schedule.accept import accept
from legato.schedule.budget import Budget, WholeSteps
from legato.schedule.cache_manager import CacheManager
from legato.schedule.door import Door
from legato.schedule.followers import Followers, leader_of, worth_waiting
from legato.schedule.forecast import Forecast, Job
from legato.schedule.limits import Limits
from legato.schedule.page_pool import pages_for
from legato.schedule.tenants import Tenants
from legato.schedule.waiting import WaitingQueue

MAX_PREEMPTIONS = 8

_Rank = tuple[int, int, int]


def _order(seq: Sequence) -> tuple[int, int]:
    return seq.request.priority, seq.seq_id


class _Draft:
    """A plan being written: at most one slice a sequence, the rows that are left, and, once it is weighed, its load."""

    __slots__ = ("left", "load", "slices")

    def __init__(self, max_tokens: int) -> None:
        self.slices: dict[int, Slice] = {}
        self.left = max_tokens
        self.load: Load | None = None

    def weigh(self) -> Load:
        """What is planned so far; kept up to date from here on."""
        self.load = Load()
        for piece in self.slices.values():
            self.load.add(piece)
        return self.load

    def add(self, seq: Sequence, length: int) -> None:
        """The next `length` rows of `seq`, instead of what was planned for it so far."""
        start = seq.num_computed_tokens
        end = start + length
        first = seq.first_logit_row
        piece = Slice(seq, start, length, 0 if end <= first else end - max(start, first))
        planned = self.slices.get(seq.seq_id)
        self.slices[seq.seq_id] = piece
        self.left += (planned.length if planned else 0) - length
        if self.load is not None:
            self.load.add(piece)

    def drop(self, seq: Sequence) -> None:
        piece = self.slices.pop(seq.seq_id, None)
        if piece is not None:
            self.left += piece.length
            if self.load is not None:
                self.load.add(piece, -1)


@dataclass(frozen=True, slots=True)
class TenantReport:
    """Sequences of one tenant, and the service it has received (prompt tokens count 1, answer tokens 2)."""

    num_waiting: int
    num_running: int
    service: int


class Scheduler:
    """`schedule`, run the plan, `commit`; between the two nothing may be scheduled, but anything added or aborted.

    use_cache=False   naive decoding: each token recomputes the whole sequence, nothing is shared
    budget            None: as much as the step has room for
    model             predicts steps, where deadlines and the queue's end ask for it
    continuous=False  static batching: those who wait when a batch begins run to their ends, and nobody joins them
    """

    def __init__(
        self,
        limits: Limits,
        *,
        eos_ids: Set[int] = frozenset(),
        use_cache: bool = True,
        budget: Budget | None = None,
        model: StepTimeModel | None = None,
        continuous: bool = True,
    ) -> None:
        self.limits, self.continuous = limits, continuous
        self.cache = CacheManager(limits.num_pages, limits.page_size, share=use_cache)
        self.num_preemptions = 0
        self._eos_ids, self._use_cache = frozenset(eos_ids), use_cache
        self._budget = budget if budget is not None else WholeSteps()
        self._model = model if model is not None else StepTimeModel()
        self.tenants = Tenants()
        self.followers = Followers(limits.page_size)
        self.door = Door(limits, self._model, self._budget)
        self.num_expired = 0
        self._next_id = self._seats = 0
        self._waiting = WaitingQueue(self.tenants)
        self._owed: dict[int, int] = {}  # prompt tokens that were promised and are not computed yet
        self._deadlines: list[tuple[float, int, Sequence]] = []
        self._running: dict[int, Sequence] = {}  # in the order of `_order`
        self._live: dict[str, list[Sequence]] = {}
        self._flying = Plan()
        self._landing: list[Sequence] = []
        self._outbox: list[Event] = []
        self._short: tuple[int, int] | None = None

    # -- what is here ---------------------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self.followers)

    @property
    def has_work(self) -> bool:
        """Whether a step would do or tell anything."""
        return bool(self._live or self._outbox)

    @property
    def ready(self) -> list[Sequence]:
        """Sequences that can take drafts: one certain token to go, and room for more than one answer token."""
        return [
            seq
            for seq in self._running.values()
            if seq.num_computed_tokens == len(seq.token_ids) - 1 and len(seq.token_ids) + 1 < seq.max_length
        ]

    @property
    def unstarted(self) -> list[str]:
        """Requests none of whose sequences has been admitted yet."""
        return [name for name, seqs in self._live.items() if not any("scheduled" in seq.marks for seq in seqs)]

    def by_tenant(self) -> dict[str, TenantReport]:
        """Everybody who has unfinished sequences."""
        running = Counter(seq.request.tenant for seq in self._running.values())
        live = Counter(seq.request.tenant for seqs in self._live.values() for seq in seqs)
        return {
            tenant: TenantReport(count - running[tenant], running[tenant], self.tenants.service(tenant))
            for tenant, count in live.items()
        }

    def check(self) -> None:
        """Raises `EngineError` unless every page is accounted for."""
        self.cache.check([*self._running.values(), *self._landing])

    # -- coming and going -----------------------------------------------------------------------------------------

    def add(self, request: Request, now: float) -> list[int]:
        """Queues the request's n answers; returns their seq_ids.

        `CapacityError` if it can never fit, `OverloadedError` if its deadline cannot be met.
        Answers after the first wait until the first has computed the prompt, and then find it in the cache; so does
        another request's answer that shares a prompt's beginning with one that is being computed, where it pays.
        """
        if request.request_id in self._live:
            raise RequestError("request_id", request.request_id, "an id that is not in flight", "use a fresh one")
        max_length = self.limits.max_length(request)
        self.door.check(request, max_length, self._running.values(), self._waiting, self.followers)
        seqs: list[Sequence] = []
        for index in range(request.params.n):
            seq = Sequence(self._next_id, request, index, max_length, marks={"arrived": now})
            seqs.append(seq)
            self._next_id += 1
            self.tenants.join(request.tenant)
            if request.deadline_ms is not None:
                heappush(self._deadlines, (now + request.deadline_ms / 1000, seq.seq_id, seq))
        self._live[request.request_id] = seqs.copy()
        self._waiting.add(seqs[0])
        shareable = (len(request.prompt_ids) - 1) // self.limits.page_size if self._use_cache else 0
        for seq in seqs[1:]:
            if shareable:
                self.followers.park(seq, seqs[0], shareable)
            else:
                self._waiting.add(seq)
        return [seq.seq_id for seq in seqs]

    def abort(
        self, request_id: str, now: float, index: int | None = None, reason: FinishReason = FinishReason.ABORT
    ) -> None:
        """Ends the request (or one of its answers) for `reason`; unknown ids are fine.

        Pages come free at once, or with the commit of the step in flight. The event comes with the next commit.
        """
        for seq in list(self._live.get(request_id, ())):
            if index is None or seq.index == index:
                self._finish(seq, Event(request_id, seq.seq_id, seq.index, finish_reason=reason), now)

    def forecast(self, job: Job, priority: int = 0, tenant: str = "") -> Forecast:
        """How long a request of so many tokens would wait and run if it came now and nobody after it."""
        return self.door.forecast(job, self._running.values(), self._waiting, self.followers, priority, tenant)

    def offer(self, drafts: Mapping[int, SequenceOf[int]]) -> None:
        """Pending guesses for sequences that are `ready`; too many are cut, unknown ones ignored."""
        for seq in self.ready if drafts else ():
            room = seq.max_length - len(seq.token_ids) - 1
            seq.draft_ids = list(drafts.get(seq.seq_id, ()))[:room]

    # -- one step -------------------------------------------------------------------------------------------------

    def schedule(self, now: float) -> Plan:
        """The next step. Never empty while anything runs or waits."""
        assert not self._flying, "commit or abandon the last plan first"
        self.cache.now = now
        self._expire(now)
        draft, preempted = _Draft(self.limits.max_tokens), self.num_preemptions
        order = tuple(self._running.values())
        for seq in order:
            if seq.num_computed_tokens == len(seq.token_ids) - 1 and seq.seq_id in self._running:
                self._plan_rows(draft, seq, 1)
        self._plan_drafts(draft)
        places = self.limits.max_running - len(self._running)
        if len(draft.slices) < len(self._running) or (places > 0 and self._waiting):
            self._budget.begin(draft.weigh())
            self._plan_prompts(draft, [seq for seq in order if seq.seq_id not in draft.slices], preempted, now)
        self._flying = Plan(tuple(draft.slices.values()))
        return self._flying

    def commit(self, plan: Plan, results: SequenceOf[SliceResult], now: float) -> list[Event]:
        """What the step brought (`results` aligned with `plan.slices`); returns all events since the last commit."""
        self._land(plan)
        for piece, result in zip(plan.slices, results, strict=True):
            if not piece.seq.finished:
                self._take_in(piece, result, now)
        self._expire(now)
        events, self._outbox = self._outbox, []
        return events

    def abandon(self, plan: Plan) -> None:
        """The step did not happen: its sequences stand where they stood."""
        self._land(plan)

    def _land(self, plan: Plan) -> None:
        """Nothing is in flight any more: what was aborted meanwhile gives its pages back."""
        assert plan is self._flying
        self._flying = Plan()
        for seq in self._landing:
            self.cache.release(seq)
        self._landing.clear()

    # -- filling a step -------------------------------------------------------------------------------------------

    def _plan_rows(self, draft: _Draft, seq: Sequence, length: int) -> None:
        """`length` rows of a running sequence, unless it has to give way for its own pages."""
        if length > 0 and self._make_room(draft, seq, seq.num_computed_tokens + length):
            draft.add(seq, length)

    def _plan_prompts(self, draft: _Draft, prompts: list[Sequence], preempted: int, now: float) -> None:
        """Rows of those with more than one to go, running or waiting, by rank; nobody enters after a preemption."""
        for seq in [*sorted(prompts, key=self._rank), None]:
            if self.num_preemptions == preempted:
                self._admit(draft, now, None if seq is None else self._rank(seq))
            if seq is not None and seq.seq_id in self._running:
                self._plan_rows(draft, seq, self._chunk(draft, seq))

    def _plan_drafts(self, draft: _Draft) -> None:
        """Guesses of the streams planned so far, as rows and pages allow; nobody waits or gives way for a guess."""
        spare = draft.left - (self.num_running - len(draft.slices))
        for seq in [piece.seq for piece in draft.slices.values() if piece.seq.draft_ids]:
            slots = (len(seq.pages) + self.cache.num_available) * self.limits.page_size
            del seq.draft_ids[max(0, min(spare, slots - len(seq.token_ids))) :]
            if seq.draft_ids:
                grown = self.cache.grow(seq, seq.num_tokens)
                assert grown
                draft.add(seq, 1 + len(seq.draft_ids))
                spare -= len(seq.draft_ids)

    def _rank(self, seq: Sequence) -> _Rank:
        """Who gets prompt rows first, running or waiting: the lower."""
        return seq.request.priority, self.tenants.service(seq.request.tenant), seq.seq_id

    def _chunk(self, draft: _Draft, seq: Sequence) -> int:
        """Rows that `seq` may have in this step; at least one when nothing else is planned."""
        start, most = seq.num_computed_tokens, min(draft.left, seq.num_tokens - seq.num_computed_tokens)
        assert draft.load is not None
        allowed = self._budget.rows(draft.load, start, most, seq.first_logit_row < len(seq.token_ids) - 1)
        if not draft.slices:
            allowed = max(1, allowed)
        return min(allowed, most)

    def _admit(self, draft: _Draft, now: float, before: _Rank | None = None) -> None:
        """Waiting sequences that rank `before`, in order, until one does not fit: nobody overtakes it."""
        if not self.continuous and not self._running:
            self._seats = min(len(self._waiting), self.limits.max_running)
        while self.num_running < self.limits.max_running and draft.left > 0:
            seq = self._waiting.head()
            if seq is None or not (self.continuous or self._seats):
                return
            if before is not None and self._rank(seq) > before:
                return
            leader = self._leader(draft, seq)
            if leader is not None:
                self._waiting.remove(seq)
                self.followers.park(seq, *leader)
                continue
            if self._chunk(draft, seq) < 1 or not self._fits(seq):
                return
            length = max(1, self._chunk(draft, seq))  # asked again: a matched prefix changes what a row costs
            self._seats -= not self.continuous
            self._waiting.remove(seq)
            self._enter(seq, now)
            grown = self.cache.grow(seq, seq.num_computed_tokens + length)
            assert grown
            draft.add(seq, length)

    def _leader(self, draft: _Draft, seq: Sequence) -> tuple[Sequence, int] | None:
        """Who is computing a prefix of `seq`, and how many pages of it `seq` had better wait for."""
        if not (self._use_cache and self.continuous):
            return None
        leader, pages = leader_of(seq, self._running.values(), self.limits.page_size)
        if leader is None:
            return None
        assert draft.load is not None
        pays = worth_waiting(self._model, draft.load, self.cache.found(seq), pages * self.limits.page_size)
        return (leader, pages) if pays else None

    def _enter(self, seq: Sequence, now: float) -> None:
        """Among the running ones, at its place; what it has still to compute of its prompt is promised."""
        last = next(reversed(self._running.values()), None)
        self._running[seq.seq_id] = seq
        if last is not None and _order(last) > _order(seq):
            self._running = {s.seq_id: s for s in sorted(self._running.values(), key=_order)}
        if seq.num_preemptions == 0:
            seq.num_cached_tokens, seq.miss = seq.num_computed_tokens, self.cache.explain(seq)
            seq.marks["scheduled"] = now
            self._owed[seq.seq_id] = owed = seq.num_prompt_tokens - seq.num_computed_tokens
            self.tenants.promise(seq.request.tenant, owed)

    def _fits(self, seq: Sequence) -> bool:
        """Maps the cached prefix of a waiting sequence if it can be admitted, else leaves it without pages.

        Room is kept for what the running ones have to compute already, and a page's worth of new tokens for each.
        """
        if self._is_pinned(seq):
            pinned = sum(self._lifetime(s) for s in self._running.values() if self._is_pinned(s))
            if pinned + self._lifetime(seq) > self.limits.num_pages:
                return False
        available = self.cache.num_available - sum(self._ahead(s) for s in self._running.values())
        if self._running and self._short is not None and self._short[0] == seq.seq_id and available < self._short[1]:
            return False
        before = self.cache.num_available
        self.cache.match(seq)
        needed = self._ahead(seq) + before - self.cache.num_available
        if needed <= available:
            self._short = None
            return True
        self.cache.release(seq)
        self._short = seq.seq_id, needed
        return False

    def _ahead(self, seq: Sequence) -> int:
        """Pages `seq` will want soon: for all it has to compute, and a page's worth of tokens after that."""
        soon = min(seq.num_tokens + self.limits.page_size, seq.max_length - 1)
        return max(0, pages_for(soon, self.limits.page_size) - len(seq.pages))

    def _lifetime(self, seq: Sequence) -> int:
        return self.limits.lifetime_pages(seq.max_length)

    # -- when pages run out ---------------------------------------------------------------------------------------

    def _is_pinned(self, seq: Sequence) -> bool:
        return seq.num_preemptions >= MAX_PREEMPTIONS

    def _make_room(self, draft: _Draft, seq: Sequence, num_tokens: int) -> bool:
        """Pages for `seq`, taken from others if need be; False if `seq` itself was the one to give way."""
        while not self.cache.grow(seq, num_tokens):
            victims = [s for s in self._running.values() if not self._is_pinned(s)]
            victim = max(victims, key=lambda s: (s.request.priority, -s.num_computed_tokens, s.seq_id))
            self._preempt(draft, victim)
            if victim is seq:
                return False
        return True

    def _preempt(self, draft: _Draft, seq: Sequence) -> None:
        """Back to the queue, at its old place. Its full pages stay cached for as long as nobody needs them."""
        draft.drop(seq)
        del self._running[seq.seq_id]
        self.cache.release(seq)
        seq.draft_ids.clear()
        seq.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting.add(seq)
        for follower in self.followers.let_go_strangers(seq):
            self._waiting.add(follower)
        self._seats += not self.continuous

    # -- after a step ---------------------------------------------------------------------------------------------

    def _take_in(self, piece: Slice, result: SliceResult, now: float) -> None:
        seq = piece.seq
        event = accept(piece, result, self._eos_ids)
        self.cache.commit(seq)
        if event.token_ids:
            seq.marks.setdefault("first_token", now)
            if not self._use_cache:
                seq.num_computed_tokens = 0
        if event.token_ids or seq.seq_id in self._owed:
            self._serve(seq, len(event.token_ids))
        self._let_go(seq)
        if event.finish_reason is not None:
            self._finish(seq, event, now)
        elif event.token_ids or event.prompt_logprobs:
            self._outbox.append(event)

    def _serve(self, seq: Sequence, answer_tokens: int) -> None:
        """Counts what a step brought `seq` for its tenant; each token of a prompt once, also if computed again."""
        computed, owed = 0, self._owed.get(seq.seq_id)
        if owed is not None:
            left = 0 if answer_tokens else max(0, seq.num_prompt_tokens - seq.num_computed_tokens)
            computed = max(0, owed - left)
            if left:
                self._owed[seq.seq_id] = owed - computed
            else:
                del self._owed[seq.seq_id]
        if computed or answer_tokens:
            self.tenants.serve(seq.request.tenant, computed, answer_tokens)

    def _expire(self, now: float) -> None:
        """Ends whoever is past its deadline, wherever it is, with what there is."""
        while self._deadlines and self._deadlines[0][0] <= now:
            seq = heappop(self._deadlines)[2]
            if not seq.finished:
                self.num_expired += 1
                end = Event(seq.request.request_id, seq.seq_id, seq.index, finish_reason=FinishReason.DEADLINE)
                self._finish(seq, end, now)

    def _finish(self, seq: Sequence, event: Event, now: float) -> None:
        """The one place where a sequence ends, wherever it is."""
        assert not seq.finished
        seq.finish_reason = event.finish_reason
        seq.marks["finished"] = now
        self._forget(seq)
        self.door.learn(seq)
        if any(piece.seq is seq for piece in self._flying.slices):
            self._landing.append(seq)
        else:
            self.cache.release(seq, keep=event.error is None)
        self._let_go(seq)
        event.usage = Usage(
            seq.num_prompt_tokens,
            seq.num_output_tokens,
            seq.num_cached_tokens,
            seq.num_preemptions,
            seq.marks,
            seq.miss,
            seq.account,
        )
        self._outbox.append(event)

    def _forget(self, seq: Sequence) -> None:
        """Takes `seq` off the list it is on, and off its request."""
        if self._running.pop(seq.seq_id, None) is None and not self._waiting.remove(seq):
            self.followers.remove(seq)
        self.tenants.promise(seq.request.tenant, -self._owed.pop(seq.seq_id, 0))
        self.tenants.leave(seq.request.tenant)
        live = self._live[seq.request.request_id]
        live.remove(seq)
        if not live:
            del self._live[seq.request.request_id]
        if (
            seq.request.deadline_ms is not None
            and len(self._deadlines) > 2 * (self.num_running + self.num_waiting) + 64
        ):
            self._deadlines = [entry for entry in self._deadlines if not entry[2].finished]
            heapify(self._deadlines)

    def _let_go(self, leader: Sequence) -> None:
        """Lets followers of `leader` queue once all that they could share is computed, or will not be."""
        for seq in self.followers.let_go(leader):
            self._waiting.add(seq)
