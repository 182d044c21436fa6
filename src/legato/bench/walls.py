"""This machine's walls as our own kernels meet them: reading, matrix products by rows, the fixed cost of a step.

Knows: made-up models of one or two layers, backends. Does not know: terminals, real models.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from statistics import median

import numpy as np

from legato import __version__
from legato.bench.drive import Requests, drive
from legato.core.plan import Plan, Slice
from legato.core.request import Request
from legato.core.sequence import Sequence as EngineSequence
from legato.core.spec import Activation, ArchSpec, AttentionSpec, LayerSpec, MlpKind, MlpSpec, NormKind, NormSpec
from legato.engine import Engine
from legato.kernels.ops import Backend, Executor, KvFormat
from legato.measure import cost
from legato.measure.machine import READ_BYTES, Machine, ProductRate, cpu_name, total_memory
from legato.models.decoder import Decoder, LayerWeights, NormWeights
from legato.runtime.pack import pack
from legato.runtime.runner import Runner
from legato.weights.formats import quantize_tensor
from legato.weights.hub import Report
from legato.weights.tensor import Tensor, WeightFormat

ROWS = (1, 4, 16, 64, 256)
INT8_FORMATS = (WeightFormat.Q4_0, WeightFormat.Q8_0)
PAGE_SIZE = 16
_NORM = NormSpec(NormKind.RMS, 1e-5)


def measure_walls(backend: Backend, isa: str, threads: int, seconds: float, report: Report) -> Machine:
    """About `seconds` a figure. `backend` is used for the products and the step, all of its threads."""
    plain = backend.name == "reference"  # it multiplies float32 whatever the format: no rate of it is a wall
    kv_format = KvFormat.F32 if plain else KvFormat.INT8
    formats = () if plain else (*INT8_FORMATS, WeightFormat.BF16)
    report.start(3 + len(ROWS) * len(formats), "measuring this machine")
    try:
        reading = {}
        for name, count in (("1", 1), ("all", threads)):
            reading[name] = median(read_gb_s(backend, count, seconds))
            report.advance(1)
        rates: dict[WeightFormat, dict[str, float]] = {}
        for fmt in formats:
            rates[fmt] = product_rates(backend, fmt, kv_format, seconds, report)
        overhead = step_overhead_us(backend, kv_format)
        report.advance(1)
    finally:
        report.done()
    products = tuple(
        ProductRate(
            str(fmt), 8 * fmt.block_bytes / fmt.block, 1024, {int(n): 2 * int(n) / t / 1e12 for n, t in by.items()}
        )
        for fmt, by in rates.items()
    )
    bf16 = rates.pop(WeightFormat.BF16, {})
    int8 = {str(fmt): by_rows for fmt, by_rows in rates.items()}
    return Machine(
        name=cpu_name(),
        isa=isa,
        threads=threads,
        version=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        memory_bytes=total_memory(),
        read_gb_s=reading,
        int8_tops=int8,
        bf16_tflops=bf16,
        step_overhead_us=overhead,
        products=products,
    )


def read_gb_s(backend: Backend, threads: int, seconds: float) -> list[float]:
    """Passes over memory for about so many seconds, each in 10^9 bytes a second."""
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while not rates or time.perf_counter() < end:
        rates += [READ_BYTES / took / 1e9 for took in backend.read_seconds(READ_BYTES, threads, passes=8)]
    return rates


def product_rates(
    backend: Backend, fmt: WeightFormat, kv_format: KvFormat, seconds: float, report: Report, width: int = 1024
) -> dict[str, float]:
    """10^12 operations a second of a step of so many rows that is nearly all matrix products, by rows."""
    spec = _spec(width)
    executor = _executor(backend, spec, fmt, kv_format, max_tokens=max(ROWS))
    rates = {}
    try:
        for rows in ROWS:
            took = _step_seconds(executor, rows, seconds)
            rates[str(rows)] = cost.linear_flops(spec, rows, 1) / took / 1e12
            report.advance(1)
    finally:
        executor.close()
    return rates


def step_overhead_us(backend: Backend, kv_format: KvFormat, steps: int = 200) -> float:
    """The mean engine step of one sequence on a model with almost nothing to compute."""
    spec = replace(_spec(64), vocab_size=64)
    executor = _executor(backend, spec, WeightFormat.Q8_0, kv_format, max_tokens=16)
    try:
        runner = Runner(executor, page_size=PAGE_SIZE, vocab_size=64, eos_ids=())
        engine = Engine(
            runner,
            num_pages=steps // PAGE_SIZE + 2,
            page_size=PAGE_SIZE,
            max_tokens=16,
            max_seqs=1,
            context_length=steps + 16,
            vocab_size=64,
        )
        done = drive(engine, [Requests(64).make([1], steps)])
    finally:
        executor.close()
    later = [step.seconds for step in done.steps[steps // 2 :]]
    return 1e6 * sum(later) / len(later)


def _step_seconds(executor: Executor, rows: int, seconds: float) -> float:
    """The best step of `rows` rows of one sequence, tried for so many seconds but at least three times."""
    seq = EngineSequence(0, Request("rate", (1,) * rows), pages=list(range(-(-rows // PAGE_SIZE))))
    batch = pack(Plan((Slice(seq, 0, rows, 1),)), PAGE_SIZE)
    best, end, tries = float("inf"), time.perf_counter() + seconds, 0
    while tries < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        executor.run(batch)
        best = min(best, time.perf_counter() - start)
        tries += 1
    return best


def _spec(width: int) -> ArchSpec:
    """A small llama-like decoder: two layers, MLP four times as wide, a small vocabulary."""
    heads = max(1, width // 64)
    attention = AttentionSpec(num_heads=heads, num_kv_heads=max(1, heads // 4), head_dim=width // heads, scale=0.125)
    layer = LayerSpec(attention, MlpSpec(MlpKind.GATED, 4 * width, Activation.SILU), _NORM, _NORM)
    return ArchSpec(
        family="made-up",
        d_model=width,
        vocab_size=512,
        context_length=4096,
        layers=(layer, layer),
        final_norm=_NORM,
        tied=False,
    )


def _executor(backend: Backend, spec: ArchSpec, fmt: WeightFormat, kv_format: KvFormat, max_tokens: int) -> Executor:
    """`spec` with random weights in `fmt`; the two layers have weights of their own, as in a real model."""
    made = _Weights(backend, fmt)
    norm = NormWeights(backend.pack_vector(np.ones(spec.d_model, np.float32)))
    layers = []
    for layer in spec.layers:
        qkv, out, up, down = cost.layer_matrices(spec, layer)
        gate = made.tensor(up.rows // 2, up.cols)
        layers.append(
            LayerWeights(
                attn_norm=norm,
                qkv=made.linear(qkv.rows, qkv.cols),
                q_norm=None,
                k_norm=None,
                out=made.linear(out.rows, out.cols),
                post_attn_norm=None,
                mlp_norm=norm,
                up=backend.pack_gate_up([gate], [made.tensor(up.rows // 2, up.cols)], None),
                down=made.linear(down.rows, down.cols),
                post_mlp_norm=None,
            )
        )
    table = made.tensor(spec.vocab_size, spec.d_model)
    decoder = Decoder(spec, backend.pack_table(table), None, tuple(layers), norm, backend.pack_linear([table], None))
    return backend.build(
        spec,
        decoder.forward,
        num_pages=max(64, max_tokens // PAGE_SIZE),
        page_size=PAGE_SIZE,
        kv_format=kv_format,
        max_tokens=max_tokens,
        max_seqs=1,
    )


class _Weights:
    """Random matrices in one format, small enough that activations stay finite."""

    def __init__(self, backend: Backend, fmt: WeightFormat) -> None:
        self._backend, self._format = backend, fmt
        self._random = np.random.default_rng(1)

    def tensor(self, rows: int, cols: int) -> Tensor:
        values = (self._random.standard_normal((rows, cols), np.float32) * np.float32(cols**-0.5)).view(np.uint8)
        return quantize_tensor(Tensor("random", (rows, cols), WeightFormat.F32, values.reshape(-1)), self._format)

    def linear(self, rows: int, cols: int) -> object:
        return self._backend.pack_linear([self.tensor(rows, cols)], None)
