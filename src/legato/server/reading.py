"""An answer's text cut into what it is: thoughts, text, calls; and a request made ready so that this can be done.

Knows: what was asked and what the model can do. Does not know: protocols, HTTP.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from legato.completion import Delta
from legato.core.request import GrammarKind, SamplingParams
from legato.errors import RequestError
from legato.server.ask import Ask, Chat
from legato.text.grammar_schema import compilable
from legato.text.reasoning import CLOSER, ReasoningSplit, opened_by, thinks
from legato.text.tokenizer import Tokenizer
from legato.text.tools import TOLD, calls_grammar, told, tool_form
from legato.text.tools_parser import CallArguments, CallBegun, Content, ToolParser

_TAIL = 32  # tokens of a prompt in which a thought would have been opened


@dataclass(frozen=True, slots=True)
class Thought:
    """Text that a model thinks aloud."""

    text: str


Part = Thought | Content | CallBegun | CallArguments


def prepared(ask: Ask, template: str | None, tokenizer: Tokenizer, admit: Callable[[SamplingParams], None]) -> Ask:
    """The request with its tools told to the model, and its grammar compiled.

    Where calls are free and promise nothing, parameters that no grammar can hold are no reason to refuse: then
    arguments are only made sure to be an object.
    """
    use = ask.tools
    lenient = use is not None and not use.forced and not any(tool.strict for tool in use.tools)
    try:
        return _admitted(with_tools(ask, template, tokenizer), admit)
    except RequestError as refusal:
        if not lenient or ask.params.grammar is not None or not refusal.field.startswith("tools"):
            raise
    return _admitted(with_tools(ask, template, tokenizer, loose=True), admit)


def _admitted(ask: Ask, admit: Callable[[SamplingParams], None]) -> Ask:
    try:
        admit(ask.params)
    except RequestError as error:
        if error.field != "grammar":
            raise
        name = ask.grammar_field or ("tools" if ask.tools is not None else "grammar")
        raise RequestError(name, error.value, error.allowed, error.fix) from None
    return ask


def with_tools(ask: Ask, template: str | None, tokenizer: Tokenizer, *, loose: bool = False) -> Ask:
    """The request with its tools told to the model, and the grammar that keeps calls right.

    loose  arguments need only be objects
    Raises `RequestError` for tools that the template has no known form for, or whose schemas cannot be promised.
    """
    use = ask.tools
    if use is None or use.choice == "none":
        return replace(ask, prompts=tuple(_plain(p, template) if isinstance(p, Chat) else p for p in ask.prompts))
    form, grammar, answer = tool_form(template), ask.params.grammar, None
    if grammar is not None:
        if grammar.kind is not GrammarKind.JSON_SCHEMA:
            raise RequestError(ask.grammar_field or "grammar", "...", "a JSON schema, or nothing, beside tools")
        answer = compilable(grammar)

    def control(text: str) -> int | None:
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
        return ids[0] if len(ids) == 1 and tokenizer.is_special(ids[0]) else None

    made = calls_grammar(
        form,
        use.tools,
        forced=use.forced,
        parallel=use.parallel,
        control=control,
        answer=_unstyled(answer),
        loose=loose,
    )
    prompts = []
    for prompt in ask.prompts:
        assert isinstance(prompt, Chat)
        messages, tools = told(form, prompt.messages, use.tools)
        prompts.append(replace(prompt, messages=messages, tools=tools))
    return replace(
        ask,
        prompts=tuple(prompts),
        params=replace(ask.params, grammar=made or grammar),
        form=form,
        right_calls=made is not None,
        skip_special=ask.skip_special and control(form.opener) is None,
        grammar_field=ask.grammar_field or ("tools" if use.forced else ""),
    )


def _plain(prompt: Chat, template: str | None) -> Chat:
    """Earlier calls in words, for templates that have none for them."""
    if not any(isinstance(m, dict) and (m.get("tool_calls") or m.get("role") == "tool") for m in prompt.messages):
        return prompt
    try:
        form = tool_form(template)
    except RequestError:
        return prompt
    return replace(prompt, messages=told(form, prompt.messages, ())[0]) if form is TOLD else prompt


def _unstyled(schema: str | None) -> str | None:
    """A schema as it was before it was made ready: a grammar that holds it makes it ready again."""
    if schema is None:
        return None
    value = json.loads(schema)
    del value["x-guidance"]
    return json.dumps(value)


def without_thought(ask: Ask, ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """A prompt whose open thought is closed where the answer has to match a grammar from its first character."""
    if ask.params.grammar is None or ask.free_text or not _opened(ids, tokenizer):
        return list(ids)
    return [*ids, *tokenizer.encode(f"\n{CLOSER}\n\n", add_special=False, parse_special=True)]


def _opened(ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    return opened_by(tokenizer.decode(ids[-_TAIL:], skip_special=False))


class AnswerReader:
    """Reads one answer. `reasoning_tokens` and `num_calls` count what has been read."""

    def __init__(self, ask: Ask, template: str | None, prompt_ids: Sequence[int], tokenizer: Tokenizer) -> None:
        self._split: ReasoningSplit | None = None
        self._parser: ToolParser | None = None
        self._only_calls = False
        if thinks(template) and ask.free_text and any(isinstance(prompt, Chat) for prompt in ask.prompts):
            self._split = ReasoningSplit(_opened(prompt_ids, tokenizer))
        if ask.form is not None and ask.tools is not None:
            names = [tool.name for tool in ask.tools.tools]
            self._only_calls = ask.tools.forced and ask.right_calls
            self._parser = ToolParser(ask.form, names, lambda: _call_id(ask), stream=ask.right_calls)

    @property
    def needed(self) -> bool:
        """Whether anything but text can come."""
        return self._split is not None or self._parser is not None

    @property
    def reasoning_tokens(self) -> int:
        return 0 if self._split is None else self._split.num_tokens

    @property
    def num_calls(self) -> int:
        return 0 if self._parser is None else self._parser.num_calls

    def count_thought(self, num_tokens: int) -> None:
        """Corrects the count where an answer was read in one piece."""
        if self._split is not None:
            self._split.num_tokens = num_tokens

    def feed(self, delta: Delta) -> list[Part]:
        """What `delta` brought; with the finish, all that was held back."""
        ended = delta.finish_reason is not None
        if self._split is None:
            return self._content(delta.text, ended)
        split = self._split.feed(delta.text, len(delta.token_ids))
        parts: list[Part] = [Thought(split.reasoning)] if split.reasoning else []
        if ended:
            last = self._split.finish()
            parts += [Thought(last.reasoning)] if last.reasoning else []
            return parts + self._content(split.content + last.content, True)
        return parts + self._content(split.content, False)

    def _content(self, text: str, ended: bool) -> list[Part]:
        if self._parser is None:
            return [Content(text)] if text else []
        parts = [*self._parser.feed(text), *(self._parser.finish() if ended else ())]
        # A forced answer that was cut in the marks around a call has begun no text: marks are not for people.
        return [part for part in parts if not isinstance(part, Content)] if self._only_calls else [*parts]


def _call_id(ask: Ask) -> str:
    """Mistral's templates take ids of nine letters and digits and no others."""
    mistral = ask.form is not None and ask.form.opener == "[TOOL_CALLS]"
    return secrets.token_hex(5)[:9] if mistral else f"call_{secrets.token_hex(12)}"
