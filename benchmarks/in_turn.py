#!/usr/bin/env python3
"""Measures several engines on the same work, in turn, round after round, and keeps every number.

    python benchmarks/in_turn.py --rounds 3 --save benchmarks/ \\
        legato='legato bench decode --json' llama.cpp='PYTHON peers.py llama-cpp MODEL --flash'

A command prints one JSON object a line on standard output; objects of one command and round that agree in depth, n,
prompt, decode and what are one piece of work. The record holds each round's objects, the median of each number over
the rounds, and the load of the machine before each command: only ratios within one quiet run mean anything.

Knows: commands, JSON lines, medians. Does not know: engines.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from legato.bench.record import save_record

KEYS = ("what", "depth", "n", "prompt", "shared_prefix", "decode")


def run(name: str, command: str, number: int) -> dict[str, Any]:
    """One command's objects; what it says besides goes to standard error as it comes."""
    load = os.getloadavg()[0]
    print(f"round {number}: {name} (load {load:.1f})", file=sys.stderr, flush=True)
    done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not rows:
        print(f"{name}: exit {done.returncode}, {len(rows)} objects; what there is is kept", file=sys.stderr)
    return {"name": name, "round": number, "load": round(load, 2), "exit": done.returncode, "rows": rows}


def summary(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The median of each number, by engine and piece of work."""
    found: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in runs:
        for row in one["rows"]:
            key = (one["name"], *((k, row[k]) for k in KEYS if k in row))
            for field, value in row.items():
                if field not in KEYS and isinstance(value, (int, float)) and not isinstance(value, bool):
                    found[key][field].append(value)
    return [
        {"name": name, **dict(work), **{field: median(values) for field, values in fields.items()}}
        for (name, *work), fields in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="+", metavar="NAME=COMMAND")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--what", default="compare", help="the record's name")
    parser.add_argument("--save", type=Path, required=True, help="a folder or a file")
    asked = parser.parse_args()
    commands = dict(word.split("=", 1) for word in asked.commands)
    runs = [run(name, command, i) for i in range(1, asked.rounds + 1) for name, command in commands.items()]
    rows = summary(runs)
    for row in rows:
        print(json.dumps(row))
    settings = {"rounds": asked.rounds, "engines": list(commands), "runs": runs}
    print(save_record(asked.save, asked.what, ["in_turn.py", *commands], settings, rows), file=sys.stderr)


if __name__ == "__main__":
    main()
