"""Small records of each experiment, as their commands save them: real shapes, made-up figures."""

from __future__ import annotations

from typing import Any

from legato.bench.record import Record

MACHINE = {"cpu": "Example & Sons <X>", "cpus": 2, "memory_bytes": 8 << 30, "system": "Linux 6", "python": "3.11.7"}
SETTINGS = {"model": "small.gguf", "isa": "avx512", "threads": 2, "kv": "int8"}


def decode_row(depth: int) -> dict[str, Any]:
    ms = 5.0 + depth / 1000
    return {
        "depth": depth,
        "prefill_tok_s": 900.0,
        "ttft_ms": 1.2 * depth + 5,
        "decode_ms": ms,
        "decode_tok_s": 1000 / ms,
        "bytes_per_step": 90_000_000 + 12_000 * depth,
        "read_gb_s": 20.0,
        "wall_ms": 4.5 + 0.0006 * depth,
        "share_of_wall": (4.5 + 0.0006 * depth) / ms,
        "host_share": 0.02,
    }


def prefill_row(prompt: int) -> dict[str, Any]:
    ms = 5 + 0.5 * prompt + 5e-5 * prompt**2
    return {
        "prompt": prompt,
        "runs": 3,
        "ttft_ms": ms,
        "ttft_std_ms": 0.02 * ms,
        "prompt_tok_s": 1e3 * prompt / ms,
        "linear_flops": 270_000_000 * prompt,
        "attention_flops": 70_000 * prompt**2,
        "attention_share": 0.1,
        "read_gb_s": 20.0,
        "product_tops": 0.6,
        "wall_ms": 0.4 * prompt,
        "share_of_wall": 0.4 * prompt / ms,
    }


def tradeoff_row(batch: int) -> dict[str, Any]:
    ms, wall = 5 + 0.7 * batch, 4 + 0.5 * batch
    return {
        "batch": batch,
        "depth": 512,
        "context": 530,
        "steps": 48,
        "itl_ms": ms,
        "itl_p99_ms": 1.3 * ms,
        "out_tok_s": 1e3 * batch / ms,
        "tok_s_each": 1e3 / ms,
        "bytes_per_step": 90_000_000 + 6_000_000 * batch,
        "read_gb_s": 20.0,
        "product_tops": None,
        "wall_ms": wall,
        "wall_tok_s": 1e3 * batch / wall,
        "share_of_wall": wall / ms,
    }


def cache_row(points: int = 100, tokens: int = 1000) -> dict[str, Any]:
    def point(n: int) -> dict[str, Any]:
        with_s, without_s = 0.006 * n, 0.006 * n + 1e-4 * n * n
        return {
            "tokens": n,
            "with_s": with_s,
            "with_std_s": 0.01 * with_s,
            "without_s": without_s,
            "without_std_s": 0.02 * without_s,
            "ratio": without_s / with_s,
            "ratio_by_sums": 1.01 * without_s / with_s,
            "with_wall_s": 0.8 * with_s,
            "without_wall_s": 0.7 * without_s,
        }

    curve = [point(tokens * (i + 1) // points) for i in range(points)]
    return {
        "with": {"mean_s": curve[-1]["with_s"], "std_s": 0.06},
        "without": {"mean_s": curve[-1]["without_s"], "std_s": 2.1},
        "ratio": curve[-1]["ratio"],
        "prompt_tokens": 19,
        "tokens": tokens,
        "runs": 5,
        "first_difference": None,
        "positions": {"with": 1018, "without": 518_500},
        "fits": {
            "with_linear": {"costs_s": [0.0, 0.006], "r2": 0.9999},
            "without_quadratic": {"costs_s": [0.0, 0.006, 1e-4], "r2": 0.9998},
        },
        "read_gb_s": 20.0,
        "product_tops": 0.6,
        "curve": curve,
    }


ROWS: dict[str, list[dict[str, Any]]] = {
    "decode": [decode_row(depth) for depth in (0, 512, 2048, 8000)],
    "prefill": [prefill_row(prompt) for prompt in (64, 256, 1024, 4096)],
    "tradeoff": [tradeoff_row(batch) for batch in (1, 2, 4, 8, 16, 32)],
    "cache": [cache_row()],
}


def record(what: str, partial: str | None = None, rows: list[dict[str, Any]] | None = None) -> Record:
    command = f"legato bench {what} -m 'a <b> & c.gguf'"
    chosen = ROWS[what] if rows is None else rows
    return Record(what, "2026-01-02T03:04:05+00:00", command, "0.1.0", None, MACHINE, SETTINGS, chosen, partial)
