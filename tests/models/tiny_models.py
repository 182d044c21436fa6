"""Tiny random models written by transformers, and a plain way to run a decoder over pages.

Knows: transformers' configuration classes, and the arrays of a step. Does not know: how Legato reads a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from legato.kernels.ops import Batch, Executor, FloatArray, KvFormat
from legato.kernels.reference import ReferenceBackend
from legato.models.load import Blueprint, build_decoder, read_blueprint
from legato.weights.source import open_model
from legato.weights.tensor import WeightFormat

VOCAB = 97
PROMPT = 45
PAGE_SIZE = 8
NUM_PAGES = 40

BASE: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Case:
    """One architecture: a configuration class of transformers, its settings, and the context to read it for."""

    config: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    context: int | None = None
    bare: bool = False  # the settings are all there is; BASE is left out

    def build(self, hf: ModuleType, seed: int = 0) -> Any:
        settings = dict(self.settings) if self.bare else {**BASE, **self.settings}
        if "text_config" in settings:
            settings["text_config"] = {**BASE, **settings["text_config"]}
        model = getattr(hf, self.model)(getattr(hf, self.config)(**settings)).float().eval()
        randomize(model, seed)
        return model


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
_LONG = {"short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.5, 2.0, 3.0, 5.0]}
_GEMMA = {
    "num_hidden_layers": 7,
    "head_dim": 16,
    "sliding_window": 6,
    "query_pre_attn_scalar": 24,
    "num_attention_heads": 4,
    "hidden_size": 40,
}

CASES: Mapping[str, Case] = {
    "llama3-rope, groups of 4, heads of 8, biases": Case(
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            "hidden_size": 64,
            "num_attention_heads": 8,
            "rope_parameters": _LLAMA3,
            "attention_bias": True,
            "mlp_bias": True,
            "rms_norm_eps": 1e-3,
        },
    ),
    "llama, linear rope, tied, no groups": Case(
        "LlamaConfig",
        "LlamaForCausalLM",
        {"num_key_value_heads": 6, "rope_parameters": _rope("linear", factor=4.0), "tie_word_embeddings": True},
    ),
    "llama, yarn, heads of 80": Case(
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            "head_dim": 80,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": _rope("yarn", factor=4.0, original_max_position_embeddings=64),
        },
    ),
    "mistral, window of 7, groups of 3": Case("MistralConfig", "MistralForCausalLM", {"sliding_window": 7}),
    "mistral without a window, gelu": Case(
        "MistralConfig", "MistralForCausalLM", {"sliding_window": None, "hidden_act": "gelu"}
    ),
    "qwen2, tied, window of 5 from layer 1": Case(
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3, heads of 16 apart from the width, biases": Case(
        "Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16, "attention_bias": True}
    ),
    "gemma3, both kinds of layers, scaled far rope, capped logits": Case(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            **_GEMMA,
            "final_logit_softcapping": 8.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gemma3 with eyes": Case(
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {**_GEMMA, "num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "image_token_index": 3,
            "boi_token_index": 1,
            "eoi_token_index": 2,
        },
        bare=True,
    ),
    "phi3, window of 9": Case(
        "Phi3Config", "Phi3ForCausalLM", {"sliding_window": 9, "original_max_position_embeddings": 256}
    ),
    "phi3, longrope, short context": Case(
        "Phi3Config",
        "Phi3ForCausalLM",
        {"original_max_position_embeddings": 128, "rope_parameters": _rope("longrope", **_LONG)},
    ),
    "phi3, longrope, long context, half of each head turned": Case(
        "Phi3Config",
        "Phi3ForCausalLM",
        {
            "hidden_size": 96,
            "original_max_position_embeddings": 16,
            "rope_parameters": _rope("longrope", **_LONG, partial_rotary_factor=0.5),
        },
        context=256,
    ),
    "gpt2": Case(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": VOCAB, "n_embd": 40, "n_layer": 3, "n_head": 5, "n_positions": 128, "n_inner": 56},
        bare=True,
    ),
}


def randomize(model: Any, seed: int) -> None:
    """Every weight random, norms and biases too: an initialiser's ones and zeros would hide a forgotten tensor."""
    import torch

    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=gen)
            if p.ndim == 1:
                base = p if name.endswith("weight") else torch.zeros(())
                p.copy_(base + 0.3 * noise)
            else:
                p.copy_(noise * p.shape[-1] ** -0.5)


def save(model: Any, folder: Path, **how: Any) -> Path:
    model.save_pretrained(folder, **how)
    return folder


def oracle_logits(model: Any, ids: list[int]) -> FloatArray:
    """transformers' float32 logits at every position, (T, V), without any cache."""
    import torch

    with torch.no_grad():
        return np.asarray(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().numpy())


def prompt(seed: int = 1, length: int = PROMPT) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(4, VOCAB, length)]


@dataclass
class Reader:
    """One sequence on an executor: feeds tokens through pages taken in a scrambled order."""

    executor: Executor
    page_size: int = PAGE_SIZE
    num_pages: int = NUM_PAGES
    seed: int = 7
    length: int = 0

    def __post_init__(self) -> None:
        self.pages = np.random.default_rng(self.seed).permutation(self.num_pages).astype(np.int32)

    def feed(self, ids: list[int]) -> FloatArray:
        """Logits of every row of one step, (T, V)."""
        batch = one_step([(ids, self.length, self.pages)], self.page_size)
        self.length += len(ids)
        return self.executor.run(batch).copy()

    def feed_in_chunks(self, ids: list[int], chunk: int) -> FloatArray:
        return np.concatenate([self.feed(ids[i : i + chunk]) for i in range(0, len(ids), chunk)])

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The prompt in one step, then one token a step."""
        self.feed(ids)
        out = [self.executor.argmax()[-1]]
        while len(out) < count:
            self.feed(out[-1:])
            out.append(self.executor.argmax()[0])
        return out


def one_step(rows: list[tuple[list[int], int, Any]], page_size: int) -> Batch:
    """A batch of (token ids, first position, pages) a sequence; logits are wanted for every row."""
    ids = [t for tokens, _, _ in rows for t in tokens]
    positions = np.concatenate([np.arange(start, start + len(tokens)) for tokens, start, _ in rows]).astype(np.int32)
    slots = [
        pages[p // page_size] * page_size + p % page_size
        for tokens, start, pages in rows
        for p in range(start, start + len(tokens))
    ]
    return Batch(
        input_ids_T=np.array(ids, np.int32),
        positions_T=positions,
        slot_mapping_T=np.array(slots, np.int32),
        cu_seqlens_q_S1=np.cumsum([0] + [len(tokens) for tokens, _, _ in rows]).astype(np.int32),
        seq_lens_S=np.array([start + len(tokens) for tokens, start, _ in rows], np.int32),
        page_table_SP=np.stack([pages for _, _, pages in rows]).astype(np.int32),
        logit_rows_R=np.arange(len(ids), dtype=np.int32),
    )


def reference(blueprint: Blueprint, weights: WeightFormat | None = None, **how: Any) -> Executor:
    backend = ReferenceBackend()
    decoder = build_decoder(blueprint, backend, weights=weights)
    sizes = {"num_pages": NUM_PAGES, "page_size": PAGE_SIZE, "max_tokens": 512, "max_seqs": 8, **how}
    return backend.build(blueprint.spec, decoder.forward, kv_format=KvFormat.F32, **sizes)


def load(path: Path, context: int | None = None) -> Executor:
    return reference(read_blueprint(open_model(path), context))
