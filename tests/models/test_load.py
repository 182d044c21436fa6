"""Blueprints copy nothing; decoders are packed layer by layer; what a model is can be said before it is loaded."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from folders import CONFIG, tensors, write
from tiny_models import Reader, reference

from legato.core.spec import ArchSpec
from legato.errors import UnsupportedModelError, UsageError
from legato.kernels.reference import Linear, ReferenceBackend
from legato.measure import cost
from legato.models.bits import bits_by_role
from legato.models.check import check_model
from legato.models.load import Blueprint, build_decoder, read_blueprint
from legato.models.names import halves_from_neighbours
from legato.weights.source import open_model
from legato.weights.tensor import WeightFormat


@pytest.fixture
def blueprint(tmp_path: Path) -> Blueprint:
    return read_blueprint(open_model(write(tmp_path, CONFIG)))


class Picky(ReferenceBackend):
    name = "picky"

    def supports(self, spec: ArchSpec) -> str | None:
        return f"head_dim={spec.layers[0].attention.head_dim} is too small"


def test_backend_that_cannot_run_a_model_says_why(blueprint: Blueprint) -> None:
    with pytest.raises(UnsupportedModelError, match="picky backend cannot run it: head_dim=4 is too small"):
        build_decoder(blueprint, Picky())


def test_progress_counts_every_byte_once(blueprint: Blueprint) -> None:
    seen: list[tuple[int, int]] = []
    build_decoder(blueprint, ReferenceBackend(), lambda done, total: seen.append((done, total)))
    total = sum(array.nbytes for array in tensors().values())
    assert [t for _, t in seen] == [total] * 3
    assert seen[-1][0] == total and seen == sorted(seen)


def test_packed_rows_are_q_then_k_then_v(blueprint: Blueprint) -> None:
    layer = build_decoder(blueprint, ReferenceBackend()).layers[1]
    arrays = tensors()
    stacked = [arrays[f"model.layers.1.self_attn.{x}_proj.weight"] for x in "qkv"]
    assert isinstance(layer.qkv, Linear)
    np.testing.assert_array_equal(layer.qkv.weight_ND, np.concatenate(stacked))
    pair = [arrays[f"model.layers.1.mlp.{x}_proj.weight"] for x in ("gate", "up")]
    np.testing.assert_array_equal(layer.up.weight_ND, np.concatenate(pair))


def test_neighbours_become_halves() -> None:
    """Two heads of six: 0 2 4 | 1 3 5 within each."""
    assert halves_from_neighbours(12, 2).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_weights_are_requantised_only_when_asked(tmp_path: Path) -> None:
    arrays = tensors()
    wide = {**CONFIG, "hidden_size": 32, "head_dim": 8}
    shapes = {"q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32), "o_proj": (32, 32)}
    shapes |= {"gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
    rng = np.random.default_rng(1)
    for name in arrays:
        last = name.split(".")[-2]
        shape = shapes.get(last, (32, 32) if arrays[name].ndim == 2 else (32,))
        arrays[name] = rng.standard_normal(shape).astype(np.float32)
    blueprint = read_blueprint(open_model(write(tmp_path, wide, arrays)))
    ids = [int(t) for t in rng.integers(0, 32, 20)]
    exact = Reader(reference(blueprint)).feed(ids)
    close = Reader(reference(blueprint, WeightFormat.Q8_0)).feed(ids)
    error = np.abs(close - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.1
    decoder = build_decoder(blueprint, ReferenceBackend(), weights=WeightFormat.Q8_0)
    assert decoder.embed.format is WeightFormat.F32
    np.testing.assert_array_equal(decoder.layers[0].attn_norm.weight, arrays["model.layers.0.input_layernorm.weight"])


def test_requantising_odd_rows_is_refused(blueprint: Blueprint) -> None:
    with pytest.raises(UsageError, match=r"weights=q4_0 .* blocks of 32, .* has 16 columns"):
        build_decoder(blueprint, ReferenceBackend(), weights=WeightFormat.Q4_0)


def test_check_of_a_folder(blueprint: Blueprint) -> None:
    check = check_model(blueprint, [ReferenceBackend(), Picky()])
    assert check.parameters * 4 == check.weight_bytes == sum(array.nbytes for array in tensors().values())
    assert [(run.first, run.last) for run in check.layers] == [(0, 1)]
    assert check.kv_bytes_per_token["f32"] == 2 * 2 * 2 * 4 * 4
    text = "\n".join(check.lines())
    for words in ("family    llama", "layers 0-1", "4 heads of 4 on 2 kv heads", "reference: runs it", "picky: cannot"):
        assert words in text
    assert json.loads(json.dumps(check.as_dict()))["backends"]["picky"] == "head_dim=4 is too small"
    dense = set(cost.Role) - {cost.Role.ROUTER, cost.Role.EXPERT}
    assert bits_by_role(blueprint) == dict.fromkeys(dense, 32.0)


def test_blueprint_of_the_built_in_model_is_quick_and_small(builtin_path: Path) -> None:
    source = open_model(builtin_path)
    tracemalloc.start()
    blueprint = read_blueprint(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    check = check_model(blueprint, [ReferenceBackend()])
    assert check.parameters == 134_515_008 and check.tied and check.context_length == 8192
    bits = bits_by_role(blueprint)
    assert (bits[cost.Role.HEAD], bits[cost.Role.QKV]) == (8.5, 5.0)
