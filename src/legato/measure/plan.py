"""Does a model fit a machine, how fast will it answer, and what will that cost: before anything is downloaded.

Knows: a counted model (`Described`), a `Machine`, how many users want how much. Does not know: files, names, terminals.

    context   tokens a user has in the cache when the answer is complete: C
    output    of which answer: T; the prompt is P = C - T
    TTFT      one prompt's steps. Beside streams a prompt gets three quarters of each step, so 4/3 of that; at worst all
              users come at once and the last one's prompt waits for all others
    ITL       one step of N streams, the mean of its length at P and at C tokens
    tokens/s  N / ITL
    prices    a machine that is never idle: its rate x TTFT / P for a prompt's token, x ITL / N for an answer's

Every time comes of `predict.seconds_of`; what a data sheet does not say, or a calibration saw vary, makes the interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from legato.errors import CapacityError, RequestError
from legato.measure import cost
from legato.measure.config_shape import Described
from legato.measure.machine import Machine
from legato.measure.predict import Piece, StepTime, chunks, seconds_of
from legato.measure.shape import ModelShape, Role
from legato.measure.shape_work import step_work

KV_FORMATS = ("f32", "bf16", "f16", "fp8", "int8", "int4")
DEPTHS = (0, 512, 2048, 8000)  # those of `legato bench decode`
MOST_USERS = 1_000_000
MOST_CONTEXT = 100_000_000
MOST_STEPS = 4096  # of a prompt, one by one; longer ones are looked at in larger steps
BESIDE_STREAMS = 4 / 3
GIB = 2**30

_REASONS = {
    "weights": "memory bandwidth",
    "kv": "memory bandwidth",
    "products": "compute",
    "attention": "compute",
    "layers": "fixed costs",
    "host": "fixed costs",
}
_WORDS = {
    "weights": "reading weights",
    "kv": "reading keys and values",
    "products": "matrix products",
    "attention": "attention's arithmetic",
    "layers": "each layer's launches and barriers",
    "host": "each step's own cost",
}


@dataclass(frozen=True, slots=True)
class Span:
    """An expectation and the interval around it."""

    low: float
    mid: float
    high: float

    def times(self, factor: float) -> Span:
        return Span(self.low * factor, self.mid * factor, self.high * factor)

    def over(self, amount: float) -> Span:
        """`amount` divided by each: the slowest becomes the lowest."""
        return Span(amount / self.high, amount / self.mid, amount / self.low)


@dataclass(frozen=True, slots=True)
class Limit:
    """What bounds a figure: `by` is memory bandwidth, compute, fixed costs or capacity; `parts` its seconds' shares."""

    by: str
    what: str
    share: float
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Users:
    """So many users at once. Prices are of a million tokens; None without a rate."""

    users: int
    fits: bool
    itl_ms: Span
    tok_s: Span
    ttft_ms: Span
    output_price: Span | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is expected of one model, machine and load. Spans are (low, expected, high).

    machine_kind            "calibrated", "data sheet" or "not calibrated"
    kv_bytes_per_user       of the whole context; kv_bytes: of all users
    kv_bytes_in_windows     the same if a cache gave up what lies behind sliding windows
    usable_bytes            of the machine's memory, for weights, keys and values
    machines_needed         by memory alone
    itl_ms_at               by tokens of context, at this number of users
    itl_line                the straight line through it: (ms, ms for 1,000 tokens)
    requests_s              whole requests a second with all users busy, prompts included
    seconds_per_million     machine time of a million tokens of prompt ("input") and answer ("output")
    """

    model: str
    family: str
    parameters: int
    active_parameters: int
    weights: str
    kv: str
    machine: str
    machine_kind: str
    context: int
    output: int
    users: int
    weights_bytes: int
    kv_bytes_per_token: int
    kv_bytes_per_user: int
    kv_bytes_in_windows: int
    kv_bytes: int
    memory_bytes: int | None
    usable_bytes: int | None
    fits: bool | None
    max_users: Span | None
    machines_needed: int | None
    ttft_ms: Span
    itl_ms: Span
    itl_ms_at: Mapping[int, Span]
    itl_line: tuple[float, float]
    tok_s: Span
    requests_s: Span
    by_users: tuple[Users, ...]
    seconds_per_million: Mapping[str, Span]
    price_per_million: Mapping[str, Span] | None
    output_over_input: float
    why_output_costs_more: str
    limits: Mapping[str, Limit]
    notes: tuple[str, ...]

    @property
    def prompt(self) -> int:
        return self.context - self.output

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: expectations under their own names, intervals under the same names in `ranges`."""
        from legato.measure.plan_json import as_dict

        return as_dict(self)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a plan is made for. Refuses what makes no sense, naming the field.

    usable  part of the machine's memory that may be taken
    chunk   rows of a prompt in one step
    depths  tokens of context at which ITL is wanted, besides P and C
    """

    context: int
    output: int
    users: int = 1
    kv: str = "bf16"
    price_per_hour: float | None = None
    usable: float = 0.9
    chunk: int = 512
    depths: tuple[int, ...] = DEPTHS

    def __post_init__(self) -> None:
        _whole("context", self.context, 2, MOST_CONTEXT)
        _whole("output", self.output, 1, MOST_CONTEXT)
        _whole("users", self.users, 1, MOST_USERS)
        if self.output >= self.context:
            fix = "context counts prompt and answer together; make it larger than output"
            raise RequestError("output", self.output, f"a whole number from 1 to {self.context - 1}", fix)
        if self.kv not in KV_FORMATS:
            raise RequestError("kv", self.kv, f"one of {', '.join(KV_FORMATS)}")
        price = self.price_per_hour
        if price is not None and not 0 < price <= 1e6:  # also what is not a number
            raise RequestError("price_per_hour", price, "a price above 0 and up to 1000000")


def _whole(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(name, value, f"a whole number from {low} to {high}")


def make_plan(name: str, model: Described, machine: Machine, setting: Setting, machine_kind: str) -> Plan:
    """Raises `CapacityError` for a context longer than the model's positions."""
    if setting.context > model.shape.context_length:
        fix = "the model was made for no more; ask for less context"
        raise CapacityError("context", setting.context, model.shape.context_length, "tokens", fix)
    return _Planner(model, machine, setting).plan(name, machine_kind)


class _Planner:
    """One model on one machine for one setting."""

    def __init__(self, model: Described, machine: Machine, setting: Setting) -> None:
        self.model, self.machine, self.setting = model, machine, setting
        self.shape: ModelShape = model.shape
        self.prompt = setting.context - setting.output
        self.one = self.ttft()

    # --- time ---

    def itl(self, depth: int, users: int) -> tuple[StepTime, Span]:
        """A step of `users` streams with `depth` tokens computed."""
        return self._step([(Piece(depth, 1), users)])

    def ttft(self) -> tuple[StepTime, Span]:
        total, spans = StepTime(), []
        for piece in chunks(0, self.prompt, max(self.setting.chunk, self.prompt // MOST_STEPS)):
            time, span = self._step([(piece, 1)])
            total += time
            spans.append(span)
        return total, _sum(spans)

    def answer_itl(self, users: int) -> Span:
        """The mean over an answer."""
        ends = [self.itl(depth, users)[1] for depth in (self.prompt, self.setting.context - 1)]
        return _sum(ends).times(0.5)

    def users_ttft(self, users: int) -> Span:
        alone = self.one[1]
        beside = BESIDE_STREAMS if users > 1 else 1.0
        return Span(alone.low, beside * alone.mid, max(beside, users) * alone.high)

    def _step(self, pieces: Sequence[tuple[Piece, int]]) -> tuple[StepTime, Span]:
        work = step_work(self.shape, self.model.bits, self.setting.kv, pieces)
        time = seconds_of(work, self.machine)
        low = time.low
        if any(run.layer.experts for run in self.shape.runs):
            fewer = step_work(self.shape, self.model.bits, self.setting.kv, pieces, evenly=False)
            low = min(low, seconds_of(fewer, self.machine).low)
        return time, Span(low, time.seconds, time.high)

    # --- memory ---

    @property
    def usable(self) -> int | None:
        memory = self.machine.memory_bytes
        return None if memory is None else int(memory * self.setting.usable)

    def kv_per_user(self) -> int:
        return self.setting.context * cost.kv_bytes_per_token(self.shape, self.setting.kv)

    def weights(self) -> int:
        if self.model.stored_bytes is not None:
            return self.model.stored_bytes
        return cost.stored_weight_bytes(self.shape, self.model.bits, self.model.vector_bits)

    def max_users(self) -> Span | None:
        """With five hundredths of the memory more or less; the expected number is the one to count on."""
        memory = self.machine.memory_bytes
        if memory is None:
            return None
        shares = (self.setting.usable - 0.05, self.setting.usable, min(1.0, self.setting.usable + 0.05))
        found = [max(0, int(memory * share) - self.weights()) // self.kv_per_user() for share in shares]
        return Span(*map(float, found))

    def fits(self, users: int) -> bool | None:
        usable = self.usable
        return None if usable is None else self.weights() + users * self.kv_per_user() <= usable

    def machines_needed(self) -> int | None:
        usable = self.usable
        return None if not usable else -(-(self.weights() + self.setting.users * self.kv_per_user()) // usable)

    # --- all of it ---

    def plan(self, name: str, machine_kind: str) -> Plan:
        s, shape, most = self.setting, self.shape, self.max_users()
        itl = self.answer_itl(s.users)
        at = {depth: self.itl(depth, s.users)[1].times(1e3) for depth in self.depths()}
        million = {"input": self.one[1].times(1e6 / self.prompt), "output": itl.times(1e6 / s.users)}
        request = _sum([self.one[1], itl.times(s.output / s.users)])
        prices = None
        if s.price_per_hour is not None:
            prices = {kind: span.times(s.price_per_hour / 3600) for kind, span in million.items()}
        return Plan(
            model=name,
            family=shape.family,
            parameters=shape.parameters,
            active_parameters=shape.active_parameters,
            weights=self.model.weights,
            kv=s.kv,
            machine=self.machine.name,
            machine_kind=machine_kind,
            context=s.context,
            output=s.output,
            users=s.users,
            weights_bytes=self.weights(),
            kv_bytes_per_token=cost.kv_bytes_per_token(shape, s.kv),
            kv_bytes_per_user=self.kv_per_user(),
            kv_bytes_in_windows=cost.kv_read_bytes(shape, s.kv, s.context),
            kv_bytes=s.users * self.kv_per_user(),
            memory_bytes=self.machine.memory_bytes,
            usable_bytes=self.usable,
            fits=self.fits(s.users),
            max_users=most,
            machines_needed=self.machines_needed(),
            ttft_ms=self.users_ttft(s.users).times(1e3),
            itl_ms=itl.times(1e3),
            itl_ms_at=at,
            itl_line=_line(at),
            tok_s=itl.over(s.users),
            requests_s=request.over(1.0),
            by_users=tuple(self.row(users) for users in self.counts(most)),
            seconds_per_million=million,
            price_per_million=prices,
            output_over_input=million["output"].mid / million["input"].mid,
            why_output_costs_more=self.why(million),
            limits=self.limits(most),
            notes=self.notes(),
        )

    def depths(self) -> list[int]:
        wanted = {*self.setting.depths, self.prompt, self.setting.context - 1}
        return sorted(d for d in wanted if 0 <= d < self.shape.context_length)

    def counts(self, most: Span | None) -> list[int]:
        """Powers of two up to what fits and what was asked for, and both of these."""
        fit = int(most.mid) if most is not None else 0
        top = max(fit, self.setting.users, 16)
        powers = [1 << k for k in range(top.bit_length()) if 1 << k <= top]
        return sorted({*powers, self.setting.users, *([fit] if fit else [])})

    def row(self, users: int) -> Users:
        itl, rate = self.answer_itl(users), self.setting.price_per_hour
        price = None if rate is None else itl.times(1e6 / users * rate / 3600)
        ttft = self.users_ttft(users).times(1e3)
        return Users(users, self.fits(users) is not False, itl.times(1e3), itl.over(users), ttft, price)

    def limits(self, most: Span | None) -> dict[str, Limit]:
        itl = _limit(self.itl(self.setting.context - 1, self.setting.users)[0])
        found = {"ttft": _limit(self.one[0]), "itl": itl, "tok_s": itl}
        if most is not None and most.mid < 1:
            found["users"] = Limit("capacity", "weights and one context do not fit", 1.0)
        elif most is not None:
            crowd = int(most.mid)
            step = _limit(self.itl(self.setting.context - 1, crowd)[0])
            what = f"memory for the keys and values of {crowd:,} users; with as many a step is {_words(step)}"
            found["users"] = Limit("capacity", what, 1.0)
        return found

    def why(self, million: Mapping[str, Span]) -> str:
        s, step = self.setting, self.itl(self.setting.context - 1, self.setting.users)[0]
        work = step_work(self.shape, self.model.bits, s.kv, [(Piece(s.context - 1, 1), s.users)])
        ratio = million["output"].mid / million["input"].mid
        rows = min(self.prompt, s.chunk)
        made = "one token" if s.users == 1 else f"{s.users:,} tokens, one a user"
        each_in, each_out = million["input"].mid / 1e3, million["output"].mid / 1e3
        compared = f"{ratio:.3g} times as much" if ratio >= 1.05 else "no more, because so many users share each step"
        return (
            f"A step of the answer reads {_gb(work.weight_bytes)} of weights and {_gb(work.kv_bytes)} of keys and "
            f"values to make {made}; a step of the prompt reads the same weights once for {rows:,} tokens. "
            f"An answer's token takes {each_out:.3g} ms of the machine ({_words(_limit(step))}), a prompt's "
            f"{each_in:.3g} ms ({_words(_limit(self.one[0]))}): {compared}."
        )

    def notes(self) -> tuple[str, ...]:
        found = list(self.model.notes)
        need = self.machines_needed()
        if self.fits(self.setting.users) is False and need is not None:
            found.append(
                f"it does not fit; by memory alone {need:,} such machines would hold it, and times are as if it did"
            )
        if cost.kv_read_bytes(self.shape, self.setting.kv, self.setting.context) < self.kv_per_user():
            found.append(
                "layers with sliding windows are kept whole; a cache that gives up what lies behind needs less"
            )
        if any(run.layer.experts for run in self.shape.runs):
            found.append("experts are taken as chosen evenly, which reads the most; the low end counts on half of them")
        return tuple(found)


def _sum(spans: Sequence[Span]) -> Span:
    return Span(sum(s.low for s in spans), sum(s.mid for s in spans), sum(s.high for s in spans))


def _line(at: Mapping[int, Span]) -> tuple[float, float]:
    """Least squares through the expectations: (at no context, for each 1,000 tokens)."""
    xs, ys = [d / 1000 for d in at], [span.mid for span in at.values()]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0
    return mean_y - slope * mean_x, slope


def _limit(time: StepTime) -> Limit:
    parts = {name: getattr(time, name) / time.seconds for name in _REASONS}
    groups: dict[str, float] = {}
    for name, part in parts.items():
        groups[_REASONS[name]] = groups.get(_REASONS[name], 0.0) + part
    by = max(groups, key=lambda group: groups[group])
    first = max((name for name in parts if _REASONS[name] == by), key=lambda name: parts[name])
    return Limit(by, _WORDS[first], groups[by], parts)


def _words(limit: Limit) -> str:
    return f"limited by {limit.by}: {limit.what}"


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.3g} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.3g} MB"


def with_bits(model: Described, bits: float, word: str) -> Described:
    """The same model with all of its matrices at so many bits a weight."""
    return Described(model.shape, dict.fromkeys(Role, bits), word, model.vector_bits, notes=model.notes)
