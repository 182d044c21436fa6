"""Legato: language models whose tokens keep their pace, on the machine you have.

Knows: the public names, loaded when first used. Does not know: anything else; importing this is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from legato.errors import LegatoError
from legato.version import __version__

if TYPE_CHECKING:
    from legato.completion import Completion as Completion
    from legato.completion import Delta as Delta
    from legato.completion import Output as Output
    from legato.core.request import SamplingParams as SamplingParams
    from legato.llm import LLM as LLM

_HOMES = {
    "LLM": "legato.llm",
    "SamplingParams": "legato.core.request",
    "Completion": "legato.completion",
    "Output": "legato.completion",
    "Delta": "legato.completion",
}

__all__ = ["LLM", "Completion", "Delta", "LegatoError", "Output", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'legato' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
