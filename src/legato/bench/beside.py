"""What this machine allows at best, measured beside the steps that are held against it.

Knows: a loaded model's shape and bytes, memory's speed, the rate of matrix products. Does not know: what is timed.
"""

from __future__ import annotations

import time
from statistics import median

from legato.assemble import step_bits
from legato.bench.made_up import batch_of, made_up_executor, made_up_spec
from legato.bench.walls import read_gb_s
from legato.kernels.ops import KvFormat
from legato.llm import LLM
from legato.measure import cost
from legato.weights.tensor import WeightFormat

READ_SECONDS, PRODUCT_SECONDS = 0.2, 0.5
PRODUCT_WIDTH, PRODUCT_ROWS = 1024, 256


class Beside:
    """The wall of a step is what takes longer: reading its bytes, or its matrix products at their best rate.

    Looking back is counted as bytes only. On the reference backend the products have no wall of their own.
    """

    def __init__(self, llm: LLM, read_seconds: float = READ_SECONDS) -> None:
        self._parts, self._read_seconds = llm.parts, read_seconds
        self._bits = step_bits(llm.parts.config, llm.parts.blueprint, llm.parts.backend)
        self._rates: list[float] = []
        self.tops = _product_tops(llm, self._bits[cost.Role.UP])

    def read(self) -> None:
        """Reads memory for a moment; call it before and after what is timed."""
        self._rates += read_gb_s(self._parts.backend, self._parts.executor.threads, self._read_seconds)

    @property
    def read_gb_s(self) -> float:
        """10^9 bytes a second: the median of all readings so far."""
        return median(self._rates)

    def step_bytes(self, rows: int, logit_rows: int, contexts: tuple[int, ...]) -> int:
        """What a step must read: weights once, keys and values of each sequence up to its context."""
        spec, kv = self._parts.spec, str(self._parts.kv_format)
        weights = cost.weight_read_bytes(spec, self._bits, rows, logit_rows)
        return weights + sum(cost.kv_read_bytes(spec, kv, context) for context in contexts)

    def products_s(self, rows: int, logit_rows: int) -> float:
        """Seconds of a step's matrix products at their best rate."""
        return cost.linear_flops(self._parts.spec, rows, logit_rows) / (1e12 * self.tops) if self.tops else 0.0

    def step_s(self, rows: int, logit_rows: int, contexts: tuple[int, ...]) -> float:
        reading = self.step_bytes(rows, logit_rows, contexts) / self.read_gb_s / 1e9
        return max(reading, self.products_s(rows, logit_rows))


def _product_tops(llm: LLM, bits: float) -> float | None:
    """10^12 operations a second of a step of many rows that is nearly all matrix products, at its best.

    Of a made-up model in the kernel format nearest to the real one's.
    """
    parts = llm.parts
    if parts.backend.name == "reference":
        return None
    fmt = WeightFormat.Q4_0 if bits < 7 else WeightFormat.Q8_0 if bits < 12 else WeightFormat.BF16
    spec, batch = made_up_spec(PRODUCT_WIDTH), batch_of([0], PRODUCT_ROWS)
    executor = made_up_executor(parts.backend, spec, fmt, KvFormat.INT8, max_tokens=PRODUCT_ROWS)
    best, end = float("inf"), time.perf_counter() + PRODUCT_SECONDS
    try:
        executor.run(batch)
        while time.perf_counter() < end or best == float("inf"):
            started = time.perf_counter()
            executor.run(batch)
            best = min(best, time.perf_counter() - started)
    finally:
        executor.close()
    return cost.linear_flops(spec, PRODUCT_ROWS, 1) / best / 1e12
