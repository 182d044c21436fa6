"""Random worlds: an engine with random sizes, random requests that come, share, guess, fail and leave at random.

Knows: seeds, and what must hold in every world. Does not know: how the scheduler decides.

`run_world(seed)` raises AssertionError (with the seed in it) unless every answer equals plain decoding, every page is
accounted for after every step and every sequence finishes exactly once.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from desk import Rows
from page_echo import PageEcho, plain_answer

from legato.core.events import Event
from legato.core.plan import Plan, TokenLogprobs
from legato.core.request import Request, SamplingParams
from legato.core.sequence import FinishReason, Sequence
from legato.engine import Engine
from legato.errors import CapacityError, OverloadedError
from legato.measure.step_time import StepCost

if TYPE_CHECKING:
    from legato.sessions import Sessions

MAX_STEPS = 20_000


@dataclass
class Told:
    """All that the events said of one sequence."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: list[FinishReason] = field(default_factory=list)


class Guesser:
    """Drafts from the right answer, each guess wrong with probability `wrong`."""

    def __init__(self, world: World, wrong: float, most: int) -> None:
        self.world, self.wrong, self.most = world, wrong, most

    def propose(self, seqs: SequenceOf[Sequence]) -> dict[int, list[int]]:
        rng, vocab, drafts = self.world.rng, self.world.vocab, {}
        for seq in seqs:
            right = self.world.expected(seq.request, seq.index)[0][seq.num_output_tokens :]
            right += [0] * self.most
            k = rng.randint(0, self.most)
            drafts[seq.seq_id] = [rng.randrange(vocab) if rng.random() < self.wrong else t for t in right[:k]]
        return drafts


class World:
    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        self.vocab = rng.choice([2, 3, 7, 60])
        self.eos = frozenset(rng.sample(range(self.vocab), rng.choice([0, 0, 1]))) if self.vocab > 2 else frozenset()
        self.page_size = rng.choice([1, 1, 1, 2, 2, 3, 4, 5, 8, 16, 33, 64])
        self.context = rng.choice([10, 20, 40, 64])
        self.num_pages = max(1, self.context // self.page_size + rng.choice([-2, 0, 0, 0, 1, 1, 3, 40]))
        self.max_tokens, self.max_seqs = rng.choice([1, 2, 3, 5, 9, 17, 64, 256]), rng.choice([1, 2, 4, 8, 16])
        self.use_cache = rng.random() < 0.9
        self.max_tokens = self.max_tokens if self.use_cache else max(5, self.max_tokens)  # or some take 100,000 steps
        wrong = rng.choice([0.0, 0.1, 0.5, 1.0])
        proposer = Guesser(self, wrong, rng.choice([1, 2, 4, 9])) if rng.random() < 0.4 else None
        budget = Rows(lambda planned: rng.randint(-1, 12)) if rng.random() < 0.3 else None
        self.runner = PageEcho(self.num_pages, self.page_size, self.vocab, self.eos)
        self.now = 0.0
        self.row_s = rng.choice([0.0, 0.0, 0.001])  # where rows take time, prompts wait for those that begin alike
        self.tick_s, self.rush = (1e-5, 0.97) if self.row_s else (1e-3, 0.3)
        law = StepCost(self.tick_s, 1e-3) if self.row_s else StepCost(rng.choice([1e-5, 1e-3, 6e-3]), 1e-4, 4e-4)
        self.engine = Engine(
            self.runner, num_pages=self.num_pages, page_size=self.page_size, max_tokens=self.max_tokens,
            max_seqs=self.max_seqs, context_length=self.context, vocab_size=self.vocab, eos_ids=self.eos,
            clock=self.clock, use_cache=self.use_cache, proposer=proposer, budget=budget,
            itl_slo_ms=rng.choice([None, None, 1, 8, 50]),
            continuous=rng.random() < 0.85, step_cost=law,
        )  # fmt: skip
        self.families = [self.some_ids(rng.randint(1, 30)) for _ in range(1 if self.row_s else rng.randint(1, 3))]
        self.abort_rate, self.fault_rate = rng.choice([0, 0, 0, 0.02, 0.2]), rng.choice([0, 0, 0, 0.005])
        self.to_come = rng.randint(1, 12)
        self.requests: dict[str, Request] = {}
        self.told: dict[tuple[str, int], Told] = {}
        self.disturbed: set[tuple[str, int]] = set()
        self.answers: dict[tuple[str, int], tuple[list[int], FinishReason, list[TokenLogprobs]]] = {}
        self.runner.during, self.runner.spoil = self.during, self.spoil
        self.num_raised = self.num_refused = self.num_loaded = self.num_forked = 0
        self.save_rate = rng.choice([0.0] * 6 + [0.1, 0.3]) if self.use_cache else 0.0
        self.saved: dict[str, tuple[list[int], str]] = {}
        self.names = map("s{}".format, itertools.count())
        self.mapped: dict[int, tuple[int, list[int]]] = {}  # of each sequence's last step: remaps and pages

    # -- what chance decides --------------------------------------------------------------------------------------

    def clock(self) -> float:
        self.now += self.tick_s
        return self.now

    def some_ids(self, count: int) -> list[int]:
        return [self.rng.randrange(self.vocab) for _ in range(count)]

    def spoil(self, seq: Sequence) -> bool:
        if self.rng.random() >= self.fault_rate:
            return False
        self.disturbed.add((seq.request.request_id, seq.index))
        return True

    def during(self, plan: Plan) -> None:
        """In the middle of a step, which takes its time: an abort may come, or the device may fail."""
        self.now += self.row_s * plan.num_tokens
        self.check_pages(plan)
        if self.rng.random() < self.abort_rate / 2:
            self.abort_one()
        if self.rng.random() < self.fault_rate:
            self.num_raised += 1
            self.disturbed |= {(piece.seq.request.request_id, piece.seq.index) for piece in plan.slices}
            raise RuntimeError("the device fails on purpose")

    def check_pages(self, plan: Plan) -> None:
        """Pages that are not said to be remapped are those of its last step, and perhaps more."""
        mapped = {piece.seq.seq_id: (piece.seq.num_remaps, list(piece.seq.pages)) for piece in plan.slices}
        for seq_id, (num_remaps, pages) in self.mapped.items():
            if seq_id in mapped and mapped[seq_id][0] == num_remaps:
                assert mapped[seq_id][1][: len(pages)] == pages
        self.mapped |= mapped

    def abort_one(self) -> None:
        if not self.requests:
            return
        request = self.rng.choice(list(self.requests.values()))
        index = self.rng.choice([None, self.rng.randrange(request.params.n)])
        self.disturbed |= {(request.request_id, i) for i in range(request.params.n) if index in (None, i)}
        self.engine.abort(request.request_id, index)

    def some_params(self) -> SamplingParams:
        rng = self.rng
        max_tokens = rng.choice([None, None, 1, 2, 5, 12, 30, 1000])
        few = min(max_tokens or 8, 8)
        stops = tuple(self.some_ids(1)) if self.vocab > 3 and rng.random() < 0.2 else ()
        return SamplingParams(
            temperature=rng.choice([0.0, 1.0]),
            seed=rng.choice([None, 7]),
            max_tokens=max_tokens,
            min_tokens=rng.choice([0, 0, rng.randint(0, few)]),
            stop_token_ids=stops,
            ignore_eos=rng.random() < 0.3,
            logprobs=rng.choice([None, 0, 2]),
            prompt_logprobs=rng.choice([None, None, None, 0]),
            n=rng.choice([1, 1, 1, 2, 4]),
        )

    def some_prompt(self) -> list[int]:
        """A family's beginning and a tail of its own, or a chat's next turn, or the same again."""
        rng = self.rng
        chat = [key for key, told in self.told.items() if told.finish]
        if chat and rng.random() < 0.4:
            request_id, index = rng.choice(chat)
            turn = [*self.requests[request_id].prompt_ids, *self.told[request_id, index].token_ids]
            return turn + self.some_ids(rng.randint(0, 5))
        family = rng.choice(self.families)
        if rng.random() < 0.5:
            family = family[: rng.randint(0, len(family))]
        return family + self.some_ids(rng.randint(0, 6))

    def use_sessions(self, sessions: Sessions) -> None:
        """Between two steps a finished answer is saved; or a saved one is copied, deleted, or taken up again."""
        rng = self.rng
        action = rng.choice(["save", "save", "restore", "restore", "restore", "fork", "delete"])
        ended = [key for key, told in self.told.items() if told.finish and told.token_ids]
        if action == "save" and ended:
            request_id, index = rng.choice(ended)
            request, name = self.requests[request_id], next(self.names)
            self.saved[name] = [*request.prompt_ids, *self.told[request_id, index].token_ids], request.salt
            sessions.save(name, self.saved[name][0], salt=request.salt)
        elif action != "save" and self.saved:
            name = rng.choice(sorted(self.saved))
            if action == "restore":
                restored = sessions.restore(name)
                assert (restored.token_ids, restored.salt) == self.saved[name]
                self.num_loaded += restored.loaded_tokens > 0
            elif action == "fork":
                copy = next(self.names)
                sessions.fork(name, copy)
                self.saved[copy] = self.saved[name]
                self.num_forked += 1
            else:
                sessions.delete(name)
                del self.saved[name]
        self.engine.scheduler.check()

    # -- what must be so ------------------------------------------------------------------------------------------

    def max_length(self, request: Request) -> int | None:
        """The longest an answer may get, or None when the request can never fit."""
        prompt, most = len(request.prompt_ids), request.params.max_tokens
        slots = self.num_pages * self.page_size
        if prompt >= self.context or prompt > slots:
            return None
        if most is None:
            return min(self.context, slots + 1)
        length = min(self.context, prompt + most)
        return length if length - 1 <= slots else None

    def expected(self, request: Request, index: int) -> tuple[list[int], FinishReason, list[TokenLogprobs]]:
        key = request.request_id, index
        if key not in self.answers:
            length = self.max_length(request)
            assert length is not None
            self.answers[key] = plain_answer(request, index, self.vocab, self.eos, length)
        return self.answers[key]

    def add_one(self) -> None:
        rng, request_id = self.rng, f"r{self.to_come}"
        self.to_come -= 1
        prompt = tuple(self.some_prompt() or [0])
        priority, salt = rng.choice([0, 0, 0, -1, 2]), rng.choice(["", "", "b"])
        tenant, deadline_ms = rng.choice(["", "", "a", "b"]), rng.choice([None] * 9 + [3, 30, 300])
        request = Request(request_id, prompt, self.some_params(), priority, salt, tenant, deadline_ms)
        fits = self.max_length(request) is not None
        try:
            self.engine.add(request)
            assert fits, f"{request} should have been refused"
            self.requests[request_id] = request
            self.told |= {(request_id, index): Told() for index in range(request.params.n)}
        except CapacityError as error:
            assert not fits, error
            assert str(error.needed) in str(error) and str(error.available) in str(error)
        except OverloadedError as error:
            assert fits and deadline_ms is not None and 0 < error.retry_after_s < 1e6
            self.num_refused += 1

    def hear(self, event: Event) -> None:
        told = self.told[event.request_id, event.index]
        assert not told.finish, "an event after the end"
        told.token_ids += event.token_ids
        told.logprobs += event.logprobs or []
        told.prompt_logprobs += event.prompt_logprobs or []
        if event.finish_reason is not None:
            told.finish.append(event.finish_reason)
            assert event.usage is not None and event.usage.num_output_tokens == len(told.token_ids)
            assert event.usage.num_preemptions <= 8
            assert (event.error is not None) == (event.finish_reason is FinishReason.ERROR)
            assert event.stop_token_id == (told.token_ids[-1] if event.finish_reason is FinishReason.STOP else None)

    def check_step(self, rows_before: int) -> None:
        engine, runner = self.engine, self.runner
        engine.scheduler.check()
        kv = engine.stats().kv
        assert kv.free + kv.cached + kv.in_use == kv.total == self.num_pages
        assert runner.num_rows - rows_before <= self.max_tokens, "more rows than a step may carry"
        scheduler, longest = engine.scheduler, self.row_s * self.max_tokens
        for request_id, seqs in scheduler._live.items():
            deadline_ms = self.requests[request_id].deadline_ms
            arrived = seqs[0].marks["arrived"]
            assert deadline_ms is None or self.now - arrived < deadline_ms / 1000 + 0.02 + longest, "past its deadline"
        report = scheduler.by_tenant()
        assert sum(r.num_running for r in report.values()) == scheduler.num_running
        assert sum(r.num_waiting for r in report.values()) == scheduler.num_waiting
        owed = {seq.seq_id for seqs in scheduler._live.values() for seq in seqs} & scheduler._owed.keys()
        assert owed == scheduler._owed.keys(), "a promise to one who has left"
        promised = sum(scheduler.tenants.claimed(t) - scheduler.tenants.service(t) for t in report)
        assert promised == sum(scheduler._owed.values()) and len(scheduler.tenants) == len(report)

    def next_deadline(self) -> float:
        return min((when for when, _, seq in self.engine.scheduler._deadlines if not seq.finished), default=1e18)

    def check_answers(self) -> None:
        for (request_id, index), told in self.told.items():
            request = self.requests[request_id]
            ids, reason, prompt = self.expected(request, index)
            assert len(told.finish) == 1, f"{request_id}/{index} finished {len(told.finish)} times"
            if (request_id, index) in self.disturbed and told.finish != [reason]:
                assert told.finish[0] in (FinishReason.ABORT, FinishReason.ERROR, FinishReason.DEADLINE)
                assert told.token_ids == ids[: len(told.token_ids)]
                continue
            if told.finish == [FinishReason.DEADLINE]:
                assert request.deadline_ms is not None and told.token_ids == ids[: len(told.token_ids)]
                continue
            assert (told.token_ids, told.finish) == (ids, [reason]), f"{request_id}/{index}: {request}"
            if request.params.logprobs is not None:
                assert [item.token_id for item in told.logprobs] == ids
            if request.params.prompt_logprobs is not None and index == 0:
                assert told.prompt_logprobs == prompt

    def run(self) -> None:
        if not self.save_rate:
            return self.go()
        from echo_sessions import echo_sessions  # it needs arrays and files, which most worlds do without

        with tempfile.TemporaryDirectory() as folder:
            sessions = echo_sessions(Path(folder), self.runner, self.engine.scheduler.cache)
            self.go(sessions)
            sessions.close()

    def go(self, sessions: Sessions | None = None) -> None:
        rng = self.rng
        for _ in range(MAX_STEPS):
            while self.to_come and rng.random() < self.rush:
                self.add_one()
            if rng.random() < self.abort_rate / 2:
                self.abort_one()
            if sessions is not None and rng.random() < self.save_rate:
                self.use_sessions(sessions)
            if not self.engine.has_work and not self.to_come:
                break
            late = self.next_deadline()
            busy = self.engine.scheduler.num_running + self.engine.scheduler.num_waiting
            rows = self.runner.num_rows
            for event in self.engine.step():
                self.hear(event)
            moved = self.runner.num_rows > rows or late <= self.now
            assert moved or not busy, "a step without progress"
            self.check_step(rows)
        else:
            raise AssertionError("the world does not end")
        self.check_answers()
        stats = self.engine.stats()
        assert stats.kv.in_use == 0 and stats.num_leaks == 0 and stats.num_faults == self.num_raised
        assert not self.runner.known, "the runner was not told to forget"


def run_world(seed: int) -> World:
    world = World(seed)
    try:
        world.run()
    except Exception as error:
        raise AssertionError(f"world {seed}: {type(error).__name__}: {error}") from error
    return world
