"""What `legato check MODEL` shows: the spec layer by layer, formats and bytes by role, and which backends run it.

Knows: blueprints and what can be counted without loading them. Does not know: how anything is printed or packed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from legato.core.spec import AttentionSpec, LayerSpec, MlpSpec, NormSpec
from legato.kernels.ops import Backend, KvFormat
from legato.measure import cost
from legato.models.bits import elements_of
from legato.models.load import Blueprint
from legato.models.names import Bound, Role
from legato.weights.tensor import WeightFormat


@dataclass(frozen=True, slots=True)
class LayerRun:
    """Consecutive layers, `first` to `last`, that compute the same."""

    first: int
    last: int
    spec: LayerSpec


@dataclass(frozen=True, slots=True)
class RoleBytes:
    """All tensors of one role in one format."""

    role: Role
    format: WeightFormat
    tensors: int
    elements: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """A model's resolved facts. `backends`: name -> None, or why that backend cannot run it."""

    path: str
    family: str
    d_model: int
    vocab_size: int
    context_length: int
    parameters: int
    weight_bytes: int
    tied: bool
    embed_scale: float
    logit_softcap: float | None
    num_positions: int | None
    final_norm: NormSpec
    layers: tuple[LayerRun, ...]
    roles: tuple[RoleBytes, ...]
    kv_bytes_per_token: Mapping[str, int]
    backends: Mapping[str, str | None]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = asdict(self)
        return plain

    def lines(self) -> list[str]:
        """The same for a person, a fact a line."""
        head = "the embedding table" if self.tied else "its own"
        out = [
            f"model     {self.path}",
            f"family    {self.family}: {self.parameters / 1e6:,.1f} M parameters, {self.weight_bytes / 1e6:,.1f} MB",
            f"width     {self.d_model}, vocabulary {self.vocab_size:,}, context {self.context_length:,}, head: {head}",
        ]
        if self.num_positions is not None:
            out.append(f"positions learned, {self.num_positions:,}")
        if self.embed_scale != 1.0:
            out.append(f"embedding scaled by {self.embed_scale:.6g}")
        if self.logit_softcap is not None:
            out.append(f"logits    capped softly at {self.logit_softcap:g}")
        for run in self.layers:
            out += describe_layers(run)
        out.append(f"last norm {describe_norm(self.final_norm)}")
        out += [
            f"weights   {r.role:<14} {r.format:<5} {r.tensors:>4} tensors {r.nbytes / 1e6:>9,.1f} MB"
            for r in self.roles
        ]
        kv = ", ".join(f"{name} {size:,}" for name, size in self.kv_bytes_per_token.items())
        out.append(f"kv        bytes a token: {kv}")
        for name, reason in self.backends.items():
            out.append(f"backend   {name}: {'runs it' if reason is None else f'cannot run it: {reason}'}")
        return out + [f"note      {note}" for note in self.notes]


def check_model(blueprint: Blueprint, backends: Sequence[Backend]) -> ModelCheck:
    """Everything that can be said of a model before its weights are loaded."""
    spec = blueprint.spec
    bound = list(blueprint.tensors)
    return ModelCheck(
        path=str(blueprint.path),
        family=spec.family,
        d_model=spec.d_model,
        vocab_size=spec.vocab_size,
        context_length=spec.context_length,
        parameters=sum(map(elements_of, bound)),
        weight_bytes=sum(b.nbytes for b in bound),
        tied=spec.tied,
        embed_scale=spec.embed_scale,
        logit_softcap=spec.logit_softcap,
        num_positions=spec.num_positions,
        final_norm=spec.final_norm,
        layers=fold_layers(spec.layers),
        roles=_bytes_by_role(bound),
        kv_bytes_per_token={str(f): cost.kv_bytes_per_token(spec, f) for f in KvFormat},
        backends={backend.name: backend.supports(spec) for backend in backends},
        notes=blueprint.notes,
    )


def fold_layers(layers: Sequence[LayerSpec]) -> tuple[LayerRun, ...]:
    runs: list[LayerRun] = []
    for i, layer in enumerate(layers):
        if runs and runs[-1].spec == layer:
            runs[-1] = LayerRun(runs[-1].first, i, layer)
        else:
            runs.append(LayerRun(i, i, layer))
    return tuple(runs)


def describe_layers(run: LayerRun) -> list[str]:
    which = f"layer {run.first}" if run.first == run.last else f"layers {run.first}-{run.last}"
    spec = run.spec
    post = ""
    if spec.post_attn_norm is not None and spec.post_mlp_norm is not None:
        post = f"; after each part {describe_norm(spec.post_attn_norm)}"
    return [
        f"{which}",
        f"  norms     {describe_norm(spec.attn_norm)}{post}",
        f"  attention {describe_attention(spec.attention)}",
        f"  mlp       {describe_mlp(spec.mlp)}",
    ]


def describe_norm(norm: NormSpec) -> str:
    return f"{norm.kind}, eps {norm.eps:.3g}"


def describe_attention(a: AttentionSpec) -> str:
    facts = [f"{a.num_heads} heads of {a.head_dim} on {a.num_kv_heads} kv heads, scale {a.scale:.6g}"]
    if a.rope is None:
        facts.append("no rope")
    else:
        scale = "" if a.rope.scale == 1.0 else f", scaled by {a.rope.scale:.6g}"
        facts.append(f"rope on {a.rope.dim} dims, {a.rope.inv_freq[0]:.3g} to {a.rope.inv_freq[-1]:.3g} rad{scale}")
    facts.append("sees all before" if a.window is None else f"sees the last {a.window:,}")
    if a.qk_norm is not None:
        facts.append(f"q and k normed ({describe_norm(a.qk_norm)})")
    if a.softcap is not None:
        facts.append(f"scores capped softly at {a.softcap:g}")
    biases = [name for name, has in (("q, k, v", a.qkv_bias), ("output", a.out_bias)) if has]
    return "; ".join(facts + [f"biases on {' and '.join(biases)}"] * bool(biases))


def describe_mlp(mlp: MlpSpec) -> str:
    return f"{mlp.kind}, {mlp.activation}, {mlp.size:,} wide{', with biases' if mlp.bias else ''}"


def _bytes_by_role(bound: Sequence[Bound]) -> tuple[RoleBytes, ...]:
    totals: dict[tuple[Role, WeightFormat], RoleBytes] = {}
    for b in bound:
        key = (b.role, b.tensor.format)
        t = totals.get(key, RoleBytes(b.role, b.tensor.format, 0, 0, 0))
        totals[key] = RoleBytes(t.role, t.format, t.tensors + 1, t.elements + elements_of(b), t.nbytes + b.nbytes)
    return tuple(totals.values())
