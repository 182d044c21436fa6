"""Families of models: one function each from settings to an `ArchSpec`, and the one place where their names appear.

Knows: what each family's settings mean, their defaults, and which naming style its files use.
Does not know: tensors' bytes, devices, requests.

Sources: transformers' configuration and modelling code for names, defaults and meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from legato.core.spec import Activation, ArchSpec, AttentionSpec, LayerSpec, MlpKind, MlpSpec, NormKind, NormSpec
from legato.models import styles
from legato.models.names import NameMap
from legato.models.rope import Rope, read_rope
from legato.models.settings import Settings

_MAX_LAYERS = 1000
_MAX_HEAD_DIM = 65536

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}


@dataclass(slots=True)
class Draft:
    """A spec in the making: one model's settings, the context that will be used, and remarks for a person."""

    c: Settings
    family: str
    context: int | None
    notes: list[str] = field(default_factory=list)
    positions: int | None = None

    def rms_norm(self) -> NormSpec:
        return NormSpec(NormKind.RMS, self.c.number("rms_norm_eps"))

    def attention(self) -> AttentionSpec:
        """Heads, biases and the usual scale; rope and whatever else is added by the family."""
        c = self.c
        width, heads = c.whole("hidden_size"), c.whole("num_attention_heads")
        kv_heads = c.whole("num_key_value_heads", heads)
        if heads % kv_heads:
            raise c.wrong("num_key_value_heads", f"{kv_heads} does not divide {heads}, the number of heads")
        if "head_dim" not in c and width % heads:
            raise c.wrong("num_attention_heads", f"{heads} does not divide {width}, the width of the model")
        dim = c.whole("head_dim", width // heads, high=_MAX_HEAD_DIM)
        if c.whole("value_length", dim) != dim:
            raise c.refuse("value_length", f"values of another size than keys ({dim}) are not supported")
        scale = c.number("attention_scale", dim**-0.5)
        bias = c.flag("attention_bias", False)
        return AttentionSpec(heads, kv_heads, dim, scale, qkv_bias=bias, out_bias=c.flag("attention_out_bias", bias))

    def rope(self, attention: AttentionSpec, **how: Any) -> AttentionSpec:
        """`attention` with the rotary embedding that the settings describe (see `read_rope` for `how`)."""
        rope: Rope = read_rope(self.c, attention.head_dim, context=self.context, **how)
        self.positions = rope.positions
        if rope.note is not None:
            self.notes.append(rope.note)
        return replace(attention, rope=rope.spec)

    def mlp(self, kind: MlpKind = MlpKind.GATED, default_size: int | None = None) -> MlpSpec:
        name = self.c.text("hidden_act")
        if name not in _ACTIVATIONS:
            raise self.c.refuse("hidden_act", f"unknown activation {name!r}; known are {', '.join(_ACTIVATIONS)}")
        size = self.c.whole("intermediate_size", default_size)
        return MlpSpec(kind, size, _ACTIVATIONS[name], self.c.flag("mlp_bias", False))

    def num_layers(self) -> int:
        return self.c.whole("num_hidden_layers", high=_MAX_LAYERS)

    def sliding(self, window: int | None, rule: Callable[[int], bool]) -> list[bool]:
        """Which layers look through a sliding window: as listed, or else by the family's rule for layer i."""
        count = self.num_layers()
        listed = self.c.texts("layer_types")
        if listed is None:
            return [window is not None and rule(i) for i in range(count)]
        if len(listed) != count:
            raise self.c.wrong("layer_types", f"names {len(listed)} layers, but there are {count}")
        for kind in listed:
            if kind not in ("full_attention", "sliding_attention"):
                raise self.c.refuse("layer_types", f"unknown kind of layer {kind!r}")
        if window is None and "sliding_attention" in listed:
            raise self.c.wrong("sliding_window", "missing, but layer_types asks for it")
        return [kind == "sliding_attention" for kind in listed]

    def arch(self, layers: Sequence[LayerSpec], final_norm: NormSpec) -> ArchSpec:
        return ArchSpec(
            family=self.family,
            d_model=self.c.whole("hidden_size"),
            vocab_size=self.c.whole("vocab_size"),
            context_length=self.positions or self.c.whole("max_position_embeddings"),
            layers=tuple(layers),
            final_norm=final_norm,
            tied=self.c.flag("tie_word_embeddings", False),
        )

    def uniform(self, attention: AttentionSpec, window: int | None, rule: Callable[[int], bool]) -> ArchSpec:
        """Pre-norm RMS layers with gated MLPs that differ at most in their windows."""
        norm, mlp = self.rms_norm(), self.mlp()
        near = replace(attention, window=window)
        sliding = self.sliding(window, rule)
        return self.arch([LayerSpec(near if slides else attention, mlp, norm, norm) for slides in sliding], norm)


def _every(layer: int) -> bool:
    return True


def _llama(d: Draft) -> ArchSpec:
    return d.uniform(d.rope(d.attention()), d.c.optional_whole("sliding_window"), _every)


def _phi3(d: Draft) -> ArchSpec:
    return d.uniform(d.rope(d.attention(), partial=True), d.c.optional_whole("sliding_window"), _every)


def _qwen(d: Draft, attention: AttentionSpec) -> ArchSpec:
    """Windows only where they are switched on, and only from some layer upwards."""
    window = d.c.optional_whole("sliding_window")
    window = window if d.c.flag("use_sliding_window", False) else None
    first = d.c.whole("max_window_layers", low=0)
    return d.uniform(d.rope(attention), window, lambda layer: layer >= first)


def _qwen2(d: Draft) -> ArchSpec:
    return _qwen(d, d.attention())


def _qwen3(d: Draft) -> ArchSpec:
    return _qwen(d, replace(d.attention(), qk_norm=d.rms_norm()))


def _gemma3(d: Draft) -> ArchSpec:
    """Near and far layers alternate: near ones slide, and turn by another base; norms before and after each part."""
    c, norm, mlp = d.c, d.rms_norm(), d.mlp()
    window = c.optional_whole("sliding_window")
    period = c.whole("sliding_window_pattern")
    attention = d.attention()
    # GGUF leaves the scale out: it goes by the head's size, but by width over heads in the 62-layer model.
    usual = c.whole("hidden_size") // attention.num_heads if d.num_layers() == 62 else attention.head_dim
    scale = c.number("attention_scale", c.number("query_pre_attn_scalar", usual) ** -0.5)
    attention = replace(attention, scale=scale, qk_norm=norm)
    far = d.rope(attention, section="full_attention")
    near = d.rope(attention, section="sliding_attention", theta_key="rope_local_base_freq", scaled=False)
    near = replace(near, window=window)
    sliding = d.sliding(window, lambda layer: (layer + 1) % period != 0)
    layers = [LayerSpec(near if slides else far, mlp, norm, norm, norm, norm) for slides in sliding]
    softcap = c.optional_number("final_logit_softcapping")
    spec = d.arch(layers, norm)
    return replace(spec, embed_scale=math.sqrt(spec.d_model), logit_softcap=softcap)


def _gpt2(d: Draft) -> ArchSpec:
    norm = NormSpec(NormKind.LAYER, d.c.number("layer_norm_epsilon"))
    mlp = d.mlp(MlpKind.PLAIN, default_size=4 * d.c.whole("hidden_size"))
    layer = LayerSpec(d.attention(), mlp, norm, norm)
    spec = d.arch([layer] * d.num_layers(), norm)
    return replace(spec, num_positions=spec.context_length)


@dataclass(frozen=True, slots=True)
class Family:
    """A row of the table below.

    model_types      of config.json -> the part of it that describes the text decoder ("" for all of it)
    gguf             names in GGUF's general.architecture
    read             settings to spec, after defaults filled in what the file leaves out
    defaults         for any file; `config_defaults` only for config.json, where leaving out means more
    renames          the family's own names for settings -> ours
    """

    name: str
    model_types: Mapping[str, str]
    gguf: tuple[str, ...]
    read: Callable[[Draft], ArchSpec]
    config_names: NameMap
    gguf_names: NameMap
    defaults: Mapping[str, object]
    config_defaults: Mapping[str, object]
    renames: Mapping[str, str] = field(default_factory=dict)


_COMMON: Mapping[str, object] = {"hidden_act": "silu", "rope_theta": 10000.0}
_WINDOWED: Mapping[str, object] = {"rms_norm_eps": 1e-6, "num_key_value_heads": 32, "max_position_embeddings": 32768}

FAMILIES: tuple[Family, ...] = (
    Family(
        name="llama",
        model_types={"llama": ""},
        gguf=("llama",),
        read=_llama,
        config_names=styles.CONFIG,
        gguf_names=replace(styles.GGUF, interleaved=True),
        defaults=_COMMON,
        config_defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    ),
    Family(
        name="mistral",
        model_types={"mistral": ""},
        gguf=(),  # converters write it under the name above
        read=_llama,
        config_names=styles.CONFIG,
        gguf_names=styles.GGUF,
        defaults=_COMMON,
        config_defaults={
            "rms_norm_eps": 1e-6,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "max_position_embeddings": 131072,
        },
    ),
    Family(
        name="qwen2",
        model_types={"qwen2": ""},
        gguf=("qwen2",),
        read=_qwen2,
        config_names=styles.CONFIG,
        gguf_names=styles.GGUF,
        defaults={**_COMMON, "sliding_window": 4096, "max_window_layers": 28},
        config_defaults={**_WINDOWED, "attention_bias": True, "attention_out_bias": False},
    ),
    Family(
        name="qwen3",
        model_types={"qwen3": ""},
        gguf=("qwen3",),
        read=_qwen3,
        config_names=styles.CONFIG,
        gguf_names=styles.GGUF,
        defaults={**_COMMON, "sliding_window": 4096, "max_window_layers": 28},
        config_defaults={**_WINDOWED, "head_dim": 128},
    ),
    Family(
        name="gemma3",
        model_types={"gemma3_text": "", "gemma3": "text_config"},
        gguf=("gemma3",),
        read=_gemma3,
        config_names=styles.CONFIG_POST_NORMS,
        gguf_names=styles.GGUF_POST_NORMS,
        defaults={
            "hidden_act": "gelu_pytorch_tanh",
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "sliding_window_pattern": 6,
        },
        config_defaults={
            "rms_norm_eps": 1e-6,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
        renames={"hidden_activation": "hidden_act", "_sliding_window_pattern": "sliding_window_pattern"},
    ),
    Family(
        name="phi3",
        model_types={"phi3": ""},
        gguf=("phi3",),
        read=_phi3,
        config_names=styles.CONFIG_FUSED,
        gguf_names=styles.GGUF_FUSED,
        defaults=_COMMON,
        config_defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    ),
    Family(
        name="gpt2",
        model_types={"gpt2": ""},
        gguf=("gpt2",),
        read=_gpt2,
        config_names=styles.CONFIG_CONV1D,
        gguf_names=styles.GGUF_LEARNED_POSITIONS,
        defaults={"hidden_act": "gelu_new"},
        config_defaults={
            "layer_norm_epsilon": 1e-5,
            "attention_bias": True,
            "mlp_bias": True,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
        renames={
            "n_embd": "hidden_size",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_positions": "max_position_embeddings",
            "n_inner": "intermediate_size",
            "activation_function": "hidden_act",
        },
    ),
)
