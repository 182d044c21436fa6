#!/usr/bin/env python3
"""Writes a GGUF file with the shape of a well-known model and random weights, for measuring speed alone.

    python benchmarks/random_model.py qwen2.5-0.5b q4_0 qwen.gguf

Its bytes, products and cache are those of the real model; its answers are noise. The vocabulary holds the 256 bytes
and fillers. One layer's weights serve all layers; in the file, and so in memory, each layer has its own copy.

Knows: published shapes. Does not know: how anything is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from legato.weights.formats import quantize_tensor
from legato.weights.gguf_write import write_gguf
from legato.weights.tensor import Tensor, WeightFormat

FORMATS = ("q4_0", "q4_1", "q8_0", "bf16", "f32")
UNKNOWN_TO_GPT2 = ("attn_q", "attn_k", "attn_v", "ffn_gate")


@dataclass(frozen=True)
class Shape:
    """From the models' own config.json. Tied: the embedding table is the head.

    rope_base  None: GPT-2's manner: a table of positions, layer norms, biases everywhere, no gate in the MLP
    """

    arch: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    context: int
    rope_base: float | None
    eps: float
    qkv_bias: bool = False


SHAPES = {
    "smollm2-135m": Shape("llama", 30, 576, 9, 3, 64, 1536, 49152, 8192, 1e5, 1e-5),
    "qwen2.5-0.5b": Shape("qwen2", 24, 896, 14, 2, 64, 4864, 151936, 32768, 1e6, 1e-6, qkv_bias=True),
    "llama-3.2-1b": Shape("llama", 16, 2048, 32, 8, 64, 8192, 128256, 32768, 5e5, 1e-5),
    "gpt2-medium": Shape("gpt2", 24, 1024, 16, 16, 64, 4096, 50257, 1024, None, 1e-5, qkv_bias=True),
}


def metadata(name: str, s: Shape) -> dict[str, object]:
    arch = s.arch
    norm = "layer_norm_rms_epsilon" if s.rope_base is not None else "layer_norm_epsilon"
    rope = {f"{arch}.rope.freq_base": s.rope_base, f"{arch}.rope.dimension_count": s.head_dim}
    return {
        "general.architecture": arch,
        "general.name": f"{name} shape, random weights",
        f"{arch}.block_count": s.layers,
        f"{arch}.context_length": s.context,
        f"{arch}.embedding_length": s.width,
        f"{arch}.feed_forward_length": s.mlp,
        f"{arch}.attention.head_count": s.heads,
        f"{arch}.attention.head_count_kv": s.kv_heads,
        f"{arch}.attention.{norm}": s.eps,
        **(rope if s.rope_base is not None else {}),
        f"{arch}.vocab_size": s.vocab,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*byte_letters(), *(f"<filler {i}>" for i in range(s.vocab - 258)), "th", "<end>"],
        "tokenizer.ggml.token_type": [1] * (s.vocab - 1) + [3],
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.bos_token_id": s.vocab - 1,
        "tokenizer.ggml.eos_token_id": s.vocab - 1,
    }


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte: printable ones stand for themselves, others lie from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (b for b in range(256) if b not in printable)
    shifted = {b: 256 + i for i, b in enumerate(others)}
    return [chr(shifted.get(b, b)) for b in range(256)]


def layer_tensors(s: Shape, fmt: WeightFormat, rng: np.random.Generator) -> Iterator[Tensor]:
    """One layer's, under names without their `blk.N.`."""
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    matrices = {"attn_q": (q, s.width), "attn_k": (kv, s.width), "attn_v": (kv, s.width)}
    if s.qkv_bias and s.rope_base is not None:
        for name, (rows, _) in matrices.items():
            yield vector(f"{name}.bias", np.zeros(rows, np.float32))
    matrices |= {"attn_output": (s.width, q), "ffn_gate": (s.mlp, s.width), "ffn_up": (s.mlp, s.width)}
    matrices |= {"ffn_down": (s.width, s.mlp)}
    if s.rope_base is None:
        matrices = {name: shape for name, shape in matrices.items() if name not in UNKNOWN_TO_GPT2}
        matrices["attn_qkv"] = (q + 2 * kv, s.width)
        for name, (rows, _) in matrices.items():
            yield vector(f"{name}.bias", np.zeros(rows, np.float32))
    for name, shape in matrices.items():
        yield matrix(f"{name}.weight", shape, fmt, rng)
    for name in ("attn_norm", "ffn_norm"):
        yield from norm(name, s)


def norm(name: str, s: Shape) -> Iterator[Tensor]:
    yield vector(f"{name}.weight", np.ones(s.width, np.float32))
    if s.rope_base is None:
        yield vector(f"{name}.bias", np.zeros(s.width, np.float32))


def matrix(name: str, shape: tuple[int, int], fmt: WeightFormat, rng: np.random.Generator) -> Tensor:
    values = rng.standard_normal(shape, np.float32) * np.float32(shape[1] ** -0.5)
    return quantize_tensor(Tensor(name, shape, WeightFormat.F32, values.reshape(-1).view(np.uint8)), fmt)


def vector(name: str, values: np.ndarray) -> Tensor:
    return Tensor(name, values.shape, WeightFormat.F32, values.view(np.uint8))


def write(name: str, fmt: WeightFormat, head: WeightFormat, path: Path, seed: int = 1) -> None:
    s, rng = SHAPES[name], np.random.default_rng(seed)
    layer = list(layer_tensors(s, fmt, rng))
    tensors = [matrix("token_embd.weight", (s.vocab, s.width), head, rng)]
    tensors += [replace(t, name=f"blk.{i}.{t.name}") for i in range(s.layers) for t in layer]
    tensors += norm("output_norm", s)
    if s.rope_base is None:
        tensors.append(matrix("position_embd.weight", (s.context, s.width), WeightFormat.F32, rng))
    write_gguf(path, metadata(name, s), tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--head", choices=FORMATS, help="of embedding and head (default: q8_0 with 4 bits)")
    asked = parser.parse_args()
    head = asked.head or ("q8_0" if asked.format in ("q4_0", "q4_1") else asked.format)
    write(asked.shape, WeightFormat(asked.format), WeightFormat(head), asked.path)


if __name__ == "__main__":
    main()
