"""`legato bench serve`: load on a server, ours or any that speaks OpenAI's API.

Knows: its options, what it prints, Ctrl-C. Does not know: how requests are sent or figures made.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from legato.cli.bench.common import billed, positive_numbers, rounded, whole_numbers
from legato.cli.options import (
    FiniteRange,
    bench_options,
    bill_options,
    config_of,
    json_lines_option,
    report_option,
    save_option,
)
from legato.cli.terminal import Terminal
from legato.config import ServeConfig
from legato.errors import LegatoError, UsageError

if TYPE_CHECKING:
    from legato.bench.link import Client
    from legato.bench.prompts import Prompt
    from legato.bench.serve import Level, Load, Served, Target
    from legato.bench.serve_metrics import Limits
    from legato.cli.saving import Kept
    from legato.measure.energy import Rates

LATE_MS = 5.0  # less is nothing beside the pace of tokens
_SERVED = ("context", "backend", "threads", "isa", "weights", "kv", "kv_memory", "cache_dir")


@dataclass(frozen=True, slots=True)
class Asked:
    """The options beside the server's own."""

    levels: list[Level]
    limits: Limits
    requests: int
    prompt: int
    decode: int
    shared_prefix: int
    prompts: Path | None
    chat: bool
    seed: int
    timeout_s: float
    api_key: str | None


@dataclass(frozen=True, slots=True)
class Screen:
    """Where rows go."""

    terminal: Terminal
    kept: Kept
    as_json: bool


@click.command("serve")
@click.option("--url", metavar="URL", help="the server; without it, `legato serve` is started for as long as it takes")
@click.option("--concurrency", metavar="C[,C...]", help="requests in flight; several: one row each (default: 8)")
@click.option("--rate", metavar="R[,R...]", help="requests sent a second, answered or not")
@click.option(
    "--arrivals", type=click.Choice(["poisson", "fixed"]), help="distances between them at --rate (default: poisson)"
)
@click.option("-n", "--requests", type=click.IntRange(1, 1_000_000), default=32, show_default=True, metavar="N")
@click.option("--prompt", type=click.IntRange(1), default=128, show_default=True, metavar="P", help="tokens of its own")
@click.option("--decode", type=click.IntRange(1), default=64, show_default=True, metavar="D", help="tokens an answer")
@click.option("--shared-prefix", type=click.IntRange(0), default=0, metavar="S", help="equal tokens before each prompt")
@click.option("--prompts", type=click.Path(path_type=Path), metavar="FILE", help="JSON lines of prompts instead")
@click.option("--chat", is_flag=True, help="ask /v1/chat/completions instead of /v1/completions")
@click.option("--ttft-slo-ms", type=FiniteRange(0), metavar="MS", help="a good answer's first token")
@click.option("--tpot-slo-ms", type=FiniteRange(0), metavar="MS", help="a good answer's time a token")
@click.option("--itl-slo-ms", "gap_ms", type=FiniteRange(0), metavar="MS", help="a good answer's longest gap")
@click.option("--seed", type=int, default=1, show_default=True, metavar="S", help="of prompts and arrivals")
@click.option("--api-key", metavar="KEY", help="what the server at --url wants to see")
@click.option(
    "--timeout", "timeout_s", type=FiniteRange(0.1), default=180.0, show_default=True, metavar="SECONDS",
    help="a server that says nothing at all for so long is given up",
)  # fmt: skip
@bench_options
@bill_options
@save_option
@report_option
@json_lines_option
def command(save: Path | None, report: Path | None, as_json: bool, **options: Any) -> int:
    """Load on a server: TTFT, ITL, TPOT, throughput, goodput. -m is the name that the server at --url knows."""
    from legato.bench.link import Origin
    from legato.bench.own_server import own_server
    from legato.cli.saving import keeping
    from legato.measure.energy import open_rates
    from legato.weights.hub import resolve_model

    url, given = options.pop("url"), {name: options.get(name) for name in ("model", *_SERVED)}
    config = config_of(options)
    if url is None and options["api_key"]:
        raise UsageError("--api-key is for the server at --url; leave it out, or give --url")
    _random_prompts_only(options["prompts"] is not None)
    asked, terminal = _asked(options), Terminal(config.color)
    if url is None:
        asked = replace(asked, api_key=next(iter(ServeConfig.resolve().api_keys), None))  # the environment's
        with terminal.bar(patience=0) as fetching:
            resolve_model(config.model, config.cache_dir, fetching)
    model = config.model if config.sources["model"] == "argument" else None
    served = _server_options(given, asked.levels, asked.requests) if url is None else _no_server_options(given)
    with keeping("serve", save, report, terminal) as kept:
        with own_server(served) if url is None else nullcontext(url) as where:
            rates, notes = open_rates(
                config.energy, config.watts, config.price_per_hour, gpu=True, counters=Origin.of(where).local
            )
            for note in notes:
                terminal.note(note)
            known = None if url is None else model
            stopped = _with_uvloop(_measure(where, known, asked, rates, Screen(terminal, kept, as_json)))
        kept.partial = stopped
    if stopped is None:
        _some_answered(kept.rows)
        return 0
    from legato.bench.serve import INTERRUPTED

    if stopped == INTERRUPTED:
        return 130
    raise LegatoError(f"{stopped}; what was measured before is above")


def _some_answered(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises `LegatoError` where not one request of any level had an answer: nothing was measured."""
    failed = sum(row["requests"] for row in rows)
    if failed and not any(row["completed"] for row in rows):
        kind = next(iter(rows[0]["errors"]))
        raise LegatoError(f"all {failed} requests failed; the first: {kind}: {rows[0]['problems'][kind]}")


def _random_prompts_only(from_file: bool) -> None:
    source = click.get_current_context().get_parameter_source
    for name in ("prompt", "shared_prefix"):
        if from_file and source(name) is not click.core.ParameterSource.DEFAULT:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is for random prompts; leave it out, or leave out --prompts")


def _asked(options: dict[str, Any]) -> Asked:
    from legato.bench.serve import Level
    from legato.bench.serve_metrics import Limits

    concurrency, rate, arrivals = (options.pop(name) for name in ("concurrency", "rate", "arrivals"))
    if concurrency is not None and rate is not None:
        raise UsageError("--concurrency and --rate are two kinds of load; give one of them")
    if arrivals is not None and rate is None:
        raise UsageError("--arrivals says how requests at --rate arrive; give --rate too")
    if rate is not None:
        levels = [Level(rate=r, poisson=arrivals != "fixed") for r in positive_numbers("--rate", rate, "0.5,2")]
    else:
        levels = [
            Level(concurrency=c)
            for c in whole_numbers("--concurrency", "8" if concurrency is None else concurrency, 1, "1,8,32")
        ]
    limits = Limits(options.pop("ttft_slo_ms"), options.pop("tpot_slo_ms"), options.pop("gap_ms"))
    return Asked(levels=levels, limits=limits, **options)


def _server_options(given: dict[str, Any], levels: list[Level], requests: int) -> list[str]:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    together = max(level.concurrency or 16 for level in levels)
    return [*words, f"--max-seqs={min(together, 4096)}", f"--queue={min(65536, max(requests, 64))}"]


def _no_server_options(given: dict[str, Any]) -> list[str]:
    for name in _SERVED:
        if given[name] is not None:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is for a server that this command starts; leave it out, or leave out --url")
    return []


def _with_uvloop(main: Coroutine[Any, Any, str | None]) -> str | None:
    """uvloop halves what a chunk costs this side."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


async def _measure(url: str, model: str | None, asked: Asked, rates: Rates | None, screen: Screen) -> str | None:
    """A row a level; returns why there are not more, None when all are there."""
    from legato.bench import serve
    from legato.bench.link import Client, Origin
    from legato.measure.energy import Tab

    terminal = screen.terminal
    client = Client(Origin.of(url), asked.api_key, timeout_s=asked.timeout_s)
    try:
        with terminal.bar() as bar:
            target = await _target(client, model, asked, terminal)
            sets = await _prompts(client, target, asked, bar)
            screen.kept.settings |= _settings(url, target, asked, sets)
            for note in _notes(target, sets):
                terminal.note(note)
            if asked.prompts is not None and len(sets) > 1:
                terminal.note("every level asks the same prompts: the later ones may find them cached")
            for level, prompts in zip(asked.levels, sets, strict=True):
                load = serve.Load(client, target, prompts, asked.decode, level, asked.timeout_s)
                tab = Tab(rates)
                with _ctrl_c(load):
                    served = await load.run(asked.limits, asked.seed, bar, _label(level, len(prompts)))
                _show(served, tab.row(served.result.seconds, served.result.output_tokens), screen)
                if served.result.stopped is not None:
                    return served.result.stopped
            if not screen.as_json:
                _legend(terminal, asked)
    finally:
        client.close()
    return None


async def _target(client: Client, model: str | None, asked: Asked, terminal: Terminal) -> Target:
    """The endpoint, after one request that is not counted."""
    from legato.bench import serve
    from legato.bench.prompts import WORDS, Prompt

    known = await serve.models(client)
    name = model or (known[0] if known else None)
    if name is None:
        raise UsageError("the server names no model at /v1/models; give its name with -m")
    path = serve.endpoint(client.origin.path, asked.chat)
    target = serve.Target(path, name, chat=path.endswith("/chat/completions"))
    if asked.chat and not target.chat:
        raise UsageError("--chat asks /chat/completions, and --url names /completions; leave one of them out")
    terminal.dim(f"{name} at {client.origin.authority}{path}")
    return await serve.tried(client, target, Prompt(" ".join(WORDS[:8])), asked.timeout_s)


async def _prompts(client: Client, target: Target, asked: Asked, bar: Any) -> list[list[Prompt]]:
    """A list for each level; random ones share nothing but the prefix, so that no cache helps the second level."""
    from legato.bench import serve
    from legato.bench.prompts import read_prompts

    if asked.prompts is not None:
        found = read_prompts(asked.prompts)
        if not target.chat and any(prompt.text is None for prompt in found):
            raise UsageError(f"--prompts {asked.prompts} holds messages; add --chat")
        return [[found[i % len(found)] for i in range(asked.requests)] for _ in asked.levels]
    count, levels = asked.requests, len(asked.levels)
    all_prompts = await serve.written(
        client, target, count * levels, asked.prompt, asked.shared_prefix, asked.seed, bar
    )
    return [all_prompts[i * count : (i + 1) * count] for i in range(levels)]


def _settings(url: str, target: Target, asked: Asked, sets: list[list[Prompt]]) -> dict[str, Any]:
    from legato.bench.serve_metrics import FORMULAS

    kept = ("requests", "prompt", "decode", "shared_prefix", "seed")
    arrivals = "poisson" if asked.levels[0].poisson else "fixed"
    return {
        "url": url,
        "model": target.model,
        "endpoint": target.path,
        **{name: getattr(asked, name) for name in kept},
        "prompts": str(asked.prompts) if asked.prompts else "random words",
        "prompt_length": "by /tokenize" if all(p.tokens for p in sets[0]) else "estimated",
        "arrivals": arrivals if asked.levels[0].rate is not None else "closed",
        "limits": asdict(asked.limits),
        "formulas": FORMULAS,
    }


def _notes(target: Target, sets: list[list[Prompt]]) -> Iterator[str]:
    if not target.ignore_eos:
        yield "the server does not take ignore_eos: answers may end before --decode tokens"
    if not target.usage:
        yield "the server does not count tokens in streams: chunks are counted instead"
    if any(prompt.tokens is None and prompt.text for prompt in sets[0]):
        yield "the server has no /tokenize: a word of a prompt is taken for a token; its own count is in the result"


@contextmanager
def _ctrl_c(load: Load) -> Iterator[None]:
    """The first Ctrl-C ends the load, and what there is gets shown; a second one ends the program."""
    loop = asyncio.get_running_loop()

    def pressed() -> None:
        load.stop()
        loop.remove_signal_handler(signal.SIGINT)

    try:
        loop.add_signal_handler(signal.SIGINT, pressed)
    except (NotImplementedError, RuntimeError, ValueError):  # another system, or not the main thread
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _label(level: Level, count: int) -> str:
    load = f"{level.concurrency} at once" if level.rate is None else f"{level.rate:g} a second"
    return f"{count} requests, {load}"


def _show(served: Served, bill: dict[str, Any], screen: Screen) -> None:
    shown = rounded(served.as_json() | bill)
    screen.kept.rows.append(shown)
    if screen.as_json:
        screen.terminal.json(shown)
    else:
        for line in [*table(served), *([f"  {billed(bill)}"] if bill else [])]:
            screen.terminal.answer(line + "\n")
    for note in remarks(served):
        screen.terminal.note(note)


def table(served: Served) -> list[str]:
    """One level for a person."""
    r, g = served.result, served.generator
    load = f"{r.concurrency} at once" if r.rate is None else f"{r.rate:g} a second"
    lines = [
        f"{load}: {r.completed} of {r.asked} answers in {r.seconds:.2f} s, {r.output_tokens} tokens "
        f"(by {r.counted}, {r.tokens_per_chunk:.2f} a chunk), prompts of "
        + ("unknown length" if r.prompt_tokens is None else f"{r.prompt_tokens:.0f} tokens"),
        f"  {r.out_tok_s:.1f} output tok/s   {r.request_s:.2f} requests/s   goodput {r.goodput:.2f} requests/s",
        f"  {'ms':<6}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}",
    ]
    rows = [("TTFT", r.ttft_ms), ("ITL", r.itl_ms), ("TPOT", r.tpot_ms), ("E2E", r.e2e_ms), ("lag", g.lag_ms)]
    if r.late_ms is not None:
        rows.append(("late", r.late_ms))
    for name, s in rows:
        lines.append(f"  {name:<6}" + "".join(f"{value:>10.2f}" for value in (s.mean, s.p50, s.p90, s.p99, s.max)))
    lines += [f"  {kind}: {count}, such as: {r.problems[kind]}" for kind, count in r.errors.items()]
    return lines


def remarks(served: Served) -> Iterator[str]:
    """What makes a level's figures doubtful."""
    r, g = served.result, served.generator
    if g.lag_ms.p99 > max(LATE_MS, 0.1 * r.itl_ms.p99):
        yield (
            f"the load generator itself was late (p99 {g.lag_ms.p99:.0f} ms, {100 * g.cpu_share:.0f} % of a core): "
            "latencies of about that size may be its own; use fewer streams, or another machine for it"
        )
    if r.late_ms is not None and r.late_ms.p99 > max(LATE_MS, 0.1 * r.ttft_ms.p50):
        yield f"requests were sent up to {r.late_ms.max:.0f} ms after they were due"
    if r.stopped is not None:
        yield f"{r.stopped} after {r.requests} of {r.asked} requests; the figures are of those"


def _legend(terminal: Terminal, asked: Asked) -> None:
    from legato.bench.serve_metrics import FORMULAS

    for name, formula in FORMULAS.items():
        terminal.dim(f"{name:<10} {formula}")
    terminal.dim(f"{'lag':<10} how late the load generator's own event loop woke")
    given = [f"{name} {limit:g}" for name, limit in asdict(asked.limits).items() if limit is not None]
    terminal.dim(f"{'limits':<10} {', '.join(given) or 'none given: every whole answer is a good one'}")
