"""Opening models: GGUF files and folders, whole or in shards; what is ignored is said, what is broken is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from legato.errors import LegatoError, ModelFileError, UnsupportedModelError, UsageError
from legato.weights import Tensor, WeightFormat, digest, open_model
from legato.weights.formats import quantize
from legato.weights.gguf_write import write_gguf

reference = pytest.importorskip("safetensors.numpy")

CONFIG = {"model_type": "llama", "num_hidden_layers": 1, "rope_theta": 1e4}
INDEX = "model.safetensors.index.json"


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"layers.{i}.w": rng.standard_normal((4, 32)).astype(np.float32) for i in range(4)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(CONFIG))
    (place / "tokenizer.json").write_text("{}")
    (place / "chat_template.jinja").write_text("{{ messages }}")
    reference.save_file(weights(), place / "model.safetensors")
    return place


@pytest.fixture
def sharded(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    names = list(weights())
    shards = {"model-1.safetensors": names[:3], "model-2.safetensors": names[3:]}
    for shard, held in shards.items():
        reference.save_file({name: weights()[name] for name in held}, folder / shard)
    write_index(folder, {name: shard for shard, held in shards.items() for name in held})
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def gguf(path: Path, seed: int = 0, **metadata: object) -> Path:
    made = [Tensor(n, v.shape, WeightFormat.Q8_0, quantize(WeightFormat.Q8_0, v)) for n, v in weights(seed).items()]
    write_gguf(path, {"general.architecture": "llama", **metadata}, made)
    return path


# ---------------------------------------------------------------- sound models


def test_a_gguf_file(tmp_path: Path) -> None:
    source = open_model(str(gguf(tmp_path / "m.gguf")))
    assert source.kind == "gguf" and source.config == {} and source.tokenizer_files == {} and source.notes == []
    assert source.metadata.get_str("general.architecture") == "llama"
    assert source.total_bytes == 4 * 4 * 34 and source.tensors["layers.0.w"].shape == (4, 32)


def test_a_folder(folder: Path) -> None:
    source = open_model(folder)
    assert source.kind == "folder" and source.config == CONFIG and len(source.metadata) == 0
    assert set(source.tokenizer_files) == {"tokenizer.json", "chat_template.jinja"}
    assert source.total_bytes == 4 * 4 * 32 * 4 and source.notes == []
    assert np.array_equal(source.tensors["layers.3.w"].float32(), weights()["layers.3.w"])


def test_shards_are_one_model(sharded: Path) -> None:
    source = open_model(sharded)
    assert {name: t.float32().tolist() for name, t in source.tensors.items()} == {
        name: v.tolist() for name, v in weights().items()
    }
    assert source.total_bytes == 4 * 4 * 32 * 4 and len(source.weight_files) == 2


def test_code_and_pickles_in_a_folder_are_left_alone_with_a_word(folder: Path) -> None:
    marker = folder / "ran"
    for name in ("modeling_x.py", "configuration_x.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert open_model(folder).notes == [
        "ignored 2 Python files: code from model folders is never run",
        "ignored 1 pickled file: only safetensors are read",
    ]
    assert not marker.exists()


def test_shards_with_a_tensor_too_many_say_so(sharded: Path) -> None:
    names = list(weights())
    write_index(sharded, dict.fromkeys(names[:2], "model-1.safetensors") | {names[3]: "model-2.safetensors"})
    source = open_model(sharded)
    assert source.notes == [f"ignored 1 tensor that {INDEX} does not list"] and names[2] not in source.tensors


def test_an_unreadable_dtype_in_a_shard_waits_until_it_is_asked_for(sharded: Path) -> None:
    reference.save_file({"ids": np.arange(3), "layers.3.w": weights()["layers.3.w"]}, sharded / "model-2.safetensors")
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    write_index(sharded, index | {"ids": "model-2.safetensors"})
    source = open_model(sharded)
    assert "ids" in source.tensors and source.total_bytes == 4 * 4 * 32 * 4
    with pytest.raises(UnsupportedModelError, match=r"model-2\.safetensors: tensor ids: has dtype I64"):
        source.tensors["ids"]


# ---------------------------------------------------------------- broken models


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "a\0.safetensors", 5,
     None, "", "model.bin", "..", "code.py"],
)  # fmt: skip
def test_an_index_may_only_name_files_beside_it(shard: object, sharded: Path) -> None:
    reference.save_file(weights(), sharded.parent / "secret.safetensors")
    write_index(sharded, {"layers.0.w": shard})
    with pytest.raises(ModelFileError, match=r"weight_map: layers\.0\.w"):
        open_model(sharded)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_a_map_is_refused(weight_map: object, sharded: Path) -> None:
    write_index(sharded, weight_map)
    with pytest.raises(ModelFileError, match="weight_map"):
        open_model(sharded)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-2.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"shard model-2\.safetensors: is missing"):
        open_model(sharded)


def test_a_tensor_missing_from_its_shard_is_named(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    write_index(sharded, index | {"layers.0.w": "model-2.safetensors"})
    with pytest.raises(ModelFileError, match=r"model-2\.safetensors: tensor layers\.0\.w: is missing"):
        open_model(sharded)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e400}', "\ufeff{}", "[" * 9999]
)
def test_a_config_that_is_no_plain_object_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelFileError, match=r"config\.json"):
        open_model(folder)


def test_a_huge_json_file_is_not_even_read(folder: Path) -> None:
    with open(folder / "config.json", "wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ModelFileError, match="larger than 64 MB"):
        open_model(folder)


def without(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).unlink()
    return folder


def test_what_cannot_be_a_model_gets_advice(folder: Path, tmp_path: Path) -> None:
    path = folder / "config.json"
    cases: list[tuple[Path, type[LegatoError], str]] = [
        (tmp_path / "absent", UsageError, "no such file"),
        (folder / "model.safetensors", UsageError, f"name the folder it lies in: {folder}"),
        (path, UsageError, "name the folder"),
        (tmp_path, UsageError, "is no model: a folder with config.json"),
    ]
    (tmp_path / "model.bin").write_bytes(b"\x80\x02")
    cases.append((tmp_path / "model.bin", UsageError, "pickled checkpoints are never read"))
    (tmp_path / "readme.txt").write_text("hello")
    cases.append((tmp_path / "readme.txt", ModelFileError, "magic"))
    for place, kind, words in cases:
        with pytest.raises(kind, match=words):
            open_model(place)


def test_folders_that_lack_something_say_what(folder: Path) -> None:
    without(folder, "model.safetensors")
    with pytest.raises(ModelFileError, match=r"model\.safetensors: is missing$"):
        open_model(folder)
    (folder / "consolidated.safetensors").touch()
    with pytest.raises(ModelFileError, match=r"consolidated\.safetensors is not looked for"):
        open_model(folder)
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(ModelFileError, match=r"pytorch_model\.bin is pickled and never read"):
        open_model(folder)
    gguf(folder / "m.gguf")
    with pytest.raises(UsageError, match=r"name the file in it: .*m\.gguf"):
        open_model(without(folder, "config.json"))
    without(folder, "m.gguf")
    reference.save_file(weights(), folder / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"config\.json: is missing"):
        open_model(folder)


def test_a_part_of_a_split_gguf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="split into 3 files"):
        open_model(gguf(tmp_path / "m-00001-of-00003.gguf", **{"split.count": 3}))


# ---------------------------------------------------------------- digests


def test_a_digest_follows_content_not_place(tmp_path: Path, sharded: Path) -> None:
    one, same = gguf(tmp_path / "one.gguf"), gguf(tmp_path / "two.gguf")
    others = [gguf(tmp_path / "x.gguf", seed=1), gguf(tmp_path / "y.gguf", extra="y")]
    assert digest(open_model(one)) == digest(open_model(same)) and len(digest(open_model(one))) == 32
    before = digest(open_model(sharded))
    moved = sharded.rename(tmp_path / "elsewhere")
    assert digest(open_model(moved)) == before
    (moved / "tokenizer.json").write_text('{"a": 1}')
    seen = {before, digest(open_model(moved)), digest(open_model(one)), *(digest(open_model(path)) for path in others)}
    assert len(seen) == 5


def test_a_digest_of_a_large_file_reads_little_and_sees_both_ends(tmp_path: Path) -> None:
    data = np.zeros(8 << 20, np.uint8)
    tensor = Tensor("w", (1 << 11, 1 << 10), WeightFormat.F32, data)
    digests = set()
    for place in (None, 0, len(data) - 1, len(data) // 2):
        data[:] = 0
        if place is not None:
            data[place] = 1
        write_gguf(tmp_path / "m.gguf", {}, [tensor])
        digests.add(digest(open_model(tmp_path / "m.gguf")))
    assert len(digests) >= 3
