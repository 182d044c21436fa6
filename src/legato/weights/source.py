"""Opens a model, be it a GGUF file or a Hugging Face folder: config, metadata, tensors by name, tokenizer files.

Knows: which files make a model and how shards are joined. Does not know: what a config key or a tensor means,
tokenizers, where models come from (see `hub`).

Only JSON, Jinja text and tensor containers are ever read. Python files and pickled checkpoints in a folder are left
alone, and a note says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from legato.errors import ModelFileError, UnsupportedModelError, UsageError
from legato.weights.filemap import shown
from legato.weights.metadata import Metadata
from legato.weights.tensor import Tensor

if TYPE_CHECKING:  # the reader of each kind is loaded when a model of that kind is opened
    from legato.weights.safetensors import Refused, SafetensorsFile, TensorMap

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"),
    *("chat_template.jinja", "chat_template.json"),
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

_SAMPLES = 64
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file with tensors. `header_bytes`: everything before the tensors' data."""

    path: Path
    size: int
    header_bytes: int


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model as it lies on disk; the tensors are views of its files.

    config           a folder's config.json; {} for GGUF
    metadata         a GGUF file's keys; empty for a folder
    tensors          by the names of the file; asking for one of an unreadable dtype is an `UnsupportedModelError`
    tokenizer_files  those of `TOKENIZER_FILES` that the folder has, by name; {} for GGUF
    notes            lines a person should see: what was ignored, and why
    total_bytes      of all readable tensors
    weight_files     where the tensors lie
    """

    path: Path
    kind: Literal["gguf", "folder"]
    config: dict[str, object]
    metadata: Metadata
    tensors: Mapping[str, Tensor]
    tokenizer_files: dict[str, Path]
    notes: list[str]
    total_bytes: int
    weight_files: tuple[WeightFile, ...] = field(repr=False)


def open_model(path: str | os.PathLike[str]) -> ModelSource:
    """Opens a `.gguf` file or a folder with config.json and safetensors; reads headers, not weights.

    Raises `UsageError` when the path cannot be a model, `ModelFileError` when it is a damaged one.
    """
    try:
        return _open(Path(path))
    except OSError as error:  # a folder or a parent that may not be read, a file that vanishes meanwhile
        raise ModelFileError(path, "file", f"cannot be read: {error.strerror or error}") from None


def _open(place: Path) -> ModelSource:
    if place.is_dir():
        return _open_folder(place)
    if not place.exists():
        raise UsageError(f"{place}: no such file or folder")
    if place.suffix == ".safetensors" or place.name in (INDEX, "config.json"):
        raise UsageError(f"{place}: is one file of a model; name the folder it lies in: {place.parent}")
    if place.suffix in _PICKLES:
        raise UsageError(f"{place}: pickled checkpoints are never read; convert the model to safetensors or GGUF")
    return _open_gguf(place)


def _open_gguf(path: Path) -> ModelSource:
    from legato.weights.gguf import read_gguf

    file = read_gguf(path)
    parts = file.metadata.get_int("split.count", 1)
    if parts > 1:
        problem = f"the model is split into {parts} files; join them with llama.cpp's gguf-split --merge"
        raise UnsupportedModelError(path, "split.count", problem)
    return ModelSource(
        path=path,
        kind="gguf",
        config={},
        metadata=file.metadata,
        tensors=file.tensors,
        tokenizer_files={},
        notes=[],
        total_bytes=sum(tensor.nbytes for tensor in file.tensors.values()),
        weight_files=(WeightFile(path, path.stat().st_size, file.header_bytes),),
    )


def _open_folder(folder: Path) -> ModelSource:
    from legato.weights.jsonfile import read_json
    from legato.weights.safetensors import open_safetensors

    names = sorted(entry.name for entry in folder.iterdir())
    _check_is_model(folder, names)
    config = read_json(folder / "config.json")
    notes = _notes(names)
    if SINGLE in names:
        files = [open_safetensors(folder / SINGLE)]
        tensors = files[0].tensors
    else:
        files, tensors = _join_shards(folder, notes)
    return ModelSource(
        path=folder,
        kind="folder",
        config=config,
        metadata=Metadata(str(folder), {}),
        tensors=tensors,
        tokenizer_files={name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()},
        notes=notes,
        total_bytes=sum(tensor.nbytes for tensor in tensors.readable.values()),
        weight_files=tuple(WeightFile(Path(f.path), Path(f.path).stat().st_size, f.header_bytes) for f in files),
    )


def _check_is_model(folder: Path, names: list[str]) -> None:
    has_weights = SINGLE in names or INDEX in names
    if "config.json" in names and has_weights:
        return
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        raise UsageError(f"{folder}: is a folder; name the file in it: {folder / ggufs[0]}")
    if has_weights:
        raise ModelFileError(folder, "config.json", "is missing; it says what kind of model this is")
    if "config.json" in names:
        pickles = [name for name in names if name.endswith(_PICKLES)]
        problem = f"is missing; {pickles[0]} is pickled and never read, convert it to safetensors" if pickles else ""
        others = [name for name in names if name.endswith(".safetensors")]
        problem = problem or (f"is missing ({shown(others[0])} is not looked for)" if others else "is missing")
        raise ModelFileError(folder, SINGLE, problem)
    raise UsageError(f"{folder}: is no model: a folder with config.json and {SINGLE}, or a .gguf file, is needed")


def _notes(names: list[str]) -> list[str]:
    notes: list[str] = []
    scripts = sum(name.endswith((".py", ".pyc")) for name in names)
    if scripts:
        notes.append(f"ignored {scripts} Python file{'s' * (scripts > 1)}: code from model folders is never run")
    pickles = sum(name.endswith(_PICKLES) for name in names)
    if pickles:
        notes.append(f"ignored {pickles} pickled file{'s' * (pickles > 1)}: only safetensors are read")
    return notes


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name to shard name, each shard a plain file name."""
    from legato.weights.jsonfile import read_json

    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(index, "weight_map", "is missing or not an object")
    for tensor, shard in weight_map.items():
        where = f"weight_map: {shown(tensor)}"
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise ModelFileError(index, where, "does not name a .safetensors file")
        if "/" in shard or "\\" in shard or "\0" in shard:
            raise ModelFileError(index, where, f"{shown(shard)} is not a plain file name; shards lie beside the index")
    return weight_map


def _join_shards(folder: Path, notes: list[str]) -> tuple[list[SafetensorsFile], TensorMap]:
    from legato.weights.safetensors import TensorMap, open_safetensors

    weight_map = _weight_map(folder)
    shards: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            raise ModelFileError(folder / INDEX, f"shard {shown(shard)}", "is missing from the folder")
        shards[shard] = open_safetensors(folder / shard)
    tensors: dict[str, Tensor] = {}
    refused: dict[str, Refused] = {}
    for name, shard in weight_map.items():
        held = shards[shard].tensors
        if name not in held:
            raise ModelFileError(folder / shard, f"tensor {shown(name)}", f"is missing, though {INDEX} says it is here")
        if name in held.refused:
            refused[name] = held.refused[name]
        else:
            tensors[name] = held.readable[name]
    unlisted = sum(len(file.tensors) for file in shards.values()) - len(weight_map)
    if unlisted:
        notes.append(f"ignored {unlisted} tensor{'s' * (unlisted > 1)} that {INDEX} does not list")
    return list(shards.values()), TensorMap(tensors, refused)


def digest(source: ModelSource) -> str:
    """A cheap fingerprint of a model's content for receipts: 32 hex digits, the same wherever the files lie.

    The first half of the SHA-256 over, with lengths between the parts: the kind; for a folder config.json and the
    tokenizer files, whole, by name; then for each weight file its name (folders only), its size, its header whole
    (names, shapes, places, metadata), and 64 stretches of 4 KiB spread evenly over the rest, first and last bytes
    included. Two models that differ only between the stretches share a digest: it tells files apart, it is no proof.
    """
    import hashlib

    total = hashlib.sha256()
    try:
        for part in _parts(source):
            total.update(len(part).to_bytes(8, "little"))
            total.update(part)
    except OSError as error:
        raise ModelFileError(source.path, "file", f"cannot be read: {error.strerror or error}") from None
    return total.hexdigest()[:32]


def _parts(source: ModelSource) -> Iterator[bytes]:
    yield source.kind.encode()
    if source.kind == "folder":
        for path in [source.path / "config.json", *source.tokenizer_files.values()]:
            yield path.name.encode()
            yield path.read_bytes()
    for file in source.weight_files:
        yield file.path.name.encode() if source.kind == "folder" else b""
        yield file.size.to_bytes(8, "little")
        yield from _stretches(file)


def _stretches(file: WeightFile) -> Iterator[bytes]:
    with open(file.path, "rb", buffering=0) as handle:
        yield handle.read(file.header_bytes)
        last = max(file.header_bytes, file.size - _SAMPLE_BYTES)
        for index in range(_SAMPLES):
            handle.seek(file.header_bytes + (last - file.header_bytes) * index // (_SAMPLES - 1))
            yield handle.read(_SAMPLE_BYTES)
