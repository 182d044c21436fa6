"""How long steps will take, in closed form: a model's shape times a machine's rates, before anything was run.

Knows: `ArchSpec`, bits a weight by role, a `Machine`. Does not know: weights, arrays, steps that were taken.

    Predictor(spec, bits, kv_format, machine).itl(depth, streams)   -> StepTime of one step of so many streams
                                             .ttft(prompt, cached)  -> StepTime of a lone prompt's steps, in chunks
                                             .step(pieces)          -> StepTime of any step
                                             .step_cost()           -> StepCost, what the scheduler starts from
    seconds_of(work, machine)                                       -> StepTime of any `Work`, also of models that no
                                                                       ArchSpec describes (experts, latent attention)

A `Work` is what must be done: matrix products, looking back, a step's own cost. A `StepTime` says what each of it
costs; its `seconds` are the sum, between `low` and `high`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from legato.core.spec import ArchSpec, AttentionSpec
from legato.measure import cost
from legato.measure.cost import Role
from legato.measure.machine import TILE, AttentionRate, Machine, ProductRate
from legato.measure.step_time import DENSE, StepCost

FEW_ROWS = 8  # a sequence with more rows than this in a step is read as a prompt is: `AttentionRate.prompt_pair`
LEAST_S = 1e-12  # of a cost: none may be nothing
CHUNK = 512  # rows of a prompt that a step carries, unless told otherwise (the setting max_step_tokens)


@dataclass(frozen=True, slots=True)
class Product:
    """`count` matrices of outputs x inputs at `bits` a weight, each read once and multiplied with `rows` rows."""

    outputs: int
    inputs: int
    bits: float
    rows: int
    count: int = 1

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs * self.count

    @property
    def nbytes(self) -> float:
        return self.weights * self.bits / 8


@dataclass(frozen=True, slots=True)
class Attend:
    """`rows` queries of one sequence looking back in `count` layers, for `streams` sequences alike.

    tokens   keys and values that are read in a layer: all that any of the rows sees
    pairs    query-key pairs of one query head in a layer
    q_size   numbers of a token's queries: heads x head_dim
    kv_size  bytes of one token's keys and values in a layer, as `kv_format` keeps them ("": any way)
    numbers  of a token's queries, keys and values together
    head_dim  of one head; 0: as usual
    """

    rows: int
    tokens: int
    pairs: int
    q_size: int
    kv_size: float
    count: int = 1
    streams: int = 1
    numbers: int = 0
    kv_format: str = ""
    head_dim: int = 0

    @property
    def nbytes(self) -> float:
        return self.tokens * self.kv_size * self.count * self.streams

    @property
    def operations(self) -> int:
        return 4 * self.pairs * self.q_size * self.count * self.streams


@dataclass(frozen=True, slots=True)
class Work:
    """One step: `rows` tokens of `seqs` sequences through `layers` layers."""

    rows: int
    seqs: int
    layers: int
    products: tuple[Product, ...]
    attends: tuple[Attend, ...]

    @property
    def weight_bytes(self) -> float:
        return sum(p.nbytes for p in self.products)

    @property
    def kv_bytes(self) -> float:
        return sum(a.nbytes for a in self.attends)


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds, by what they are spent on. Of several steps it is the sum.

    weights    reading the weights that the products need, at the speed of plain reading
    products   what the products take beyond that
    kv         reading keys and values, at the speed of plain reading
    attention  what looking back takes beyond that
    layers     each layer's own cost: barriers, launches
    host       scheduling, packing, choosing tokens
    spread     what `seconds` is multiplied by for its low and its high end
    """

    weights: float = 0.0
    products: float = 0.0
    kv: float = 0.0
    attention: float = 0.0
    layers: float = 0.0
    host: float = 0.0
    spread: tuple[float, float] = (1.0, 1.0)

    @property
    def seconds(self) -> float:
        return self.weights + self.products + self.kv + self.attention + self.layers + self.host

    @property
    def low(self) -> float:
        return self.seconds * self.spread[0]

    @property
    def high(self) -> float:
        return self.seconds * self.spread[1]

    @property
    def limit(self) -> str:
        """What most of it is spent on: the name of a field."""
        names = [f.name for f in fields(self) if f.name != "spread"]
        return max(names, key=lambda name: float(getattr(self, name)))

    def __add__(self, other: StepTime) -> StepTime:
        parts = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "spread"}
        low, high = (max(a, b, key=lambda x: abs(x - 1.0)) for a, b in zip(self.spread, other.spread, strict=True))
        return StepTime(**parts, spread=(low, high))


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions [start, start + length) of one sequence, the last `logits` of which want logits."""

    start: int
    length: int
    logits: int = 1


class Predictor:
    """One model on one machine.

    bits       a weight, by what it is for (`cost.Role`), scales included
    kv_format  f32, bf16, int8 or int4
    """

    def __init__(self, spec: ArchSpec, bits: Mapping[Role, float], kv_format: str, machine: Machine) -> None:
        self.spec, self.bits, self.kv_format, self.machine = spec, dict(bits), kv_format, machine
        self._alike = alike(spec)

    def itl(self, depth: int, streams: int = 1) -> StepTime:
        """A step of `streams` streams, each of which has `depth` tokens computed and computes one more."""
        return self.step([(Piece(depth, 1), streams)])

    def ttft(self, prompt: int, cached: int = 0, chunk: int = CHUNK) -> StepTime:
        """All steps of a lone prompt up to its first token; its first `cached` tokens need not be computed.

        A fully cached prompt computes its last token again.
        """
        total = StepTime(spread=self.machine.spread)
        for piece in chunks(min(cached, prompt - 1), prompt, chunk):
            total += self.step([(piece, 1)])
        return total

    def step(self, pieces: Sequence[tuple[Piece, int]]) -> StepTime:
        """A step of pieces, each with the number of sequences that have one just like it."""
        return seconds_of(step_work(self.spec, self.bits, self.kv_format, pieces, self._alike), self.machine)

    def step_cost(self) -> StepCost:
        """The same in the six costs that the scheduler's model starts from; straight lines where this bends."""
        few, many, deep = DENSE, 16 * DENSE, 4096
        bare, some, dense = (self._seconds(Piece(0, rows, 0)) for rows in (1, few, many))
        logits, more = (self.step([(Piece(0, 1), streams)]).seconds for streams in (1, few))
        row = (some - bare) / (few - 1)
        logit_row = (more - logits) / (few - 1) - row
        visit = (self._seconds(Piece(deep - many, many, 0)) - dense) / (many * (deep - many))
        looked = (self._seconds(Piece(deep - 1, 1, 0)) - bare) / (deep - 1)
        costs = {
            "logit_row": logit_row,
            "row": row,
            "dense_row": (dense - some) / (many - few) - row,
            "visit": visit,
            "kv_token": looked - visit,
            "step": logits - row - logit_row,
        }
        return StepCost(**{name: max(LEAST_S, seconds) for name, seconds in costs.items()})

    def _seconds(self, piece: Piece) -> float:
        return self.step([(piece, 1)]).seconds


def chunks(start: int, end: int, most: int) -> Iterator[Piece]:
    """How a lone prompt is cut: steps of at most `most` rows; the last one's last row wants logits."""
    while start < end:
        length = min(most, end - start)
        yield Piece(start, length, int(start + length == end))
        start += length


@dataclass(frozen=True, slots=True)
class Alike:
    """What layers have in common, each with the number of layers that have it."""

    matrices: tuple[tuple[cost.Matrix, int], ...]
    looks: tuple[tuple[AttentionSpec, int], ...]


def alike(spec: ArchSpec) -> Alike:
    matrices: dict[cost.Matrix, int] = {}
    looks: dict[AttentionSpec, int] = {}
    for layer, count in Counter(spec.layers).items():
        for matrix in cost.layer_matrices(spec, layer):
            matrices[matrix] = matrices.get(matrix, 0) + count
        looks[layer.attention] = looks.get(layer.attention, 0) + count
    return Alike(tuple(matrices.items()), tuple(looks.items()))


def step_work(
    spec: ArchSpec,
    bits: Mapping[Role, float],
    kv_format: str,
    pieces: Iterable[tuple[Piece, int]],
    parts: Alike | None = None,
) -> Work:
    """What a step of these pieces (each with how many sequences have it) has to do. `parts`: `alike(spec)` if known."""
    pieces, parts = list(pieces), parts or alike(spec)
    rows = sum(piece.length * many for piece, many in pieces)
    logits = sum(piece.logits * many for piece, many in pieces)
    products = [Product(m.rows, m.cols, bits[m.role], rows, count) for m, count in parts.matrices]
    if logits:
        products.append(Product(spec.vocab_size, spec.d_model, bits[Role.HEAD], logits))
    attends = [_attend(p, a, kv_format, count, many) for p, many in pieces for a, count in parts.looks]
    return Work(rows, sum(many for _, many in pieces), spec.num_layers, tuple(products), tuple(attends))


def _attend(piece: Piece, a: AttentionSpec, kv_format: str, count: int, streams: int) -> Attend:
    end = piece.start + piece.length
    return Attend(
        rows=piece.length,
        tokens=end if a.window is None else min(end, a.window + piece.length - 1),
        pairs=cost.visible_pairs(piece.start, piece.length, a.window),
        q_size=a.q_size,
        kv_size=float(a.num_kv_heads * cost.kv_head_bytes(kv_format, a.head_dim)),
        count=count,
        streams=streams,
        numbers=a.q_size + 2 * a.kv_size,
        kv_format=kv_format,
        head_dim=a.head_dim,
    )


def seconds_of(work: Work, machine: Machine) -> StepTime:
    """What `work` takes on `machine`."""
    reading = work.weight_bytes / machine.read_bytes_s
    multiplying = sum(_product_seconds(p, machine) for p in work.products)
    kv = work.kv_bytes / machine.read_bytes_s
    looking = sum(_attend_seconds(a, machine) for a in work.attends)
    return StepTime(
        weights=min(reading, multiplying),
        products=max(0.0, multiplying - reading),
        kv=min(kv, looking),
        attention=max(0.0, looking - kv),
        layers=_layer_seconds(work, machine),
        host=_host_seconds(work, machine),
        spread=machine.spread,
    )


def _layer_seconds(work: Work, machine: Machine) -> float:
    if machine.sheet is not None:
        return machine.sheet.layer_us * 1e-6 * work.layers
    meeting = sum(p.count for p in work.products) * machine.rows.matrix if machine.rows else 0.0
    if not (machine.attention and work.attends):
        return meeting
    rate = _attention_rate(work.attends[0], machine.attention)
    behind = max(attend.tokens - attend.rows for attend in work.attends)
    return meeting + work.layers * (rate.layer + rate.start * min(1.0, behind / TILE))


def _host_seconds(work: Work, machine: Machine) -> float:
    if machine.rows is None:
        return (machine.step_overhead_us or 0.0) * 1e-6
    return machine.rows.host + work.seqs * machine.rows.stream + work.rows * machine.rows.row


def _product_seconds(product: Product, machine: Machine) -> float:
    if not machine.products:
        read = product.nbytes / machine.read_bytes_s
        return max(read, 2.0 * product.weights * product.rows / _operations_s(product.bits, machine))
    numbers = product.inputs * product.rows * product.count
    each = _between(machine.rows.inputs, product.rows) if machine.rows else 0.0
    return product.weights * _weight_seconds(product.bits, product.rows, machine.products) + numbers * each


def _weight_seconds(bits: float, rows: int, products: Sequence[ProductRate]) -> float:
    """Between the two nearest formats in proportion to bits; the outermost ones beyond."""
    below = max((p for p in products if p.bits <= bits), key=lambda p: p.bits, default=None)
    above = min((p for p in products if p.bits >= bits), key=lambda p: p.bits, default=None)
    low, high = below or above, above or below
    assert low is not None and high is not None
    first, last = _by_rows(low.seconds, rows), _by_rows(high.seconds, rows)
    return first if high.bits == low.bits else first + (last - first) * (bits - low.bits) / (high.bits - low.bits)


def _attend_seconds(attend: Attend, machine: Machine) -> float:
    if not machine.attention:
        read, part = attend.nbytes / machine.read_bytes_s, 1.0
        if machine.sheet is None:
            return read
        part = machine.sheet.attention / machine.sheet.compute
        return max(read, attend.operations / (part * _operations_s(16, machine)))
    rate = _attention_rate(attend, machine.attention)
    looked = attend.pairs * attend.q_size
    if attend.rows > FEW_ROWS:
        back = looked * rate.prompt_pair
    else:
        back = attend.tokens * attend.kv_size * rate.byte + looked * rate.pair
    ready = attend.rows * attend.numbers * rate.number
    return attend.count * attend.streams * (rate.stream + ready + back)


def _attention_rate(attend: Attend, rates: Sequence[AttentionRate]) -> AttentionRate:
    """Of the same format and the nearest size of a head; the first one of all where the format is not known."""
    same = [rate for rate in rates if rate.kv_format == attend.kv_format] or rates[:1]
    return min(same, key=lambda rate: abs(rate.head_dim - attend.head_dim))


def _operations_s(bits: float, machine: Machine) -> float:
    """Operations a second of a data sheet for weights of so many bits; the widest known one beyond all."""
    assert machine.sheet is not None, "a machine is either measured or from a data sheet"
    tops = machine.sheet.tops
    fit = min((b for b in tops if b >= bits), default=max(tops))
    return tops[fit] * 1e12 * machine.sheet.compute


def _by_rows(seconds: Mapping[int, float], rows: int) -> float:
    """A step's seconds at so many rows; beyond the last measured one in proportion."""
    most = max(seconds)
    return seconds[most] * rows / most if rows > most else _between(seconds, rows)


def _between(values: Mapping[int, float], rows: int) -> float:
    """Between two measured rows in proportion to rows; the outermost one beyond."""
    if rows in values:
        return values[rows]
    below = max((n for n in values if n < rows), default=None)
    above = min((n for n in values if n > rows), default=None)
    if below is None or above is None:
        return values[above if below is None else below]  # type: ignore[index]
    return values[below] + (values[above] - values[below]) * (rows - below) / (above - below)
