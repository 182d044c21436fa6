"""A warm interpreter that judges mutants: each in a fork of its own, which runs tests until one of them fails.

Knows: modules by name, sources that replace them, files of tests. Does not know: how a mutant was made.

What costs time is paid once: pytest, hypothesis and numpy are imported and all sources compiled before a fork, which
stops at its first failure. Tests of time do not judge, and hypothesis runs a few examples only. A fork may take so many
seconds of the processor (not of the clock: the machine may be busy); what takes more goes in circles, which its tests
would notice.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "src"
WARM = ("core", "schedule", "measure", "speculate", "runtime", "weights", "kernels")
EXAMPLES = 25
SURVIVED, KILLED, BROKEN = 0, 1, 2
MEMORY_BYTES = 4 << 30


@dataclass(frozen=True)
class Verdict:
    """`status` is SURVIVED, KILLED or BROKEN (the tests could not even be imported); what the fork printed."""

    status: int
    output: str
    seconds: float

    @property
    def by(self) -> str:
        """The first test that failed."""
        lines = [line for line in self.output.splitlines() if line.startswith(("FAILED", "ERROR", "worlds:"))]
        return lines[0].split(" - ")[0].removeprefix("FAILED ") if lines else self.output[-60:].strip()


class Sources(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the package and these tests from their sources, each compiled once; some of them replaced."""

    def __init__(self) -> None:
        self.codes: dict[str, CodeType] = {}
        self.replaced: dict[str, str] = {}
        for name in WARM:
            for path in (SOURCES / "legato" / name).rglob("*.py"):
                self.code(".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__"))
        for path in HERE.glob("*.py"):
            self.code(path.stem)

    def path(self, name: str) -> Path | None:
        roots = [SOURCES] if name.split(".")[0] == "legato" else [HERE, HERE.parent]
        bases = [root / Path(*name.split(".")) for root in roots]
        found = [path for base in bases for path in (base / "__init__.py", base.with_suffix(".py")) if path.exists()]
        return found[0] if found else None

    def code(self, name: str) -> CodeType:
        if name in self.replaced:
            return compile(self.replaced[name], f"<mutant of {name}>", "exec", dont_inherit=True)
        if name not in self.codes:
            path = self.path(name)
            assert path is not None, name
            self.codes[name] = compile(path.read_text(), str(path), "exec", dont_inherit=True)
        return self.codes[name]

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        file = self.path(name)
        if file is None:
            return None
        places = [str(file.parent)] if file.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(name, file, loader=self, submodule_search_locations=places)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(self.code(module.__name__), module.__dict__)


def few_examples() -> None:
    """Hypothesis' own `settings` with at most EXAMPLES of them, for whoever imports it from now on."""
    import hypothesis

    real = hypothesis.settings

    def settings(*args: Any, **fields: Any) -> Any:
        fields["max_examples"] = min(EXAMPLES, fields.get("max_examples", EXAMPLES))
        return real(*args, database=None, **fields)

    hypothesis.settings = settings  # type: ignore[assignment,misc]


def judge(tests: Sequence[str]) -> int:
    """Runs `tests` (files' stems, perhaps with ::test, or worlds:COUNT) in this process until one fails."""
    import pytest

    for name in tests:
        if name.startswith("worlds:"):
            logging.disable(logging.CRITICAL)
            from worlds import run_world

            for seed in range(int(name.split(":")[1])):
                try:
                    run_world(seed)
                except AssertionError as error:
                    print(f"worlds:{error}")
                    return KILLED
            logging.disable(logging.NOTSET)
            continue
        plain = ["-q", "-x", "--tb=line", "--assert=plain", "--noconftest", "-c", os.devnull, "--rootdir", str(HERE),
                 "-m", "not slow", "-k", "not (does_not_search or is_quick or is_cheap)"]  # fmt: skip
        without = [f"-pno:{plugin}" for plugin in ("cacheprovider", "xdist", "hypothesispytest", "randomly")]
        file, _, test = name.partition("::")
        where = f"{HERE / file}.py" + (f"::{test}" if test else "")
        status = pytest.main([*plain, *without, "-W", "ignore", where])
        if status:
            return KILLED if status == pytest.ExitCode.TESTS_FAILED else BROKEN
    return SURVIVED


def fork(sources: Sources, order: dict[str, Any]) -> dict[str, Any]:
    """One mutant, in a child: what became of it."""
    with tempfile.TemporaryFile() as told:
        child = os.fork()
        if not child:
            status = BROKEN
            try:
                os.dup2(told.fileno(), 1)
                os.dup2(told.fileno(), 2)
                resource.setrlimit(resource.RLIMIT_CPU, (order["seconds"], order["seconds"] + 1))
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
                sources.replaced = order["replaced"]
                sys.meta_path.insert(0, sources)
                status = judge(order["tests"])
            except BaseException as error:
                print(f"ERROR {type(error).__name__}: {error}")
            finally:
                sys.stdout.flush()
                os._exit(status)
        _, status, used = os.wait4(child, 0)
        told.seek(0)
        output = told.read().decode(errors="replace")[-4000:]
    if os.WIFSIGNALED(status):
        circles = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
        return {"status": KILLED if circles else BROKEN, "output": f"signal {os.WTERMSIG(status)}", "seconds": used[0]}
    return {"status": os.WEXITSTATUS(status), "output": output, "seconds": used[0] + used[1]}


def main() -> None:
    """Orders come as lines of JSON, and so do verdicts go."""
    sys.path[:0] = [str(HERE)]
    few_examples()
    import hypothesis.stateful
    import hypothesis.strategies
    import numpy
    import pytest

    assert hypothesis.stateful and hypothesis.strategies and numpy and pytest
    sources = Sources()
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        pipe.write(json.dumps(fork(sources, json.loads(line))) + "\n")


class Zygote:
    """A handle on such an interpreter; `close` it."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip

    def judge(self, replaced: dict[str, str], tests: Sequence[str], seconds: int = 60) -> Verdict:
        """`replaced`: sources by module; `seconds` of the processor until a mutant counts as going in circles."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"replaced": replaced, "tests": list(tests), "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        return Verdict(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


if __name__ == "__main__":
    main()
