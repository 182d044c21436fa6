"""Token ids of what was asked: a conversation, a text, or ids as they are.

Knows: a model's template, tokenizer and context. Does not know: protocols, who is asking.
"""

from __future__ import annotations

from collections.abc import Callable

from legato.errors import CapacityError, RequestError
from legato.server.ask import Chat, Ids, Prompt, Text
from legato.server.model import Model
from legato.text.chat import check_chars, encode_chat
from legato.text.template import checked_messages

MOST_CHARS = 256  # no vocabulary has tokens that are longer than this on the average of a whole prompt


def prompt_ids(
    model: Model, prompt: Prompt, truncate: int | None = None, lap: Callable[[str], None] = lambda name: None
) -> list[int]:
    """Token ids of one prompt. Raises `RequestError` for what is empty or refused by the template."""
    lap("")
    most = MOST_CHARS * model.context_length if truncate is None else None
    match prompt:
        case Chat():
            ids = _chat_ids(model, prompt, most, lap)
        case Text():
            if not prompt.text:
                raise RequestError("prompt", prompt.text, "text that is not empty")
            if most is not None:
                check_chars(prompt.text, most)
            ids = model.tokenizer.encode(prompt.text, add_special=prompt.add_special)
            lap("tokenise")
        case Ids():
            ids = list(prompt.ids)
    if truncate is not None:
        ids = ids[-truncate:]
    if len(ids) >= model.context_length:  # said here, so that nobody works on millions of them
        fix = "shorten the prompt, or use a model with a longer context"
        raise CapacityError("prompt tokens + 1", len(ids) + 1, model.context_length, "tokens of context", fix)
    return ids


def _chat_ids(model: Model, prompt: Chat, most: int | None, lap: Callable[[str], None]) -> list[int]:
    if model.template is None:
        text = "\n".join(m.get("content") or "" for m in checked_messages(prompt.messages))
        if not text:
            raise RequestError("messages", "", "text that is not empty")
        if most is not None:
            check_chars(text, most)
        return model.tokenizer.encode(text)
    return encode_chat(
        model.tokenizer,
        model.template,
        prompt.messages,
        tools=prompt.tools,
        add_generation_prompt=prompt.add_generation_prompt,
        lap=lap,
        most_chars=most,
        **prompt.variables,
    )
