"""What a step of any model has to do, experts and latent attention included, as `predict.seconds_of` takes it.

Knows: shapes, pieces of sequences. Does not know: machines, time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil

from legato.measure import cost
from legato.measure.predict import Attend, Piece, Product, Work
from legato.measure.shape import AttentionShape, Experts, ModelShape, Role


def step_work(
    shape: ModelShape,
    bits: Mapping[Role, float],
    kv_format: str,
    pieces: Iterable[tuple[Piece, int]],
    evenly: bool = True,
) -> Work:
    """What a step of these pieces (each with how many sequences have one just like it) has to do.

    evenly  whether rows choose among all experts alike, which needs the most of them, or among half of them
    """
    pieces = list(pieces)
    rows = sum(piece.length * many for piece, many in pieces)
    logits = sum(piece.logits * many for piece, many in pieces)
    products: list[Product] = []
    for run in shape.runs:
        products += [Product(m.rows, m.cols, bits[m.role], rows, run.count) for m in run.layer.matrices]
        if run.layer.experts is not None:
            products += _experts(run.layer.experts, bits[Role.EXPERT], rows, run.count, evenly)
    if logits:
        products.append(Product(shape.head.rows, shape.head.cols, bits[Role.HEAD], logits))
    attends = [
        _attend(piece, many, run.layer.attention, kv_format, run.count) for piece, many in pieces for run in shape.runs
    ]
    return Work(rows, sum(many for _, many in pieces), shape.num_layers, tuple(products), tuple(attends))


def _experts(experts: Experts, bits: float, rows: int, layers: int, evenly: bool) -> list[Product]:
    """The experts needed, as one matrix of as many outputs: their number is an expectation, not whole."""
    if not evenly:
        experts = Experts(max(experts.active, experts.count // 2), experts.active, experts.matrices)
    needed = experts.distinct(rows)
    each = ceil(rows * experts.active / needed - 1e-9)
    return [Product(round(needed * m.rows), m.cols, bits, each, layers) for m in experts.matrices]


def _attend(piece: Piece, many: int, a: AttentionShape, kv_format: str, layers: int) -> Attend:
    pairs = cost.visible_pairs(piece.start, piece.length, a.window)
    end = piece.start + piece.length
    flops = cost.layer_attention_flops(a, piece.start, piece.length)
    kept = a.latent.size if a.latent is not None else a.num_kv_heads * (a.key_dim + a.value_dim)
    return Attend(
        rows=piece.length,
        tokens=end if a.window is None else min(end, a.window + piece.length - 1),
        pairs=pairs,
        q_size=ceil(flops / (4 * pairs)),
        kv_size=float(cost.layer_kv_bytes(a, kv_format)),
        count=layers,
        streams=many,
        numbers=a.num_heads * a.key_dim + kept,
        kv_format=kv_format,
        head_dim=a.key_dim,
    )
