"""What experiments' commands share: lists of numbers, rounding, what a record says of the model.

Knows: options' text, a loaded model's own account. Does not know: experiments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from legato.errors import UsageError

if TYPE_CHECKING:
    from legato.llm import LLM


def whole_numbers(option: str, text: str, least: int, example: str) -> list[int]:
    """A list such as 0,512,2048; raises `UsageError` naming the option."""
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = [least - 1]
    if min(numbers) < least:
        raise UsageError(f"{option}={text} is not allowed: whole numbers from {least}, such as {example}")
    return numbers


def positive_numbers(option: str, text: str, example: str) -> list[float]:
    """A list such as 0.5,2; raises `UsageError` naming the option."""
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = [0.0]
    if not all(0 < number < float("inf") for number in numbers):
        raise UsageError(f"{option}={text} is not allowed: numbers above 0, such as {example}")
    return numbers


def fits_cache(llm: LLM, length: int) -> bool:
    """Whether a single stream of so many tokens, its answer included, has its pages."""
    return length - 1 <= llm.parts.kv_plan.num_tokens  # the last token is never read back


def check_cache(llm: LLM, option: str, length: int) -> None:
    """Raises `UsageError`, naming the option that makes a stream so long, where the cache cannot hold it."""
    if not fits_cache(llm, length):
        raise UsageError(
            f"{length} tokens do not fit the cache of {llm.parts.kv_plan.num_tokens}; lower {option}, or raise "
            "--kv-memory"
        )


def receipt(llm: LLM) -> dict[str, Any]:
    """The model and how it runs here, for records."""
    parts = llm.parts
    return {"model": llm.name, "isa": parts.executor.isa, "threads": parts.executor.threads, "kv": str(parts.kv_format)}


def described(settings: Mapping[str, Any]) -> str:
    """The same in a line for a person."""
    model, *others = settings.items()
    return f"{model[1]}, {', '.join(f'{name} {value}' for name, value in others)}"


def billed(row: Mapping[str, Any]) -> str:
    """A row's joules and money for a person; "" where it has none."""
    words = []
    if "energy_j" in row:
        each = f", {row['energy_j_per_token']:.3g} J a token" if "energy_j_per_token" in row else ""
        words.append(f"{row['energy_j']:.4g} J ({row['energy_source']}){each}")
    if "price" in row:
        each = f", {row['price_per_million_tokens']:.3g} a million tokens" if "price_per_million_tokens" in row else ""
        words.append(f"price {row['price']:.3g}{each}")
    return "; ".join(words)


def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Five significant digits, all the way down."""
    return {name: _rounded(value) for name, value in values.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return rounded(value)
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
