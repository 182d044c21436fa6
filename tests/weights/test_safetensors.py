"""safetensors: the reference package's files are read alike, and what it refuses (and more) is refused with a name."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from legato.errors import ModelFileError, UnsupportedModelError
from legato.weights.safetensors import open_safetensors, read_safetensors
from legato.weights.tensor import WeightFormat

safetensors = pytest.importorskip("safetensors")
reference = pytest.importorskip("safetensors.numpy")

Guard = Callable[..., AbstractContextManager[None]]


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_bytes(header: object, data: int = 64, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data)


GOOD = {"a": entry([2, 4], 0, 32), "b": entry([8], 32, 64)}


# ---------------------------------------------------------------- sound files


def test_the_reference_packages_files_are_read_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": rng.standard_normal((5, 7)).astype(np.float32),
        "half": rng.standard_normal((3, 2, 4)).astype(np.float16),
        "vector": rng.standard_normal(9).astype(np.float32),
        "scalar": np.array(-1e4, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    path = tmp_path / "model.safetensors"
    reference.save_file(arrays, path, metadata={"format": "pt"})
    got = read_safetensors(path)
    assert set(got) == set(arrays) and len(got) == 5
    for name, wanted in arrays.items():
        assert np.array_equal(got[name].float32(), wanted.astype(np.float32).reshape(wanted.shape or (1,)))
        assert not got[name].data.flags.writeable
    assert got["half"].format is WeightFormat.F16 and got["scalar"].shape == (1,)


def test_bfloat16_is_read_to_the_bit(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    values = torch.randn(16, 8).to(torch.bfloat16)
    save_file({"w": values}, tmp_path / "x.safetensors")
    got = read_safetensors(tmp_path / "x.safetensors")["w"]
    assert got.format is WeightFormat.BF16
    assert np.array_equal(got.float32(), values.float().numpy())


def test_other_dtypes_are_listed_and_refused_only_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    reference.save_file({"w": np.ones((2, 2), np.float32), "mask": np.ones((3, 3), np.bool_)}, path)
    got = read_safetensors(path)
    assert "mask" in got and sorted(got) == ["mask", "w"] and list(got.readable) == ["w"]
    assert got["w"].float32().tolist() == [[1, 1], [1, 1]]
    with pytest.raises(UnsupportedModelError, match=r"x\.safetensors: tensor mask: has dtype BOOL.*BF16"):
        got["mask"]
    assert got.get("absent") is None


def test_a_padded_header_and_any_order_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = json.dumps({"b": GOOD["b"], "a": GOOD["a"]}).encode() + b"   "
    path.write_bytes(file_bytes(header))
    assert open_safetensors(path).header_bytes == 8 + len(header)
    assert len(safetensors.deserialize(path.read_bytes())) == 2 and set(read_safetensors(path)) == {"a", "b"}


# ---------------------------------------------------------------- lies

HUGE = [65, 100_000_001, 1 << 31, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def changed(**changes: object) -> bytes:
    return file_bytes(GOOD | {"b": {**GOOD["b"], **changes}})


LIES: dict[str, tuple[bytes, str]] = {
    "seven bytes": (b"\1" * 7, "header length"),
    **{f"header of {n}": (file_bytes(GOOD, length=n + (200 if n == 65 else 0)), "header length") for n in HUGE},
    "no header": (file_bytes(b"", 0), "header: begins"),
    "a list": (file_bytes([1]), "header: begins"),
    "spaces first": (file_bytes(b"  " + json.dumps(GOOD).encode()), "header: begins"),
    "broken JSON": (file_bytes(b'{"a": '), "header: is not valid JSON"),
    "not UTF-8": (file_bytes(b'{"\xff": 1}'), "header: is not valid JSON"),
    "deep JSON": (file_bytes(b'{"a":' * 50_000), "nested too deep"),
    "a million lists": (file_bytes(b'{"a":[' + b"[]," * 1_500_000 + b"[]]}"), "more than"),
    "a huge number": (file_bytes(b'{"a":' + b"9" * 5000 + b"}"), "not valid JSON"),
    "NaN": (file_bytes(b'{"a": NaN}'), "NaN"),
    "1e999": (file_bytes(b'{"a": 1e999}'), "1e999"),
    "a name twice": (file_bytes(b'{"a": {}, "a": {}}'), "key a occurs twice"),
    "a field twice": (file_bytes(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "key dtype occurs twice"),
    "notes no object": (file_bytes({"__metadata__": []} | GOOD), "__metadata__"),
    "notes no strings": (file_bytes({"__metadata__": {"a": 1}} | GOOD), "__metadata__"),
    "entry no object": (file_bytes({"a": 1}), "tensor a: is not an object"),
    **{f"no {k}": (file_bytes({"a": {f: v for f, v in GOOD["a"].items() if f != k}}), k) for k in GOOD["a"]},
    "dtype a number": (changed(dtype=1), "tensor b: dtype"),
    "shape negative": (changed(shape=[-8]), "tensor b: shape"),
    "shape true": (changed(shape=[True, 8]), "tensor b: shape"),
    "shape float": (changed(shape=[8.0]), "tensor b: shape"),
    "shape too small": (changed(shape=[7]), "tensor b: shape"),
    "shape wraps to 8": (changed(shape=[(1 << 61) + 1, 8]), "tensor b: shape"),
    "shape of 9": (changed(shape=[1] * 8 + [8]), "tensor b: shape"),
    "half the bytes": (changed(dtype="F16"), "tensor b: shape"),
    "integers too": (changed(dtype="I64"), "tensor b: shape"),
    "three offsets": (changed(data_offsets=[32, 64, 96]), "tensor b: data_offsets"),
    "offsets backwards": (changed(data_offsets=[64, 32]), "tensor b: data_offsets"),
    "offset negative": (changed(data_offsets=[-32, 0]), "tensor b: data_offsets"),
    "overlap": (changed(data_offsets=[16, 48]), "tensor b: data_offsets: overlap"),
    "all overlap": (changed(data_offsets=[0, 32]), "data_offsets: overlap"),
    "hole": (file_bytes(GOOD | {"b": entry([8], 40, 72)}, 72), "hole of 8 bytes"),
    "hole in front": (file_bytes({"b": GOOD["b"]}), "hole of 32 bytes"),
    "too much data": (file_bytes(GOOD, 65), "data: has 65 bytes, the tensors take 64"),
    "no tensors, data": (file_bytes({}, 64), "data: has 64"),
    **{f"{n} too few": (file_bytes(GOOD, 64 - n), "truncated") for n in (1, 31, 64)},
    **{f"end {n}": (changed(data_offsets=[32, n], shape=[n // 4 - 8]), "tensor b") for n in HUGE},
    "hostile name": (file_bytes({"\x1b[2J\n\ud800": 1}), r"\\x1b\[2J\\n"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_one_typed_error(lie: str, tmp_path: Path, cheap: Guard) -> None:
    raw, field = LIES[lie]
    path = tmp_path / "lie.safetensors"
    path.write_bytes(raw)
    with cheap(megabytes=2 + 3 * len(raw) / 2**20), pytest.raises(ModelFileError, match=field) as caught:
        read_safetensors(path)
    assert "\n" not in str(caught.value) and str(caught.value).encode()


def test_whatever_the_reference_package_refuses_we_refuse(tmp_path: Path) -> None:
    for lie, (raw, _) in LIES.items():
        try:
            safetensors.deserialize(raw)
        except Exception:
            continue
        # It is laxer in these: what it lets pass is ambiguous, absurd, or no use as a weight.
        assert lie in {"a name twice", "a field twice", "shape of 9", "spaces first", "NaN", "1e999"}, lie


@pytest.mark.parametrize("sixteenth", range(16))
def test_a_truncated_file_is_refused(sixteenth: int, tmp_path: Path, cheap: Guard) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_bytes(GOOD))
    os.truncate(path, path.stat().st_size * sixteenth // 16)
    with cheap(), pytest.raises(ModelFileError):
        read_safetensors(path)


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(patches=st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=3)), min_size=1, max_size=4))
def test_damage_anywhere_gives_typed_errors_only(
    patches: list[tuple[int, bytes]], tmp_path: Path, cheap: Guard
) -> None:
    path = tmp_path / "x.safetensors"
    raw = bytearray(file_bytes(GOOD))
    for at, patch in patches:
        at %= len(raw)
        raw[at : at + len(patch)] = patch
    path.write_bytes(raw)
    with cheap():
        try:
            for tensor in read_safetensors(path).readable.values():
                assert tensor.float32().shape == tensor.shape
        except ModelFileError as error:
            assert str(error).isprintable()
