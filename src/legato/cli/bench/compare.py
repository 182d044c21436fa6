"""`legato bench compare`: other engines that are installed, on the same work, in turn with ours.

Knows: its options and what it prints. Does not know: how engines are found or run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from legato.cli.bench.common import rounded, whole_numbers
from legato.cli.options import FiniteRange, bench_options, config_of, json_lines_option, report_option, save_option
from legato.cli.terminal import Terminal
from legato.errors import LegatoError, UsageError

if TYPE_CHECKING:
    from legato.bench.compare import Contender, Turn, Work
    from legato.config import Config

_OURS = ("context", "backend", "isa", "weights", "kv", "kv_memory", "cache_dir")
_SHOWN = (("depth", "prefill_tok_s"), ("depth", "decode_tok_s"), ("batch", "out_tok_s"))


@click.command("compare")
@click.option("--peers", default="llama.cpp,openvino,transformers", show_default=True, metavar="LIST")
@click.option(
    "--python", "pythons", multiple=True, metavar="[PEER=]PATH", help="the Python that has them (default: this one)"
)
@click.option(
    "--peer-model", "models", multiple=True, metavar="PEER=PATH", help="its own file of the model (default: ours)"
)
@click.option("--depths", default="0,512,2048", show_default=True, metavar="LIST", help="tokens before the first step")
@click.option("--decode", type=click.IntRange(2), default=64, show_default=True, metavar="N", help="steps a depth")
@click.option("-n", "--batch", type=click.IntRange(0, 1024), default=16, show_default=True, metavar="N", help="0: none")
@click.option("--prompt", type=click.IntRange(1), default=256, show_default=True, metavar="N", help="of the batch")
@click.option("--answer", type=click.IntRange(1), default=64, show_default=True, metavar="N", help="of the batch")
@click.option("--rounds", type=click.IntRange(1, 100), default=2, show_default=True, metavar="N", help="turns each")
@click.option(
    "--patience", type=FiniteRange(0), default=30.0, show_default=True, metavar="S",
    help="seconds to wait for a quiet machine before each turn",
)  # fmt: skip
@bench_options
@save_option
@report_option
@json_lines_option
def command(
    peers: str,
    rounds: int,
    patience: float,
    save: Path | None,
    report: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Decode at depths, prompts, and a batch: each engine in a process of its own, medians over the rounds."""
    from legato.bench import compare
    from legato.cli.saving import keeping

    pythons = _by_peer("--python", options.pop("pythons"), bare=True)
    models = _by_peer("--peer-model", options.pop("models"), bare=False)
    given = {name: options.get(name) for name in _OURS}
    listed = _peers(peers)
    work = _work(options)
    config = config_of(options)
    terminal, done = Terminal(config.color), list[compare.Turn]()
    with keeping("compare", save, report, terminal) as kept, terminal.bar() as bar:
        contenders = list(_contenders(config, given, listed, pythons, models, work, terminal))
        kept.settings |= {"work": asdict(work), "engines": [c.name for c in contenders], "rounds": rounds}
        bar.start(rounds * len(contenders), "in turn")

        def tell(number: int, contender: Contender) -> None:
            terminal.dim(f"round {number} of {rounds}: {contender.name} {contender.version}")

        for turn in compare.turns(contenders, rounds, patience, tell):
            done.append(turn)
            bar.advance(1)
            kept.rows[:] = [rounded(row) for row in compare.compared(contenders, done)]
            kept.settings["turns"] = [rounded(asdict(turn)) for turn in done]
            for note in _doubts(turn):
                terminal.note(note)
        kept.partial = _ours_failed(done) or None
    for row in kept.rows:
        if as_json:
            terminal.json(row)
    if not as_json:
        for line in table(kept.rows):
            terminal.answer(line + "\n")
    if problem := _ours_failed(done):
        raise LegatoError(problem)


def _ours_failed(done: Sequence[Turn]) -> str:
    """Why our own figures are not whole; "" where they are."""
    from legato.bench.compare import OURS

    own = [turn for turn in done if turn.engine == OURS]
    failed = [turn for turn in own if turn.problem]
    if not failed:
        return ""
    fix = "lower --depths, -n, --prompt or --answer, or raise --kv-memory" if failed[0].refused else "see above"
    return f"our own measurement is not whole, in {len(failed)} of {len(own)} rounds: {failed[0].problem}; {fix}"


def _peers(text: str) -> list[str]:
    from legato.bench.compare import PEERS

    listed = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for name in listed:
        if name not in PEERS:
            raise UsageError(f"--peers={text} is not allowed: {name!r} is none of {', '.join(PEERS)}")
    if not listed:
        raise UsageError(f"--peers={text} is not allowed: name some of {', '.join(PEERS)}")
    return listed


def _by_peer(option: str, words: Sequence[str], bare: bool) -> dict[str, str]:
    """PEER=PATH words; without PEER= (where `bare` allows it) a path stands for all, under ""."""
    from legato.bench.compare import PEERS

    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals and bare:
            name, path = "", word
        if (name and name not in PEERS) or (not name and not bare) or not path:
            raise UsageError(f"{option}={word} is not allowed: PEER=PATH, where PEER is one of {', '.join(PEERS)}")
        found[name] = path
    return found


def _work(options: dict[str, Any]) -> Work:
    from legato.bench.compare import Work
    from legato.measure.machine import usable_cpus

    numbers = {name: options.pop(name) for name in ("decode", "batch", "prompt", "answer")}
    depths = tuple(dict.fromkeys(whole_numbers("--depths", options.pop("depths"), 0, "0,512,2048")))
    wanted = options.get("threads")
    return Work(depths=depths, threads=int(wanted) if wanted else usable_cpus(), **numbers)


def _contenders(
    config: Config,
    given: Mapping[str, Any],
    peers: Sequence[str],
    pythons: Mapping[str, str],
    models: Mapping[str, str],
    work: Work,
    terminal: Terminal,
) -> Iterator[Contender]:
    """Ours, and those of the others that are there; the absent are named."""
    import sys

    from legato import __version__
    from legato.bench.compare import PEERS, found, ours
    from legato.weights.hub import resolve_model

    with terminal.bar(patience=0) as fetching:
        path = str(resolve_model(config.model, config.cache_dir, fetching))
    _check_context(path, config, work)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    yield ours(path, options, work, __version__)
    for name in peers:
        python = pythons.get(name) or pythons.get("") or sys.executable
        try:
            yield found(PEERS[name], python, models.get(name, path), work)
        except UsageError:
            raise
        except LegatoError as error:
            terminal.note(str(error))


def _check_context(path: str, config: Config, work: Work) -> None:
    """Raises `UsageError` for work that does not fit our own context: each engine would be waited for in vain."""
    from legato.bench.decode import check_depths
    from legato.models.load import read_blueprint
    from legato.weights.source import open_model

    context = config.context or read_blueprint(open_model(path)).spec.context_length
    check_depths(work.depths, work.decode, context)
    if work.batch and work.prompt + work.answer > context:
        raise UsageError(
            f"{work.prompt} prompt tokens + {work.answer} to answer are more than the context of {context} tokens; "
            "lower --prompt or --answer"
        )


def _doubts(turn: Turn) -> Iterator[str]:
    from legato.bench.compare import BUSY_CORES

    if turn.problem:
        yield turn.problem
    if turn.busy is not None and turn.busy > BUSY_CORES:
        yield f"others used {turn.busy:.1f} cores before {turn.engine}'s turn: its figures may be too low"


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line an engine and piece of work: its speed, and ours over it."""
    lines = [f"{'':<30}{'engine':<16}{'tok/s':>10}{'range':>20}{'ours / theirs':>16}"]
    for what, speed in _SHOWN:
        for row in sorted((r for r in rows if r["what"] == what), key=lambda r: r.get("depth", 0)):
            if speed == "prefill_tok_s" and not row["depth"]:
                continue
            if what == "batch":
                title = f"{row['n']} x ({row['prompt']} in, {row['decode']} out)"
            else:
                title = f"{'prompt of' if speed == 'prefill_tok_s' else 'decode at'} {row['depth']:,}"
            low, high = row["least_and_most"][speed]
            ratio = row.get("ours_over_theirs", {}).get(speed)
            lines.append(
                f"{title:<30}{row['engine']:<16}{row[speed]:>10.1f}{f'{low:.1f} to {high:.1f}':>20}"
                + (f"{ratio:>15.2f}x" if ratio is not None else "")
            )
    return lines
