#!/usr/bin/env python3
"""Whether our server keeps the engine's lead: ours and llama-server by `bench serve`, each beside its engine alone.

    python benchmarks/load.py --llama-server PATH --llama-python PATH --llama-model FILE.gguf --save benchmarks/

For 1, 8 and 32 streams: both servers under the same load (as many requests at once as streams, each followed by the
next), and both engines alone: ours on the same requests in the same order (`bench offline --max-seqs`), llama.cpp on as
many of them as there are streams, through its Python package, stepped by hand, or as fast as behind its own server
where that is more. A server and its engine follow each other closely, by turns the one and the other first, because
machines change by the minute: `kept_part` is the median over the rounds of what a server keeps of its engine. The lead
is ours over theirs; `kept` is the part that ours keeps over the part that theirs keeps, so the lead of the servers over
the lead of the engines. The client's own work counts against both servers.

Knows: commands and their JSON lines. Does not know: how any of it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from legato.bench.compare import SCRIPT, busy_cores
from legato.bench.own_server import own_server
from legato.bench.record import make_record, write_record

LEGATO = (sys.executable, "-m", "legato", "bench")
QUIET = subprocess.DEVNULL
REQUESTS, LEAST = 6, 16  # of each stream, and of all: so many that beginning and end weigh little


def rows_of(command: list[str]) -> list[dict[str, Any]]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()[-300:]}", file=sys.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@contextmanager
def llama_server(asked: argparse.Namespace) -> Iterator[str]:
    """As many slots as the most streams, each with room for one request."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    most = max(asked.streams)
    room = most * (asked.prompt + asked.decode + 64)
    sizes = ["-c", str(room), "-np", str(most), "-t", str(asked.threads), "--port", str(port)]
    server = subprocess.Popen([asked.llama_server, "-m", asked.llama_model, *sizes], stdout=QUIET, stderr=QUIET)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
            except (urllib.error.URLError, ConnectionError):
                if server.poll() is not None:
                    raise SystemExit("llama-server ended") from None
                time.sleep(0.05)
        yield url
    finally:
        server.terminate()
        server.wait(20)


def sizes(streams: int, asked: argparse.Namespace) -> list[str]:
    requests = max(LEAST, REQUESTS * streams)
    return [f"--prompt={asked.prompt}", f"--decode={asked.decode}", f"--requests={requests}"]


def served(url: str, streams: int, asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One level of load."""
    load = [f"--concurrency={streams}", f"--seed={seed}", "--json"]
    rows = rows_of([*LEGATO, "serve", "--url", url, *sizes(streams, asked), *load])
    return rows[0] if rows else {}


def alone(engine: str, streams: int, asked: argparse.Namespace) -> float:
    """Output tokens a second without any server."""
    if engine == "legato":
        model = ["-m", asked.model] if asked.model else []
        options = [f"--max-seqs={streams}", f"--threads={asked.threads}", "--json"]
        rows = rows_of([*LEGATO, "offline", *model, *sizes(streams, asked), *options])
    else:
        numbers = [1, streams, asked.prompt, asked.decode, asked.threads]
        command = [asked.llama_python, str(SCRIPT), "llama.cpp", asked.llama_model, "", *map(str, numbers)]
        rows = rows_of(command)
    return float(rows[-1]["out_tok_s"]) if rows else 0.0


def measure(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    options = [f"--max-seqs={max(asked.streams)}", f"--threads={asked.threads}"]
    if asked.model:
        options.append(f"--model={asked.model}")
    for streams in asked.streams:
        found: dict[str, list[float]] = {}
        gaps: dict[str, list[float]] = {}
        busy = busy_cores(0.5)
        for turn in range(asked.rounds):
            for engine, server in (("legato", own_server(options)), ("llama.cpp", llama_server(asked))):
                ways = [("served", server), ("alone", None)]
                for way, running in ways if turn % 2 == 0 else ways[::-1]:
                    if running is None:
                        speed = alone(engine, streams, asked)
                    else:
                        with running as url:
                            row = served(url, streams, asked, seed=turn + 1)
                        speed = row.get("out_tok_s", 0.0)
                        gaps.setdefault(engine, []).append(row.get("itl_ms", {}).get("p99", 0.0))
                    found.setdefault(f"{engine} {way}", []).append(speed)
        yield {"streams": streams, **leads(found), "itl_p99_ms": {e: median(g) for e, g in gaps.items()}, "busy": busy}


def leads(found: dict[str, list[float]]) -> dict[str, Any]:
    """From tokens a second by engine and way, a value a round. Stepped by hand, an engine may not show all it has:
    it is at least as fast as behind its own server.
    """
    speed = {name: median(values) for name, values in found.items()}
    kept_part = {}
    for engine in ("legato", "llama.cpp"):
        served, alone = found[f"{engine} served"], found[f"{engine} alone"]
        kept_part[engine] = min(1.0, median(s / max(1e-9, a) for s, a in zip(served, alone, strict=True)))
        speed[f"{engine} alone"] = speed[f"{engine} served"] / max(1e-9, kept_part[engine])
    lead = {way: speed[f"legato {way}"] / max(1e-9, speed[f"llama.cpp {way}"]) for way in ("served", "alone")}
    kept = kept_part["legato"] / max(1e-9, kept_part["llama.cpp"])
    return {"out_tok_s": speed, "rounds": found, "lead": lead, "kept_part": kept_part, "kept": kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", required=True, metavar="PATH")
    parser.add_argument("--llama-python", required=True, metavar="PATH", help="a Python with llama-cpp-python")
    parser.add_argument("--llama-model", required=True, metavar="FILE")
    parser.add_argument("--model", help="ours (default: the built-in one)")
    parser.add_argument("--streams", type=lambda text: [int(word) for word in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", type=Path)
    asked = parser.parse_args()
    rows = []
    for row in measure(asked):
        rows.append(row)
        print(json.dumps(row), flush=True)
    if asked.save:
        settings = {name: getattr(asked, name) for name in ("prompt", "decode", "threads", "rounds")}
        print(write_record(asked.save, make_record("load", ["load.py"], settings, rows)), file=sys.stderr)


if __name__ == "__main__":
    main()
