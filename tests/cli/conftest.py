"""What the front's tests share: the alphabet model, a clean environment, and ways to run the program."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from alphabet import write_alphabet

import legato
from legato import LLM
from legato.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def alphabet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_alphabet(tmp_path_factory.mktemp("models") / "alphabet.gguf")


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with room for minutes of talk."""
    return write_alphabet(tmp_path_factory.mktemp("models") / "endless.gguf", context=1 << 20)


@pytest.fixture(scope="session")
def llm(alphabet: Path) -> Iterator[LLM]:
    with LLM(str(alphabet), backend="reference") as model:
        yield model


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment without settings of ours or of a terminal, an empty cache, the reference backend."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LEGATO_") and k not in ("NO_COLOR", "FORCE_COLOR")}
    package = str(Path(legato.__file__).parents[1])
    paths = os.pathsep.join([package, kept.get("PYTHONPATH", "")])
    ours = {"LEGATO_CACHE_DIR": str(tmp_path / "cache"), "LEGATO_BACKEND": "reference", "PYTHONPATH": paths}
    return kept | ours | {"OPENBLAS_NUM_THREADS": "1"}  # the model is too small to share out


@pytest.fixture
def run(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Runs a command in this process, as `main` would."""

    def run(*args: str | Path, stdin: bytes = b"") -> Ran:
        with monkeypatch.context() as patch:
            for name in os.environ.keys() - environ.keys():
                patch.delenv(name)
            for name, value in environ.items():
                patch.setenv(name, value)
            out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            code = main([str(arg) for arg in args])
            texts = []
            for stream in (out, err):
                stream.flush()
                texts.append(stream.buffer.getvalue().decode("utf-8"))  # type: ignore[attr-defined]
        return Ran(code, *texts)

    return run


@pytest.fixture
def spawn(environ: dict[str, str]) -> Callable[..., Ran]:
    """Runs a command as a program of its own."""

    def spawn(*args: str | Path, stdin: bytes = b"", **more: str) -> Ran:
        command = [sys.executable, "-m", "legato", *map(str, args)]
        done = subprocess.run(command, input=stdin, capture_output=True, env=environ | more, timeout=120)
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    return spawn
