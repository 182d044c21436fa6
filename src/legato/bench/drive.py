"""Runs made-up requests straight through an engine, as fast as it goes.

Knows: requests of random tokens, steps and their seconds. Does not know: what is measured with them, text.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from legato.core.request import Request, SamplingParams
from legato.core.sequence import FinishReason
from legato.engine import Engine
from legato.errors import EngineError
from legato.measure.ledger import StepRecord


@dataclass(slots=True)
class Drive:
    """What came of some requests run together: a record and seconds a step, and each request's tokens by its id."""

    steps: list[StepRecord] = field(default_factory=list)
    token_ids: dict[str, list[int]] = field(default_factory=dict)
    cached_tokens: int = 0
    seconds: float = 0.0


class Requests:
    """Makes requests that share nothing with any before: fresh ids, fresh salts, random tokens from one seed."""

    def __init__(self, vocab_size: int, seed: int = 1) -> None:
        self._vocab_size = vocab_size
        self._random = random.Random(seed)
        self._numbers = itertools.count(1)

    def tokens(self, count: int) -> list[int]:
        return [self._random.randrange(self._vocab_size) for _ in range(count)]

    def make(self, prompt_ids: list[int], decode: int, salt: str | None = None) -> Request:
        """Exactly `decode` greedy tokens; without a salt nothing is shared with other requests."""
        name = f"bench-{next(self._numbers)}"
        params = SamplingParams(max_tokens=decode, ignore_eos=True)
        return Request(name, tuple(prompt_ids), params, salt=name if salt is None else salt)


def drive(
    engine: Engine,
    requests: list[Request],
    on_step: Callable[[StepRecord], None] | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> Drive:
    """Adds all requests, steps until they are done. Raises `EngineError` if one of them fails.

    enough  asked after each step; once it says so, what still runs is aborted
    """
    out = Drive(token_ids={request.request_id: [] for request in requests})
    started = time.perf_counter()
    try:
        for request in requests:
            engine.add(request)
        while engine.has_work and not enough():
            for event in engine.step():
                if event.finish_reason is FinishReason.ERROR:
                    raise EngineError(event.error or "a request failed")
                out.token_ids[event.request_id] += event.token_ids
                if event.usage is not None:
                    out.cached_tokens += event.usage.num_cached_tokens
            recent = engine.ledger.recent
            if recent and (not out.steps or recent[-1] is not out.steps[-1]):  # not a step that only told an end
                out.steps.append(recent[-1])
                if on_step is not None:
                    on_step(recent[-1])
        out.seconds = time.perf_counter() - started
    finally:
        if engine.has_work:
            for request in requests:
                engine.abort(request.request_id)
            engine.step()
    return out
