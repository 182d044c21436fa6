"""`legato bench`: experiments, one module each.

Knows: the table of experiments. Does not know: their options, how anything is measured (`legato.bench`) or shown
(`legato.report`).
"""

from __future__ import annotations

import click

from legato.cli.group import LazyGroup

# name -> (module, its help in one line); the help is repeated here so that `legato bench --help` loads nothing else.
EXPERIMENTS: dict[str, tuple[str, str]] = {
    "decode": ("legato.cli.bench.decode", "Time a token against context, beside the machine's wall."),
    "prefill": ("legato.cli.bench.prefill", "Time to the first token against the prompt's length."),
    "tradeoff": ("legato.cli.bench.tradeoff", "Latency against throughput, over batch sizes."),
    "cache": ("legato.cli.bench.cache", "The same answer with and without a KV cache."),
    "offline": ("legato.cli.bench.offline", "Throughput of many requests handed over at once."),
    "serve": ("legato.cli.bench.serve", "Load on a server: latencies, throughput, goodput; ours or any other."),
    "compare": ("legato.cli.bench.compare", "Other engines that are installed, in turn with ours."),
}


@click.command("bench", cls=LazyGroup, table=EXPERIMENTS)
def command() -> None:
    """Measure speed; every experiment takes --json, --save, and most take --report FILE.html."""
