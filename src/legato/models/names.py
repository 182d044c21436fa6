"""From the parts a decoder needs to the tensors of a file: finds, checks shapes, and says how each must be read.

Knows: canonical roles, the shapes a spec asks for, and the naming styles of published files.
Does not know: families (they choose a style), devices, how numbers are stored.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from legato.core.spec import ArchSpec, LayerSpec, MlpKind, NormKind, NormSpec
from legato.errors import ModelFileError, UnsupportedModelError
from legato.weights.tensor import Tensor

Shape = tuple[int, ...]


class Role(enum.StrEnum):
    """What a tensor is for; biases share the role of their weight."""

    EMBED = "embed"
    POSITIONS = "positions"
    FINAL_NORM = "final_norm"
    HEAD = "head"
    ATTN_NORM = "attn_norm"
    Q = "q"
    K = "k"
    V = "v"
    Q_NORM = "q_norm"
    K_NORM = "k_norm"
    OUT = "out"
    POST_ATTN_NORM = "post_attn_norm"
    MLP_NORM = "mlp_norm"
    GATE = "gate"
    UP = "up"
    DOWN = "down"
    POST_MLP_NORM = "post_mlp_norm"


NORMS = frozenset(
    {Role.FINAL_NORM, Role.ATTN_NORM, Role.Q_NORM, Role.K_NORM, Role.POST_ATTN_NORM, Role.MLP_NORM, Role.POST_MLP_NORM}
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a role's rows lie: in the tensor `stem` + ".weight" (or ".bias"), perhaps one of several stacked there."""

    stem: str
    stacked: tuple[Role, ...] = ()


@dataclass(frozen=True, slots=True)
class NameMap:
    """One style of naming and storing tensors.

    prefixes     tried in order; the first under which the embedding exists is the file's
    layer        the part between prefix and a layer's stems, with {} for its number
    conv1d       matrices are stored as (inputs, outputs)
    interleaved  Q and K rows are stored for rotations of neighbours (2j, 2j + 1) instead of halves (j, j + E/2)
    norm_offset  added to norm weights (files that store w where the decoder multiplies by 1 + w)
    ignored      patterns (as in fnmatch) of tensors that carry nothing a text decoder computes -> why
    """

    shared: Mapping[Role, Place]
    layers: Mapping[Role, Place]
    layer: str
    prefixes: tuple[str, ...] = ("",)
    head: tuple[str, ...] = ("lm_head",)
    conv1d: bool = False
    interleaved: bool = False
    norm_offset: float = 0.0
    ignored: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bound:
    """A file's tensor in a role, and how it becomes what the decoder needs. Nothing is copied until it is loaded.

    start, stop  the rows of this role (numbers, for a vector) within the tensor
    heads        0, or the number of heads whose rows must go from neighbours to halves
    """

    role: Role
    tensor: Tensor
    start: int
    stop: int
    transposed: bool = False
    heads: int = 0
    offset: float = 0.0

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def nbytes(self) -> int:
        """Bytes of this part in the file."""
        whole = self.tensor.shape[1] if self.transposed else self.tensor.shape[0]
        return self.tensor.nbytes * self.rows // whole

    def matrix(self) -> Tensor:
        """(outputs, inputs), rows in the decoder's order."""
        tensor = self._untransposed() if self.transposed else self.tensor
        if (self.start, self.stop) != (0, tensor.shape[0]):
            tensor = tensor.take(self.start, self.stop)
        return tensor.reorder(halves_from_neighbours(self.rows, self.heads)) if self.heads else tensor

    def vector(self) -> NDArray[np.float32]:
        """The numbers of a norm or a bias."""
        values = self.tensor.float32().reshape(-1)[self.start : self.stop] + np.float32(self.offset)
        return values[halves_from_neighbours(self.rows, self.heads)] if self.heads else values

    def _untransposed(self) -> Tensor:
        t = self.tensor
        assert t.format.block == 1, (t.name, t.format)  # only folders of safetensors hold such matrices
        records = t.data.reshape(*t.shape, t.format.block_bytes).swapaxes(0, 1)
        return Tensor(t.name, (t.shape[1], t.shape[0]), t.format, np.ascontiguousarray(records).reshape(-1))


@dataclass(frozen=True, slots=True)
class Bindings:
    """Weights and biases by role, of one layer or of what all layers share."""

    weights: Mapping[Role, Bound]
    biases: Mapping[Role, Bound]

    def __iter__(self) -> Iterator[Bound]:
        yield from self.weights.values()
        yield from self.biases.values()


@dataclass(frozen=True, slots=True)
class BoundTensors:
    """All of a model's tensors in their roles; `notes` say which others the file holds, and why they are not used."""

    shared: Bindings
    layers: tuple[Bindings, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Bound]:
        yield from self.shared
        for layer in self.layers:
            yield from layer


@dataclass(frozen=True, slots=True)
class Need:
    """What a spec asks of a role: (outputs, inputs) or (numbers,); `heads` where rows belong to rotated heads."""

    shape: Shape
    bias: bool = False
    heads: int = 0


def shared_needs(spec: ArchSpec) -> dict[Role, Need]:
    """The tensors that belong to no layer, the head apart."""
    needs = {Role.EMBED: Need((spec.vocab_size, spec.d_model)), Role.FINAL_NORM: _norm(spec.final_norm, spec.d_model)}
    if spec.num_positions is not None:
        needs[Role.POSITIONS] = Need((spec.num_positions, spec.d_model))
    return needs


def layer_needs(spec: ArchSpec, layer: LayerSpec) -> dict[Role, Need]:
    width, a, mlp = spec.d_model, layer.attention, layer.mlp
    needs = {
        Role.ATTN_NORM: _norm(layer.attn_norm, width),
        Role.Q: Need((a.q_size, width), a.qkv_bias, a.num_heads),
        Role.K: Need((a.kv_size, width), a.qkv_bias, a.num_kv_heads),
        Role.V: Need((a.kv_size, width), a.qkv_bias),
        Role.OUT: Need((width, a.q_size), a.out_bias),
        Role.MLP_NORM: _norm(layer.mlp_norm, width),
        Role.UP: Need((mlp.size, width), mlp.bias),
        Role.DOWN: Need((width, mlp.size), mlp.bias),
    }
    if mlp.kind is MlpKind.GATED:
        needs[Role.GATE] = Need((mlp.size, width), mlp.bias)
    if a.qk_norm is not None:
        needs[Role.Q_NORM] = needs[Role.K_NORM] = _norm(a.qk_norm, a.head_dim)
    if layer.post_attn_norm is not None:
        needs[Role.POST_ATTN_NORM] = _norm(layer.post_attn_norm, width)
    if layer.post_mlp_norm is not None:
        needs[Role.POST_MLP_NORM] = _norm(layer.post_mlp_norm, width)
    return needs


def _norm(spec: NormSpec, width: int) -> Need:
    return Need((width,), bias=spec.kind is NormKind.LAYER)


def halves_from_neighbours(rows: int, heads: int) -> NDArray[np.int64]:
    """For each row wanted, the row in the file: within a head, (half h, place j) lies at 2j + h."""
    dim = rows // heads
    within = np.arange(dim).reshape(dim // 2, 2).T.reshape(-1)
    return (np.arange(heads)[:, None] * dim + within).reshape(-1)


def bind(
    path: str | os.PathLike[str],
    spec: ArchSpec,
    names: NameMap,
    tensors: Mapping[str, Tensor],
    consumed: frozenset[str] = frozenset(),
) -> BoundTensors:
    """Finds every tensor that `spec` needs and checks its shape; refuses tensors left over that nobody can explain.

    consumed  names that were read before (such as tensors of rope factors)
    Raises `ModelFileError` naming the tensor, with expected and found shapes.
    """
    return _Binder(path, spec, names, tensors, set(consumed)).bind()


@dataclass(frozen=True, slots=True)
class _Binder:
    path: str | os.PathLike[str]
    spec: ArchSpec
    names: NameMap
    tensors: Mapping[str, Tensor]
    used: set[str]

    def bind(self) -> BoundTensors:
        names, spec = self.names, self.spec
        embed = names.shared[Role.EMBED].stem
        prefix = next((p for p in names.prefixes if f"{p}{embed}.weight" in self.tensors), names.prefixes[0])
        shared = self._part(prefix, names.shared, shared_needs(spec), stored_transposed=False)
        if not spec.tied:
            needs = {Role.HEAD: Need((spec.vocab_size, spec.d_model), spec.head_bias)}
            head = self._part("", {Role.HEAD: Place(self._head_stem())}, needs, stored_transposed=False)
            shared = Bindings({**shared.weights, **head.weights}, {**shared.biases, **head.biases})
        layers = tuple(
            self._part(prefix + names.layer.format(i), names.layers, layer_needs(spec, layer), names.conv1d)
            for i, layer in enumerate(spec.layers)
        )
        return BoundTensors(shared, layers, self._explain_leftovers())

    def _head_stem(self) -> str:
        return next((stem for stem in self.names.head if f"{stem}.weight" in self.tensors), self.names.head[0])

    def _part(
        self, prefix: str, places: Mapping[Role, Place], needs: Mapping[Role, Need], stored_transposed: bool
    ) -> Bindings:
        """One layer's tensors, or the shared ones."""
        weights, biases = {}, {}
        for role, need in needs.items():
            stem = prefix + places[role].stem
            stacked = places[role].stacked or (role,)
            counts = [needs[r].shape[0] for r in stacked]
            start = sum(counts[: stacked.index(role)])
            transposed = stored_transposed and len(need.shape) == 2
            shape = (sum(counts), *need.shape[1:])
            tensor = self._find(f"{stem}.weight", shape[::-1] if transposed else shape)
            heads = need.heads if self.names.interleaved else 0
            offset = self.names.norm_offset if role in NORMS else 0.0
            weights[role] = Bound(role, tensor, start, start + need.shape[0], transposed, heads, offset)
            if need.bias:
                tensor = self._find(f"{stem}.bias", shape[:1])
                biases[role] = Bound(role, tensor, start, start + need.shape[0], heads=heads)
        return Bindings(weights, biases)

    def _find(self, name: str, shape: Shape) -> Tensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ModelFileError(self.path, name, f"tensor missing; expected one of shape {shape}")
        if tensor.shape != shape:
            raise ModelFileError(self.path, name, f"tensor has shape {tensor.shape}, expected {shape}")
        self.used.add(name)
        return tensor

    def _explain_leftovers(self) -> tuple[str, ...]:
        patterns = dict(self.names.ignored)
        if self.spec.tied:
            patterns |= dict.fromkeys((f"{stem}.weight" for stem in self.names.head), "the head is the embedding table")
        counts: dict[str, int] = {}
        unknown = []
        for name in sorted(set(self.tensors) - self.used):
            why = next((why for pattern, why in patterns.items() if fnmatchcase(name, pattern)), None)
            if why is None:
                unknown.append(name)
            else:
                counts[why] = counts.get(why, 0) + 1
        if unknown:
            more = f", the first of {len(unknown)}" if len(unknown) > 1 else ""
            raise UnsupportedModelError(self.path, unknown[0], f"unknown tensor{more}; without it results may be wrong")
        return tuple(f"{count} tensor{'s' * (count > 1)} not used: {why}" for why, count in counts.items())
