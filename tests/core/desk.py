"""A scheduler on a desk: no model, its steps taken by hand.

Knows: how to ask, step and look. Does not know: what should come out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from legato.core.events import Event
from legato.core.plan import Plan, Slice, SliceResult
from legato.core.request import Request, SamplingParams
from legato.measure.step_time import Load
from legato.schedule.limits import Limits
from legato.schedule.scheduler import Scheduler

EOS = 99


class Rows:
    """A budget that asks `allow(rows planned so far)`."""

    def __init__(self, allow: Callable[[int], int]) -> None:
        self.allow = allow

    def begin(self, streams: Load) -> None:
        pass

    def rows(self, load: Load, start: int, most: int, logits: bool = False) -> int:
        return self.allow(load.rows)


def scheduler(
    num_pages: int = 100,
    page_size: int = 4,
    max_tokens: int = 16,
    max_seqs: int = 8,
    context_length: int = 200,
    use_cache: bool = True,
    **options: Any,
) -> Scheduler:
    limits = Limits(num_pages, page_size, max_tokens, max_seqs, context_length)
    return Scheduler(limits, eos_ids={EOS}, use_cache=use_cache, **options)


def ask(name: str, prompt: int | Sequence[int] = 3, **fields: object) -> Request:
    """A request of `prompt` tokens that nobody else has (or of these very tokens)."""
    own = 1000 * sum(map(ord, name))
    ids = tuple(range(own, own + prompt)) if isinstance(prompt, int) else tuple(prompt)
    own_fields = {key: fields.pop(key) for key in ("priority", "salt", "tenant", "deadline_ms") if key in fields}
    return Request(name, ids, SamplingParams(**fields), **own_fields)  # type: ignore[arg-type]


def land(sched: Scheduler, plan: Plan, tokens: Callable[[Slice], list[int]] = lambda piece: [7]) -> list[Event]:
    """Commits `plan` with `tokens` for each slice that reaches its sequence's end."""
    results = [SliceResult(tokens(s) if s.end == s.seq.num_tokens else []) for s in plan.slices]
    events = sched.commit(plan, results, 0.0)
    sched.check()
    return events


def step(sched: Scheduler, tokens: Callable[[Slice], list[int]] = lambda piece: [7]) -> tuple[Plan, list[Event]]:
    plan = sched.schedule(0.0)
    return plan, land(sched, plan, tokens)


def shape(plan: Plan) -> list[tuple[str, int, int, int]]:
    return [(s.seq.request.request_id, s.start, s.length, s.num_logits) for s in plan.slices]
