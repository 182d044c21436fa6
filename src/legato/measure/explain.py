"""Where one request's milliseconds went: a waterfall of named parts that add up to its wall-clock time.

Knows: a sequence's account, what was done before and after the engine had it, bytes and operations in closed form, a
calibrated machine. Does not know: how anything was done, text, terminals.

    case = Case(setting, usage, visit)          what is known of one request
    explanation = explain(case)                 parts, the latency of each token, the line through them, advice
    explanation.as_json()                       `steps`, `summary`, `advice`

Parts follow the rule of `measure.shares`. `queue` is from the engine's hearing of the request to the begin of its
first step; `stream` is what lies between steps and after the last one: text is made and handed on. What no clock was
put to is `unexplained`. A part's wall is the least this machine could take: bytes over its measured reading speed,
products at their measured rates. Without a calibrated machine there are no walls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from legato.core.account import Felt, Trace
from legato.measure import cost
from legato.measure.advice import Advice, advise, context_ms, expected_s
from legato.measure.case import Case, decode_kv_bytes, weight_bytes
from legato.measure.cost import Role
from legato.measure.line import Line, fit_line
from legato.measure.machine import Machine
from legato.measure.predict import Predictor

LABELS = {
    "template": "template",
    "tokenise": "tokenise",
    "grammar": "grammar compiled",
    "queue": "queue",
    "prefill_cached": "prompt, cached",
    "prefill_computed": "prompt, computed",
    "weights": "decode: reading weights",
    "kv": "decode: keys and values",
    "compute": "decode: arithmetic",
    "host": "decode: host",
    "others_prefill": "waiting on others' prefill",
    "others_streams": "waiting on other streams",
    "preempted": "preempted",
    "stream": "detokenise, stream",
    "unexplained": "unexplained",
}
"""The parts for a person, in their order."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a request's time.

    name, phase    such as "weights" of "decode"; phases: before, prefill, decode, others, after
    share          of the whole
    wall_ms        the least this machine could take; share_of_wall: wall_ms / ms. None where there is no such thing
    figures        what belongs to it: bytes, tokens, its own parts
    """

    name: str
    phase: str
    ms: float
    share: float
    wall_ms: float | None = None
    share_of_wall: float | None = None
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenStep:
    """One step of the sequence, or some neighbours of them where there were thousands.

    at_ms    its end, from the request's begin
    context  tokens with keys and values after it
    tokens   answer tokens that it brought (0: a part of the prompt)
    ms       since the step before ended (of the first: since it began)
    waited_ms  of that, taken by others or by preemption
    """

    at_ms: float
    context: int
    tokens: int
    ms: float
    waited_ms: float


def token_steps(case: Case) -> list[TokenStep]:
    trace, begun = case.account.trace, case.visit.begun
    at, waited, tokens = case.account.begun, 0.0, 0
    steps = []
    for i, ended in enumerate(trace.at):
        steps.append(
            TokenStep(
                1e3 * (ended - begun),
                trace.context[i],
                trace.tokens[i] - tokens,
                1e3 * (ended - at),
                1e3 * (trace.waited[i] - waited),
            )
        )
        at, waited, tokens = ended, trace.waited[i], trace.tokens[i]
    return steps


def token_line(trace: Trace) -> Line | None:
    """Milliseconds of a token after the first, without what others took, against the tokens before it."""
    x, y = [], []
    for i in range(max(1, trace.prompt), len(trace.at)):
        tokens = trace.tokens[i] - trace.tokens[i - 1]
        if tokens > 0:
            own = trace.at[i] - trace.at[i - 1] - trace.waited[i] + trace.waited[i - 1]
            x.append(0.5 * (trace.context[i] + trace.context[i - 1] + 1))
            y.append(1e3 * own / tokens)
    return fit_line(x, y)


def walls_of(case: Case, machine: Machine) -> dict[str, float]:
    """The least that parts of a request can take on a calibrated machine, in seconds, by the part's name.

    prefill_computed  its products at their measured rates, and reading its keys and values
    weights, kv       their bytes at the measured speed of reading
    compute           its operations at the rate of products of many rows
    host              as many steps around a model of almost no work
    Without a cache answers are prompts computed again and again: only the first of them has a wall.
    """
    s, usage = case.setting, case.usage
    prefill = Predictor(s.spec, s.bits, s.kv, machine).ttft(usage.num_prompt_tokens, usage.num_cached_tokens, s.chunk)
    walls = {"prefill_computed": prefill.seconds - prefill.host}
    if s.naive:
        return walls
    walls |= {
        "weights": weight_bytes(s) * case.decoded / machine.read_bytes_s,
        "kv": decode_kv_bytes(case) / machine.read_bytes_s,
    }
    if rate := best_rate(machine, s.bits[Role.UP]):
        walls["compute"] = cost.linear_flops(s.spec, 1, 1) * case.decoded / rate
    if machine.step_overhead_us is not None:
        walls["host"] = machine.step_overhead_us * 1e-6 * case.decoded
    return walls


def best_rate(machine: Machine, bits: float) -> float:
    """Operations a second of matrix products of many rows, where arithmetic counts; 0 where none was measured."""
    rates = [machine.bf16_tflops] if bits >= 16 else machine.int8_tops.values()
    return 1e12 * max((by_rows[max(by_rows, key=int)] for by_rows in rates if by_rows), default=0.0)


def parts_of(case: Case) -> list[Part]:
    """The waterfall, in the order in which things happen; `unexplained` closes it."""
    account, visit, usage, total = case.account, case.visit, case.usage, case.total_s
    first, later = account.prefill, account.decode
    walls = walls_of(case, case.setting.machine) if case.setting.machine is not None else {}
    parts: list[Part] = []

    def part(name: str, phase: str, seconds: float, **figures: Any) -> None:
        wall = walls.get(name)
        share = seconds / total if total > 0 else 0.0
        of_wall = wall / seconds if wall is not None and seconds > 0 else None
        wall_ms = None if wall is None else 1e3 * wall
        parts.append(Part(name, phase, 1e3 * seconds, share, wall_ms, of_wall, figures))

    for name in ("template", "tokenise", "grammar"):
        part(name, "before", visit.laps.get(name, 0.0))
    begun = account.begun if account.num_steps else case.ended  # it may never have had its turn
    part("queue", "before", max(0.0, begun - usage.marks.get("arrived", begun)))
    saved = expected_s(account.costs, 0, usage.num_cached_tokens, case.setting.chunk)
    part("prefill_cached", "prefill", 0.0, tokens=usage.num_cached_tokens, saved_ms=1e3 * saved)
    part("prefill_computed", "prefill", first.own, tokens=case.computed, **_split(first))
    decode_bytes = weight_bytes(case.setting) * case.decoded
    naive = case.setting.naive  # what its steps read is counted for those of one row
    part("weights", "decode", later.weights, **({} if naive else {"bytes": decode_bytes}))
    part("kv", "decode", later.kv, **({} if naive else {"bytes": decode_kv_bytes(case)}))
    part("compute", "decode", later.compute)
    part("host", "decode", later.host)
    for name in ("others_prefill", "others_streams"):
        before, after = getattr(first, name), getattr(later, name)
        part(name, "others", before + after, before_first_token_ms=1e3 * before)
    away, again = first.preempted + later.preempted, first.again + later.again
    part("preempted", "others", away + again, computed_again_ms=1e3 * again, times=usage.num_preemptions)
    between = first.between + later.between
    if (
        account.num_steps
    ):  # an answer that was ended from outside, between steps, has waited for nothing that has a name
        between += max(0.0, case.ended - max(account.last, usage.marks.get("finished", 0.0)))
    part("stream", "after", between, text_ms=1e3 * visit.text)
    told = sum(p.ms for p in parts) / 1e3
    part("unexplained", "after", total - told)
    return parts


def _split(felt: Felt) -> dict[str, float]:
    return {f"{name}_ms": 1e3 * getattr(felt, name) for name in ("weights", "kv", "compute", "host")}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Parts that add up to `total_ms`; a step a token; the line through their latencies; what would help.

    context_ms  what a token more of context adds to a token by attention's own clock
    naive  no cache: every token computed all before it again
    miss  why no more of the prompt was found in the cache, in a sentence; None: nobody asked, or nothing missed
    """

    total_ms: float
    ttft_ms: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    finish_reason: str
    preemptions: int
    share_ms: float
    kv: str
    threads: int
    machine: str | None
    note: str
    parts: Sequence[Part]
    steps: Sequence[TokenStep]
    line: Line | None
    context_ms: float
    advice: Sequence[Advice]
    miss: str | None = None
    naive: bool = False

    @property
    def explained(self) -> float:
        """The share of the time that has another name than unexplained."""
        return 1.0 - abs(next(p.share for p in self.parts if p.name == "unexplained"))

    def as_json(self) -> dict[str, Any]:
        """`steps`, `summary` and `advice`, rounded to what a clock is good for."""
        left_out = {"parts", "steps", "line", "context_ms", "advice"}
        summary = {k: v for k, v in _fields(self).items() if k not in left_out}
        summary["explained"] = self.explained
        summary["parts"] = [asdict(p) for p in self.parts]
        summary["fit"] = None
        if self.line is not None:
            line = self.line
            summary["fit"] = {
                "c0_ms": line.c0,
                "c1_us_per_token": 1e3 * line.c1,
                "c1_error_us": 1e3 * line.error,
                "median_off_ms": line.off,
                "kv_us_per_token": 1e3 * self.context_ms,
                "points": line.points,
            }
        shown = {
            "steps": [asdict(s) for s in self.steps],
            "summary": summary,
            "advice": [asdict(a) for a in self.advice],
        }
        rounded: dict[str, Any] = _rounded(shown)
        return rounded


def _fields(value: Explanation) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return value


def explain(case: Case, miss: str | None = None) -> Explanation:
    """A whole answer's account; one that never had a step is explained by its queue alone."""
    account, usage, setting = case.account, case.usage, case.setting
    parts = parts_of(case)
    line = token_line(account.trace)
    first = usage.marks.get("first_token")
    return Explanation(
        total_ms=1e3 * case.total_s,
        ttft_ms=1e3 * (first - case.visit.begun) if first is not None else 0.0,
        prompt_tokens=usage.num_prompt_tokens,
        cached_tokens=usage.num_cached_tokens,
        output_tokens=usage.num_output_tokens,
        finish_reason=case.finish_reason,
        preemptions=usage.num_preemptions,
        share_ms=1e3 * account.share,
        kv=setting.kv,
        threads=setting.threads,
        machine=setting.machine.name if setting.machine is not None else None,
        note=setting.note,
        parts=parts,
        steps=token_steps(case),
        line=line,
        context_ms=context_ms(case),
        advice=advise(case, line),
        miss=miss,
        naive=setting.naive,
    )
