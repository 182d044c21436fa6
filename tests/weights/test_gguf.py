"""GGUF: what is written is read, what the gguf package writes is read alike, and no lie is believed."""

from __future__ import annotations

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
from legato.weights.formats import quantize
from legato.weights.gguf import read_gguf
from legato.weights.gguf_write import write_gguf
from legato.weights.metadata import LazyArray
from legato.weights.tensor import Tensor, WeightFormat

Guard = Callable[..., AbstractContextManager[None]]
METADATA: dict[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "big": 1 << 40,
    "negative": -5,
    "very.negative": -(1 << 40),
    "rate": 0.5,
    "flag": True,
    "text": "über 数",
    "words": ["a", "", "ß"],
    "floats": [1.5, -2],
    "flags": [True, False],
    "nothing": [],
    "tokenizer.ggml.tokens": [f"token {i} é" for i in range(500)],
    "tokenizer.ggml.token_type": list(range(-250, 250)),
}


def tensors() -> list[Tensor]:
    rng = np.random.default_rng(0)
    made = []
    for fmt in (WeightFormat.F32, WeightFormat.F16, WeightFormat.BF16, WeightFormat.Q8_0, WeightFormat.Q4_1):
        values = rng.standard_normal((3, 64)).astype(np.float32)
        made.append(Tensor(f"blk.0.{fmt}.weight", values.shape, fmt, quantize(fmt, values)))
    norm = np.ones((1, 5), np.float32)
    return [*made, Tensor("norm", (5,), WeightFormat.F32, quantize(WeightFormat.F32, norm))]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    write_gguf(path, METADATA, tensors())
    return path


# ---------------------------------------------------------------- sound files


def test_what_is_written_is_read(small: Path) -> None:
    file = read_gguf(small)
    assert file.version == 3
    assert {k: v.tolist() if isinstance(v, LazyArray) else v for k, v in file.metadata.items()} == METADATA
    for wanted in tensors():
        got = file.tensors[wanted.name]
        assert (got.shape, got.format) == (wanted.shape, wanted.format)
        assert np.array_equal(got.data, wanted.data) and not got.data.flags.writeable
    assert not list(small.parent.glob("*.tmp"))


def test_long_arrays_wait_until_they_are_asked_for(small: Path) -> None:
    tokens = read_gguf(small).metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, LazyArray) and len(tokens) == 500
    assert tokens[7] == "token 7 é" and tokens[-1] == "token 499 é" and list(tokens) == tokens.tolist()
    assert repr(tokens) == "<500 strings of tokenizer.ggml.tokens>"


def test_the_gguf_package_reads_ours_and_we_read_its(small: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    theirs = gguf.GGUFReader(small)
    assert theirs.fields["text"].contents() == "über 数"
    assert theirs.fields["tokenizer.ggml.tokens"].contents() == METADATA["tokenizer.ggml.tokens"]
    assert {t.name: tuple(int(n) for n in reversed(t.shape)) for t in theirs.tensors} == {
        t.name: t.shape for t in tensors()
    }
    other = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(other, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int16("i16", -300)
    writer.add_float64("f64", 0.1)
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_custom_alignment(64)
    values = np.arange(96, dtype=np.float32).reshape(3, 32)
    writer.add_tensor("a", values)
    writer.add_tensor("b", values.astype(np.float16))
    writer.add_tensor("c", gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q5_1), raw_dtype=7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(other)
    assert [file.metadata[k] for k in ("u8", "i16", "f64")] == [200, -300, 0.1]
    nested = file.metadata["nested"]
    assert isinstance(nested, LazyArray) and nested.tolist() == [[1, 2], [3]]
    assert np.array_equal(file.tensors["a"].float32(), values)
    assert np.array_equal(file.tensors["b"].float32(), values)
    assert file.tensors["c"].format is WeightFormat.Q5_1 and np.abs(file.tensors["c"].float32() - values).max() < 0.6


def test_version_two_is_the_same_layout(small: Path) -> None:
    raw = bytearray(small.read_bytes())
    raw[4] = 2
    small.write_bytes(raw)
    assert read_gguf(small).tensors["norm"].float32().tolist() == [1.0] * 5


def test_metadata_is_asked_for_by_type(small: Path) -> None:
    m = read_gguf(small).metadata
    assert m.get_int("llama.block_count") == 2 and m.get_int("absent", 7) == 7
    assert m.get_float("rate") == 0.5 and m.get_float("llama.block_count") == 2.0
    assert m.get_bool("flag") is True and m.get_str("text") == "über 数"
    assert m.get_list("floats", float) == [1.5, -2.0] and m.get_list("nothing", str) == []
    assert m.get_list("tokenizer.ggml.token_type", int)[:2] == [-250, -249]
    assert len(m.get_list("tokenizer.ggml.tokens", str)) == 500 and m.get_list("absent", int, [1]) == [1]


@pytest.mark.parametrize("key", [*METADATA, "absent"])
def test_every_wrong_type_names_its_key(small: Path, key: str) -> None:
    m = read_gguf(small).metadata
    fitting = {int: ("get_int",), float: ("get_float",), bool: ("get_bool",), str: ("get_str",)}.get(
        type(m.get(key)), ()
    )
    fitting += ("get_float",) if type(m.get(key)) is int else ()
    for name in {"get_int", "get_float", "get_bool", "get_str"} - set(fitting):
        with pytest.raises(ModelFileError, match=key):
            getattr(m, name)(key)
    if key != "nothing":
        for kind in (int, str, bool):
            if isinstance(m.get(key), (list, LazyArray)) and type(m[key][0]) is kind:
                continue
            with pytest.raises(ModelFileError, match=key):
                m.get_list(key, kind)


def test_an_infinite_number_is_refused_when_asked_for(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", {"base": float("inf"), "nan": float("nan")}, [])
    for key in ("base", "nan"):
        with pytest.raises(ModelFileError, match=f"{key}.*finite"):
            read_gguf(tmp_path / "x.gguf").metadata.get_float(key)


def test_the_built_in_model(builtin_path: Path, cheap: Guard) -> None:
    with cheap(seconds=1.0, megabytes=2):
        file = read_gguf(builtin_path)
    assert len(file.tensors) == 272 and file.tensors["token_embd.weight"].shape == (49152, 576)
    assert file.tensors["token_embd.weight"].format is WeightFormat.Q8_0
    tokens = file.metadata.get_list("tokenizer.ggml.tokens", str)
    assert len(tokens) == 49152 and tokens[1] == "<|im_start|>"


# ---------------------------------------------------------------- lies


def string(text: bytes | str, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def key(name: bytes | str, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def info(name: str, sizes: list[int], kind: int = 0, offset: int = 0, dims: int | None = None) -> bytes:
    head = string(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes) if dims is None else dims, *sizes)
    return head + struct.pack("<IQ", kind, offset)


def gguf_bytes(
    keys: list[bytes] | None = None,
    infos: list[bytes] | None = None,
    data: int = 4096,
    version: int = 3,
    magic: bytes = b"GGUF",
    counts: tuple[int, int] | None = None,
) -> bytes:
    num_tensors, num_keys = counts or (len(infos or []), len(keys or []))
    raw = magic + struct.pack("<IQQ", version, num_tensors, num_keys) + b"".join(keys or []) + b"".join(infos or [])
    return raw + bytes(-len(raw) % 32) + bytes(data)


def array(kind: int, length: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, length) + items


def nested(depth: int) -> bytes:
    return array(9, 1) * depth + array(4, 0)


U32 = struct.Struct("<I").pack
HUGE = [10**8, 1 << 30, 1 << 32, 1 << 61, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]

LIES: dict[str, tuple[bytes, str]] = {
    "no magic": (gguf_bytes(magic=b"GGML"), "magic"),
    "version 0": (gguf_bytes(version=0), "version"),
    "version 1": (gguf_bytes(version=1), "version"),
    "version 4": (gguf_bytes(version=4), "version"),
    "big-endian": (gguf_bytes(version=0x03000000), "big-endian"),
    **{f"{n} keys": (gguf_bytes(counts=(0, n)), "metadata count") for n in HUGE},
    **{f"{n} tensors": (gguf_bytes(counts=(n, 0)), "tensor count") for n in HUGE},
    **{f"key of {n} bytes": (gguf_bytes([string(b"k", n)], counts=(0, 1)), "metadata key 0") for n in HUGE},
    **{f"string of {n} bytes": (gguf_bytes([key("k", 8, string(b"x", n))]), "^[^:]*: k:? ") for n in HUGE},
    **{f"array of {n} numbers": (gguf_bytes([key("k", 9, array(5, n))]), "k: length") for n in HUGE},
    **{f"array of {n} bytes": (gguf_bytes([key("k", 9, array(0, n))]), "k: length") for n in HUGE},
    **{f"array of {n} strings": (gguf_bytes([key("k", 9, array(8, n))]), "k: length") for n in HUGE},
    **{f"array of {n} arrays": (gguf_bytes([key("k", 9, array(9, n))]), "k: length") for n in HUGE},
    **{f"item of {n} bytes": (gguf_bytes([key("k", 9, array(8, 2, string(b"x", n)))]), r"k\[") for n in HUGE},
    "value type 13": (gguf_bytes([key("k", 13, b"")]), "k: type"),
    "item type 99": (gguf_bytes([key("k", 9, array(99, 1))]), "k: items: type"),
    "boolean 2": (gguf_bytes([key("k", 7, b"\2")]), "boolean"),
    "boolean 2 in a list": (gguf_bytes([key("k", 9, array(7, 3, b"\0\1\2"))]), "boolean"),
    "key not UTF-8": (gguf_bytes([key(b"\xff\xfe", 4, U32(1))]), "metadata key 0: is not UTF-8"),
    "value not UTF-8": (gguf_bytes([key("k", 8, string(b"\xff"))]), "k: is not UTF-8"),
    "item not UTF-8": (gguf_bytes([key("k", 9, array(8, 2, string("a") + string(b"\xff")))]), r"k\[1\]: is not UTF-8"),
    "same key twice": (gguf_bytes([key("k", 4, U32(1))] * 2), "k occurs twice"),
    "empty key": (gguf_bytes([key("", 4, U32(1))]), "is empty"),
    "arrays 5 deep": (gguf_bytes([key("k", 9, nested(5))]), "nests arrays"),
    "100,000 arrays": (gguf_bytes([key("k", 9, array(9, 100_000, array(4, 0) * 100_000))]), "k: length"),
    "arrays of arrays": (gguf_bytes([key("k", 9, array(9, 3, array(9, 3000, array(4, 0) * 3000) * 3))]), r"k\[1\]"),
    "arrays 300 deep": (gguf_bytes([key("k", 9, nested(300))]), "nests arrays"),
    **{
        f"alignment {n}": (gguf_bytes([key("general.alignment", 4, U32(n))]), "general.alignment")
        for n in (0, 1, 4, 33, 48, 1 << 31)
    },
    "alignment a string": (gguf_bytes([key("general.alignment", 8, string("32"))]), "general.alignment"),
    "same tensor twice": (gguf_bytes(infos=[info("t", [8]), info("t", [8], offset=32)]), "t occurs twice"),
    "nameless tensor": (gguf_bytes(infos=[info("", [8])]), "is empty"),
    "overlap": (gguf_bytes(infos=[info("a", [16]), info("b", [8], offset=32)]), "tensor b: overlaps tensor a"),
    "same place": (gguf_bytes(infos=[info("a", [8]), info("b", [8])]), "overlaps"),
    "odd offset": (gguf_bytes(infos=[info("t", [8], offset=8)]), "tensor t: offset"),
    **{f"offset {n}": (gguf_bytes(infos=[info("t", [8], offset=n // 32 * 32)]), "tensor t") for n in [4096, *HUGE]},
    **{f"{n} columns": (gguf_bytes(infos=[info("t", [n])]), "tensor t") for n in [0, 1025, *HUGE]},
    **{f"{n} rows": (gguf_bytes(infos=[info("t", [32, n], kind=2)]), "tensor t") for n in [0, 228, *HUGE]},
    "product wraps to 0": (gguf_bytes(infos=[info("t", [1 << 32, 1 << 32])]), "tensor t: shape"),
    "product wraps to 32": (gguf_bytes(infos=[info("t", [32, (1 << 59) + 1])]), "tensor t"),
    "no dimensions": (gguf_bytes(infos=[info("t", [])]), "tensor t: dimensions"),
    "5 dimensions": (gguf_bytes(infos=[info("t", [1] * 5)]), "tensor t: dimensions"),
    "2^32 dimensions": (gguf_bytes(infos=[info("t", [1], dims=(1 << 32) - 1)]), "tensor t: dimensions"),
    "broken block": (gguf_bytes(infos=[info("t", [33], kind=2)]), "tensor t: shape"),
    "broken super-block": (gguf_bytes(infos=[info("t", [288], kind=12)]), "tensor t: shape"),
    "no ggml type": (gguf_bytes(infos=[info("t", [32], kind=9999)]), "tensor t: type"),
    "hostile name": (gguf_bytes(infos=[info("\x1b[2J\n" + "x" * 500, [8], offset=1 << 40)]), r"\\x1b\[2J\\nx+\.\.\."),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_one_typed_error(lie: str, tmp_path: Path, cheap: Guard) -> None:
    raw, field = LIES[lie]
    path = tmp_path / "lie.gguf"
    path.write_bytes(raw)
    with cheap(), pytest.raises(ModelFileError, match=field) as caught:
        read_gguf(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 + len(str(path))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("number", "shown"), [(10, "Q2_K"), (23, "IQ4_XS"), (27, "I64"), (99, "number 99")])
def test_a_type_we_do_not_run_is_named(number: int, shown: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes(infos=[info("blk.0.w", [256], kind=number)]))
    with pytest.raises(UnsupportedModelError, match=rf"blk\.0\.w.*{shown}.*Q4_K"):
        read_gguf(path)


def test_items_of_long_arrays_are_checked_when_decoded(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    items = b"".join(string(f"t{i}") for i in range(300)) + string(b"\xff")
    path.write_bytes(gguf_bytes([key("tokens", 9, array(8, 301, items)), key("bits", 9, array(7, 300, b"\3" * 300))]))
    metadata = read_gguf(path).metadata
    with pytest.raises(ModelFileError, match=r"tokens\[300\]: is not UTF-8"):
        metadata.get_list("tokens", str)
    with pytest.raises(ModelFileError, match=r"bits.*boolean of value 3"):
        metadata.get_list("bits", bool)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for name, problem in [("pipe", "plain file"), ("empty", "is empty"), ("absent", "No such file"), (".", "plain")]:
        with pytest.raises(ModelFileError, match=problem):
            read_gguf(tmp_path / name)
    with pytest.raises(ModelFileError, match="cannot be opened"):
        read_gguf("a\0b")


def read_all(path: Path) -> bool:
    """Everything that a loader could ask for; only typed errors may come out. Whether none did."""
    try:
        file = read_gguf(path)
        for value in file.metadata.values():
            if isinstance(value, LazyArray):
                value.tolist()
        for tensor in file.tensors.values():
            assert tensor.float32().shape == tensor.shape
    except ModelFileError as error:
        assert str(error).isprintable()
        return False
    return True


@pytest.mark.parametrize("sixteenth", range(16))
def test_a_truncated_file_is_refused(sixteenth: int, small: Path, cheap: Guard) -> None:
    os.truncate(small, small.stat().st_size * sixteenth // 16)
    with cheap(), pytest.raises(ModelFileError):
        read_gguf(small)


def test_the_built_in_model_truncated_is_refused(builtin_path: Path, tmp_path: Path, cheap: Guard) -> None:
    """Only its header is copied; the rest is a hole of the right length, since nothing reads the weights."""
    size, path = builtin_path.stat().st_size, tmp_path / "cut.gguf"
    with open(builtin_path, "rb") as file:
        path.write_bytes(file.read(read_gguf(builtin_path).header_bytes))
    os.truncate(path, size)
    assert len(read_gguf(path).tensors) == 272
    for sixteenth in range(15, 0, -1):
        os.truncate(path, size * sixteenth // 16)
        with pytest.raises(ModelFileError, match="truncated"):
            read_gguf(path)
    with cheap(seconds=1.0), pytest.raises(ModelFileError, match="truncated"):
        read_gguf(path)


mutations = st.lists(
    st.tuples(
        st.integers(0, 1 << 16),
        st.binary(min_size=1, max_size=2) | st.sampled_from(HUGE).map(lambda n: n.to_bytes(8, "little")),
    ),
    min_size=1,
    max_size=4,
)


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(mutations=mutations, cut=st.none() | st.integers(1, 1 << 16))
def test_damage_anywhere_gives_typed_errors_only(
    mutations: list[tuple[int, bytes]], cut: int | None, tmp_path: Path, cheap: Guard
) -> None:
    path = tmp_path / "damaged.gguf"
    write_gguf(path, {"general.architecture": "x", "list": ["a", "bc"], "n": [1, 2], "f": 1.5}, tensors()[:4])
    raw, header = bytearray(path.read_bytes()), read_gguf(path).header_bytes
    for at, patch in mutations:
        at %= header if at % 8 else len(raw)  # most damage should hit the header
        raw[at : at + len(patch)] = patch
    path.write_bytes(raw[: cut % len(raw) + 1] if cut else raw)
    with cheap():
        read_all(path)
