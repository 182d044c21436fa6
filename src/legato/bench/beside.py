"""What this machine allows at best, measured beside the steps that are held against it.

Knows: a loaded model's shape and bytes, memory's speed, the rate of matrix products. Does not know: what is timed.
"""

from __future__ import annotations

import time
from statistics import median
from types import TracebackType

from legato.assemble import step_bits
from legato.bench.made_up import batch_of, made_up_executor, made_up_spec
from legato.bench.walls import read_gb_s
from legato.kernels.ops import KvFormat
from legato.llm import LLM
from legato.measure import cost
from legato.weights.tensor import WeightFormat

READ_SECONDS, PRODUCT_STEPS = 0.2, 6
PRODUCT_WIDTH, PRODUCT_ROWS = 1024, 256


class Beside:
    """The wall of a step is what takes longer: reading its bytes, or its matrix products at their best rate.

    Looking back is counted as bytes only. On the reference backend the products have no wall of their own. Use it as a
    context manager: it holds a small model.
    """

    def __init__(self, llm: LLM, read_seconds: float = READ_SECONDS) -> None:
        self._parts, self._read_seconds = llm.parts, read_seconds
        self._bits = step_bits(llm.parts.config, llm.parts.blueprint, llm.parts.backend)
        self._reading: list[float] = []
        self._products = None if llm.parts.backend.name == "reference" else _Products(llm, self._bits[cost.Role.UP])
        self.tops: float | None = None

    def __enter__(self) -> Beside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._products is not None:
            self._products.close()

    def measure(self, afresh: bool = False) -> None:
        """A moment of each; call it before and after what is timed. `afresh` forgets what was measured before."""
        if afresh:
            self._reading, self.tops = [], None
        self._reading += read_gb_s(self._parts.backend, self._parts.executor.threads, self._read_seconds)
        if self._products is not None:
            self.tops = max(self.tops or 0.0, self._products.tops())

    @property
    def read_gb_s(self) -> float:
        """10^9 bytes a second: the median reading."""
        return median(self._reading)

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


class _Products:
    """Steps of many rows that are nearly all matrix products, in the kernel format nearest to a model's."""

    def __init__(self, llm: LLM, bits: float) -> None:
        fmt = WeightFormat.Q4_0 if bits < 7 else WeightFormat.Q8_0 if bits < 12 else WeightFormat.BF16
        self._spec, self._batch = made_up_spec(PRODUCT_WIDTH), batch_of([0], PRODUCT_ROWS)
        backend = llm.parts.backend
        self._executor = made_up_executor(backend, self._spec, fmt, KvFormat.INT8, max_tokens=PRODUCT_ROWS)
        self._executor.run(self._batch)
        self.close = self._executor.close

    def tops(self) -> float:
        """10^12 operations a second of the best of a few steps."""
        best = float("inf")
        for _ in range(PRODUCT_STEPS):
            started = time.perf_counter()
            self._executor.run(self._batch)
            best = min(best, time.perf_counter() - started)
        return cost.linear_flops(self._spec, PRODUCT_ROWS, 1) / best / 1e12
