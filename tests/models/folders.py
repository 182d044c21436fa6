"""Model folders written by hand, byte by byte: small enough to break one thing at a time.

Knows: the safetensors container and config.json. Does not know: transformers, how Legato reads either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

CONFIG: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
_LAYER = {
    "input_layernorm": (16,),
    "self_attn.q_proj": (16, 16),
    "self_attn.k_proj": (8, 16),
    "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 16),
    "post_attention_layernorm": (16,),
    "mlp.gate_proj": (64, 16),
    "mlp.up_proj": (64, 16),
    "mlp.down_proj": (16, 64),
}


def tensors() -> dict[str, np.ndarray]:
    """Random float32 tensors that fit CONFIG."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (32, 16), "model.norm": (16,), "lm_head": (32, 16)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in _LAYER.items()}
    rng = np.random.default_rng(3)
    return {f"{name}.weight": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> Path:
    """A folder with config.json and one safetensors file."""
    arrays = tensors() if arrays is None else arrays
    header, data = {}, b""
    for name, array in arrays.items():
        raw = array.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    return folder
