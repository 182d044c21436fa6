"""What would have helped this request, in milliseconds: each piece computed from its own figures.

Knows: a finished request's account, what it ran on, the line through its tokens' latencies. Does not know: terminals,
how anything is changed.

A saving is a measured part times what is left of its cause: prompt rows that would not be computed, bytes that would
not be read, tokens that would not come. So it holds on the machine, and in the minute, in which the request ran. What
saves less than LEAST of the request's time is not told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from legato.measure import cost
from legato.measure.case import Case, decode_kv_bytes, weight_bytes
from legato.measure.line import Line
from legato.measure.machine import Machine
from legato.measure.predict import Predictor, chunks
from legato.measure.step_time import DENSE, Load

LEAST = 0.01
SHORTER = 100  # tokens that a shorter prompt is said to leave out
SMALL_BITS = 4.5  # Q4_0, scales included
COMPANY = 8


@dataclass(frozen=True, slots=True)
class Advice:
    """kind     cache, shorter_prompt, cached_prefix, kv_format, max_tokens, threads, weights, alone, memory,
             same_grammar, company
    do       what to change, in a sentence
    saves_ms milliseconds of this request; share: of its whole time
    of       "latency", or "machine": the machine's time that a request takes, its own latency grows
    figures  what the saving was computed from
    assumed  what it takes for granted; "" for nothing but that the machine stays as it is
    """

    kind: str
    do: str
    saves_ms: float
    share: float
    of: str = "latency"
    figures: dict[str, float | int | str] = field(default_factory=dict)
    assumed: str = ""


def advise(case: Case, line: Line | None) -> list[Advice]:
    """The largest saving first; those of the machine's time after those of this request's.

    Without a cache that comes before all else, and what takes one for granted is not advised.
    """
    total_ms = 1e3 * case.total_s
    if total_ms <= 0 or not case.account.num_steps:
        return []
    found: list[Advice] = []
    cached = (_shorter, _cached, _fewer_tokens, _kv, _threads, _weights, _others, _company)
    for each in (_cache, _fewer_tokens, _others) if case.setting.naive else cached:
        found += each(case, line)
    told = [replace(a, share=a.saves_ms / total_ms) for a in found if a.saves_ms >= LEAST * total_ms]
    return sorted(told, key=lambda a: (a.kind != "cache", a.of != "latency", -a.saves_ms))


@dataclass(frozen=True, slots=True)
class Prefill:
    """A prompt's positions [start, end) by what their time goes with; `looking` has any unit, but always the same."""

    rows: int
    steps: int
    looking: float

    @classmethod
    def of(cls, case: Case, start: int, end: int) -> Prefill:
        """Looking back by the machine's rates (a part of it goes with rows), uncalibrated by its operations alone."""
        s = case.setting
        if s.machine is not None:
            took = Predictor(s.spec, s.bits, s.kv, s.machine).ttft(end, start, s.chunk)
            looking = took.kv + took.attention
        else:
            looking = float(cost.attention_flops(s.spec, start, end - start))
        return cls(end - start, len(list(chunks(start, end, s.chunk))), looking)


def prefill_ms(case: Case, start: int, end: int) -> float:
    """What computing positions [start, end) would take: rows, steps and looking back each scaled as measured."""
    felt, usage = case.account.prefill, case.usage
    was = Prefill.of(case, usage.num_cached_tokens, usage.num_prompt_tokens)
    now = Prefill.of(case, start, end)
    seconds = felt.compute * now.rows / was.rows
    seconds += (felt.weights + felt.host) * now.steps / was.steps
    seconds += felt.kv * now.looking / was.looking
    return 1e3 * seconds


def context_ms(case: Case) -> float:
    """What a token more of context adds to each step after the first token, as measured over all of them."""
    seen = cost.decode_positions(case.usage.num_prompt_tokens + 1, case.decoded)
    return 1e3 * case.account.decode.kv / seen if seen else 0.0


def _cache(case: Case, line: Line | None) -> Iterator[Advice]:
    """Tokens after the first, measured without a cache, times what is predicted with one over what is without."""
    s, felt, prompt = case.setting, case.account.decode, case.usage.num_prompt_tokens
    depths = range(prompt, prompt + case.decoded)
    if s.machine is not None:
        predictor = Predictor(s.spec, s.bits, s.kv, s.machine)
        once = sum(predictor.itl(depth).seconds for depth in depths)
        again = sum(predictor.ttft(depth + 1, 0, s.chunk).seconds for depth in depths)
    else:
        once = sum(expected_s(case.account.costs, depth, depth + 1, s.chunk) for depth in depths)
        again = sum(expected_s(case.account.costs, 0, depth + 1, s.chunk) for depth in depths)
    if again <= 0:
        return
    now_ms = 1e3 * felt.own
    then_ms = now_ms * once / again
    yield Advice(
        "cache",
        f"leave out --naive: the {case.decoded} tokens after the first would take some {then_ms:.1f} ms "
        f"instead of {now_ms:.1f} ms",
        now_ms - then_ms,
        0.0,
        figures={"decode_ms": now_ms, "then_ms": then_ms},
    )


def expected_s(costs: Sequence[float], start: int, end: int, chunk: int) -> float:
    """What positions [start, end) would take alone by the engine's fitted costs, in the order of `StepCost`."""
    if not costs:
        return 0.0
    step, row, dense_row, kv_token, visit, _ = costs
    seconds = 0.0
    for piece in chunks(start, end, chunk):
        load = Load.of_rows(piece.start, piece.start + piece.length)
        seconds += step + row * load.rows + dense_row * max(0, load.rows - DENSE)
        seconds += kv_token * load.kv_tokens + visit * load.visited
    return seconds


def _shorter(case: Case, line: Line | None) -> Iterator[Advice]:
    prompt, cached = case.usage.num_prompt_tokens, case.usage.num_cached_tokens
    left = prompt - cached
    cut = SHORTER if 2 * left >= 3 * SHORTER else left // 2  # of a short prompt half: its template has to stay
    if cut < 1:
        return
    reading = 1e3 * case.account.prefill.own - prefill_ms(case, cached, prompt - cut)
    looking = cut * context_ms(case) * case.decoded
    yield Advice(
        "shorter_prompt",
        f"a prompt of {cut} tokens less, {prompt - cut} instead of {prompt}",
        reading + looking,
        0.0,
        figures={"tokens": cut, "prefill_ms": reading, "decode_ms": looking},
    )


def _cached(case: Case, line: Line | None) -> Iterator[Advice]:
    prompt, cached = case.usage.num_prompt_tokens, case.usage.num_cached_tokens
    page = case.setting.page_size
    hit = (prompt - 1) // page * page
    if hit <= cached:
        return
    left = prefill_ms(case, hit, prompt) + prompt * context_ms(case)
    yield Advice(
        "cached_prefix",
        f"the same beginning in the cache: {hit} of {prompt} tokens need not be computed",
        1e3 * case.account.prefill.own - left,
        0.0,
        figures={"tokens": hit - cached, "prefill_ms": 1e3 * case.account.prefill.own, "left_ms": left},
        assumed="the prompt, or all but its last page, was asked before and is still cached",
    )


def tokens_ms(case: Case, line: Line, first: int, last: int) -> float:
    """Answer tokens `first` to `last` (from 0) by the line through all of them."""
    count, prompt = last - first + 1, case.usage.num_prompt_tokens
    return count * line.at(prompt + 0.5 * (first + last))


def _fewer_tokens(case: Case, line: Line | None) -> Iterator[Advice]:
    tokens = case.usage.num_output_tokens
    keep = tokens // 2
    if line is None or keep < 1:
        return
    saved = tokens_ms(case, line, keep, tokens - 1)
    yield Advice(
        "max_tokens",
        f"max_tokens {keep} instead of the {tokens} tokens that came",
        saved,
        0.0,
        figures={"tokens": tokens - keep, "ms_per_token": saved / (tokens - keep), "c0_ms": line.c0, "c1_ms": line.c1},
        assumed="half of the answer is enough",
    )


def _kv(case: Case, line: Line | None) -> Iterator[Advice]:
    """Formats of fewer bytes; where the machine's rates tell formats apart, by those, for the prompt too."""
    s, first, later = case.setting, case.account.prefill, case.account.decode
    now = decode_kv_bytes(case)
    if not now or s.kv not in s.kv_formats:
        return
    for kv in s.kv_formats:
        then = decode_kv_bytes(replace(case, setting=replace(s, kv=kv)))
        if then >= now:
            continue
        prompt_left, left = 1.0, then / now
        if s.machine is not None:
            prompt_left, left = (_looking(case, kv, part) / _looking(case, s.kv, part) for part in ("prompt", "answer"))
        prompt_ms, answer_ms = 1e3 * first.kv, 1e3 * later.kv
        yield Advice(
            "kv_format",
            f"keys and values in {kv} instead of {s.kv} (--kv {kv})",
            prompt_ms * (1.0 - prompt_left) + answer_ms * (1.0 - left),
            0.0,
            figures={
                "kv": kv, "kv_ms": answer_ms, "bytes": now, "bytes_then": then, "time_left": left,
                "prompt_kv_ms": prompt_ms, "prompt_time_left": prompt_left,
            },
            assumed="rounding keys and values more coarsely is acceptable",
        )  # fmt: skip


def _looking(case: Case, kv: str, part: str) -> float:
    """Predicted seconds of what looks back: in the prompt's steps, or in one in the middle of the answer."""
    s, usage = case.setting, case.usage
    assert s.machine is not None
    predictor, prompt = Predictor(s.spec, s.bits, kv, s.machine), usage.num_prompt_tokens
    if part == "prompt":
        took = predictor.ttft(prompt, usage.num_cached_tokens, s.chunk)
    else:
        took = predictor.itl(prompt + case.decoded // 2)
    return took.kv + took.attention


def _threads(case: Case, line: Line | None) -> Iterator[Advice]:
    """More threads, as far as they were calibrated; what fewer would bring is not advised."""
    s, felt, usage = case.setting, case.account, case.usage
    wider = s.wider
    if wider is None or not 0 < s.threads < wider.threads:
        return
    if s.machine is not None:
        was, now = (Predictor(s.spec, s.bits, s.kv, machine) for machine in (s.machine, wider))
        depth = usage.num_prompt_tokens + case.decoded // 2
        decode = now.itl(depth).seconds / was.itl(depth).seconds
        asked = usage.num_prompt_tokens, usage.num_cached_tokens, s.chunk
        prefill = now.ttft(*asked).seconds / was.ttft(*asked).seconds
        assumed = ""
    else:
        decode, prefill = read_gb_s(wider, s.threads) / wider.read_gb_s["all"], s.threads / wider.threads
        assumed = "reading is what a token takes, and products get faster with threads in proportion"
    decode_ms, prefill_ms = 1e3 * felt.decode.own, 1e3 * felt.prefill.own
    yield Advice(
        "threads",
        f"{wider.threads} threads instead of {s.threads} (--threads {wider.threads})",
        decode_ms * (1.0 - decode) + prefill_ms * (1.0 - prefill),
        0.0,
        figures={"decode_ms": decode_ms, "decode_left": decode, "prefill_ms": prefill_ms, "prefill_left": prefill},
        assumed=assumed,
    )


def read_gb_s(machine: Machine, threads: int) -> float:
    """Between the two speeds that were measured, on a straight line; one speed stands for all where it is alone."""
    every = machine.read_gb_s["all"]
    one = machine.read_gb_s.get("1", every)
    return one + (every - one) * (threads - 1) / max(1, machine.threads - 1)


def _weights(case: Case, line: Line | None) -> Iterator[Advice]:
    s, felt = case.setting, case.account.decode
    smaller = {role: min(bits, SMALL_BITS) for role, bits in s.bits.items()}
    now, then = weight_bytes(s), weight_bytes(replace(s, bits=smaller))
    if then >= now:
        return
    yield Advice(
        "weights",
        f"a file of this model with all weights in Q4_0: {then / 1e6:.0f} MB a token instead of {now / 1e6:.0f} MB",
        1e3 * felt.weights * (1.0 - then / now),
        0.0,
        figures={"weights_ms": 1e3 * felt.weights, "bytes_per_step": now, "bytes_then": then},
        assumed="its answers, which will differ, are good enough; reading weights takes time by their bytes",
    )


def _others(case: Case, line: Line | None) -> Iterator[Advice]:
    """What others took, preemption took, and a grammar's first time took."""
    first, later, visit = case.account.prefill, case.account.decode, case.visit
    prompts = 1e3 * (first.others_prefill + later.others_prefill)
    streams = 1e3 * (first.others_streams + later.others_streams)
    queue = 1e3 * (case.account.begun - case.usage.marks.get("arrived", case.account.begun))
    yield Advice(
        "alone",
        "nobody else at the same time",
        prompts + streams + queue,
        0.0,
        figures={"others_prefill_ms": prompts, "others_streams_ms": streams, "queue_ms": queue},
    )
    lost = 1e3 * (first.preempted + later.preempted + first.again + later.again)
    yield Advice(
        "memory",
        "more memory for the cache (--kv-memory): it was preempted for want of pages",
        lost,
        0.0,
        figures={"preempted_ms": lost, "times": case.usage.num_preemptions},
    )
    grammar = 1e3 * visit.laps.get("grammar", 0.0)
    yield Advice("same_grammar", "the same grammar again: it is compiled now", grammar, 0.0, figures={"ms": grammar})


def _company(case: Case, line: Line | None) -> Iterator[Advice]:
    """Weights and the host's work once for several streams: the machine's time, not this request's latency."""
    felt, s = case.account.decode, case.setting
    own = felt.own
    if not case.decoded or own <= 0:
        return
    depth = case.usage.num_prompt_tokens + case.decoded // 2
    if s.machine is not None:
        predictor = Predictor(s.spec, s.bits, s.kv, s.machine)
        left = predictor.itl(depth, COMPANY).seconds / COMPANY / predictor.itl(depth).seconds
    else:
        left = ((felt.weights + felt.host) / COMPANY + felt.kv + felt.compute) / own
    yield Advice(
        "company",
        f"{COMPANY} such requests at once instead of one after the other",
        1e3 * own * (1.0 - left),
        0.0,
        of="machine",
        figures={"streams": COMPANY, "decode_ms": 1e3 * own, "left": left},
        assumed="others like it come at the same time",
    )


def by_kind(advice: list[Advice]) -> Mapping[str, Advice]:
    """The best of each kind."""
    best: dict[str, Advice] = {}
    for a in advice:
        best.setdefault(a.kind, a)
    return best
