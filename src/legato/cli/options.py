"""Options that several commands share, and how they become a `Config` and `SamplingParams`.

Knows: option names and their help. Does not know: what is done with them; ranges are checked by what they become.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from legato.config import SETTINGS, Config
from legato.core.request import SamplingParams
from legato.errors import RequestError, UsageError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class FiniteRange(click.FloatRange):
    """A range in which neither NaN nor infinity is, whatever its bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number in the range {self._describe_range()}.", param, ctx)
        return number


def _all(*options: Decorator) -> Decorator:
    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return wrap


def _setting(name: str, *flags: str, metavar: str) -> Decorator:
    names = flags or (f"--{name.replace('_', '-')}",)
    return click.option(*names, name, metavar=metavar, help=SETTINGS[name].help)


machine_options = _all(
    _setting("backend", metavar="NAME"),
    _setting("threads", metavar="N"),
    _setting("isa", metavar="NAME"),
    _setting("weights", metavar="FORMAT"),
    _setting("kv", metavar="FORMAT"),
    _setting("kv_memory", metavar="SIZE"),
    _setting("cache_dir", metavar="DIR"),
    _setting("color", metavar="WHEN"),
)

_model = _setting("model", "-m", "--model", metavar="MODEL")
_context = _setting("context", metavar="N")

model_options = _all(
    _model,
    _context,
    machine_options,
    click.option("--naive", is_flag=True, default=None, help=SETTINGS["naive"].help),
)

bench_options = _all(_model, _context, machine_options)

window_options = _all(
    _model,
    click.option(
        "--context", type=int, metavar="N", help="tokens a window (default: 2048, or the model's context if shorter)"
    ),
    machine_options,
)

replay_options = _all(
    _model,
    _setting("threads", metavar="N"),
    _setting("kv_memory", metavar="SIZE"),
    _setting("cache_dir", metavar="DIR"),
    _setting("color", metavar="WHEN"),
)

session_options = _all(_setting("session_dir", metavar="DIR"), _setting("session_cap", metavar="SIZE"))

bill_options = _all(
    click.option("--energy", is_flag=True, default=None, help=SETTINGS["energy"].help),
    _setting("watts", metavar="W"),
    _setting("price_per_hour", metavar="X"),
)

_JSON = "on standard output, nothing else there"
json_option = click.option("--json", "as_json", is_flag=True, help=f"print one JSON object {_JSON}")
json_lines_option = click.option(
    "--json", "as_json", is_flag=True, help=f"print JSON Lines, one object a line, {_JSON}"
)

save_option = click.option(
    "--save", type=click.Path(path_type=Path), metavar="PATH", help="also write a dated JSON file (or into a folder)"
)

report_option = click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="also write FILE.html (or into a folder), with PNG, CSV and JSON beside it",
)


def sampling_options(temperature: float, max_tokens: int) -> Decorator:
    """The sampling options with these two defaults."""
    return _all(
        click.option("--max-tokens", type=int, default=max_tokens, show_default=True, metavar="N"),
        click.option(
            "--temperature", type=float, default=temperature, show_default=True, metavar="T", help="0 is greedy"
        ),
        click.option("--top-k", type=int, metavar="N", help="keep the N likeliest tokens"),
        click.option("--top-p", type=float, metavar="P", help="keep the likeliest tokens that hold probability P"),
        click.option(
            "--min-p", type=float, metavar="P", help="keep tokens at least P times as likely as the likeliest"
        ),
        click.option("--repetition-penalty", type=float, metavar="X", help="above 1: less of what was said"),
        click.option("--presence-penalty", type=float, metavar="X"),
        click.option("--frequency-penalty", type=float, metavar="X"),
        click.option("--seed", type=int, metavar="S", help="the same seed gives the same answer"),
        click.option("--stop", multiple=True, metavar="TEXT", help="end the answer before TEXT; may be repeated"),
        click.option("--min-tokens", type=int, metavar="N"),
        click.option("--ignore-eos", is_flag=True, default=None, help="go on past the model's end token"),
    )


SAMPLING = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "min_tokens",
    "ignore_eos",
    "n",
    "logprobs",
)


def sampling_of(options: dict[str, Any]) -> SamplingParams:
    """Takes the sampling options out of `options`; raises `RequestError` for values out of range."""
    chosen = {name: options.pop(name) for name in SAMPLING if name in options}
    return SamplingParams(**{name: value for name, value in chosen.items() if value is not None})


def config_of(options: dict[str, Any]) -> Config:
    """Takes the settings out of `options`; what stays is the command's own."""
    return Config.resolve({name: options.pop(name) for name in SETTINGS if name in options})


def read_prompt(prompt: str) -> str:
    """The argument itself, or standard input for `-` (without its last line end). Refuses what is empty."""
    text = read_text("-").removesuffix("\n").removesuffix("\r") if prompt == "-" else prompt
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("prompt: its bytes are not UTF-8; convert the text to UTF-8 first") from None
    if not text:
        raise RequestError(
            "prompt", text, "text that is not empty", "give a prompt, or - to read it from standard input"
        )
    return text


def read_text(path: str) -> str:
    """A UTF-8 file, or standard input for `-`; raises `UsageError` naming what is wrong with it."""
    name = "standard input" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror or error}; give a text file that can be read") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: byte {error.start} is not UTF-8; convert the text to UTF-8 first") from None
