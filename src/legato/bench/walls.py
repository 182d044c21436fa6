"""This machine as our own kernels meet it: reading, matrix products, looking back, the fixed cost of a step, disk.

Knows: made-up models, backends, which steps tell what. Does not know: terminals, real models.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median

from legato.bench.drive import Drive, Requests, drive
from legato.bench.found import QUANTILE, Found, quantile
from legato.bench.made_up import PAGE_SIZE, VOCAB, batch_of, layers_of, made_up_executor, made_up_spec
from legato.bench.rates import Load, Shape, Steps
from legato.core.spec import ArchSpec
from legato.engine import Engine
from legato.kernels.ops import Backend, Executor, KvFormat
from legato.measure import cost
from legato.measure.ledger import StepRecord
from legato.measure.machine import READ_BYTES, Machine, cache_bytes
from legato.measure.predict import Piece, Predictor
from legato.runtime.runner import Runner
from legato.weights.hub import Report
from legato.weights.tensor import WeightFormat

ROWS = (1, 2, 4, 8, 16, 32, 64, 256)
FORMATS = (WeightFormat.Q4_0, WeightFormat.Q4_1, WeightFormat.Q8_0, WeightFormat.BF16)
NARROW, WIDE = 512, 1024
SMALL_S = 3.0  # measuring for less than this many seconds is only for trying it out
PRODUCTS = tuple(Load(1, 0, rows) for rows in ROWS)
DECODES = (
    Load(1, 0), Load(4, 0), Load(16, 0), Load(32, 0), Load(1, 500), Load(4, 500), Load(32, 500),
    Load(1, 2000), Load(8, 2000), Load(1, 8000), Load(2, 8000),
)  # fmt: skip
PROMPTS = (Load(1, 0, 64), Load(1, 0, 256), Load(1, 1024, 256), Load(1, 3968, 128))
FEW_LOOKS = (
    Load(1, 0), Load(32, 0), Load(1, 500), Load(32, 500), Load(8, 2000), Load(2, 8000), Load(1, 0, 256),
    Load(1, 3968, 128),
)  # fmt: skip
LOOKING = ((KvFormat.INT8, 128), (KvFormat.BF16, 64), (KvFormat.INT4, 64))  # int8 and 64: the models of products
LOOKS = (*DECODES, *PROMPTS)
MOST_TOKENS = max(load.tokens for load in LOOKS) + 64 * PAGE_SIZE
PLACES = 8  # where a load's keys and values lie, in turn: a real model's are in no cache when their layer comes again
LEAST, LEAST_S, ENOUGH_S = 2, 0.02, 0.15  # repetitions of a step in a round, and seconds after which one is enough
DRIFT = 1.33  # times faster or slower than calibrated: then a machine is measured again
DISK_BYTES = 64 << 20


class Calibration:
    """Measures in rounds, each of all figures, so that what comes and goes on a machine touches all alike.

    `open`, then `round` as often as there is time for; `close` in the end: it holds models.
    """

    def __init__(self, backend: Backend, threads: int, *, small: bool = False) -> None:
        self._backend, self._threads, self._small = backend, threads, small
        self._models: list[tuple[Executor, Shape, tuple[Load, ...], int]] = []

    def open(self) -> Iterator[None]:
        """Makes the models; yields after each."""
        if self._backend.name == "reference":
            return  # it multiplies float32 whatever the format: no rate of it is worth keeping
        nbytes = 1 << 16 if self._small else min(192 << 20, max(64 << 20, 3 * cache_bytes()))
        wide, slim = (128, 64) if self._small else (WIDE, NARROW)
        for fmt in FORMATS:
            self._add("wide", made_up_spec(wide, group=8, layers=layers_of(wide, fmt, nbytes)), fmt)
            yield
        self._add("narrow", made_up_spec(slim, group=2, layers=layers_of(slim, FORMATS[0], nbytes)), FORMATS[0])
        yield
        self._add("tiny", made_up_spec(64, layers=8), FORMATS[0])
        yield
        for kv_format, head_dim in () if self._small else LOOKING:
            for width, group in ((wide, 4), (slim, 1)):
                spec = made_up_spec(width, head_dim=head_dim, group=group, layers=6, mlp=1)
                self._add("looking", spec, FORMATS[0], kv_format)
                yield

    def _add(self, name: str, spec: ArchSpec, fmt: WeightFormat, kv_format: KvFormat = KvFormat.INT8) -> None:
        """A model and its loads: all of them say what products cost, but for "looking"; "tiny" what nothing costs."""
        looks = fmt is FORMATS[0] and name != "tiny"
        kv_tokens = MOST_TOKENS if looks else 0
        executor = made_up_executor(
            self._backend, spec, fmt, kv_format, max_tokens=max(ROWS), max_seqs=max(d.streams for d in DECODES),
            kv_tokens=kv_tokens,
        )  # fmt: skip
        executor.touch_pages()
        both = (*PRODUCTS, *(LOOKS if looks else ()))
        loads = {"tiny": PRODUCTS[:1], "looking": FEW_LOOKS}.get(name, both)
        shape = Shape(name, spec, fmt, kv_format, looks)
        self._models.append((executor, shape, tuple(dict.fromkeys(loads)), kv_tokens // PAGE_SIZE))

    def round(self, found: Found) -> Iterator[None]:
        """Each figure once more, into `found`; yields after each."""
        read_s = 0.0 if self._small else 0.1
        for name, count in (("1", 1), ("all", self._threads)):
            found.reading.setdefault(name, []).extend(read_gb_s(self._backend, count, read_s))
            yield
        for executor, shape, loads, num_pages in self._models:
            for load in loads:
                _run(executor, found.of(shape, load), 0.0 if self._small else LEAST_S, num_pages)
                yield
        found.overheads += step_overhead_s(self._backend)
        yield
        for executor, *_ in self._models[:1]:
            for key, seconds in _host_seconds(executor):
                found.host.setdefault(key, []).extend(seconds)
                yield

    def close(self) -> None:
        for executor, *_ in self._models:
            executor.close()
        self._models.clear()


def calibrate(backend: Backend, isa: str, threads: int, seconds: float, report: Report, folder: Path) -> Machine:
    """About `seconds` of measuring, at least one round; in less than `SMALL_S` models are so small that caches hold
    them. `folder`: where a file may be written for a moment.
    """
    calibration, found = Calibration(backend, threads, small=seconds < SMALL_S), Found()
    started = last = time.perf_counter()
    report.start(round(1000 * seconds), "measuring this machine")
    try:
        disk = disk_gb_s(folder)
        found.disk += [] if disk is None else [disk]
        first = True
        while first or last < started + seconds:
            for _ in chain(calibration.open() if first else (), calibration.round(found)):
                now = time.perf_counter()
                report.advance(round(1000 * (now - last)))
                last = now
                if not first and now > started + seconds:
                    break
            first = False
        return found.machine(isa, threads)
    finally:
        calibration.close()
        report.done()


@dataclass(frozen=True, slots=True)
class Drift:
    """What a look of about 0.3 s found, as multiples of what was calibrated: 1.0 as then, 0.5 half as fast."""

    reading: float
    multiplying: float

    @property
    def far(self) -> bool:
        """Whether predictions would be off by more than their interval allows for."""
        return not all(1 / DRIFT <= x <= DRIFT for x in (self.reading, self.multiplying))

    def describe(self) -> str:
        return f"reads at {self.reading:.0%} and multiplies at {self.multiplying:.0%} of the speed then"


def look_again(backend: Backend, machine: Machine) -> Drift:
    """Whether a calibrated machine still is what it was: one reading of memory, one product of many rows."""
    reading = median(read_gb_s(backend, machine.threads, 0.1)) / machine.read_gb_s["all"]
    if not machine.products:
        return Drift(reading, 1.0)
    load, fmt = Load(1, 0, 64), FORMATS[0]
    spec = made_up_spec(NARROW, group=2, layers=2)
    executor = made_up_executor(backend, spec, fmt, KvFormat.INT8, max_tokens=load.rows)
    steps = Steps(Shape("look", spec, fmt, KvFormat.INT8, False), load)
    try:
        for _ in range(5):
            _run(executor, steps)
    finally:
        executor.close()
    bits = dict.fromkeys(cost.Role, 8 * fmt.block_bytes / fmt.block)
    expected = Predictor(spec, bits, "int8", machine).step([(Piece(0, load.length, 1), 1)])
    taken = quantile((seconds for seconds, _ in steps.taken), QUANTILE)
    return Drift(reading, (expected.seconds - expected.host) / taken)


def read_gb_s(backend: Backend, threads: int, seconds: float) -> list[float]:
    """Passes over memory for about so many seconds, each in 10^9 bytes a second."""
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while not rates or time.perf_counter() < end:
        rates += [READ_BYTES / took / 1e9 for took in backend.read_seconds(READ_BYTES, threads, passes=8)]
    return rates


def disk_gb_s(folder: Path, nbytes: int = DISK_BYTES) -> float | None:
    """Reading a file of so many bytes that was just written and is dropped from the page cache, in 10^9 bytes a second.

    None where that cannot be done.
    """
    path, block = folder / f".disk-{os.getpid()}", bytes(4 << 20)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for _ in range(max(1, nbytes // len(block))):
                file.write(block)
            os.fsync(file.fileno())
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start, total = time.perf_counter(), 0
            while data := file.read(len(block)):
                total += len(data)
            return total / (time.perf_counter() - start) / 1e9
    except (OSError, AttributeError):  # no place to write, or a system without that advice
        return None
    finally:
        with suppress(OSError):
            path.unlink()


def step_overhead_s(backend: Backend, steps: int = 60) -> list[float]:
    """Seconds of engine steps of one sequence on a model with almost nothing to compute."""
    spec = made_up_spec(64, vocab=64)
    kv_format = KvFormat.F32 if backend.name == "reference" else KvFormat.INT8
    executor = made_up_executor(backend, spec, WeightFormat.Q8_0, kv_format, max_tokens=16, kv_tokens=steps + 32)
    try:
        done = _drive(executor, 64, [1], steps, 1)
    finally:
        executor.close()
    return [step.seconds for step in done.steps[steps // 2 :]]


def _host_seconds(executor: Executor) -> Iterator[tuple[tuple[int, int], list[float]]]:
    """((sequences, rows), seconds outside the executor's own call) of some steps of an engine."""
    for streams, prompt, steps in ((1, 1, 12), (32, 1, 8), (1, max(ROWS), 1)):
        taken: list[float] = []
        before = sum(executor.laps_ns().values())

        def watch(step: StepRecord, taken: list[float] = taken) -> None:
            nonlocal before
            now = sum(executor.laps_ns().values())
            taken.append(step.seconds - (now - before) / 1e9)
            before = now

        _drive(executor, VOCAB, [1] * prompt, steps, streams, watch)
        yield (streams, max(streams, prompt)), taken[steps // 4 :]


def _drive(
    executor: Executor,
    vocab: int,
    prompt: list[int],
    steps: int,
    streams: int,
    watch: Callable[[StepRecord], None] | None = None,
) -> Drive:
    """So many streams after a prompt, through an engine of their own."""
    runner = Runner(executor, page_size=PAGE_SIZE, vocab_size=vocab, eos_ids=())
    pages = streams * (-(-(len(prompt) + steps) // PAGE_SIZE) + 1)
    most = len(prompt) + steps + 1
    engine = Engine(
        runner,
        num_pages=pages,
        page_size=PAGE_SIZE,
        max_tokens=max(len(prompt), streams),
        max_seqs=streams,
        context_length=most,
        vocab_size=vocab,
    )
    requests = Requests(vocab)
    return drive(engine, [requests.make(list(prompt), steps) for _ in range(streams)], watch)


def _run(executor: Executor, steps: Steps, least_s: float = LEAST_S, num_pages: int = 0) -> None:
    """The step again, at least LEAST times and for so many seconds, in other places of `num_pages` each time."""
    load = steps.load
    needed = load.streams * -(-(load.start + load.length) // PAGE_SIZE)
    places = range(0, max(1, min(num_pages, PLACES * needed) - needed + 1), needed)
    batches = [batch_of([load.start] * load.streams, load.length, page=page) for page in places]
    before, tries, end = executor.laps_ns(), 0, time.perf_counter() + least_s
    while (tries < LEAST and time.perf_counter() < end + ENOUGH_S) or time.perf_counter() < end:
        batch = batches[tries % len(batches)]
        start = time.perf_counter()
        executor.run(batch)
        seconds = time.perf_counter() - start
        now = executor.laps_ns()
        steps.taken.append((seconds, {name: (now[name] - before[name]) / 1e9 for name in now}))
        before, tries = now, tries + 1
