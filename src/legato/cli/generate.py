"""`legato generate`: one prompt, one answer.

Knows: its options and what it prints. Does not know: how answers are computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from legato.cli.options import (
    bill_options,
    config_of,
    json_option,
    model_options,
    read_prompt,
    sampling_of,
    sampling_options,
)
from legato.cli.terminal import Terminal
from legato.errors import EngineError, UsageError

MAX_TOKENS = 512


@click.command("generate")
@click.argument("prompt")
@model_options
@bill_options
@sampling_options(temperature=0.0, max_tokens=MAX_TOKENS)
@click.option("--n", type=int, metavar="N", help="several answers to the same prompt")
@click.option("--logprobs", type=int, metavar="K", help="with --json: log-probabilities and the K likeliest tokens")
@click.option("--system", metavar="TEXT", help="the system message")
@click.option("--raw", is_flag=True, help="no chat template: the model goes on from the prompt as it is")
@click.option(
    "--save-receipt",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="also write the JSON that `legato replay` reads",
)
@json_option
def command(
    prompt: str, system: str | None, raw: bool, save_receipt: Path | None, as_json: bool, **options: Any
) -> int:
    """Answer PROMPT; `-` reads it from standard input."""
    from legato.cli.answer import interrupted, show_answer
    from legato.cli.loading import open_llm

    config, params = config_of(options), sampling_of(options)
    if raw and system is not None:
        raise UsageError("--system needs the chat template; leave out --raw, or write it into the prompt")
    if params.logprobs is not None and not as_json:
        raise UsageError("--logprobs is printed with --json only; add --json")
    if save_receipt is not None:
        from legato.replay import check_target

        check_target(save_receipt)
    text = read_prompt(prompt)
    terminal = Terminal(config.color)
    with open_llm(config, terminal) as llm:
        if not raw and not llm.has_template:
            terminal.note("this model has no chat template: the prompt is used as it is, as with --raw")
            if system is not None:
                raise UsageError("--system needs a chat template, and this model has none; write it into the prompt")
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": text})
        asked = text if raw or not llm.has_template else messages
        completion = show_answer(llm, asked, params, terminal, quiet=as_json)
        if as_json:
            terminal.json(completion.as_json())
        if save_receipt is not None:
            from legato.replay import write_receipt

            write_receipt(save_receipt, completion.as_json())
    if completion.error is not None:
        raise EngineError(completion.error)
    return 130 if interrupted(completion) else 0
