"""`legato plan`: does a model fit, how fast will it be, what will it cost; nothing is downloaded.

Knows: its options. Does not know: how a plan is made (`legato.planner`) or drawn (`cli.plan_table`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from legato.cli.options import config_of, json_option, report_option, save_option
from legato.cli.terminal import Terminal
from legato.config import SETTINGS, Config
from legato.errors import RequestError
from legato.measure.plan import DEPTHS, KV_FORMATS, Plan


@click.command("plan", no_args_is_help=True)
@click.argument("model")
@click.option("--context", type=int, metavar="C", help="tokens of prompt and answer together  [default: 2048]")
@click.option("--output", type=int, metavar="T", help="of them in the answer  [default: 256, or an eighth of C]")
@click.option("--users", type=int, default=1, show_default=True, metavar="N", help="at the same time")
@click.option("--machine", metavar="NAME", help="'this' as calibrated, or a data sheet: h100, m4-max, ddr5-desktop ...")
@click.option("--memory", metavar="SIZE", help="memory for weights, keys and values instead of the machine's: 24G")
@click.option("--kv", metavar="FORMAT", help=f"of keys and values: {', '.join(KV_FORMATS)}")
@click.option("--quant", metavar="FORMAT", help="of weights instead of those published: q4_0, fp8, or bits a weight")
@click.option("--price-per-hour", type=float, metavar="X", help="of the machine, for the price of a million tokens")
@click.option(
    "--depths", metavar="N,N,...", default=",".join(map(str, DEPTHS)), show_default=True, help="contexts to look at"
)
@click.option("--cache-dir", metavar="DIR", help=SETTINGS["cache_dir"].help)
@click.option("--color", metavar="WHEN", help=SETTINGS["color"].help)
@save_option
@report_option
@json_option
def command(model: str, depths: str, save: Path | None, report: Path | None, as_json: bool, **options: Any) -> None:
    """Predict what MODEL needs and how fast it answers; nothing is downloaded.

    MODEL is a config.json, a folder with one, a GGUF file (its header is enough), or a well-known name such as
    llama-3.1-8b, qwen3-30b-a3b, gemma-3-4b, deepseek-v3 or gpt-oss-20b (an unknown name lists them all).
    """
    from legato.cli.saving import keeping

    config = config_of({name: options.pop(name) for name in ("cache_dir", "color")})
    terminal = Terminal(config.color)
    with keeping("plan", save, report, terminal) as kept:
        made = _plan(model, depths, config, options)
        shown = made.as_dict()
        kept.rows += shown["by_users"]
        kept.settings |= {**options, "plan": {name: value for name, value in shown.items() if name != "by_users"}}
        if as_json:
            terminal.json(shown)
        else:
            from legato.cli.plan_table import draw

            draw(made, terminal)


def _plan(model: str, depths: str, config: Config, options: Mapping[str, Any]) -> Plan:
    from legato.planner import plan, size_of

    memory = options["memory"]
    return plan(
        model,
        context=options["context"],
        output=options["output"],
        users=options["users"],
        machine=options["machine"],
        kv=options["kv"],
        weights=options["quant"],
        price_per_hour=options["price_per_hour"],
        memory_bytes=None if memory is None else size_of("memory", memory),
        depths=_depths(depths),
        cache_dir=config.cache_dir,
    )


def _depths(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = (-1,)
    if not all(0 <= depth <= 10**9 for depth in found) or len(found) > 64:
        raise RequestError("depths", text, "at most 64 whole numbers from 0, separated by commas")
    return found
