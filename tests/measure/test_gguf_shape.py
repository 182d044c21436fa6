"""GGUF headers of large models, as their converter writes them, against the same models' config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest

from legato.errors import ModelFileError, UnsupportedModelError
from legato.measure.gguf_shape import describe_gguf
from legato.measure.presets import find_preset
from legato.measure.shape import Role


@dataclass(frozen=True)
class Entry:
    name: str
    shape: tuple[int, ...]
    format: str = "q4_k"
    bits: float | None = 4.5


HEADERS: Mapping[str, Mapping[str, object]] = {
    "deepseek-v3": {
        "general.architecture": "deepseek2",
        "deepseek2.block_count": 61,
        "deepseek2.context_length": 163840,
        "deepseek2.embedding_length": 7168,
        "deepseek2.feed_forward_length": 18432,
        "deepseek2.attention.head_count": 128,
        "deepseek2.attention.head_count_kv": 1,
        "deepseek2.attention.key_length": 576,
        "deepseek2.attention.value_length": 512,
        "deepseek2.attention.key_length_mla": 192,
        "deepseek2.attention.value_length_mla": 128,
        "deepseek2.attention.kv_lora_rank": 512,
        "deepseek2.attention.q_lora_rank": 1536,
        "deepseek2.rope.dimension_count": 64,
        "deepseek2.expert_count": 256,
        "deepseek2.expert_used_count": 8,
        "deepseek2.expert_shared_count": 1,
        "deepseek2.expert_feed_forward_length": 2048,
        "deepseek2.leading_dense_block_count": 3,
        "deepseek2.vocab_size": 129280,
    },
    "gpt-oss-20b": {
        "general.architecture": "gpt-oss",
        "gpt-oss.block_count": 24,
        "gpt-oss.context_length": 131072,
        "gpt-oss.embedding_length": 2880,
        "gpt-oss.feed_forward_length": 2880,
        "gpt-oss.attention.head_count": 64,
        "gpt-oss.attention.head_count_kv": 8,
        "gpt-oss.attention.key_length": 64,
        "gpt-oss.attention.value_length": 64,
        "gpt-oss.attention.sliding_window": 128,
        "gpt-oss.expert_count": 32,
        "gpt-oss.expert_used_count": 4,
        "gpt-oss.expert_feed_forward_length": 2880,
    },
    "gemma-3-4b": {
        "general.architecture": "gemma3",
        "gemma3.block_count": 34,
        "gemma3.context_length": 131072,
        "gemma3.embedding_length": 2560,
        "gemma3.feed_forward_length": 10240,
        "gemma3.attention.head_count": 8,
        "gemma3.attention.head_count_kv": 4,
        "gemma3.attention.key_length": 256,
        "gemma3.attention.value_length": 256,
        "gemma3.attention.sliding_window": 1024,
        "gemma3.attention.sliding_window_pattern": [True, True, True, True, True, False] * 5 + [True] * 4,
    },
    "qwen3-30b-a3b": {
        "general.architecture": "qwen3moe",
        "qwen3moe.block_count": 48,
        "qwen3moe.context_length": 40960,
        "qwen3moe.embedding_length": 2048,
        "qwen3moe.feed_forward_length": [6144] * 48,
        "qwen3moe.attention.head_count": 32,
        "qwen3moe.attention.head_count_kv": 4,
        "qwen3moe.attention.key_length": 128,
        "qwen3moe.attention.value_length": 128,
        "qwen3moe.expert_count": 128,
        "qwen3moe.expert_used_count": 8,
        "qwen3moe.expert_feed_forward_length": 768,
    },
}


def tensors_of(name: str) -> list[Entry]:
    preset = find_preset(name)
    assert preset is not None
    shape = preset.describe().shape
    table = (shape.vocab_size, shape.d_model)
    return [Entry("token_embd.weight", table), *([] if shape.tied else [Entry("output.weight", table)])]


@pytest.mark.parametrize("name", list(HEADERS))
def test_a_header_tells_the_published_shape(name: str) -> None:
    preset = find_preset(name)
    assert preset is not None
    expected, found = preset.describe().shape, describe_gguf("x.gguf", HEADERS[name], tensors_of(name))
    if name == "deepseek-v3":  # one latent head in the file, as many as queries in config.json: nothing is kept by head
        runs = [replace(run.layer.attention, num_kv_heads=1) for run in expected.runs]
        assert [replace(run.layer.attention, num_kv_heads=1) for run in found.shape.runs] == runs
        assert found.shape.parameters == expected.parameters
        return
    assert found.shape == expected and found.notes == ()


def test_bits_are_those_of_the_tensors() -> None:
    entries = [
        Entry("token_embd.weight", (100, 64), "q6_k", 6.5625),
        Entry("blk.0.attn_q.weight", (64, 64), "q4_k", 4.5),
        Entry("blk.0.attn_v.weight", (64, 64), "q6_k", 6.5),
        Entry("blk.0.ffn_down_exps.weight", (8, 64, 32), "mxfp4", 4.25),
        Entry("blk.0.attn_norm.weight", (64,), "f32", 32.0),
    ]
    found = describe_gguf("x.gguf", {**HEADERS["gemma-3-4b"], "split.count": 2}, entries)
    assert found.bits[Role.QKV] == 5.5 and found.bits[Role.EXPERT] == 4.25
    assert found.bits[Role.HEAD] == found.bits[Role.EMBED] == 6.5625
    assert 4.25 < found.bits[Role.DOWN] < 6.5625  # not in this part: the mean of what is
    assert found.stored_bytes is None and "the first of 2 files" in found.notes[-1]


@pytest.mark.parametrize(
    ("change", "tensors", "words", "error"),
    [
        ({"gemma3.block_count": None}, [], "gemma3.block_count: missing", ModelFileError),
        ({"gemma3.embedding_length": 0}, [], "gemma3.embedding_length: 0 is not", ModelFileError),
        ({"gemma3.feed_forward_length": [1, 2]}, [], "gemma3.feed_forward_length: differs", UnsupportedModelError),
        ({"gemma3.ssm.state_size": 16}, [], "gemma3.ssm.state_size", UnsupportedModelError),
        ({}, [Entry("token_embd.weight", (9, 2560), "type 99", None)], "type 99 is not known", UnsupportedModelError),
        ({}, [], "gemma3.vocab_size: missing", ModelFileError),
        ({"general.architecture": 7}, [], "general.architecture: 7 is not a string", ModelFileError),
    ],
)
def test_what_is_missing_or_makes_no_sense_is_named(
    change: Mapping[str, object], tensors: list[Entry], words: str, error: type[ModelFileError]
) -> None:
    header = {k: v for k, v in {**HEADERS["gemma-3-4b"], **change}.items() if v is not None}
    with pytest.raises(error) as caught:
        describe_gguf("x.gguf", header, tensors)
    assert words in str(caught.value)
