"""A client that is installed somewhere, and the server that it is shown.

Knows: how one is run in a process of its own, offline. Does not know: any client.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTING = "LEGATO_CLIENTS_PYTHON"
NAME = "legato-small"
KEY = "k-for-clients"
PROGRAMS = Path(__file__).parent / "programs"
ASIDE_S = 600  # loaded machines import torch for minutes

_FOUND = "import importlib.metadata as m, sys\ntry: print(m.version(sys.argv[1]))\nexcept m.PackageNotFoundError: pass"


@dataclass(frozen=True)
class Served:
    """A server that is ready."""

    url: str
    key: str = ""
    model: str = NAME

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


@dataclass(frozen=True)
class Client:
    """An installed client: the Python that has it, its name and version. Runs in a folder, with no network or setting.

    What it would fetch from a hub it finds in the folder's `hf`, or not at all.
    """

    python: str
    version: str

    def program(self, folder: Path, name: str, served: Served) -> Any:
        """Runs one of `programs/` and returns the JSON that it prints last."""
        said = self.run(folder, [self.python, str(PROGRAMS / name), served.v1, served.model, served.key or "none"])
        return json.loads(said.splitlines()[-1])

    def command(self, folder: Path, name: str, *arguments: str, **environ: str) -> str:
        """Runs the command `name` that the client installed beside its Python."""
        return self.run(folder, [str(Path(self.python).parent / name), *arguments], **environ)

    def run(self, folder: Path, command: list[str], **environ: str) -> str:
        environ = _environ(folder) | environ
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=ASIDE_S)
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout


def _environ(folder: Path) -> dict[str, str]:
    ours = ("LEGATO_", "PYTHON", "OPENAI_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    homes = {"HF_HOME": str(folder / "hf"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return kept | offline | homes | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def version_in(python: str, name: str) -> str:
    """Of the distribution `name`; empty where this Python lacks it."""
    return subprocess.run([python, "-c", _FOUND, name], capture_output=True, text=True).stdout.strip()


def pythons() -> list[str]:
    """Those that the setting names, and this one. Raises `FileNotFoundError` for a name that is no program."""
    named = [name for name in os.environ.get(SETTING, "").split(os.pathsep) if name]
    for name in named:
        if shutil.which(name) is None:
            raise FileNotFoundError(f"{SETTING}: {name} is not a program")
    return [*named, sys.executable]
