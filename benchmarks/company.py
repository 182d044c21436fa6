#!/usr/bin/env python3
"""What company costs: the pace of running streams while a long prompt arrives, and throughput by number of streams.

    python benchmarks/company.py slo --save benchmarks/       8 streams at depth 500, a prompt of 8,000, SLO 80 ms
    python benchmarks/company.py streams --save benchmarks/   1, 2, 4 ... 64 streams at depth 500

`slo` prints the gaps between a stream's tokens while the prompt is read, and the prompt's time to its first token
beside its time alone divided by the share of the steps' time that it was given. `streams` prints tokens a second in
pure decode steps beside the wall of their bytes and of their products.

Knows: made-up requests, the engine's steps. Does not know: HTTP.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from legato import LLM
from legato.assemble import step_bits
from legato.bench.drive import Requests, drive
from legato.bench.record import save_record
from legato.bench.walls import read_gb_s
from legato.core.request import Request
from legato.measure import cost

DEPTH, STREAMS, PROMPT, SLO_MS = 500, 8, 8000, 80.0


def slo(model: str | None) -> Iterator[dict[str, Any]]:
    with LLM(model, itl_slo_ms=SLO_MS, max_seqs=STREAMS + 1) as llm:
        requests, engine = Requests(llm.parts.vocab_size), llm.parts.engine
        prompt = PROMPT - 2
        alone = drive(engine, [requests.make(requests.tokens(prompt), 1)]).seconds
        for _ in range(3):  # the step model meets mixed steps before it is judged
            yield beside(llm, requests, prompt, alone)


def beside(llm: LLM, requests: Requests, prompt: int, alone: float) -> dict[str, Any]:
    engine = llm.parts.engine
    streams = [requests.make(requests.tokens(DEPTH), 2000) for _ in range(STREAMS)]
    for request in streams:
        engine.add(request)
    for _ in range(60):
        engine.step()
    pure = median(step.seconds for step in list(engine.ledger.recent)[-20:])
    late = requests.make(requests.tokens(prompt), 1)
    gaps, arrived, given, taken = watch(llm, streams, late, pure)
    for request in streams:
        engine.abort(request.request_id)
    while engine.has_work:
        engine.step()
    share = given / taken
    return {
        "slo_ms": SLO_MS,
        "gap_p50_ms": 1e3 * median(gaps),
        "gap_p99_ms": 1e3 * quantiles(gaps, n=100)[98],
        "gap_max_ms": 1e3 * max(gaps),
        "gaps": len(gaps),
        "alone_s": alone,
        "ttft_s": arrived,
        "share": share,
        "ttft_over_alone_by_share": arrived / (alone / share),
        "step_error": engine.stats().step_error,
    }


def watch(llm: LLM, streams: list[Request], late: Request, pure: float) -> tuple[list[float], float, float, float]:
    """Gaps of the streams while `late` is read, its time to first token, and the prompt's and all time of the steps."""
    engine, gaps, last = llm.parts.engine, [], {}
    given = taken = 0.0
    start = time.perf_counter()
    last = {request.request_id: start for request in streams}
    engine.add(late)
    while True:
        before = time.perf_counter()
        events = engine.step()
        now = time.perf_counter()
        taken += now - before
        given += max(0.0, now - before - pure)
        for event in events:
            if event.request_id in last:
                gaps.append(now - last[event.request_id])
                last[event.request_id] = now
        if any(event.request_id == late.request_id and event.token_ids for event in events):
            return gaps, now - start, given, taken


def streams(model: str | None) -> Iterator[dict[str, Any]]:
    with LLM(model, max_seqs=64, kv_memory="1G", itl_slo_ms=60_000) as llm:  # whole steps of prompts
        parts, requests = llm.parts, Requests(llm.parts.vocab_size)
        bits = step_bits(parts.config, parts.blueprint, parts.backend)
        for count in (1, 2, 4, 8, 16, 32, 64):
            done = drive(parts.engine, [requests.make(requests.tokens(DEPTH), count + 40) for _ in range(count)])
            steps = [s for s in done.steps if s.prompt_tokens == 0 and s.num_seqs == count]
            rates = read_gb_s(parts.backend, parts.executor.threads, 0.25)
            laps = defaultdict(float)
            for step in steps:
                for name, seconds in step.laps.items():
                    laps[name] += seconds
            seconds = sum(step.seconds for step in steps)
            context = DEPTH + count // 2 + 20
            kv = cost.decode_step_bytes(parts.spec, bits, parts.kv_format, context)
            weights = cost.decode_step_bytes(parts.spec, bits, parts.kv_format, 0)
            size = weights + count * (kv - weights)
            operations = cost.linear_flops(parts.spec, count, count)
            yield {
                "n": count,
                "depth": DEPTH,
                "tok_s": count * len(steps) / seconds,
                "step_ms": 1e3 * median(step.seconds for step in steps),
                "byte_wall_ms": size / median(rates) / 1e6,
                "int8_tops": operations * len(steps) / seconds / 1e12,
                "host_share": 1 - laps["run"] / seconds,
                "read_gb_s": median(rates),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("slo", "streams"))
    parser.add_argument("-m", "--model")
    parser.add_argument("--save", type=Path)
    asked = parser.parse_args()
    rows = []
    for row in {"slo": slo, "streams": streams}[asked.what](asked.model):
        rows.append({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()})
        print(json.dumps(rows[-1]), flush=True)
    if asked.save:
        print(save_record(asked.save, asked.what, [Path(sys.argv[0]).name, *sys.argv[1:]], {}, rows), file=sys.stderr)


if __name__ == "__main__":
    main()
