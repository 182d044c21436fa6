"""`legato explain`: one request, and where its milliseconds went.

Knows: its options and what it prints. Does not know: how time is divided or advice computed.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from legato.cli.options import (
    config_of,
    json_option,
    model_options,
    read_prompt,
    report_option,
    sampling_of,
    sampling_options,
    save_option,
)
from legato.cli.terminal import Terminal
from legato.errors import EngineError, UsageError

if TYPE_CHECKING:
    from legato.llm import LLM

MAX_TOKENS = 128


@click.command("explain")
@click.argument("prompt")
@model_options
@sampling_options(temperature=0.0, max_tokens=MAX_TOKENS)
@click.option("--system", metavar="TEXT", help="the system message")
@click.option("--raw", is_flag=True, help="no chat template: the model goes on from the prompt as it is")
@save_option
@report_option
@json_option
def command(
    prompt: str,
    system: str | None,
    raw: bool,
    save: Path | None,
    report: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer PROMPT (`-`: standard input) on a warm engine; show where its time went, and what would help."""
    from legato.cli.answer import interrupted, show_answer
    from legato.cli.loading import open_llm
    from legato.cli.saving import keeping
    from legato.cli.waterfall import told

    config, params = config_of(options), sampling_of(options)
    if raw and system is not None:
        raise UsageError("--system needs the chat template; leave out --raw, or write it into the prompt")
    text = read_prompt(prompt)
    terminal = Terminal(config.color)
    with keeping("explain", save, report, terminal) as kept, open_llm(config, terminal) as llm:
        plain = raw or not llm.has_template
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": text})
        warm(llm, plain)
        completion = show_answer(llm, text if plain else messages, params, terminal, quiet=True)
        if completion.error is not None:
            raise EngineError(completion.error)
        if interrupted(completion):
            raise KeyboardInterrupt
        explanation = completion.explain(llm.setting)
        shown = explanation.as_json()
        kept.rows += [{k: v for k, v in part.items() if k != "figures"} for part in shown["summary"]["parts"]]
        kept.settings |= {**asdict(completion.receipt), **shown}
        if as_json:
            terminal.json(shown)
        else:
            for line in told(explanation):
                terminal.answer(line, end="\n")


def warm(llm: LLM, plain: bool) -> None:
    """What a server has behind it: a compiled template, touched buffers, a digest. Shares nothing with any prompt."""
    from legato.bench.drive import Requests, drive

    requests = Requests(llm.parts.vocab_size)
    drive(llm.parts.engine, [requests.make(requests.tokens(max(1, min(32, llm.context_length - 4))), 4)])
    if not plain:
        llm.render([{"role": "user", "content": "Hello"}])
    assert llm.digest
