"""From the settings of a published model (config.json's vocabulary) to its shape, for counting.

Knows: which settings give sizes, in more families than Legato runs. Does not know: files, rotary embeddings, tensors.

Sources: transformers' configuration and modelling code for names, defaults and which parts have biases or norms;
arXiv 2405.04434 and 2412.19437 for latent attention and shared experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from legato.measure.fields import Fields
from legato.measure.shape import (
    AttentionShape,
    Experts,
    Latent,
    LayerShape,
    Matrix,
    ModelShape,
    Role,
    fold,
    mlp_matrices,
)

_MAX_LAYERS = 1000

_GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
}


@dataclass(frozen=True, slots=True)
class Kin:
    """What a family adds to what its settings say.

    defaults       for settings that its files leave out
    plain_mlp      two matrices, not three
    layer_norms    with a bias beside the weight
    norms          a layer
    qk_norm        a norm of each head's queries and keys
    qkv_bias, out_bias, mlp_bias   None: as the settings say
    sinks          a number a head beside the scores
    slides         which layers look through the window where none are listed: "all", "period", "even", "above", "none"
    """

    defaults: Mapping[str, object] = field(default_factory=dict)
    plain_mlp: bool = False
    layer_norms: bool = False
    norms: int = 2
    qk_norm: bool = False
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    mlp_bias: bool | None = None
    sinks: bool = False
    slides: str = "none"


_GEMMA3 = Kin(
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "vocab_size": 262208,
    },
    norms=4,
    qk_norm=True,
    slides="period",
)
_QWEN3 = Kin(defaults={"head_dim": 128, "num_key_value_heads": 32}, qk_norm=True, slides="above")
_LLAMA = Kin(slides="all")

KINS: Mapping[str, Kin] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": Kin(defaults={"num_key_value_heads": 8, "sliding_window": 4096}, slides="all"),
        "mixtral": Kin(defaults={"num_key_value_heads": 8, "num_experts_per_tok": 2}, slides="all"),
        "phi3": _LLAMA,
        "qwen2": Kin(qkv_bias=True, out_bias=False, slides="above"),
        "qwen2_moe": Kin(qkv_bias=True, out_bias=False, slides="above"),
        "qwen3": _QWEN3,
        "qwen3_moe": _QWEN3,
        "gemma3_text": _GEMMA3,
        "gemma3": _GEMMA3,
        "deepseek_v2": Kin(),
        "deepseek_v3": Kin(),
        "gpt_oss": Kin(
            defaults={"head_dim": 64, "num_key_value_heads": 8, "sliding_window": 128},
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            sinks=True,
            slides="even",
        ),
        "gpt2": Kin(
            defaults={"tie_word_embeddings": True, "max_position_embeddings": 1024},
            plain_mlp=True,
            layer_norms=True,
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
        ),
    }
)

# Layers of other kinds than attention, which would be counted wrongly: settings that only such models have.
_OTHER_LAYERS = (
    "ssm_cfg",
    "state_size",
    "mamba_d_state",
    "linear_num_value_heads",
    "conv_L_cache",
    "time_mix_extra_dim",
)

# Of the ways in which config.json says that weights are quantised: bits a weight, scales included.
_HALF = 16.0


@dataclass(frozen=True, slots=True)
class Described:
    """A model that can be counted.

    bits         a weight by what it is for, as published; `weights` says it in a word
    vector_bits  of norms and biases
    stored_bytes  of the whole model, where a file says it
    notes        what a person should know of how it was counted
    """

    shape: ModelShape
    bits: Mapping[Role, float]
    weights: str
    vector_bits: float = 16.0
    stored_bytes: int | None = None
    notes: tuple[str, ...] = ()


def describe_config(path: str, config: Mapping[str, object]) -> Described:
    """The model of a config.json. Raises `ModelFileError` naming the setting that is missing or makes no sense."""
    outer = Fields(path, config)
    text = outer.section("text_config")
    values = {**_shared(config), **text} if text else config
    fields = Fields(path, values, {key: f"text_config.{key}" for key in text} if text else None)
    kind = fields.text("model_type") or outer.text("model_type")
    shape, notes = shape_of_settings(fields, kind)
    if text:
        notes = (*notes, "only the part that reads and writes text is counted")
    bits, weights = _published_bits(fields, outer)
    return Described(shape, bits, weights, min(32.0, max(16.0, _float_bits(fields, outer))), notes=notes)


def _shared(config: Mapping[str, object]) -> dict[str, object]:
    """What stands beside the text decoder's part and holds for it too."""
    return {key: config[key] for key in ("tie_word_embeddings", "torch_dtype", "dtype") if key in config}


def shape_of_settings(fields: Fields, kind: str, complete: bool = False) -> tuple[ModelShape, tuple[str, ...]]:
    """The shape, and what to know of it. `kind` is the model_type.

    complete  the file says everything: a family's defaults are only for config.json, where leaving out means more
    """
    for name in _OTHER_LAYERS:
        if name in fields:
            raise fields.refuse(name, f"a model with other layers than attention ({kind or 'of no stated type'})")
    if fields.flag("is_encoder_decoder", False):
        raise fields.refuse("is_encoder_decoder", "only decoders are counted")
    notes: tuple[str, ...] = ()
    kin = KINS.get(kind)
    if kin is None:
        kin = _LLAMA
        notes = (f"family {kind[:40] or 'not stated'}: counted by its sizes alone, as attention and a gated MLP",)
    values = {_GPT2_NAMES.get(k, k): v for k, v in fields.values().items()} if kind == "gpt2" else fields.values()
    return _Reader(fields.filled({} if complete else kin.defaults, values), kin, kind).model(), notes


class _Reader:
    """One model's settings under its family's rules."""

    def __init__(self, fields: Fields, kin: Kin, kind: str) -> None:
        self.f, self.kin, self.kind = fields, kin, kind
        self.width = fields.whole("hidden_size")
        self.count = fields.whole("num_hidden_layers", high=_MAX_LAYERS)
        self.heads = fields.whole("num_attention_heads")
        self.kv_heads = fields.whole("num_key_value_heads", default=self.heads)

    def model(self) -> ModelShape:
        f, kin = self.f, self.kin
        windows, mixed = self.windows(), self.mixed()
        layers = [self.layer(window, moe) for window, moe in zip(windows, mixed, strict=True)]
        context = f.whole("max_position_embeddings", "seq_length", "n_ctx")
        return ModelShape(
            family=self.kind,
            d_model=self.width,
            vocab_size=f.whole("vocab_size"),
            context_length=context,
            runs=fold(layers),
            tied=f.flag("tie_word_embeddings", False),
            positions=context if kin.plain_mlp and kin.layer_norms else 0,
            vectors=self.norm(self.width),
        )

    def layer(self, window: int | None, mixed: bool) -> LayerShape:
        kin, f = self.kin, self.f
        attention, matrices, vectors = self.latent(window) if "kv_lora_rank" in f else self.grouped(window)
        vectors += kin.norms * self.norm(self.width) + kin.sinks * self.heads
        if not mixed:
            size = f.whole("intermediate_size", default=4 * self.width if kin.plain_mlp else None)
            bias = f.flag("mlp_bias", False) if kin.mlp_bias is None else kin.mlp_bias
            vectors += (size * (1 if kin.plain_mlp else 2) + self.width) * bias
            return LayerShape(attention, (*matrices, *mlp_matrices(self.width, size, not kin.plain_mlp)), None, vectors)
        count = f.whole("num_experts", "num_local_experts", "n_routed_experts")
        active = f.whole("num_experts_per_tok", "experts_per_token", high=count)
        size = f.whole("moe_intermediate_size", "intermediate_size")
        shared = (f.optional("n_shared_experts") or 0) * size or f.optional("shared_expert_intermediate_size") or 0
        bias = bool(kin.mlp_bias)
        vectors += bias * (count + count * (2 * size + self.width))
        extra = mlp_matrices(self.width, shared, gated=True) if shared else ()
        gate = (Matrix(Role.ROUTER, 1, self.width),) if "shared_expert_intermediate_size" in f and shared else ()
        parts = tuple(Matrix(Role.EXPERT, m.rows, m.cols) for m in mlp_matrices(self.width, size, gated=True))
        router = Matrix(Role.ROUTER, count, self.width)
        return LayerShape(attention, (*matrices, *extra, *gate, router), Experts(count, active, parts), vectors)

    def grouped(self, window: int | None) -> tuple[AttentionShape, tuple[Matrix, ...], int]:
        f, kin = self.f, self.kin
        if self.heads % self.kv_heads:
            raise f.wrong("num_key_value_heads", f"{self.kv_heads} does not divide {self.heads}, the number of heads")
        if "head_dim" not in f and self.width % self.heads:
            raise f.wrong("num_attention_heads", f"{self.heads} does not divide {self.width}, the width of the model")
        dim = f.whole("head_dim", default=self.width // self.heads)
        values = f.whole("value_length", default=dim)
        out, qkv = self.heads * values, self.heads * dim + self.kv_heads * (dim + values)
        stated = f.flag("attention_bias", False)
        qkv_bias = stated if kin.qkv_bias is None else kin.qkv_bias
        out_bias = stated if kin.out_bias is None else kin.out_bias
        vectors = qkv * qkv_bias + self.width * out_bias + 2 * dim * kin.qk_norm
        attention = AttentionShape(self.heads, self.kv_heads, dim, values, window)
        return attention, (Matrix(Role.QKV, qkv, self.width), Matrix(Role.OUT, self.width, out)), vectors

    def latent(self, window: int | None) -> tuple[AttentionShape, tuple[Matrix, ...], int]:
        f = self.f
        rank, rope = f.whole("kv_lora_rank"), f.whole("qk_rope_head_dim")
        nope, values = f.whole("qk_nope_head_dim"), f.whole("v_head_dim")
        key, q_rank = nope + rope, f.optional("q_lora_rank")
        expand = Matrix(Role.QKV, self.heads * (nope + values), rank)
        down = Matrix(Role.QKV, rank + rope, self.width)
        if q_rank is None:
            queries: tuple[Matrix, ...] = (Matrix(Role.QKV, self.heads * key, self.width),)
        else:
            queries = (Matrix(Role.QKV, q_rank, self.width), Matrix(Role.QKV, self.heads * key, q_rank))
        out = Matrix(Role.OUT, self.width, self.heads * values)
        attention = AttentionShape(self.heads, self.heads, key, values, window, Latent(rank, rope, expand))
        return attention, (*queries, down, expand, out), rank + (q_rank or 0)

    def windows(self) -> list[int | None]:
        """Each layer's window, as listed or by the family's rule."""
        f, rule = self.f, self.kin.slides
        window = f.optional("sliding_window")
        listed = f.texts("layer_types", self.count)
        if listed is not None:
            known = {"full_attention": False, "sliding_attention": True}
            for name in listed:
                if name not in known:
                    raise f.refuse("layer_types", f"layers of kind {name[:40]!r} are not counted")
            if window is None and "sliding_attention" in listed:
                raise f.wrong("sliding_window", "missing, but layer_types asks for it")
            return [window if known[name] else None for name in listed]
        if window is None or (rule == "above" and not f.flag("use_sliding_window", False)):
            return [None] * self.count
        first = f.whole("max_window_layers", default=0, low=0) if rule == "above" else 0
        period = f.whole("sliding_window_pattern", "_sliding_window_pattern", default=6) if rule == "period" else 2
        slides = [rule == "all" or (rule == "above" and i >= first) for i in range(self.count)]
        if rule in ("period", "even"):
            slides = [(i + 1) % period != 0 for i in range(self.count)]
        return [window if slide else None for slide in slides]

    def mixed(self) -> list[bool]:
        """Which layers have experts."""
        f = self.f
        if f.optional("num_experts", "num_local_experts", "n_routed_experts") is None:
            return [False] * self.count
        first = f.whole("first_k_dense_replace", default=0, low=0)
        step = f.whole("decoder_sparse_step", "moe_layer_freq", default=1)
        dense = f.raw("mlp_only_layers") or ()
        if not isinstance(dense, (list, tuple)):
            raise f.wrong("mlp_only_layers", "is not a list of layers")
        late = "decoder_sparse_step" in f
        return [i >= first and (i + late) % step == 0 and i not in dense for i in range(self.count)]

    def norm(self, size: int) -> int:
        return size * (2 if self.kin.layer_norms else 1)


def _float_bits(*sources: Fields) -> float:
    for fields in sources:
        name = fields.text("torch_dtype", "dtype")
        if name:
            return 32.0 if "32" in name else _HALF
    return _HALF


def _published_bits(fields: Fields, outer: Fields) -> tuple[dict[Role, float], str]:
    """Bits a weight as published, and a word for them."""
    plain = _float_bits(fields, outer)
    bits = dict.fromkeys(Role, plain)
    how = Fields(outer.path, outer.section("quantization_config") or fields.section("quantization_config"))
    method = how.text("quant_method", "quant_type").lower()
    layers = (Role.QKV, Role.OUT, Role.UP, Role.DOWN, Role.EXPERT)
    if not method:
        return bits, "f32" if plain == 32.0 else "bf16"
    if method == "fp8":  # a float32 scale for each 128 x 128
        return bits | dict.fromkeys(layers, 8.0 + 32 / 128**2), "fp8"
    if method == "mxfp4":  # one 8-bit exponent for each 32
        return bits | {Role.EXPERT: 4.25}, "mxfp4"
    if method in ("gptq", "awq"):
        width = how.whole("bits", "w_bit", default=4, high=8)
        group = how.raw("group_size")
        group = group if isinstance(group, int) and group > 0 else fields.whole("hidden_size")
        return bits | dict.fromkeys(layers, width + (16 + width) / group), f"{method} int{width}"
    if method == "bitsandbytes":  # a float32 scale for each 64
        width = 8 if how.flag("load_in_8bit", False) else 4
        return bits | dict.fromkeys(layers, width + (0.0 if width == 8 else 0.5)), f"bitsandbytes int{width}"
    raise outer.refuse("quantization_config.quant_method", f"{method[:40]!r} is not counted; say --quant BITS")
