"""Every family against transformers: tiny random models saved as folders, read by us, compared at every position."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tiny_models import CASES, PROMPT, Case, Reader, load, oracle_logits, prompt, save

from legato.models.load import read_blueprint
from legato.weights.source import open_model

GREEDY = 64
TOLERANCE = 1e-3


def check_against(model: Any, path: Path, context: int | None = None) -> None:
    """Logits at every position of prompt and 64 greedy tokens, fed as the engine would: a prompt, then one by one.

    transformers sees prompt and answer in one pass; each of its likeliest tokens must be the one we chose next.
    """
    ids = prompt()
    executor = load(path, context)
    answer = Reader(executor).greedy(ids, GREEDY)
    expected = oracle_logits(model, ids + answer[:-1])
    assert answer == list(expected[PROMPT - 1 :].argmax(-1)), "greedy tokens differ"
    whole = Reader(executor).feed(ids + answer[:-1])
    assert whole.shape == expected.shape
    assert np.abs(whole - expected).max() < TOLERANCE
    assert np.ptp(expected, axis=-1).min() > 0.5, "the model says too little to be told from another"
    for chunk in (1, 5, 17):
        chunked = Reader(executor, seed=chunk).feed_in_chunks(ids, chunk)
        assert np.abs(chunked - whole[:PROMPT]).max() < TOLERANCE / 10, f"chunks of {chunk}"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_folder_gives_transformers_logits_and_tokens(hf: ModuleType, tmp_path: Path, case: Case) -> None:
    model = case.build(hf)
    check_against(model, save(model, tmp_path), case.context)


@pytest.mark.parametrize("name", ["llama, linear rope, tied, no groups", "gpt2"])
def test_bf16_shards_are_read_exactly(hf: ModuleType, tmp_path: Path, name: str) -> None:
    """The oracle is the same file read by transformers and widened to float32."""
    import torch

    case = CASES[name]
    save(case.build(hf).to(torch.bfloat16), tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    widened = getattr(hf, case.model).from_pretrained(tmp_path, dtype=torch.float32).eval()
    check_against(widened, tmp_path)


def test_longrope_says_which_factors_it_took(hf: ModuleType, tmp_path: Path) -> None:
    case = CASES["phi3, longrope, long context, half of each head turned"]
    source = open_model(save(case.build(hf), tmp_path))
    short, long = read_blueprint(source), read_blueprint(source, context=256)
    assert (short.spec.context_length, long.spec.context_length) == (16, 256)
    assert "up to 16" in " ".join(short.notes) and not long.notes
    ropes = [b.spec.layers[0].attention.rope for b in (short, long)]
    assert ropes[0] is not None and ropes[1] is not None
    assert ropes[0].dim == ropes[1].dim == 8 and ropes[0].inv_freq != ropes[1].inv_freq
    assert ropes[0].scale == ropes[1].scale > 1


def test_older_spelling_of_a_config_means_the_same(hf: ModuleType, tmp_path: Path) -> None:
    """transformers 4 wrote rope_theta, rope_scaling and torch_dtype; 5 writes rope_parameters and dtype."""
    import json

    for name in (
        "llama3-rope, groups of 4, heads of 8, biases",
        "gemma3, both kinds of layers, scaled far rope, capped logits",
    ):
        folder = save(CASES[name].build(hf), tmp_path / name[:6])
        today = read_blueprint(open_model(folder)).spec
        config = json.loads((folder / "config.json").read_text())
        rope = config.pop("rope_parameters")
        config["torch_dtype"] = config.pop("dtype")
        if "full_attention" in rope:
            config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
            config["sliding_window_pattern"] = config.pop("_sliding_window_pattern")
            config["cache_implementation"] = "hybrid"
            config.pop("layer_types")
            rope = rope["full_attention"]
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
        (folder / "config.json").write_text(json.dumps(config))
        assert read_blueprint(open_model(folder)).spec == today
