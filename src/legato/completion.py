"""What an answer is: text, tokens, why it ended, how long it took, and a receipt to make it again.

Knows: the fields that callers and `--json` read. Does not know: how answers come about.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from legato.core.events import Usage
from legato.core.miss import MissCause
from legato.core.plan import TokenLogprobs
from legato.core.request import SamplingParams
from legato.core.sequence import FinishReason
from legato.errors import UsageError

if TYPE_CHECKING:
    from legato.measure.case import Setting
    from legato.measure.energy import Bill
    from legato.measure.explain import Explanation
    from legato.measure.visit import Visit


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of one request. Rates are 0 where there was nothing to measure (no second token, all cached).

    queue_ms      from arrival until first scheduled
    prefill_ms    from first scheduled until the first token
    ttft_ms       from arrival until the first token: queue + prefill
    decode_ms     from the first token until the last
    decode_tok_s  tokens after the first, of all its answers, over decode_ms
    prompt_tok_s  prompt tokens really computed over prefill_ms
    cached_tokens prompt tokens found in the cache
    """

    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    ttft_ms: float = 0.0
    decode_ms: float = 0.0
    decode_tok_s: float = 0.0
    prompt_tok_s: float = 0.0
    cached_tokens: int = 0

    @classmethod
    def between(
        cls,
        *,
        arrived: float,
        scheduled: float | None,
        first_token: float | None,
        finished: float | None,
        computed: int,
        cached: int,
        decoded: int,
    ) -> Timings:
        """From clock readings in seconds (None: never reached) and counts of tokens."""
        begun = arrived if scheduled is None else scheduled
        first = begun if first_token is None else first_token
        prefill_s = first - begun
        decode_s = 0.0 if finished is None else finished - first
        return cls(
            queue_ms=1e3 * (begun - arrived),
            prefill_ms=1e3 * prefill_s,
            ttft_ms=1e3 * (first - arrived),
            decode_ms=1e3 * decode_s,
            decode_tok_s=decoded / decode_s if decoded and decode_s > 0 else 0.0,
            prompt_tok_s=computed / prefill_s if computed and prefill_s > 0 else 0.0,
            cached_tokens=cached,
        )


@dataclass(frozen=True, slots=True)
class Receipt:
    """What fixes an answer, with its prompt and sampling parameters: the same give the same tokens.

    digest   of the model's files
    weights  the setting that may make other weights while loading
    context  positions of the engine; the scaling of rope may depend on it. 0: not told
    """

    model: str
    isa: str
    threads: int
    kv: str
    seed: int
    digest: str
    weights: str = "auto"
    context: int = 0


@dataclass(frozen=True, slots=True)
class CacheMiss:
    """Why no longer part of the prompt was found in the cache; see `core.miss.Miss`.

    index      the first prompt token that differs from everything known; `before` is the text just before it
    text       the prompt's token there, and `other_text` that of the nearest known text; "" where there is none
    evicted_s  seconds between the eviction and this request's turn, and the request it made room for
    """

    cause: MissCause
    matched_tokens: int
    index: int
    before: str = ""
    text: str = ""
    other_text: str = ""
    evicted_s: float | None = None
    evicted_by: str | None = None

    @property
    def sentence(self) -> str:
        """For a person: `the text differs from token 41 on: "...capital of" goes on with " Spain", not " France"`."""
        here, there = json.dumps(self.text, ensure_ascii=False), json.dumps(self.other_text, ensure_ascii=False)
        place = f"{json.dumps('...' + self.before, ensure_ascii=False)} goes on with {here}, not {there}"
        match self.cause:
            case MissCause.TEXT:
                return f"the text differs from token {self.index} on: {place}"
            case MissCause.TEMPLATE:
                return f"the chat template differs from token {self.index} on: {place}"
            case MissCause.SHORT:
                return f"{self.index - self.matched_tokens} more tokens are shared, too few to fill a page"
            case MissCause.EVICTED:
                when = "" if self.evicted_s is None else f" {self.evicted_s:.1f} s before"
                whom = f" to make room for {self.evicted_by}" if self.evicted_by else ""
                return f"tokens {self.matched_tokens} to {self.index} had been computed, and were evicted{when}{whom}"
            case MissCause.SALT:
                return "the same beginning was computed under another salt, and salts share nothing"
            case MissCause.LOGPROBS:
                return "log-probabilities of the prompt were asked for, so all of it is computed"
            case MissCause.NEW:
                return f"nothing had been computed from token {self.matched_tokens} on"


@dataclass(frozen=True, slots=True)
class Output:
    """One of a request's n answers.

    token_ids    all that were generated, an end token included
    stop_reason  the stop string or stop token id of the request that ended it; None for the model's own end token
    error        what went wrong, with finish_reason "error"
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A request's answers. `text`, `token_ids`, `finish_reason`, `stop_reason`, `logprobs` are the first one's.

    params  with the seed that was drawn; None where an answer cannot be asked for again
    miss    None: all that could be was found in the cache, or nobody looked
    bill    its part of the machine in joules and money; None: nobody asked for that
    usage   of the answer that ended last; visit: what was done to the request outside the engine (for `LLM.explain`)
    """

    prompt_ids: list[int]
    outputs: list[Output]
    timings: Timings
    receipt: Receipt
    prompt_logprobs: list[TokenLogprobs] | None = None
    params: SamplingParams | None = None
    miss: CacheMiss | None = None
    usage: Usage | None = field(default=None, compare=False)
    visit: Visit | None = field(default=None, compare=False)
    bill: Bill | None = field(default=None, compare=False)

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.outputs[0].finish_reason

    @property
    def stop_reason(self) -> str | int | None:
        return self.outputs[0].stop_reason

    @property
    def logprobs(self) -> list[TokenLogprobs] | None:
        return self.outputs[0].logprobs

    @property
    def error(self) -> str | None:
        """The first fault among its answers."""
        return next((output.error for output in self.outputs if output.error is not None), None)

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def num_output_tokens(self) -> int:
        """Of all answers together."""
        return sum(len(output.token_ids) for output in self.outputs)

    def explain(self, setting: Setting) -> Explanation:
        """Where its milliseconds went; of several answers to one prompt, of the one that ended last.

        `UsageError` for an answer that has not ended. What it ran on is known to `LLM.setting`.
        """
        from legato.measure.case import Case  # only here: few answers are asked about
        from legato.measure.explain import explain

        usage, visit = self.usage, self.visit
        if usage is None or visit is None or "arrived" not in usage.marks:
            raise UsageError("this answer has not ended: explain it when its finish_reason is there")
        reason = "" if self.finish_reason is None else str(self.finish_reason)
        return explain(Case(setting, usage, visit, reason), None if self.miss is None else self.miss.sentence)

    def as_json(self) -> dict[str, Any]:
        """The fields of `legato generate --json`: the first answer's, and `outputs` when there are several."""
        shown = _output_json(self.outputs[0])
        del shown["index"]
        shown["prompt_tokens"] = self.prompt_tokens
        if self.prompt_logprobs is not None:
            shown["prompt_logprobs"] = [asdict(p) for p in self.prompt_logprobs]
        if len(self.outputs) > 1:
            shown["outputs"] = [_output_json(output) for output in self.outputs]
        shown["timings"] = {name: _rounded(value) for name, value in asdict(self.timings).items()}
        if self.bill is not None:
            shown["timings"] |= self.bill.as_json()
        shown["cache"] = {
            "cached_tokens": self.timings.cached_tokens,
            "miss": None if self.miss is None else {**asdict(self.miss), "sentence": self.miss.sentence},
        }
        shown["receipt"] = asdict(self.receipt)
        if self.params is not None:
            shown["replay"] = {"prompt_ids": self.prompt_ids, "params": asdict(self.params)}
        return shown


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer: new text (whole characters, no part of a stop string) and its tokens.

    stop_reason, error  as in `Output`, with finish_reason
    logprobs            one a token, when asked for
    at                  as in `Event`
    """

    text: str
    token_ids: list[int]
    index: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None
    error: str | None = None
    at: float = field(default=0.0, compare=False)


def _output_json(output: Output) -> dict[str, Any]:
    shown: dict[str, Any] = asdict(output)
    for name in ("logprobs", "error"):
        if shown[name] is None:
            del shown[name]
    return shown


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else round(value, 3)
