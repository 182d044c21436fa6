"""Well-known models by name: the settings that give their sizes, as published in their config.json.

Knows: names, sizes, parameters as published, the page each comes from. Does not know: what is counted from them.

Sources: the config.json of the page named in each row; `parameters` is what the page or the model's report states (of
the text part, without heads for drafting). Counts have to reproduce it, and to agree with transformers' own classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from legato.errors import UsageError
from legato.measure.config_shape import Described, describe_config
from legato.measure.shape import Role

_SUFFIXES = ("instruct", "chat", "base", "it", "hf", "pt")


@dataclass(frozen=True, slots=True)
class Preset:
    """A published model.

    page        at https://huggingface.co/
    parameters  in 10^9
    bits        a weight, where the file meant is not the page's own
    """

    name: str
    page: str
    parameters: float
    config: Mapping[str, Any]
    weights: str | None = None
    bits: Mapping[Role, float] = field(default_factory=dict)

    def describe(self) -> Described:
        found = describe_config(f"https://huggingface.co/{self.page}/blob/main/config.json", self.config)
        if self.weights is None:
            return found
        return Described(found.shape, {**found.bits, **self.bits}, self.weights, 32.0, notes=found.notes)


def _config(
    kind: str, layers: int, width: int, heads: int, kv_heads: int, mlp: int, vocab: int, context: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "torch_dtype": "bfloat16",
        **more,
    }


def _llama3(layers: int, width: int, heads: int, mlp: int, **more: Any) -> dict[str, Any]:
    return _config("llama", layers, width, heads, 8, mlp, 128256, 131072, **more)


def _qwen3(layers: int, width: int, heads: int, mlp: int, tied: bool) -> dict[str, Any]:
    return _config("qwen3", layers, width, heads, 8, mlp, 151936, 40960, head_dim=128, tie_word_embeddings=tied)


def _gemma3(
    layers: int, width: int, heads: int, kv_heads: int, mlp: int, window: int, vocab: int, **more: Any
) -> dict[str, Any]:
    sizes = {"head_dim": 256, "sliding_window": window, "sliding_window_pattern": 6, "tie_word_embeddings": True}
    context = 32768 if window == 512 else 131072
    return _config("gemma3_text", layers, width, heads, kv_heads, mlp, vocab, context, **{**sizes, **more})


def _smollm2(layers: int, width: int, heads: int, kv_heads: int, mlp: int) -> dict[str, Any]:
    return _config("llama", layers, width, heads, kv_heads, mlp, 49152, 8192, tie_word_embeddings=True)


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return _config(
        "gpt_oss", layers, 2880, 64, 8, 2880, 201088, 131072, head_dim=64, sliding_window=128, attention_bias=True,
        num_local_experts=experts, num_experts_per_tok=4, tie_word_embeddings=False,
        quantization_config={"quant_method": "mxfp4"},
    )  # fmt: skip


_DEEPSEEK_V3 = _config(
    "deepseek_v3", 61, 7168, 128, 128, 18432, 129280, 163840, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128,
    qk_rope_head_dim=64, v_head_dim=128, n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8,
    moe_intermediate_size=2048, first_k_dense_replace=3, moe_layer_freq=1, tie_word_embeddings=False,
    quantization_config={"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
)  # fmt: skip
_GPT2_MEDIUM = {
    "model_type": "gpt2",
    "n_layer": 24,
    "n_embd": 1024,
    "n_head": 16,
    "n_positions": 1024,
    "vocab_size": 50257,
    "torch_dtype": "float32",
}
_QWEN3_30B = _config(
    "qwen3_moe", 48, 2048, 32, 4, 6144, 151936, 40960, head_dim=128, num_experts=128, num_experts_per_tok=8,
    moe_intermediate_size=768, decoder_sparse_step=1, mlp_only_layers=[], tie_word_embeddings=False,
)  # fmt: skip
_MISTRAL_7B = _config("mistral", 32, 4096, 32, 8, 14336, 32768, 32768, sliding_window=None, tie_word_embeddings=False)
_PHI_4 = _config("phi3", 40, 5120, 40, 10, 17920, 100352, 16384, sliding_window=None, tie_word_embeddings=False)
_LLAMA_3B = _llama3(28, 3072, 24, 8192, head_dim=128, tie_word_embeddings=True)
_GEMMA_27B = _gemma3(62, 5376, 32, 16, 21504, 1024, 262208, head_dim=128)
_BUILT_IN = dict.fromkeys(Role, 5.0) | {Role.EMBED: 8.5, Role.HEAD: 8.5}

PRESETS: tuple[Preset, ...] = (
    Preset(
        "smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", 0.134515, _smollm2(30, 576, 9, 3, 1536),
        "q4_1, head q8_0 (the built-in file)", _BUILT_IN,
    ),
    Preset("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", 0.361821, _smollm2(32, 960, 15, 5, 2560)),
    Preset("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", 1.711376, _smollm2(24, 2048, 32, 32, 8192)),
    Preset("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", 8.030261, _llama3(32, 4096, 32, 14336)),
    Preset("llama-3.1-70b", "meta-llama/Llama-3.1-70B-Instruct", 70.553706, _llama3(80, 8192, 64, 28672)),
    Preset(
        "llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", 1.235814,
        _llama3(16, 2048, 32, 8192, head_dim=64, tie_word_embeddings=True),
    ),
    Preset("llama-3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", 3.212750, _LLAMA_3B),
    Preset("qwen3-0.6b", "Qwen/Qwen3-0.6B", 0.596050, _qwen3(28, 1024, 16, 3072, True)),
    Preset("qwen3-1.7b", "Qwen/Qwen3-1.7B", 1.720575, _qwen3(28, 2048, 16, 6144, True)),
    Preset("qwen3-4b", "Qwen/Qwen3-4B", 4.022468, _qwen3(36, 2560, 32, 9728, True)),
    Preset("qwen3-8b", "Qwen/Qwen3-8B", 8.190735, _qwen3(36, 4096, 32, 12288, False)),
    Preset("qwen3-14b", "Qwen/Qwen3-14B", 14.768307, _qwen3(40, 5120, 40, 17408, False)),
    Preset("qwen3-32b", "Qwen/Qwen3-32B", 32.762123, _qwen3(64, 5120, 64, 25600, False)),
    Preset("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B", 30.532123, _QWEN3_30B),
    Preset("gemma-3-270m", "google/gemma-3-270m-it", 0.268098, _gemma3(18, 640, 4, 1, 2048, 512, 262144)),
    Preset("gemma-3-1b", "google/gemma-3-1b-it", 0.999886, _gemma3(26, 1152, 4, 1, 6912, 512, 262144)),
    Preset("gemma-3-4b", "google/gemma-3-4b-it", 3.880263, _gemma3(34, 2560, 8, 4, 10240, 1024, 262208)),
    Preset("gemma-3-12b", "google/gemma-3-12b-it", 11.766034, _gemma3(48, 3840, 16, 8, 15360, 1024, 262208)),
    Preset("gemma-3-27b", "google/gemma-3-27b-it", 27.009346, _GEMMA_27B),
    Preset("deepseek-v3", "deepseek-ai/DeepSeek-V3", 671.026, _DEEPSEEK_V3),
    Preset("gpt-oss-20b", "openai/gpt-oss-20b", 20.914757, _gpt_oss(24, 32)),
    Preset("gpt-oss-120b", "openai/gpt-oss-120b", 116.829156, _gpt_oss(36, 128)),
    Preset("gpt2-medium", "openai-community/gpt2-medium", 0.354823, _GPT2_MEDIUM),
    Preset("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3", 7.248024, _MISTRAL_7B),
    Preset("phi-4", "microsoft/phi-4", 14.659507, _PHI_4),
)  # fmt: skip


def find_preset(name: str) -> Preset | None:
    """The preset that a name means: case, punctuation, an organisation before it and "-instruct" after it are free."""
    wanted = _plain(name)
    return next((p for p in PRESETS if wanted in (_plain(p.name), _plain(p.page))), None)


def unknown_preset(name: str) -> UsageError:
    """The error for a name that is no preset, no file and no folder: what comes near, and all there are."""
    known = {_plain(p.name): p.name for p in PRESETS}
    near = [known[key] for key in get_close_matches(_plain(name), known, 3, 0.5)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    shown = name if len(name) <= 60 else name[:57] + "..."
    names = ", ".join(p.name for p in PRESETS)
    return UsageError(f"no model {shown!r}; {hint}give a config.json, a folder, a GGUF file, or one of {names}")


def _plain(name: str) -> str:
    words = [w for w in re.split(r"[^a-z0-9]+", name.lower().removeprefix("hf:").rpartition("/")[2]) if w]
    while len(words) > 1 and words[-1] in _SUFFIXES:
        words.pop()
    return "".join(words).removeprefix("meta")
