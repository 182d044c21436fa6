"""Naming styles of published model files, as data.

Knows: what tensors are called, and how they are stored, in config.json folders and in GGUF files.
Does not know: which family uses which style, shapes, bytes.

Sources: the parameter names of transformers' models, and the tensor names of the GGUF specification.
"""

from __future__ import annotations

from dataclasses import replace

from legato.models.names import NameMap, Place, Role

_QKV = (Role.Q, Role.K, Role.V)
_GATE_UP = (Role.GATE, Role.UP)

_BUFFER = "a buffer that is computed, not learned"
_PICTURES = "the part that reads pictures; only text is run"

CONFIG = NameMap(
    prefixes=("model.", ""),
    shared={Role.EMBED: Place("embed_tokens"), Role.FINAL_NORM: Place("norm")},
    layer="layers.{}.",
    layers={
        Role.ATTN_NORM: Place("input_layernorm"),
        Role.Q: Place("self_attn.q_proj"),
        Role.K: Place("self_attn.k_proj"),
        Role.V: Place("self_attn.v_proj"),
        Role.Q_NORM: Place("self_attn.q_norm"),
        Role.K_NORM: Place("self_attn.k_norm"),
        Role.OUT: Place("self_attn.o_proj"),
        Role.MLP_NORM: Place("post_attention_layernorm"),
        Role.GATE: Place("mlp.gate_proj"),
        Role.UP: Place("mlp.up_proj"),
        Role.DOWN: Place("mlp.down_proj"),
    },
    ignored={"*rotary_emb.inv_freq": _BUFFER},
)

CONFIG_POST_NORMS = replace(
    CONFIG,
    prefixes=("model.", "language_model.model.", "model.language_model.", ""),
    head=("lm_head", "language_model.lm_head"),
    layers={
        **CONFIG.layers,
        Role.POST_ATTN_NORM: Place("post_attention_layernorm"),
        Role.MLP_NORM: Place("pre_feedforward_layernorm"),
        Role.POST_MLP_NORM: Place("post_feedforward_layernorm"),
    },
    norm_offset=1.0,
    ignored={**CONFIG.ignored, "*vision_tower.*": _PICTURES, "*multi_modal_projector.*": _PICTURES},
)

CONFIG_FUSED = replace(
    CONFIG,
    layers={
        **CONFIG.layers,
        **dict.fromkeys(_QKV, Place("self_attn.qkv_proj", _QKV)),
        **dict.fromkeys(_GATE_UP, Place("mlp.gate_up_proj", _GATE_UP)),
    },
)

CONFIG_CONV1D = NameMap(
    prefixes=("transformer.", ""),
    shared={Role.EMBED: Place("wte"), Role.POSITIONS: Place("wpe"), Role.FINAL_NORM: Place("ln_f")},
    layer="h.{}.",
    layers={
        Role.ATTN_NORM: Place("ln_1"),
        **dict.fromkeys(_QKV, Place("attn.c_attn", _QKV)),
        Role.OUT: Place("attn.c_proj"),
        Role.MLP_NORM: Place("ln_2"),
        Role.UP: Place("mlp.c_fc"),
        Role.DOWN: Place("mlp.c_proj"),
    },
    conv1d=True,
    ignored={"*h.*.attn.bias": _BUFFER, "*h.*.attn.masked_bias": _BUFFER},
)

GGUF = NameMap(
    shared={Role.EMBED: Place("token_embd"), Role.FINAL_NORM: Place("output_norm")},
    head=("output",),
    layer="blk.{}.",
    layers={
        Role.ATTN_NORM: Place("attn_norm"),
        Role.Q: Place("attn_q"),
        Role.K: Place("attn_k"),
        Role.V: Place("attn_v"),
        Role.Q_NORM: Place("attn_q_norm"),
        Role.K_NORM: Place("attn_k_norm"),
        Role.OUT: Place("attn_output"),
        Role.MLP_NORM: Place("ffn_norm"),
        Role.GATE: Place("ffn_gate"),
        Role.UP: Place("ffn_up"),
        Role.DOWN: Place("ffn_down"),
    },
)

GGUF_POST_NORMS = replace(
    GGUF,
    layers={
        **GGUF.layers,
        Role.POST_ATTN_NORM: Place("post_attention_norm"),
        Role.POST_MLP_NORM: Place("post_ffw_norm"),
    },
)

GGUF_FUSED = replace(
    GGUF,
    layers={
        **GGUF.layers,
        **dict.fromkeys(_QKV, Place("attn_qkv", _QKV)),
        **dict.fromkeys(_GATE_UP, Place("ffn_up", _GATE_UP)),
    },
)

GGUF_LEARNED_POSITIONS = replace(
    GGUF,
    shared={**GGUF.shared, Role.POSITIONS: Place("position_embd")},
    layers={**GGUF.layers, **dict.fromkeys(_QKV, Place("attn_qkv", _QKV))},
)
