"""`legato check MODEL`: what a model is and how it will run, before anything is loaded.

Knows: what it prints. Does not know: how a model is read (`models.check` gathers the facts).
"""

from __future__ import annotations

from typing import Any

import click

from legato.cli.options import config_of, json_option
from legato.cli.terminal import Terminal
from legato.config import SETTINGS


@click.command("check")
@click.argument("model")
@click.option("--context", metavar="N", help=SETTINGS["context"].help)
@click.option("--cache-dir", metavar="DIR", help=SETTINGS["cache_dir"].help)
@json_option
def command(as_json: bool, **options: Any) -> None:
    """Show what MODEL holds, layer by layer, in which formats, and what runs where."""
    from legato.assemble import open_source, open_tokenizer
    from legato.kernels.cpu import NativeBackend, load_library
    from legato.kernels.ops import Backend
    from legato.kernels.reference import ReferenceBackend
    from legato.models.check import check_model
    from legato.models.load import read_blueprint
    from legato.weights.source import digest

    config = config_of(options)
    terminal = Terminal(config.color)
    with terminal.bar(patience=0) as fetching:
        source = open_source(config, fetching)
    blueprint = read_blueprint(source, config.context)
    tokenizer = open_tokenizer(source)
    library = load_library()
    backends: list[Backend] = [ReferenceBackend()]
    if not isinstance(library, str):
        backends.insert(0, NativeBackend(threads=1, library=library))
    checked = check_model(blueprint, backends)
    facts = {
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_ids": list(tokenizer.eos_ids),
        "chat_template": tokenizer.chat_template is not None,
    }
    if as_json:
        shown = checked.as_dict()
        if isinstance(library, str):
            shown["backends"] = {"native": library, **shown["backends"]}
        terminal.json({**shown, "tokenizer": facts, "digest": digest(source)})
        return
    lines = checked.lines()
    if isinstance(library, str):
        lines.append(f"backend   native: cannot run it: {library}")
    template = "with" if facts["chat_template"] else "without"
    lines.append(f"tokenizer {tokenizer.vocab_size:,} tokens, ends at {facts['eos_ids']}, {template} chat template")
    lines.append(f"digest    {digest(source)}")
    terminal.answer("\n".join(lines), end="\n")
