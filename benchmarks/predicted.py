#!/usr/bin/env python3
"""Predicted against measured: inter-token latency by depth and batch, time to first token by prompt length.

    python benchmarks/predicted.py --save benchmarks/                    the built-in model
    python benchmarks/predicted.py -m smollm2-135m -m qwen.gguf          and a file of benchmarks/random_model.py

Predictions come from the machine's rates alone, measured with made-up models of other shapes; the models themselves are
never run for them. Calibration and measuring alternate, because memory and clocks change by the minute: each stretch of
measuring is judged by the calibrations right before and right after it. Where these two say more than 15 % different
things of a point, the machine changed meanwhile and the point is measured in another round; the median over the rounds
that count is told. Both sides take the same quantile of repetitions. Streams get their depth without computing it (the
pages are real memory, nothing in it, in order): a step's time depends on how many keys and values it reads, not on what
they are. Prompts of the time to first token are computed for real.

Knows: made-up requests, the engine's steps, `measure.predict`. Does not know: how rates are measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from legato import LLM
from legato.assemble import open_source, step_bits
from legato.bench.drive import Requests, drive
from legato.bench.found import Found, quantile
from legato.bench.record import save_record
from legato.bench.walls import Calibration
from legato.config import Config
from legato.core.plan import Plan, SliceResult
from legato.engine import Engine
from legato.measure import cost
from legato.measure.machine import Machine
from legato.measure.predict import Predictor, StepTime
from legato.models.load import read_blueprint
from legato.runtime.runner import Runner
from legato.schedule.budget import WholeSteps
from legato.weights.catalog import Silent

DEPTHS, BATCHES, PROMPTS = (0, 512, 2048, 8000), (1, 4, 8, 16, 32), (64, 256, 1024, 4096, 8000)
MOST_TOKENS = 70_000  # of all streams of a step together
STEPS, MOST_STEPS, STEPS_S = 8, 60, 0.15  # of each point in a round: so many, or for so long
SHORT, SHORT_S = 4, 1.0  # prompts of a round: so many, or for so long, but one at least
AGREE = 1.15  # times between what two neighbouring calibrations say: beyond it the machine changed in between
SPARE = 2  # times as many rounds as asked for are made at most, where some do not count
TARGETS = {"itl": (8.0, 20.0), "ttft": (10.0, 25.0)}  # per cent: median, worst


class Skipping:
    """A runner that computes no prompts: their tokens count as computed, and the first answer token is 1."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def run(self, plan: Plan) -> Sequence[SliceResult]:
        if any(s.start < s.seq.num_prompt_tokens for s in plan.slices):
            return [SliceResult([1] * s.num_logits) for s in plan.slices]
        return self._runner.run(plan)

    def forget(self, seq_ids: Collection[int]) -> None:
        self._runner.forget(seq_ids)


@dataclass(slots=True)
class Point:
    """One thing to predict: steps of `streams` streams at a depth, or a prompt up to its first token.

    took   seconds, by round; judged: what was predicted, from the calibrations before, after and both
    """

    model: str
    what: str
    where: dict[str, int]
    took: list[list[float]] = field(default_factory=list)
    judged: list[tuple[StepTime, StepTime, StepTime]] = field(default_factory=list)

    def counting(self) -> list[int]:
        """The rounds in which the machine stayed what it was."""
        both = ((before.seconds, after.seconds) for before, after, _ in self.judged)
        return [i for i, (first, last) in enumerate(both) if 1 / AGREE <= first / last <= AGREE]


class Measured:
    """One loaded model, and what its steps took."""

    def __init__(self, model: str | None) -> None:
        config = Config.resolve({"model": model})
        spec = read_blueprint(open_source(config, Silent()), None).spec
        pages = MOST_TOKENS + 32 * 64
        self.llm = LLM(model, max_seqs=max(BATCHES), kv_memory=pages * (cost.kv_bytes_per_token(spec, "int8") + 16))
        self.name = self.llm.name
        parts = self.llm.parts
        self.requests = Requests(parts.vocab_size)
        self._bits = step_bits(parts.config, parts.blueprint, parts.backend)
        itl = [
            Point(self.name, "itl", {"depth": depth, "batch": batch})
            for depth in DEPTHS
            for batch in BATCHES
            if depth * batch <= MOST_TOKENS
        ]
        ttft = [Point(self.name, "ttft", {"prompt": prompt}) for prompt in PROMPTS]
        self.stretches = [itl, ttft[:3], *([point] for point in ttft[3:])]  # of some seconds each, but for long prompts

    @property
    def points(self) -> list[Point]:
        return [point for stretch in self.stretches for point in stretch]

    def _engine(self, runner: Any, max_tokens: int) -> Engine:
        """A fresh one: its pages lie in order. Scattered ones are read up to 1.6 times as slowly."""
        parts, config = self.llm.parts, self.llm.config
        return Engine(
            runner,
            num_pages=parts.kv_plan.num_pages,
            page_size=config.page_size,
            max_tokens=max_tokens,
            max_seqs=max(BATCHES),
            context_length=self.llm.context_length,
            vocab_size=parts.vocab_size,
            budget=WholeSteps(),
        )

    def take(self, point: Point) -> None:
        """The point once more."""
        point.took.append(self._prompts(**point.where) if point.what == "ttft" else self._steps(**point.where))

    def judge(self, point: Point, machines: Sequence[Machine]) -> None:
        """`machines`: the calibrations before the stretch that the point was measured in, after it, and both."""
        parts = self.llm.parts
        found = [self._predicted(Predictor(parts.spec, self._bits, str(parts.kv_format), m), point) for m in machines]
        before, after, both = found
        point.judged.append((before, after, both))

    def _predicted(self, predictor: Predictor, point: Point) -> StepTime:
        if point.what == "ttft":
            return predictor.ttft(point.where["prompt"])
        return predictor.itl(max(1, point.where["depth"]) + STEPS // 2, point.where["batch"])

    def _prompts(self, prompt: int) -> list[float]:
        """Seconds to the first token: of one long prompt, of several short ones."""
        taken: list[float] = []
        while not taken or (len(taken) < SHORT and sum(taken) < SHORT_S):
            engine = self._engine(self.llm.parts.runner, self.llm.config.max_step_tokens)
            done = drive(engine, [self.requests.make(self.requests.tokens(prompt), 1)])
            taken.append(sum(step.seconds for step in done.steps))
        return taken

    def _steps(self, depth: int, batch: int) -> list[float]:
        """Seconds of some steps of `batch` streams, all `depth` tokens deep."""
        engine = self._engine(Skipping(self.llm.parts.runner), 2 * MOST_TOKENS)  # all prompts in one step
        prompt = [1] * max(1, depth)
        requests = [self.requests.make(prompt, 100) for _ in range(batch)]
        for request in requests:
            engine.add(request)
        engine.step()
        taken: list[float] = []
        end = time.perf_counter() + STEPS_S
        while len(taken) < STEPS or (len(taken) < MOST_STEPS and time.perf_counter() < end):
            engine.step()
            step = engine.ledger.recent[-1]
            assert step.decode_tokens == step.num_seqs == batch, "all streams have their depth after one step"
            taken.append(step.seconds)
        for request in requests:
            engine.abort(request.request_id)
        while engine.has_work:
            engine.step()
        return taken[1:]  # the first one came after steps that computed nothing


def row_of(point: Point, part: float) -> dict[str, Any]:
    """Medians over the rounds that count (over all, if none does); an error is that of one round's prediction."""
    parts = ("weights", "products", "kv", "attention", "layers", "host")
    counting = point.counting()
    rounds = counting or list(range(len(point.took)))
    found, seconds = [point.judged[i][2] for i in rounds], [quantile(point.took[i], part) for i in rounds]
    errors = [100 * (f.seconds / s - 1) for f, s in zip(found, seconds, strict=True)]
    return {
        "model": point.model,
        "what": point.what,
        **point.where,
        "predicted_ms": 1e3 * median(f.seconds for f in found),
        "measured_ms": 1e3 * median(seconds),
        "error_percent": median(errors),
        "errors_percent": [float(f"{error:.3g}") for error in errors],
        "rounds": len(point.took),
        "counting": len(counting),
        "inside": sum(f.low <= s <= f.high for f, s in zip(found, seconds, strict=True)) / len(found),
        "parts_ms": {name: float(f"{1e3 * median(getattr(f, name) for f in found):.4g}") for name in parts},
    }


def measure(models: Sequence[str | None], rounds: int, part: float) -> list[dict[str, Any]]:
    measured = [Measured(model) for model in models]
    parts = measured[0].llm.parts
    isa, threads = parts.executor.isa, parts.executor.threads
    calibration = Calibration(parts.backend, threads)
    for _ in calibration.open():
        pass
    before = calibrated(calibration)
    for number in range(SPARE * rounds):
        started = time.perf_counter()
        for model in measured:
            for stretch in model.stretches:
                wanting = [point for point in stretch if len(point.counting()) < rounds]
                if not wanting:
                    continue
                for point in wanting:
                    model.take(point)
                after = calibrated(calibration)
                machines = [found.machine(isa, threads, part) for found in (before, after, before + after)]
                for point in wanting:
                    model.judge(point, machines)
                before = after
        points = [point for model in measured for point in model.points]
        full = sum(len(point.counting()) >= rounds for point in points)
        said = f"{full} of {len(points)} points have their {rounds} rounds"
        print(f"round {number + 1}: {time.perf_counter() - started:.0f} s, {said}", file=sys.stderr, flush=True)
        if full == len(points):
            break
    return [row_of(point, part) for model in measured for point in model.points]


def calibrated(calibration: Calibration) -> Found:
    found = Found()
    for _ in calibration.round(found):
        pass
    return found


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for model in dict.fromkeys(row["model"] for row in rows):
        for what, (usual, most) in TARGETS.items():
            errors = [abs(r["error_percent"]) for r in rows if r["model"] == model and r["what"] == what]
            out.append({
                "model": model, "what": what, "points": len(errors), "median_error_percent": median(errors),
                "worst_error_percent": max(errors), "targets": [usual, most],
                "reached": median(errors) <= usual and max(errors) <= most,
            })  # fmt: skip
    return out


def short(row: dict[str, Any]) -> dict[str, Any]:
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", action="append", help="may be given several times")
    parser.add_argument("--rounds", type=int, default=3, help="that count, of each point")
    parser.add_argument("--quantile", type=float, default=0.25, help="of all repetitions, for both sides")
    parser.add_argument("--save", type=Path)
    asked = parser.parse_args()
    rows = [short(row) for row in measure(asked.model or [None], asked.rounds, asked.quantile)]
    for row in rows:
        point = (
            f"depth {row['depth']:5} batch {row['batch']:3}" if row["what"] == "itl" else f"prompt {row['prompt']:14}"
        )
        print(
            f"{row['model']:40} {row['what']:5} {point} predicted {row['predicted_ms']:9.2f} "
            f"measured {row['measured_ms']:9.2f} ms {row['error_percent']:+7.1f} % "
            f"({row['counting']} of {row['rounds']} rounds)"
        )
    found = [short(row) for row in summary(rows)]
    for row in found:
        print(json.dumps(row))
    if asked.save:
        command = [Path(sys.argv[0]).name, *(Path(word).name if "/" in word else word for word in sys.argv[1:])]
        settings = {"rounds": asked.rounds, "quantile": asked.quantile, "summary": found}
        print(save_record(asked.save, "predicted", command, settings, rows), file=sys.stderr)


if __name__ == "__main__":
    main()
