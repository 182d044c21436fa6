"""`legato perplexity`: how well a model predicts a text.

Knows: its options and what it prints. Does not know: how it is computed.
"""

from __future__ import annotations

import time
from typing import Any

import click

from legato.cli.options import config_of, json_option, read_text, window_options
from legato.cli.terminal import Terminal
from legato.errors import RequestError

WINDOW = 2048


@click.command("perplexity")
@click.argument("file")
@window_options
@json_option
def command(file: str, as_json: bool, **options: Any) -> None:
    """Mean surprise of a model at the text in FILE (`-`: standard input), in windows of --context tokens.

    The default window is 2048 tokens, or the model's context if that is shorter.
    """
    from legato.cli.loading import open_llm

    window = options.pop("context")
    config = config_of(options)
    text = read_text(file)
    if not text:
        raise RequestError("file", file, "a text that is not empty")
    terminal = Terminal(config.color)
    with open_llm(config, terminal) as llm:
        length = llm.context_length
        chosen = min(WINDOW, length) if window is None else window
        ids = llm.tokenizer.encode(text)
        started = time.perf_counter()
        with terminal.bar() as bar:
            found = llm.perplexity(ids, chosen, bar)
        seconds = time.perf_counter() - started
    if as_json:
        terminal.json({"tokens": found.tokens, "nll": found.nll, "perplexity": found.perplexity})
    else:
        terminal.answer(f"perplexity {found.perplexity:.4f}", end="\n")
        rate = found.tokens / seconds
        terminal.dim(f"{found.tokens} tokens, nll {found.nll:.5f} nats, windows of {chosen}, {rate:.0f} tok/s")
