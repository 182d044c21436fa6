"""The OpenAI API: routes, and which module does what.

Knows: paths. Does not know: fields (fields), their meaning (parse), bytes (chat, completions), words of errors (words).
"""

from __future__ import annotations

from legato.server.exchange import Exchange
from legato.server.problems import Problem
from legato.server.protocols import generation
from legato.server.protocols.openai.fields import ChatBody, CompletionBody
from legato.server.protocols.openai.models import model_card, model_list
from legato.server.protocols.openai.parse import parse_chat, parse_completion
from legato.server.protocols.openai.words import error_body
from legato.server.routes import Route
from legato.server.service import Service


def routes(service: Service) -> list[Route]:
    """Every route of this protocol."""

    async def list_models(exchange: Exchange) -> None:
        await exchange.respond(200, model_list(service.model))

    async def one_model(exchange: Exchange) -> None:
        service.check_model(exchange.tail)
        await exchange.respond(200, model_card(service.model))

    async def embeddings(exchange: Exchange) -> None:
        text = f"model {service.model.name!r} generates text and makes no embeddings; serve one that does"
        raise Problem(501, text, code="not_supported")

    return [
        Route("GET", "/v1/models", list_models, error_body, "The models that there are"),
        Route("GET", "/v1/models/{model}", one_model, error_body, "One model"),
        Route(
            "POST",
            "/v1/chat/completions",
            generation(service, parse_chat),
            error_body,
            "The answer to a conversation",
            body=ChatBody,
            streams="text/event-stream",
        ),
        Route(
            "POST",
            "/v1/completions",
            generation(service, parse_completion),
            error_body,
            "The continuation of a text",
            body=CompletionBody,
            streams="text/event-stream",
        ),
        Route("POST", "/v1/embeddings", embeddings, error_body, "Not offered by models that generate text"),
    ]
