"""One request in flight: events come in, text and tokens come out.

Knows: events, incremental text, stop strings, when to ask for an abort. Does not know: the engine's loop, devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from legato.completion import CacheMiss, Completion, Delta, Output, Receipt, Timings
from legato.core.events import Event, Usage
from legato.core.miss import Miss, MissCause
from legato.core.plan import TokenLogprobs
from legato.core.request import Request
from legato.core.sequence import FinishReason
from legato.measure.visit import Visit
from legato.text.stream import TextStream
from legato.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from legato.measure.energy import Bill, Rates

_TOKENS_BEFORE = 8  # shown before the place where a prompt missed the cache


@dataclass(slots=True)
class _Track:
    """One of the request's n answers."""

    stream: TextStream
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    usage: Usage | None = None


class Answer:
    """Takes the events of one request; `deltas` collects what has not been fetched yet.

    stop_index  called with an answer's index when a stop string ended it, so that the engine computes no more of it
    visit       what was done to the request before
    """

    def __init__(
        self,
        request: Request,
        new_stream: Callable[[], TextStream],
        stop_index: Callable[[int], None],
        visit: Visit | None = None,
    ) -> None:
        params = request.params
        self.request = request
        self.visit = visit if visit is not None else Visit()
        self.deltas: list[Delta] = []
        self.prompt_logprobs: list[TokenLogprobs] | None = [] if params.prompt_logprobs is not None else None
        self.tokenizer: Tokenizer | None = None  # whose words say where the prompt missed the cache
        self.tells_miss = True
        self._stop_index = stop_index
        self._tracks = [_Track(new_stream()) for _ in range(params.n)]
        if params.logprobs is not None:
            for track in self._tracks:
                track.logprobs = []

    @property
    def finished(self) -> bool:
        """Whether the engine has told the end of every answer."""
        return all(track.usage is not None for track in self._tracks)

    @property
    def started(self) -> bool:
        return any(track.token_ids for track in self._tracks)

    def feed(self, event: Event) -> None:
        """Takes one event in. After a stop string only the engine's word on the end still counts."""
        began = self.visit.clock()
        track = self._tracks[event.index]
        if event.prompt_logprobs and self.prompt_logprobs is not None:
            self.prompt_logprobs.extend(event.prompt_logprobs)
        known = track.finish_reason is not None
        if not known:
            self._extend(track, event)
        if event.finish_reason is not None:
            track.usage = event.usage or Usage(len(self.request.prompt_ids), len(track.token_ids), 0, 0, {})
        now = self.visit.clock()
        self.visit.text += now - began
        if not known:
            self.visit.ended = now

    def _extend(self, track: _Track, event: Event) -> None:
        ids = event.token_ids
        before = len(track.token_ids)
        piece = track.stream.push(ids[:-1] if event.stop_token_id is not None else ids)
        text, stop = piece.text, piece.stop
        if stop is None and event.finish_reason is not None:
            last = track.stream.finish()
            text, stop = text + last.text, last.stop
        if stop is not None:
            ids = ids[: piece.tokens_used - before]
            track.finish_reason, track.stop_reason = FinishReason.STOP, stop
            if event.finish_reason is None:
                self._stop_index(event.index)
        elif event.finish_reason is not None:
            track.finish_reason, track.error = event.finish_reason, event.error
            if event.stop_token_id in self.request.params.stop_token_ids:
                track.stop_reason = event.stop_token_id
        track.token_ids += ids
        track.text += text
        logprobs = None
        if event.logprobs and track.logprobs is not None:
            logprobs = event.logprobs[: len(ids)]
            track.logprobs += logprobs
        if text or ids or track.finish_reason is not None:
            stop_reason, error = track.stop_reason, track.error
            end = track.finish_reason
            self.deltas.append(Delta(text, ids, event.index, end, stop_reason, logprobs, error, event.at))

    def take(self) -> list[Delta]:
        """The deltas since the last call."""
        taken, self.deltas = self.deltas, []
        return taken

    def completion(self, receipt: Receipt, rates: Rates | None = None) -> Completion:
        """What there is so far; complete once `finished`. `rates` make its bill."""
        outputs = [
            Output(i, t.text, t.token_ids, t.finish_reason, t.stop_reason, t.logprobs, t.error)
            for i, t in enumerate(self._tracks)
        ]
        request = self.request
        return Completion(
            list(request.prompt_ids),
            outputs,
            self._timings(),
            receipt,
            self.prompt_logprobs,
            request.params,
            self._miss(),
            self._last_usage(),
            self.visit,
            None if rates is None else self._bill(rates),
        )

    def _bill(self, rates: Rates) -> Bill | None:
        """Of all answers together; None while none has ended."""
        usages = [track.usage for track in self._tracks if track.usage is not None]
        lives = [(u.marks["arrived"], u.marks["finished"]) for u in usages if {"arrived", "finished"} <= u.marks.keys()]
        if not lives:
            return None
        rates.mark()
        begin, end = min(begin for begin, _ in lives), max(end for _, end in lives)
        return rates.bill(sum(usage.account.share for usage in usages), begin, end)

    def _last_usage(self) -> Usage | None:
        """Of the answer that ended last: the request took as long as that one."""
        usages = [track.usage for track in self._tracks if track.usage is not None]
        return max(usages, key=lambda usage: usage.marks.get("finished", 0.0), default=None)

    def _miss(self) -> CacheMiss | None:
        usage = self._tracks[0].usage
        if usage is None or usage.miss is None or not self.tells_miss:
            return None
        return described_miss(usage.miss, self.request.prompt_ids, usage.marks.get("scheduled"), self.tokenizer)

    def _timings(self) -> Timings:
        """Of all answers together: the earliest beginning, the latest end."""
        usages = [track.usage for track in self._tracks if track.usage is not None]
        marks = [usage.marks for usage in usages]
        first = usages[0] if usages else None
        if first is None or "arrived" not in first.marks:
            return Timings()
        cached = first.num_cached_tokens
        return Timings.between(
            arrived=first.marks["arrived"],
            scheduled=min((m["scheduled"] for m in marks if "scheduled" in m), default=None),
            first_token=min((m["first_token"] for m in marks if "first_token" in m), default=None),
            finished=max((m["finished"] for m in marks if "first_token" in m), default=None),
            computed=len(self.request.prompt_ids) - cached,
            cached=cached,
            decoded=sum(max(0, len(track.token_ids) - 1) for track in self._tracks),
        )


def described_miss(miss: Miss, prompt_ids: Sequence[int], now: float | None, tokenizer: Tokenizer | None) -> CacheMiss:
    """`miss` for a person: its tokens as text, its moment as seconds before `now`."""

    def text(token_id: int | None) -> str:
        return "" if tokenizer is None or token_id is None else tokenizer.token_text(token_id)

    def special(token_id: int | None) -> bool:
        return tokenizer is not None and token_id is not None and tokenizer.is_special(token_id)

    cause = miss.cause
    if cause is MissCause.TEXT and (special(miss.token_id) or special(miss.other_id)):
        cause = MissCause.TEMPLATE
    before = prompt_ids[max(0, miss.index - _TOKENS_BEFORE) : miss.index]
    return CacheMiss(
        cause=cause,
        matched_tokens=miss.matched,
        index=miss.index,
        before="" if tokenizer is None else tokenizer.decode(before, skip_special=False, continues=True),
        text=text(miss.token_id),
        other_text=text(miss.other_id),
        evicted_s=None if miss.evicted_at is None or now is None else now - miss.evicted_at,
        evicted_by=miss.evicted_by,
    )
