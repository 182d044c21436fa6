"""From a GGUF file's header to a model that can be counted: its settings, and bits a weight from its tensors' types.

Knows: GGUF's names for settings and tensors. Does not know: the container, how a header is read.
Source: the GGUF specification and the names that its converter and llama.cpp's architectures use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Protocol

from legato.errors import UnsupportedModelError
from legato.measure.config_shape import KINS, Described, shape_of_settings
from legato.measure.fields import Fields
from legato.measure.shape import Role


class HeaderTensor(Protocol):
    """A tensor as a header tells of it; `bits` a value, None where its type is not known."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def format(self) -> str: ...
    @property
    def bits(self) -> float | None: ...


_KINDS = {
    "gemma3": "gemma3_text",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "deepseek2": "deepseek_v3",
    "gpt-oss": "gpt_oss",
}
_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.sliding_window": "sliding_window",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.q_lora_rank": "q_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
    "vocab_size": "vocab_size",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "leading_dense_block_count": "first_k_dense_replace",
    "ssm.state_size": "state_size",
    "ssm.conv_kernel": "ssm_cfg",
}
_ROLES = (
    (r"token_embd|position_embd", Role.EMBED),
    (r"output", Role.HEAD),
    (r"blk\.\d+\.attn_(q|k|v|qkv|q_a|q_b|kv_a_mqa|kv_b|k_b|v_b)", Role.QKV),
    (r"blk\.\d+\.attn_output", Role.OUT),
    (r"blk\.\d+\.ffn_(gate|up)(_shexp)?", Role.UP),
    (r"blk\.\d+\.ffn_down(_shexp)?", Role.DOWN),
    (r"blk\.\d+\.ffn_gate_inp(_shexp)?", Role.ROUTER),
    (r"blk\.\d+\.ffn_(gate|up|down|gate_up)_exps", Role.EXPERT),
)


def describe_gguf(path: str, metadata: Mapping[str, object], tensors: Sequence[HeaderTensor]) -> Described:
    """The model of a GGUF file. Raises `ModelFileError` naming the key that is missing or makes no sense."""
    arch = Fields(path, metadata).text("general.architecture")
    kind = _KINDS.get(arch, arch)
    values, shown = _settings(path, arch, metadata, tensors)
    values["attention_bias"] = _has_bias(tensors)
    fields = Fields(path, values, shown)
    shape, notes = shape_of_settings(fields, kind if kind in KINS else kind.replace("-", "_"), complete=True)
    parts = Fields(path, metadata).optional("split.count") or 1
    bits = _bits(path, tensors)
    total = sum(_nbytes(path, t) for t in tensors)
    if parts > 1:
        notes = (*notes, f"the first of {parts} files: sizes are counted, at this part's bits a weight")
    known = bool(tensors) and parts == 1
    return Described(shape, bits, _words(path, tensors), 32.0, round(total) if known else None, notes)


def _settings(
    path: str, arch: str, metadata: Mapping[str, object], tensors: Sequence[HeaderTensor]
) -> tuple[dict[str, object], dict[str, str]]:
    """Settings in config.json's vocabulary, and how each is called in the file."""
    values: dict[str, object] = {}
    shown: dict[str, str] = {}
    for key, ours in _KEYS.items():
        shown[ours] = f"{arch}.{key}"
        value = _one(path, shown[ours], metadata.get(shown[ours]))
        if value is not None:
            values[ours] = value
    found = Fields(path, metadata)
    keys = found.optional(f"{arch}.attention.key_length_mla", f"{arch}.attention.key_length")
    sums = found.optional(f"{arch}.attention.value_length_mla", f"{arch}.attention.value_length")
    if "kv_lora_rank" in values:
        rope = Fields(path, values, shown).whole("qk_rope_head_dim")
        if keys is not None and sums is not None:
            values |= {"qk_nope_head_dim": keys - rope, "v_head_dim": sums}
    elif keys is not None:
        values |= {"head_dim": keys, "value_length": sums or keys}
    pattern = metadata.get(f"{arch}.attention.sliding_window_pattern")
    if isinstance(pattern, Sequence) and not isinstance(pattern, str):
        values["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    elif pattern is not None:
        values["sliding_window_pattern"] = pattern
    tables = {t.name: t for t in tensors}
    if "vocab_size" not in values and "token_embd.weight" in tables:
        values["vocab_size"] = tables["token_embd.weight"].shape[0]
    tokens = metadata.get("tokenizer.ggml.tokens")
    if "vocab_size" not in values and isinstance(tokens, Sequence):
        values["vocab_size"] = len(tokens)
    if tensors:
        values["tie_word_embeddings"] = "output.weight" not in tables
    return values, shown


def _one(path: str, key: str, value: object) -> object:
    """A number that may be written once for each layer."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value
    different = set(value)
    if len(different) != 1:
        raise UnsupportedModelError(path, key, f"differs between layers ({len(different)} values); not counted")
    return next(iter(different))


def _has_bias(tensors: Iterable[HeaderTensor]) -> bool:
    return any(t.name in ("blk.0.attn_q.bias", "blk.0.attn_qkv.bias") for t in tensors)


def _bits(path: str, tensors: Sequence[HeaderTensor]) -> dict[Role, float]:
    """The mean bits a weight of each kind; kinds that this file lacks get the mean of all."""
    totals: dict[Role, list[float]] = {}
    for tensor in tensors:
        role = _role(tensor.name)
        if role is not None and len(tensor.shape) > 1:
            sums = totals.setdefault(role, [0.0, 0.0])
            sums[0] += 8 * _nbytes(path, tensor)
            sums[1] += prod(tensor.shape)
    every = [sum(column) for column in zip(*totals.values(), strict=True)] if totals else [16.0, 1.0]
    bits = dict.fromkeys(Role, every[0] / every[1]) | {role: sums[0] / sums[1] for role, sums in totals.items()}
    return bits if Role.HEAD in totals else bits | {Role.HEAD: bits[Role.EMBED]}  # tied


def _role(name: str) -> Role | None:
    stem = name.removesuffix(".weight")
    return next((role for pattern, role in _ROLES if re.fullmatch(pattern, stem)), None)


def _nbytes(path: str, tensor: HeaderTensor) -> float:
    if tensor.bits is None:
        raise UnsupportedModelError(
            path, f"tensor {tensor.name}", f"the size of ggml's {tensor.format} is not known here"
        )
    return prod(tensor.shape) * tensor.bits / 8


def _words(path: str, tensors: Sequence[HeaderTensor]) -> str:
    """The formats that most bytes are in."""
    sizes: dict[str, float] = {}
    for tensor in tensors:
        sizes[tensor.format] = sizes.get(tensor.format, 0.0) + _nbytes(path, tensor)
    total = sum(sizes.values())
    large = [name for name in sorted(sizes, key=lambda name: -sizes[name]) if sizes[name] > 0.05 * total]
    return ", ".join(large[:3]) or "bf16"
