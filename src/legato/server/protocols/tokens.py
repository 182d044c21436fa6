"""`/tokenize`, `/detokenize`, `/tokenizer_info`: the vocabulary over HTTP.

Knows: the fields that evaluation tools send, and that a chat's are those of a chat. Does not know: how text is cut.
"""

from __future__ import annotations

from typing import Any

import msgspec

from legato.errors import RequestError
from legato.server.exchange import Exchange
from legato.server.jsonbody import dumps, parse
from legato.server.model import Model
from legato.server.prompts import prompt_ids
from legato.server.protocols.openai.fields import ChatBody
from legato.server.protocols.openai.parse import chat_ask
from legato.server.protocols.openai.words import error_body
from legato.server.reading import with_tools, without_thought
from legato.server.routes import Route
from legato.server.service import Service

MAX_IDS = 1 << 20


class TokenizeBody(msgspec.Struct, kw_only=True):
    """`prompt`, or `messages` and what else of a chat changes its prompt."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """`tokens` are ids."""

    tokens: list[int]
    model: str | None = None


def routes(service: Service) -> list[Route]:
    """The three routes."""

    async def tokenize(exchange: Exchange) -> None:
        body, _ = parse(await exchange.body(), TokenizeBody, service.limits.depth)
        service.check_model(body.model or "")
        if (body.prompt is None) == (body.messages is None):
            raise RequestError("prompt", body.prompt, "given, or messages, and not both")
        tokenizer = service.model.tokenizer
        _check_apart(body)
        ids = await service.aside(lambda: _ids(service, body))
        assert isinstance(ids, list)
        shown: dict[str, Any] = {"count": len(ids), "max_model_len": service.model.context_length, "tokens": ids}
        if body.return_token_strs:
            shown["token_strs"] = [tokenizer.token_text(i) for i in ids]
        await exchange.respond(200, dumps(shown))

    async def detokenize(exchange: Exchange) -> None:
        body, _ = parse(await exchange.body(), DetokenizeBody, service.limits.depth)
        service.check_model(body.model or "")
        model, tokens = service.model, body.tokens
        if len(tokens) > MAX_IDS:
            raise RequestError("tokens", len(tokens), f"at most {MAX_IDS} ids")
        for token_id in tokens:
            if not 0 <= token_id < model.vocab_size:
                raise RequestError("tokens", token_id, f"ids from 0 to {model.vocab_size - 1}")
        text = await service.aside(lambda: model.tokenizer.decode(tokens, skip_special=False))
        await exchange.respond(200, dumps({"prompt": text}))

    async def info(exchange: Exchange) -> None:
        model = service.model
        special = model.tokenizer.special_tokens
        shown = {
            "model": model.name,
            "vocab_size": model.vocab_size,
            "max_model_len": model.context_length,
            "bos_token": special.get("bos_token"),
            "eos_token": special.get("eos_token"),
            "pad_token": special.get("pad_token"),
            "unk_token": special.get("unk_token"),
            "bos_token_id": model.tokenizer.bos_id,
            "eos_token_ids": list(model.tokenizer.eos_ids),
            "add_bos_token": model.tokenizer.add_bos,
            "chat_template": model.tokenizer.chat_template,
        }
        await exchange.respond(200, dumps(shown))

    return [
        Route("POST", "/tokenize", tokenize, error_body, "Text or messages to token ids", body=TokenizeBody),
        Route("POST", "/detokenize", detokenize, error_body, "Token ids to text", body=DetokenizeBody),
        Route("GET", "/tokenizer_info", info, error_body, "Special tokens and the chat template"),
    ]


def _check_apart(body: TokenizeBody) -> None:
    """Fields of a chat do nothing for a text."""
    for name in ("tools", "tool_choice", "chat_template_kwargs", "reasoning_effort"):
        if body.messages is None and getattr(body, name) is not None:
            raise RequestError(name, "...", "left out without messages")


def _ids(service: Service, body: TokenizeBody) -> list[int]:
    """An empty text has the tokens that stand around every text, if any."""
    if body.messages is not None:
        return _chat_ids(service.model, body, body.messages)
    return service.model.tokenizer.encode(body.prompt or "", add_special=body.add_special_tokens is not False)


def _chat_ids(model: Model, body: TokenizeBody, messages: list[dict[str, Any]]) -> list[int]:
    """Those that a chat of the same fields begins with."""
    chat = ChatBody(
        messages=messages,
        add_special_tokens=body.add_special_tokens,
        add_generation_prompt=body.add_generation_prompt,
        tools=body.tools,
        tool_choice=body.tool_choice,
        chat_template_kwargs=body.chat_template_kwargs,
        reasoning_effort=body.reasoning_effort,
    )
    template = model.template.source if model.template is not None else None
    # What arguments may be is the grammar's business, and no part of a prompt.
    ask = with_tools(chat_ask(chat), template, model.tokenizer, loose=True)
    return without_thought(ask, prompt_ids(model, ask.prompts[0]), model.tokenizer)
