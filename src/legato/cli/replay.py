"""`legato replay`: the answer of a receipt once more, and whether it is the same.

Knows: its options and what it prints. Does not know: how a receipt is read or an answer repeated.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from legato.cli.options import config_of, json_option, replay_options
from legato.cli.terminal import Terminal
from legato.config import Config
from legato.errors import RequestError, UsageError

if TYPE_CHECKING:
    from legato.llm import LLM
    from legato.replay import Difference, Recorded


@click.command("replay")
@click.argument("receipt", type=click.Path(path_type=Path))
@replay_options
@json_option
def command(receipt: Path, as_json: bool, **options: Any) -> int:
    """Repeat the answer of RECEIPT, a file of `generate --save-receipt` (or --json). Exit code 1 if it differs."""
    from legato.cli.loading import open_llm
    from legato.replay import read_receipt, replay

    recorded = read_receipt(receipt)
    config = _config(receipt, recorded, options)
    terminal = Terminal(config.color)
    _check_isa(receipt, config)
    _check_model(recorded, config, terminal)
    with open_llm(config, terminal) as llm:
        try:
            difference = replay(llm, recorded)
        except RequestError as error:
            raise UsageError(f"{receipt}: {error}") from None
        if as_json:
            shown = None if difference is None else _shown(difference, llm)
            terminal.json({"same": difference is None, "tokens": recorded.num_tokens, "first_difference": shown})
        elif difference is None:
            terminal.answer(f"same {recorded.num_tokens} tokens\n")
        else:
            terminal.answer(_told(difference, recorded, llm))
    return 0 if difference is None else 1


def _config(receipt: Path, recorded: Recorded, options: dict[str, Any]) -> Config:
    """This machine's settings, with those that decide on tokens taken from the receipt."""
    was = recorded.receipt
    fixed: dict[str, object] = {"kv": was.kv, "weights": was.weights, "context": was.context or None}
    fixed |= {"backend": "reference"} if was.isa == "numpy" else {"backend": "native", "isa": was.isa}
    named = options.get("model") or was.model
    given = config_of({**options, "model": None})
    arguments = {name: getattr(given, name) for name, source in given.sources.items() if source == "argument"}
    try:
        return Config.resolve({**arguments, **fixed, "model": named})
    except UsageError as error:
        raise UsageError(f"{receipt}: is no receipt: {error}; give a file that --save-receipt wrote") from None


def _check_isa(receipt: Path, config: Config) -> None:
    """Other instruction sets may answer with other tokens, so none is put in its place."""
    from legato.kernels.cpu import Library, load_library

    library = load_library()
    levels = library.isas() if isinstance(library, Library) and config.backend == "native" else ()
    obstacle = next((level.obstacle for level in levels if level.name == config.isa), "")
    if obstacle:
        raise UsageError(
            f"{receipt}: was made with the instruction set {config.isa}, which cannot be used here: {obstacle}; "
            "replay it on a machine that has it"
        )


def _check_model(recorded: Recorded, config: Config, terminal: Terminal) -> None:
    """Before its weights are read."""
    from legato.assemble import open_source
    from legato.replay import check_same_model
    from legato.weights.source import digest

    try:
        with terminal.bar(patience=0) as fetching:
            source = open_source(config, fetching)
    except UsageError as error:
        if config.model != recorded.receipt.model:
            raise
        raise UsageError(f"the receipt's model is not at hand: {error}; give its file with -m") from None
    check_same_model(recorded, digest(source), config.model)


def _shown(difference: Difference, llm: LLM) -> dict[str, Any]:
    def text(token_id: int | None) -> str | None:
        return None if token_id is None else llm.tokenizer.token_text(token_id)

    return {
        "answer": difference.answer,
        "index": difference.index,
        "was": difference.was,
        "now": difference.now,
        "was_text": text(difference.was),
        "now_text": text(difference.now),
    }


def _told(difference: Difference, recorded: Recorded, llm: LLM) -> str:
    shown = _shown(difference, llm)
    now = "the answer ended" if difference.now is None else f"now {shown['now_text']!r} ({difference.now})"
    which = f" of answer {difference.answer + 1}" if len(recorded.answers) > 1 else ""
    return f"differs at token {difference.index}{which}: was {shown['was_text']!r} ({difference.was}), {now}\n"
