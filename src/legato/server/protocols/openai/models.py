"""`/v1/models`: the card of the one model.

Knows: OpenAI's model object and what other clients look for in it. Does not know: how a model is loaded.
"""

from __future__ import annotations

from legato.server.jsonbody import dumps
from legato.server.model import Model


def _card(model: Model) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "legato",
        "root": model.name,
        "parent": None,
        "max_model_len": model.context_length,
    }


def model_card(model: Model) -> bytes:
    return dumps(_card(model))


def model_list(model: Model) -> bytes:
    """`data` for OpenAI's clients, `models` for those that grew up with Ollama."""
    short = {"name": model.name, "model": model.name, "capabilities": ["completion"]}
    return dumps({"object": "list", "data": [_card(model)], "models": [short]})
