"""Settings as published models spell them, old ways and new: each is understood, and means what it should."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from config_specs import spec_of

COMMON = {
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": [1, 2],
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0",
    "use_cache": True,
}
SMOLLM2_135M = {
    **COMMON,
    "_name_or_path": "x",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "vocab_size": 49152,
}
LLAMA_3_2_1B = {
    **COMMON,
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
MISTRAL_7B = {
    **COMMON,
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN2_5_05B = {
    **COMMON,
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_06B = {
    **COMMON,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GEMMA_3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
        "vocab_size": 262208,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
PHI_4_MINI = {
    **COMMON,
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "embd_pdrop": 0.0,
    "full_attn_mod": 1,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "phi3",
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 199999,
    "partial_rotary_factor": 0.75,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [1.1] * 48, "short_factor": [1] * 48, "type": "longrope"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}
GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_type": "cls_index",
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SMOLLM2_135M, (30, 9, 3, 64, None, 8192, True)),
        (LLAMA_3_2_1B, (16, 32, 8, 64, None, 131072, True)),
        (MISTRAL_7B, (32, 32, 8, 128, 4096, 32768, False)),
        (QWEN2_5_05B, (24, 14, 2, 64, None, 32768, True)),
        (QWEN3_06B, (28, 16, 8, 128, None, 40960, True)),
        (GEMMA_3_4B, (34, 8, 4, 256, 1024, 131072, True)),
        (PHI_4_MINI, (32, 24, 8, 128, 262144, 4096, True)),
        (GPT2, (12, 12, 12, 64, None, 1024, True)),
    ],
    ids=["smollm2", "llama-3.2", "mistral", "qwen2.5", "qwen3", "gemma-3", "phi-4-mini", "gpt2"],
)
def test_published_settings(config: Mapping[str, Any], expected: tuple[object, ...]) -> None:
    spec = spec_of(config)
    a = spec.layers[0].attention
    got = (spec.num_layers, a.num_heads, a.num_kv_heads, a.head_dim, a.window, spec.context_length, spec.tied)
    assert got == expected


def test_details_that_are_easy_to_miss() -> None:
    gemma = spec_of(GEMMA_3_4B)
    assert [i for i, layer in enumerate(gemma.layers) if layer.attention.window is None] == [5, 11, 17, 23, 29]
    far, near = gemma.layers[5].attention.rope, gemma.layers[0].attention.rope
    assert far is not None and near is not None
    assert (far.inv_freq[0], near.inv_freq[0]) == (1 / 8, 1.0)
    assert far.inv_freq[-1] < near.inv_freq[-1] / 8
    assert gemma.embed_scale == math.sqrt(2560) and gemma.layers[0].attention.scale == 1 / 16
    assert gemma.layers[0].post_mlp_norm is not None and gemma.layers[0].attention.qk_norm is not None

    qwen = spec_of(QWEN2_5_05B).layers[0].attention
    assert qwen.qkv_bias and not qwen.out_bias

    long = spec_of(PHI_4_MINI, context=100_000)
    assert long.context_length == 131072
    rope = long.layers[0].attention.rope
    assert rope is not None and rope.dim == 96
    assert rope.scale == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))

    gpt2 = spec_of(GPT2)
    assert gpt2.num_positions == 1024 and gpt2.layers[0].mlp.size == 3072 and gpt2.layers[0].attention.rope is None

    llama = spec_of(LLAMA_3_2_1B).layers[0].attention.rope
    assert llama is not None
    assert llama.inv_freq[0] == 1.0 and llama.inv_freq[-1] == pytest.approx(500000 ** (-62 / 64) / 32)


def test_mistral_without_a_word_on_windows_has_one() -> None:
    """As transformers has it; later releases write null."""
    silent = {k: v for k, v in MISTRAL_7B.items() if k != "sliding_window"}
    assert spec_of(silent).layers[0].attention.window == 4096
    assert spec_of({**silent, "sliding_window": None}).layers[0].attention.window is None
