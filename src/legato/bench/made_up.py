"""Made-up models for measuring a machine: the shape of small llamas, random weights, any number of layers.

Knows: shapes, backends. Does not know: what is measured with them, real models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from legato.core.plan import Plan, Slice
from legato.core.request import Request
from legato.core.sequence import Sequence as EngineSequence
from legato.core.spec import (
    Activation,
    ArchSpec,
    AttentionSpec,
    LayerSpec,
    MlpKind,
    MlpSpec,
    NormKind,
    NormSpec,
    RopeSpec,
)
from legato.kernels.ops import Backend, Batch, Executor, KvFormat, Weight
from legato.measure import cost
from legato.models.decoder import Decoder, LayerWeights, NormWeights
from legato.runtime.pack import pack
from legato.weights.formats import quantize_tensor
from legato.weights.tensor import Tensor, WeightFormat

PAGE_SIZE = 16
VOCAB = 512
_NORM = NormSpec(NormKind.RMS, 1e-5)


def llama_spec(
    width: int,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int = 64,
    mlp: int,
    layers: int,
    vocab: int = VOCAB,
    context: int = 1 << 20,
    tied: bool = False,
) -> ArchSpec:
    """A llama-like decoder of these sizes."""
    attention = AttentionSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=RopeSpec(tuple(10_000 ** (-2 * i / head_dim) for i in range(head_dim // 2))),
    )
    layer = LayerSpec(attention, MlpSpec(MlpKind.GATED, mlp, Activation.SILU), _NORM, _NORM)
    return ArchSpec(
        family="made-up",
        d_model=width,
        vocab_size=vocab,
        context_length=context,
        layers=(layer,) * layers,
        final_norm=_NORM,
        tied=tied,
    )


def made_up_spec(
    width: int, *, head_dim: int = 64, group: int = 4, layers: int = 2, mlp: int = 4, vocab: int = VOCAB
) -> ArchSpec:
    """The same of one width: MLP `mlp` times as wide, `group` query heads for each head of keys and values."""
    heads = max(1, width // head_dim)
    return llama_spec(
        width,
        heads=heads,
        kv_heads=max(1, heads // group),
        head_dim=width // heads,
        mlp=mlp * width,
        layers=layers,
        vocab=vocab,
    )


def layers_of(width: int, fmt: WeightFormat, nbytes: int) -> int:
    """How many layers of a made-up model have so many bytes of weights; at least one."""
    spec = made_up_spec(width, layers=1)
    elements = sum(m.elements for m in cost.layer_matrices(spec, spec.layers[0]))
    return max(1, round(nbytes / (elements * fmt.block_bytes / fmt.block)))


def made_up_executor(
    backend: Backend,
    spec: ArchSpec,
    fmt: WeightFormat,
    kv_format: KvFormat,
    *,
    max_tokens: int,
    max_seqs: int = 1,
    kv_tokens: int = 1024,
) -> Executor:
    """`spec` with random weights in `fmt`, and pages for `kv_tokens` tokens. All layers have equal numbers, but each
    its own copy, as in a real model.
    """
    make = _Weights(backend, fmt)
    norm = NormWeights(backend.pack_vector(np.ones(spec.d_model, np.float32)))
    qkv, out, up, down = cost.layer_matrices(spec, spec.layers[0])
    gate = make.tensor(up.rows // 2, up.cols)
    parts = [make.tensor(m.rows, m.cols) for m in (qkv, out, down)]
    layers = []
    for _ in spec.layers:
        packed: list[Weight] = [backend.pack_linear([part], None) for part in parts]
        layers.append(
            LayerWeights(
                attn_norm=norm,
                qkv=packed[0],
                q_norm=None,
                k_norm=None,
                out=packed[1],
                post_attn_norm=None,
                mlp_norm=norm,
                up=backend.pack_gate_up([gate], [gate], None),
                down=packed[2],
                post_mlp_norm=None,
            )
        )
    table = make.tensor(spec.vocab_size, spec.d_model)
    decoder = Decoder(spec, backend.pack_table(table), None, tuple(layers), norm, backend.pack_linear([table], None))
    return backend.build(
        spec,
        decoder.forward,
        num_pages=-(-max(kv_tokens, max_tokens) // PAGE_SIZE),
        page_size=PAGE_SIZE,
        kv_format=kv_format,
        max_tokens=max_tokens,
        max_seqs=max_seqs,
    )


def batch_of(starts: Sequence[int], length: int = 1, logits: int = 1, page: int = 0) -> Batch:
    """A step of one sequence for each of `starts`: so many tokens computed, `length` more. Pages lie in order, the
    first one is `page`.
    """
    slices = []
    for number, start in enumerate(starts):
        end = start + length
        count = -(-end // PAGE_SIZE)
        request = Request(f"made-up-{number}", (1,) * end)
        seq = EngineSequence(number, request, pages=list(range(page, page + count)))
        slices.append(Slice(seq, start, length, logits))
        page += count
    return pack(Plan(tuple(slices)), PAGE_SIZE)


class _Weights:
    """Random matrices in one format, small enough that activations stay finite."""

    def __init__(self, backend: Backend, fmt: WeightFormat) -> None:
        self._backend, self._format = backend, fmt
        self._random = np.random.default_rng(1)

    def tensor(self, rows: int, cols: int) -> Tensor:
        values = (self._random.standard_normal((rows, cols), np.float32) * np.float32(cols**-0.5)).view(np.uint8)
        return quantize_tensor(Tensor("random", (rows, cols), WeightFormat.F32, values.reshape(-1)), self._format)
