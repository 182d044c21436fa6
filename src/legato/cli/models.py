"""`legato models`: what `-m` may name without a path.

Knows: the catalogue of built-in models, the cache folder. Does not know: how a model is fetched.
"""

from __future__ import annotations

from typing import Any

import click

from legato.cli.options import config_of, json_lines_option
from legato.cli.terminal import Terminal
from legato.config import DEFAULT_MODEL, SETTINGS


@click.command("models")
@click.option("--cache-dir", metavar="DIR", help=SETTINGS["cache_dir"].help)
@json_lines_option
def command(as_json: bool, **options: Any) -> None:
    """List built-in models and which are on this machine."""
    from legato.weights.catalog import BUILT_INS, cached

    config = config_of(options)
    terminal = Terminal(config.color)
    for model in BUILT_INS:
        path = cached(model, config.cache_dir)
        if as_json:
            terminal.json(
                {
                    "name": model.name,
                    "bytes": model.size,
                    "licence": model.licence,
                    "note": model.note,
                    "path": None if path is None else str(path),
                    "default": model.name == DEFAULT_MODEL,
                }
            )
            continue
        place = str(path) if path is not None else "not here yet; fetched at first use"
        terminal.answer(f"{model.name}  {model.size / 1e6:.0f} MB  {model.licence}  {model.note}\n    {place}\n")
    if not as_json:
        terminal.dim("also: a .gguf file, a folder with config.json and safetensors, or hf:ORG/NAME")
