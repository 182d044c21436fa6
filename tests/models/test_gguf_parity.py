"""The same tiny models as GGUF files, written with the gguf package as llama.cpp's converter does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from test_parity import check_against
from tiny_models import CASES, Case

from legato.models.load import read_blueprint
from legato.weights.source import open_model

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def gg() -> ModuleType:
    return pytest.importorskip("gguf", reason="writes the files by llama.cpp's own tables of names")


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head from halves to neighbours, as the converter stores Q and K of llama."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def write(gg: ModuleType, path: Path, arch: str, model: Any, convert: Callable[[str, np.ndarray], np.ndarray]) -> Any:
    """A writer with the sizes and all tensors of `model`; the caller adds what is special, then calls `close`."""
    c = model.config
    writer = gg.GGUFWriter(path, arch)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_head_count(c.num_attention_heads)
    writer.add_token_list([f"token {i}" for i in range(c.vocab_size)])
    writer.add_vocab_size(c.vocab_size)
    names = gg.get_tensor_name_map(getattr(gg.MODEL_ARCH, arch.upper()), c.num_hidden_layers)
    tied = c.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        array = np.ascontiguousarray(convert(name, tensor.float().numpy()))
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), array)
    return writer


def close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def common(writer: Any, c: Any) -> None:
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)


def unchanged(name: str, array: np.ndarray) -> np.ndarray:
    return array


def llama3_factors(rope: Mapping[str, Any], dim: int) -> np.ndarray:
    """What the converter stores in rope_freqs.weight: the divisor of each frequency."""
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / dim)
        old, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(rope["factor"])
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def llama_rows(c: Any) -> Callable[[str, np.ndarray], np.ndarray]:
    def convert(name: str, array: np.ndarray) -> np.ndarray:
        if ".q_proj." in name:
            return interleaved(array, c.num_attention_heads)
        return interleaved(array, c.num_key_value_heads) if ".k_proj." in name else array

    return convert


def test_llama_with_interleaved_rows_and_frequency_factors(hf: ModuleType, gg: ModuleType, tmp_path: Path) -> None:
    model = CASES["llama3-rope, groups of 4, heads of 8, biases"].build(hf)
    c, path = model.config, tmp_path / "m.gguf"
    writer = write(gg, path, "llama", model, llama_rows(c))
    common(writer, c)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_tensor("rope_freqs.weight", llama3_factors(c.rope_parameters, c.head_dim))
    close(writer)
    check_against(model, path)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_llama_with_scaled_rope_in_metadata(hf: ModuleType, gg: ModuleType, tmp_path: Path, kind: str) -> None:
    model = CASES["llama, yarn, heads of 80" if kind == "yarn" else "llama, linear rope, tied, no groups"].build(hf)
    c, path = model.config, tmp_path / "m.gguf"
    writer = write(gg, path, "llama", model, llama_rows(c))
    common(writer, c)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_scaling_type(gg.RopeScalingType(kind))
    writer.add_rope_scaling_factor(4.0)
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(64)
    close(writer)
    check_against(model, path)


def test_qwen2(hf: ModuleType, gg: ModuleType, tmp_path: Path) -> None:
    model = Case("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}).build(hf)
    path = tmp_path / "m.gguf"
    writer = write(gg, path, "qwen2", model, unchanged)
    common(writer, model.config)
    writer.add_rope_freq_base(10000.0)
    close(writer)
    check_against(model, path)


def test_qwen3(hf: ModuleType, gg: ModuleType, tmp_path: Path) -> None:
    model = Case("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16}).build(hf)
    path = tmp_path / "m.gguf"
    writer = write(gg, path, "qwen3", model, unchanged)
    common(writer, model.config)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_rope_freq_base(10000.0)
    close(writer)
    check_against(model, path)


@pytest.mark.parametrize("pattern", [None, 3, [True, False, False, True, True, True, False]], ids=str)
def test_gemma3_with_norms_that_hold_one_more(
    hf: ModuleType, gg: ModuleType, tmp_path: Path, pattern: int | list[bool] | None
) -> None:
    """The converter leaves out the pattern (every sixth layer sees far); other writers give a period or a list."""
    listed = {3: [i % 3 != 2 for i in range(7)], None: [i % 6 != 5 for i in range(7)]}
    slides = pattern if isinstance(pattern, list) else listed[pattern]
    base = CASES["gemma3, both kinds of layers, scaled far rope, capped logits"]
    kinds = ["sliding_attention" if s else "full_attention" for s in slides]
    settings = {**base.settings, "query_pre_attn_scalar": 16, "layer_types": kinds}
    model = Case(base.config, base.model, settings).build(hf)
    c, path = model.config, tmp_path / "m.gguf"

    def convert(name: str, array: np.ndarray) -> np.ndarray:
        return array + np.float32(1) if name.endswith("norm.weight") else array

    writer = write(gg, path, "gemma3", model, convert)
    common(writer, c)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_sliding_window(c.sliding_window)
    writer.add_final_logit_softcapping(c.final_logit_softcapping)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_scaling_type(gg.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)
    if pattern is not None:
        writer.add_sliding_window_pattern(pattern)
    close(writer)
    check_against(model, path)


@pytest.mark.parametrize("length", ["short", "long"])
def test_phi3_with_stacked_rows_and_longrope(hf: ModuleType, gg: ModuleType, tmp_path: Path, length: str) -> None:
    name = "phi3, longrope, short context"
    if length == "long":
        name = "phi3, longrope, long context, half of each head turned"
    case = CASES[name]
    model = Case(case.config, case.model, {**case.settings, "sliding_window": 11}).build(hf)
    c, path = model.config, tmp_path / "m.gguf"
    rope = c.rope_parameters
    original = rope["original_max_position_embeddings"]
    writer = write(gg, path, "phi3", model, unchanged)
    common(writer, c)
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(256 / original) / math.log(original)))
    writer.add_rope_dimension_count(2 * len(rope["long_factor"]))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_sliding_window(11)
    writer.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], np.float32))
    writer.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], np.float32))
    close(writer)
    check_against(model, path, case.context)


def test_gpt2(hf: ModuleType, gg: ModuleType, tmp_path: Path) -> None:
    model = CASES["gpt2"].build(hf)
    path = tmp_path / "m.gguf"

    def convert(name: str, array: np.ndarray) -> np.ndarray:
        stored_by_inputs = array.ndim == 2 and ("c_attn" in name or "c_proj" in name or "c_fc" in name)
        return array.T if stored_by_inputs else array

    writer = write(gg, path, "gpt2", model, convert)
    writer.add_feed_forward_length(model.config.n_inner)
    writer.add_layer_norm_eps(model.config.layer_norm_epsilon)
    close(writer)
    check_against(model, path)


def test_mistral_is_written_under_another_name(hf: ModuleType, gg: ModuleType, tmp_path: Path) -> None:
    """Converters file it under llama; a window in the metadata is kept."""
    model = CASES["mistral, window of 7, groups of 3"].build(hf)
    c, path = model.config, tmp_path / "m.gguf"
    writer = write(gg, path, "llama", model, llama_rows(c))
    common(writer, c)
    writer.add_sliding_window(7)
    close(writer)
    assert read_blueprint(open_model(path)).spec.layers[0].attention.window == 7
    check_against(model, path)
