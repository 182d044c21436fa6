"""From a model's files to a decoder on a device: a blueprint first (nothing copied), then packed weights.

Knows: the order of both, and which bound tensors become which packed weight.
Does not know: families, file formats, how a device lays weights out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from legato.core.spec import ArchSpec, LayerSpec, MlpKind
from legato.errors import UnsupportedModelError, UsageError
from legato.kernels.ops import Backend, Weight
from legato.models.decoder import Decoder, LayerWeights, NormWeights
from legato.models.families import Draft
from legato.models.names import Bindings, Bound, BoundTensors, Role, bind
from legato.models.translate import finish, translate
from legato.weights.filemap import let_go
from legato.weights.formats import quantize_tensor
from legato.weights.source import ModelSource
from legato.weights.tensor import Tensor, WeightFormat

Progress = Callable[[int, int], None]  # bytes done, bytes in all

_FLOATS = frozenset({WeightFormat.F32, WeightFormat.F16, WeightFormat.BF16})


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A model understood but not loaded: what it computes, and which tensor of its files plays which part."""

    path: Path
    spec: ArchSpec
    tensors: BoundTensors
    notes: tuple[str, ...]


def read_blueprint(source: ModelSource, context: int | None = None) -> Blueprint:
    """Reads settings, checks every tensor's name and shape. Takes milliseconds; copies no weights.

    context  how many positions will be used, where a model has other rotary factors for long contexts; without it
             such a model is set up for its original context, and says so in `notes`
    Raises `UnsupportedModelError` for what is not run here, `ModelFileError` for what makes no sense, both by name;
    `UsageError` for a context longer than the model's.
    """
    translation = translate(source)
    draft = Draft(translation.settings, translation.family.name, context)
    spec = translation.family.read(draft)
    finish(translation.settings)
    if context is not None and context > spec.context_length:
        raise UsageError(f"a context of {context} is longer than the {spec.context_length} positions of this model")
    tensors = bind(source.path, spec, translation.names, source.tensors, translation.consumed)
    notes = (*source.notes, *translation.notes, *draft.notes, *tensors.notes)
    return Blueprint(source.path, spec, tensors, notes)


def build_decoder(
    blueprint: Blueprint, backend: Backend, progress: Progress | None = None, weights: WeightFormat | None = None
) -> Decoder:
    """Packs every weight for `backend`, layer after layer: at most one layer's weights exist twice at a time.

    progress  called after each layer
    weights   a format to requantise matrices to, the head among them, where the file has them as floats; embedding
              tables, norms and what is already quantised stay as they are
    Raises `UnsupportedModelError` with the backend's reason when it cannot run the model.
    """
    spec = blueprint.spec
    reason = backend.supports(spec)
    if reason is not None:
        problem = f"the {backend.name} backend cannot run it: {reason}"
        raise UnsupportedModelError(blueprint.path, "architecture", problem)
    packer = _Packer(backend, weights)
    total = sum(bound.nbytes for bound in blueprint.tensors)
    shared, done, layers = blueprint.tensors.shared, 0, []
    for layer, bindings in zip(spec.layers, blueprint.tensors.layers, strict=True):
        layers.append(packer.layer(layer, bindings))
        for bound in bindings:
            let_go(bound.tensor.data)
        done += sum(bound.nbytes for bound in bindings)
        if progress is not None:
            progress(done, total)
    decoder = Decoder(
        spec=spec,
        embed=backend.pack_table(shared.weights[Role.EMBED].matrix()),
        positions=backend.pack_table(shared.weights[Role.POSITIONS].matrix()) if spec.num_positions else None,
        layers=tuple(layers),
        final_norm=packer.norm(shared, Role.FINAL_NORM),
        head=packer.linear(shared, [Role.EMBED if spec.tied else Role.HEAD]),
    )
    for bound in shared:
        let_go(bound.tensor.data)
    if progress is not None:
        progress(total, total)
    return decoder


@dataclass(frozen=True, slots=True)
class _Packer:
    """Turns bindings into a backend's packed weights."""

    backend: Backend
    format: WeightFormat | None

    def layer(self, spec: LayerSpec, b: Bindings) -> LayerWeights:
        gated = spec.mlp.kind is MlpKind.GATED
        return LayerWeights(
            attn_norm=self.norm(b, Role.ATTN_NORM),
            qkv=self.linear(b, [Role.Q, Role.K, Role.V]),
            q_norm=self._vector(b.weights.get(Role.Q_NORM)),
            k_norm=self._vector(b.weights.get(Role.K_NORM)),
            out=self.linear(b, [Role.OUT]),
            post_attn_norm=self._optional_norm(b, Role.POST_ATTN_NORM),
            mlp_norm=self.norm(b, Role.MLP_NORM),
            up=self._gate_up(b) if gated else self.linear(b, [Role.UP]),
            down=self.linear(b, [Role.DOWN]),
            post_mlp_norm=self._optional_norm(b, Role.POST_MLP_NORM),
        )

    def norm(self, b: Bindings, role: Role) -> NormWeights:
        return NormWeights(self.backend.pack_vector(b.weights[role].vector()), self._vector(b.biases.get(role)))

    def linear(self, b: Bindings, roles: Sequence[Role]) -> Weight:
        return self.backend.pack_linear([self._matrix(b.weights[role]) for role in roles], _bias(b, roles))

    def _gate_up(self, b: Bindings) -> Weight:
        gate, up = self._matrix(b.weights[Role.GATE]), self._matrix(b.weights[Role.UP])
        return self.backend.pack_gate_up([gate], [up], _bias(b, [Role.GATE, Role.UP]))

    def _optional_norm(self, b: Bindings, role: Role) -> NormWeights | None:
        return self.norm(b, role) if role in b.weights else None

    def _vector(self, bound: Bound | None) -> Weight | None:
        return None if bound is None else self.backend.pack_vector(bound.vector())

    def _matrix(self, bound: Bound) -> Tensor:
        tensor = bound.matrix()
        if self.format is None or tensor.format not in _FLOATS:
            return tensor
        if tensor.cols % self.format.block:
            raise UsageError(
                f"weights={self.format} needs rows of whole blocks of {self.format.block}, "
                f"but {tensor.name} has {tensor.cols} columns; leave weights out"
            )
        return quantize_tensor(tensor, self.format)


def _bias(b: Bindings, roles: Sequence[Role]) -> NDArray[np.float32] | None:
    """The biases of stacked matrices, one after the other; a spec gives all of them one or none."""
    found = [b.biases[role].vector() for role in roles if role in b.biases]
    assert len(found) in (0, len(roles)), roles
    return np.concatenate(found) if found else None
