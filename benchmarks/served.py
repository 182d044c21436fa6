#!/usr/bin/env python3
"""What the server costs over the engine alone: start to ready, and tokens a second of many streams.

    python benchmarks/served.py --streams 32 --decode 128 --save benchmarks/

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
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
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


def measure(streams: int, prompt: int, decode: int, rounds: int) -> dict[str, Any]:
    rng, port = random.Random(1), free_port()
    start = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "legato", "serve", "--port", str(port), "--max-seqs", str(streams)],
        stderr=subprocess.DEVNULL,
    )
    over_http, alone, firsts = [], [], []
    try:
        ready = ready_s(port, server, start)
        with LLM(max_seqs=streams) as llm:
            requests = Requests(llm.parts.vocab_size)
            for _ in range(rounds):
                bodies = [body_of([rng.randrange(100, 40000) for _ in range(prompt)], decode) for _ in range(streams)]
                rate, first = asyncio.run(served(port, bodies))
                over_http.append(rate)
                firsts.append(first)
                done = drive(llm.parts.engine, [requests.make(requests.tokens(prompt), decode) for _ in range(streams)])
                alone.append(streams * decode / done.seconds)
        lag = metric(port, "legato_event_loop_lag")
    finally:
        server.terminate()
        server.wait(40)
    return {
        "n": streams,
        "prompt": prompt,
        "decode": decode,
        "ready_s": ready,
        "served_tok_s": median(over_http),
        "alone_tok_s": median(alone),
        "overhead": 1 - median(over_http) / median(alone),
        "first_s": median(firsts),
        "lag": lag,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", type=Path)
    asked = parser.parse_args()
    row = measure(asked.streams, asked.prompt, asked.decode, asked.rounds)
    print(json.dumps(row))
    if asked.save:
        print(
            save_record(asked.save, "served", [Path(sys.argv[0]).name, *sys.argv[1:]], {"rounds": asked.rounds}, [row]),
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
