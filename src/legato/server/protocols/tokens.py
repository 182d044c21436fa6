"""`/tokenize`, `/detokenize`, `/tokenizer_info`: the vocabulary over HTTP.

Knows: the fields that evaluation tools send. Does not know: how text is cut.
"""

from __future__ import annotations

from typing import Any

import msgspec

from legato.errors import RequestError
from legato.server.ask import Chat
from legato.server.exchange import Exchange
from legato.server.jsonbody import dumps, parse
from legato.server.prompts import prompt_ids
from legato.server.protocols.openai.words import error_body
from legato.server.routes import Route
from legato.server.service import Service

MAX_IDS = 1 << 20


class TokenizeBody(msgspec.Struct, kw_only=True):
    """`prompt`, or `messages` for the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
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


def _ids(service: Service, body: TokenizeBody) -> list[int]:
    """An empty text has the tokens that stand around every text, if any."""
    if body.messages is not None:
        asked = Chat(body.messages, add_generation_prompt=body.add_generation_prompt is not False)
        return prompt_ids(service.model, asked)
    return service.model.tokenizer.encode(body.prompt or "", add_special=body.add_special_tokens is not False)
