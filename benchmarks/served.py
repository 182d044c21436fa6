#!/usr/bin/env python3
"""What the server costs over the engine alone: start to ready, and tokens a second of many streams.

    python benchmarks/served.py --streams 32 --decode 128 --save benchmarks/
    python benchmarks/served.py --engine-process       the server with its engine in a child process, too

Starts `legato serve`, reads its streams with a small client on the same cores, and runs the same work through an
engine in this process, in turn. The client's own work counts against the server.

Knows: HTTP lines, made-up requests. Does not know: the server's insides.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

from legato import LLM
from legato.bench.drive import Requests, drive
from legato.bench.record import save_record


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def ready_s(port: int, server: subprocess.Popen[bytes], start: float) -> float:
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return time.perf_counter() - start
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None:
                raise SystemExit("the server ended") from None
            time.sleep(0.01)


async def stream(port: int, body: bytes) -> tuple[int, float]:
    """Tokens by the stream's own usage, and seconds to its first chunk."""
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    fields = f"Host: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"POST /v1/completions HTTP/1.1\r\n{fields}Connection: close\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"refused: {status.decode().strip()}: {(await reader.read())[-300:].decode()}")
    first, tokens = 0.0, 0
    async for line in reader:
        if line.startswith(b"data: {"):
            first = first or time.perf_counter() - start
            if b'"usage"' in line:
                usage = json.loads(line[6:]).get("usage")
                tokens = usage["completion_tokens"] if usage else tokens
    writer.close()
    return tokens, first


async def served(port: int, bodies: list[bytes]) -> tuple[float, float]:
    start = time.perf_counter()
    results = await asyncio.gather(*(stream(port, body) for body in bodies))
    seconds = time.perf_counter() - start
    return sum(tokens for tokens, _ in results) / seconds, median(first for _, first in results)


def body_of(prompt: list[int], decode: int) -> bytes:
    asked = {"prompt": prompt, "max_tokens": decode, "ignore_eos": True, "temperature": 0, "stream": True}
    return json.dumps({**asked, "stream_options": {"include_usage": True}}).encode()


def metric(port: int, name: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return "; ".join(line for line in lines if line.startswith(name))


class Served:
    """One running server."""

    def __init__(self, streams: int, place: str) -> None:
        self.place, self.port = place, free_port()
        self.rates: list[float] = []
        self.firsts: list[float] = []
        command = [sys.executable, "-m", "legato", "serve", "--port", str(self.port), "--max-seqs", str(streams), place]
        start = time.perf_counter()
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.ready_s = ready_s(self.port, self.process, start)

    def round(self, bodies: list[bytes]) -> None:
        rate, first = asyncio.run(served(self.port, bodies))
        self.rates.append(rate)
        self.firsts.append(first)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(40)


def measure(streams: int, prompt: int, decode: int, rounds: int, places: list[str]) -> list[dict[str, Any]]:
    """A row for each place of the engine; all of them and the engine alone take turns."""
    rng, alone = random.Random(1), []
    servers: list[Served] = []
    try:
        for place in places:
            servers.append(Served(streams, place))
        with LLM(max_seqs=streams) as llm:
            requests = Requests(llm.parts.vocab_size)
            for _ in range(rounds):
                for server in servers:
                    prompts = [[rng.randrange(100, 40000) for _ in range(prompt)] for _ in range(streams)]
                    server.round([body_of(ids, decode) for ids in prompts])
                done = drive(llm.parts.engine, [requests.make(requests.tokens(prompt), decode) for _ in range(streams)])
                alone.append(streams * decode / done.seconds)
        lags = [metric(server.port, "legato_event_loop_lag") for server in servers]
    finally:
        for server in servers:
            server.end()
    return [
        {
            "engine": server.place.removeprefix("--engine-"),
            "n": streams,
            "prompt": prompt,
            "decode": decode,
            "ready_s": server.ready_s,
            "served_tok_s": median(server.rates),
            "alone_tok_s": median(alone),
            "overhead": 1 - median(server.rates) / median(alone),
            "first_s": median(server.firsts),
            "lag": lag,
        }
        for server, lag in zip(servers, lags, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine-process", action="store_true", help="measure that too")
    parser.add_argument("--save", type=Path)
    asked = parser.parse_args()
    places = ["--engine-thread"] + ["--engine-process"] * asked.engine_process
    rows = measure(asked.streams, asked.prompt, asked.decode, asked.rounds, places)
    for row in rows:
        print(json.dumps(row))
    if asked.save:
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        print(save_record(asked.save, "served", command, {"rounds": asked.rounds}, rows), file=sys.stderr)


if __name__ == "__main__":
    main()
