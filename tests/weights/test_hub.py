"""Names of models: which form wins, what an unknown name is told, and what is asked of the Hugging Face hub."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from legato.errors import DownloadError, UsageError
from legato.weights import hub
from legato.weights.hub import resolve_model

# ---------------------------------------------------------------- paths and built-in names


def place_built_in(cache: Path) -> Path:
    """A cached, checked built-in model, as far as `cached` can tell."""
    from legato.weights.catalog import marker_text

    model = hub.BUILT_INS[0]
    path = model.path(cache)
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        file.truncate(model.size)
    model.marker(cache).write_text(marker_text(model, path))
    return path


def test_a_path_is_a_path_and_a_name_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "cache"
    stored = place_built_in(cache)
    for made in ("smollm2-135m", "mine", "sub/mine"):
        (tmp_path / made).mkdir(parents=True)
    (tmp_path / "m.gguf").touch()
    assert resolve_model("smollm2-135m", cache) == stored and resolve_model("SmolLM2-135M", cache) == stored
    for name in ("./smollm2-135m", "mine", "sub/mine", "m.gguf", str(tmp_path / "mine")):
        assert resolve_model(name, cache) == Path(name)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert resolve_model("~/mine", tmp_path) == tmp_path / "mine"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smolm2-135", "did you mean smollm2-135m"),
        ("llama", "unknown model 'llama': possible are smollm2-135m .*hf:ORG/NAME"),
        ("", "unknown model ''"),
        ("x" * 5000, "unknown model 'xxx"),
        ("a\0b", "unknown model"),
        ("./absent", "no such file or folder"),
        ("modle.gguf", r"did you mean model\.gguf"),
        ("ORG/NAME", "write hf:ORG/NAME"),
        ("../" * 2000, "no such file or folder"),
        ("/" + "y" * 5000, "no such file or folder"),
        ("hf:", "not of the form"),
        ("hf:NAME", "not of the form"),
        ("hf:a/../b", "not of the form"),
        ("hf:a/b@", "not of the form"),
        ("hf:a/b/x.py", "not of the form"),
    ],
)
def test_a_wrong_name_gets_one_helpful_line(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").touch()
    with pytest.raises(UsageError, match=words) as caught:
        resolve_model(name, tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


# ---------------------------------------------------------------- the Hugging Face hub


@dataclass
class FakeHub:
    """Stands in for huggingface_hub: repositories by name, or an error; a cache on disk."""

    folder: Path
    files: dict[str, int | None] = field(default_factory=dict)
    error: Exception | None = None
    asked: list[object] = field(default_factory=list)

    def HfApi(self) -> FakeHub:
        return self

    def model_info(self, repo: str, revision: str | None, files_metadata: bool) -> SimpleNamespace:
        if self.error:
            raise self.error
        self.asked.append((repo, revision))
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in self.files.items()]
        return SimpleNamespace(siblings=siblings, tags=["x", "license:mit"], sha="abc123")

    def snapshot_download(
        self, repo: str, revision: str | None = None, allow_patterns: object = None, local_files_only: bool = False
    ) -> str:
        if local_files_only and not self.folder.is_dir():
            raise FileNotFoundError("not cached")
        self.asked.append((revision, allow_patterns))
        return str(self.folder)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    stand_in = FakeHub(tmp_path / "snapshot")
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)  # type: ignore[arg-type]
    return stand_in


FOLDER: dict[str, int | None] = {
    "config.json": 1,
    "tokenizer.json": 2,
    "chat_template.jinja": 3,
    "model-1-of-2.safetensors": 10**6,
    "model-2-of-2.safetensors": 10**6,
    "model.safetensors.index.json": 5,
}
REST: dict[str, int | None] = {
    "modeling.py": 1,
    "pytorch_model.bin": 9,
    "consolidated.safetensors": 9,
    "onnx/model.onnx": 9,
    "original/model.safetensors": 9,
    "README.md": None,
    "x.Q4_0.gguf": 7,
}


def test_only_what_makes_the_model_is_asked_for(fake: FakeHub, tmp_path: Path) -> None:
    fake.files = FOLDER | REST
    assert resolve_model("hf:org/name@v1", tmp_path) == fake.folder
    (repo, revision), (pinned, wanted) = fake.asked  # type: ignore[misc]
    assert (repo, revision, pinned) == ("org/name", "v1", "abc123") and sorted(wanted) == sorted(FOLDER)  # type: ignore[has-type]


def test_the_only_gguf_of_a_repository_is_the_model(fake: FakeHub, tmp_path: Path) -> None:
    fake.files = {"README.md": 1, "x.Q4_0.gguf": 7}
    assert resolve_model("hf:org/name", tmp_path) == fake.folder / "x.Q4_0.gguf"


def test_one_of_several_ggufs_must_be_named(fake: FakeHub, tmp_path: Path) -> None:
    fake.files = {f"x.Q{n}.gguf": 7 for n in range(12)}
    with pytest.raises(UsageError, match=r"name one of its GGUF files, hf:org/name/FILE: x\.Q0\.gguf.* and 4 more"):
        resolve_model("hf:org/name", tmp_path)
    assert resolve_model("hf:org/name/x.Q3.gguf@main", tmp_path) == fake.folder / "x.Q3.gguf"
    with pytest.raises(UsageError, match=r"has no file y\.gguf; name one"):
        resolve_model("hf:org/name/y.gguf", tmp_path)


def test_a_repository_of_pickles_is_refused(fake: FakeHub, tmp_path: Path) -> None:
    fake.files = {"config.json": 1, "pytorch_model.bin": 9}
    with pytest.raises(UsageError, match="pickled weights are never fetched"):
        resolve_model("hf:org/name", tmp_path)


def test_offline_the_cache_is_used_and_else_the_reason_told(fake: FakeHub, tmp_path: Path) -> None:
    fake.error = ConnectionError("no route\nmore")
    with pytest.raises(DownloadError, match="hf:org/name: ConnectionError: no route; and it is not in the cache"):
        resolve_model("hf:org/name", tmp_path)
    fake.folder.mkdir()
    for name in FOLDER:
        (fake.folder / name).touch()
    assert resolve_model("hf:org/name", tmp_path) == fake.folder


def test_without_the_extra_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"pip install 'legato\[hub\]'"):
        resolve_model("hf:org/name", tmp_path)


def test_the_real_library_takes_our_arguments() -> None:
    library = pytest.importorskip("huggingface_hub")
    import inspect

    api = inspect.signature(library.HfApi.model_info).parameters
    download = inspect.signature(library.snapshot_download).parameters
    assert {"revision", "files_metadata"} <= set(api)
    assert {"revision", "allow_patterns", "local_files_only"} <= set(download)
