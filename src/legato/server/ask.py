"""`Ask` and `Result`: what every protocol parses its bodies into, and what it makes its last bytes of.

Knows: prompts in their three forms, sampling, answers with text. Does not know: HTTP, JSON, the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from legato.completion import Completion, Output, Timings
from legato.core.request import SamplingParams
from legato.measure.case import Setting
from legato.measure.energy import Bill
from legato.text.tools import ToolForm, ToolUse


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation for the model's own template; `variables` are those that a template may read."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Text:
    """A text as it is; control tokens in it are text."""

    text: str
    add_special: bool = True


@dataclass(frozen=True, slots=True)
class Ids:
    """Token ids as they are."""

    ids: Sequence[int]


Prompt = Chat | Text | Ids


@dataclass(frozen=True, slots=True)
class Ask:
    """One HTTP request for answers: `params.n` of them to each prompt.

    Answers are numbered through: choice = prompt number x n + index of its answer.

    model         as asked for; "" is the model that there is
    skip_special  control tokens are left out of the text
    include_stop  a stop string that ends an answer stays at its end
    truncate      keep this many tokens of a prompt, the last ones
    grammar_field  what the client calls `params.grammar`, for messages
    tools         what may be called
    form          how calls are written; None: nothing can be called
    right_calls   a grammar makes sure that a call which is begun is a right one
    include       what of an answer is told besides it: "receipt", "miss", "explain"
    ignored       fields that were understood and do nothing here
    """

    prompts: tuple[Prompt, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    model: str = ""
    stream: bool = False
    skip_special: bool = True
    include_stop: bool = False
    truncate: int | None = None
    priority: int = 0
    salt: str = ""
    deadline_ms: float | None = None
    grammar_field: str = ""
    tools: ToolUse | None = None
    form: ToolForm | None = None
    right_calls: bool = False
    include: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()

    @property
    def free_text(self) -> bool:
        """Whether an answer may be any text, thoughts included."""
        forced = self.tools is not None and self.tools.forced
        return self.params.grammar is None or (self.right_calls and not forced and not self.grammar_field)


@dataclass(frozen=True, slots=True)
class Result:
    """All answers, whole. `completions` has one entry a prompt.

    setting  what they ran on, where they can be explained
    """

    completions: Sequence[Completion]
    setting: Setting | None = None

    @property
    def choices(self) -> list[tuple[int, Output]]:
        """(choice, answer) in order."""
        n = len(self.completions[0].outputs)
        return [(p * n + o.index, o) for p, c in enumerate(self.completions) for o in c.outputs]

    @property
    def prompt_tokens(self) -> int:
        return sum(c.prompt_tokens for c in self.completions)

    @property
    def completion_tokens(self) -> int:
        return sum(c.num_output_tokens for c in self.completions)

    @property
    def cached_tokens(self) -> int:
        return sum(c.timings.cached_tokens for c in self.completions)

    @property
    def error(self) -> str | None:
        return next((c.error for c in self.completions if c.error is not None), None)

    @property
    def bill(self) -> Bill | None:
        """Of all prompts together; None unless it is known of each."""
        bills = [c.bill for c in self.completions if c.bill is not None]
        return sum(bills[1:], bills[0]) if bills and len(bills) == len(self.completions) else None

    @property
    def timings(self) -> Timings:
        """Of several prompts: the first token of any, the longest of each part, rates added up."""
        each = [c.timings for c in self.completions]
        if len(each) == 1:
            return each[0]
        return Timings(
            queue_ms=min(t.queue_ms for t in each),
            prefill_ms=max(t.prefill_ms for t in each),
            ttft_ms=min(t.ttft_ms for t in each),
            decode_ms=max(t.decode_ms for t in each),
            decode_tok_s=sum(t.decode_tok_s for t in each),
            prompt_tok_s=sum(t.prompt_tok_s for t in each),
            cached_tokens=self.cached_tokens,
        )
