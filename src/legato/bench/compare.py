"""Our engine and others that are installed, in turn, on the same work.

Knows: which engines there are, how each is found and started, medians and ratios. Does not know: how any of them works
(`peers/measure_peer.py` does), terminals.

Every turn is a process of its own: nothing of one engine is in memory while another is measured. Only ratios of one
quiet run mean anything, so before each turn it is measured how much of the machine others are using.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from legato.errors import LegatoError, UsageError

OURS = "legato"
SCRIPT = Path(__file__).parent / "peers" / "measure_peer.py"
LOOK_S = 0.5  # how long it is looked at what others are doing
BUSY_CORES = 0.25  # more than that of others' work makes a ratio doubtful
FIND_S = 60.0
SPEEDS = ("prefill_tok_s", "decode_tok_s", "out_tok_s")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another engine: what it imports as, its package, which files it reads, and how to get those."""

    name: str
    module: str
    package: str
    model: str
    how: str

    def takes(self, path: Path) -> bool:
        """Whether a model can be one of its own."""
        if self.name == "llama.cpp":
            return path.suffix == ".gguf"
        if self.name == "openvino":
            return (path / "openvino_model.xml").is_file()
        return path.suffix == ".gguf" or any(path.glob("*.safetensors"))


PEERS = {
    peer.name: peer
    for peer in (
        Peer("llama.cpp", "llama_cpp", "llama-cpp-python", "a .gguf file", "pip install llama-cpp-python"),
        Peer(
            "openvino",
            "openvino_genai",
            "openvino-genai",
            "a folder made by optimum-cli export openvino -m FOLDER --task text-generation-with-past OUT",
            "pip install openvino-genai",
        ),
        Peer(
            "transformers",
            "transformers",
            "transformers",
            "a folder with config.json and safetensors, or a .gguf file",
            "pip install torch transformers gguf accelerate",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Contender:
    """An engine that can be run. `commands`: each prints rows of `WORK`."""

    name: str
    version: str
    model: str
    commands: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Work:
    """What everybody does: single streams at depths, and a batch at once (0 of it: none)."""

    depths: tuple[int, ...]
    decode: int
    batch: int
    prompt: int
    answer: int
    threads: int


@dataclass(slots=True)
class Turn:
    """One engine's rows of one round.

    busy     cores that others used before it
    problem  why rows are missing; `refused`: because ours cannot run that
    """

    engine: str
    number: int
    busy: float | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    refused: bool = False


def ours(model: str, options: Sequence[str], work: Work, version: str) -> Contender:
    """`options`: of the commands, such as --threads=2."""
    base = (sys.executable, "-m", "legato", "bench")
    tail = ("-m", model, f"--threads={work.threads}", *options, "--json")
    commands = []
    if work.depths:
        depths = ",".join(map(str, work.depths))
        commands.append((*base, "decode", f"--depths={depths}", f"--decode={work.decode}", *tail))
    if work.batch:
        sizes = (f"--requests={work.batch}", f"--prompt={work.prompt}", f"--decode={work.answer}")
        commands.append((*base, "offline", *sizes, *tail))
    return Contender(OURS, version, model, tuple(commands))


def found(peer: Peer, python: str, model: str, work: Work) -> Contender:
    """The engine, ready to be run. Raises `LegatoError` saying what is missing and how to get it."""
    version = _version(peer, python)
    if version is None:
        raise LegatoError(f"{peer.name} is not installed for {python}: {peer.how}, or name another with --python")
    if not peer.takes(Path(model)):
        raise LegatoError(f"{peer.name} {version} cannot read {model}: give {peer.model}, with --peer-model")
    depths = ",".join(map(str, work.depths))
    sizes = (work.decode, work.batch, work.prompt, work.answer, work.threads)
    command = (python, str(SCRIPT), peer.name, model, depths, *map(str, sizes))
    return Contender(peer.name, version, model, (command,))


def _version(peer: Peer, python: str) -> str | None:
    """None where that Python does not have it. Its package is asked for, not imported: that takes seconds."""
    code = (
        "import importlib.util, importlib.metadata as m, sys\n"
        f"sys.exit(3) if importlib.util.find_spec({peer.module!r}) is None else print(m.version({peer.package!r}))"
    )
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=FIND_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(f"--python {python}: {error}; give the path of a Python") from None
    if done.returncode == 3:
        return None
    return done.stdout.strip() if done.returncode == 0 else "of unknown version"


def turns(
    contenders: Sequence[Contender], rounds: int, patience_s: float, tell: Callable[[int, Contender], None]
) -> Iterator[Turn]:
    """All engines, one after the other, round after round; waits up to `patience_s` for the machine to be quiet."""
    for number in range(1, rounds + 1):
        for contender in contenders:
            tell(number, contender)
            turn = Turn(contender.name, number, quiet(patience_s))
            for command in contender.commands:
                _run(command, turn)
            yield turn


def _run(command: Sequence[str], turn: Turn) -> None:
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            out, _ = process.communicate()
        except BaseException:
            process.kill()
            process.wait()
            raise
        for line in out.splitlines():
            if line.startswith("{"):
                turn.rows.append(_work_of(json.loads(line)))
        if process.returncode:
            said.seek(0)
            words = [line.strip() for line in said.read().splitlines() if line.strip()]
            last = words[-1].removeprefix("error: ")[:200] if words else "no word why"
            turn.refused = turn.engine == OURS and process.returncode == UsageError.exit_code
            if turn.refused:
                last = last.partition("; ")[0]  # how to mend it, by options of another command
            turn.problem = f"{turn.engine} ended with {process.returncode}: {last}"


def _work_of(row: dict[str, Any]) -> dict[str, Any]:
    """A row with `what` it is: ours do not say so."""
    if "what" in row:
        return row
    if "depth" in row:
        return {"what": "depth", **row}
    return {"what": "batch", "n": row["requests"], **row}


def compared(contenders: Sequence[Contender], done: Sequence[Turn]) -> list[dict[str, Any]]:
    """A row an engine and piece of work: medians over the rounds, and ours over theirs where both are known."""
    rows: list[dict[str, Any]] = []
    for contender in contenders:
        works: dict[tuple[str, Any], list[dict[str, Any]]] = {}
        for turn in done:
            for row in turn.rows if turn.engine == contender.name else ():
                works.setdefault((row["what"], row.get("depth", row.get("n"))), []).append(row)
        for (what, size), found in works.items():
            row = {"engine": contender.name, "version": contender.version, "model": contender.model, "what": what}
            row |= {"depth": size} if what == "depth" else {k: found[0][k] for k in ("n", "prompt", "decode")}
            row |= {k: median(r[k] for r in found) for k in (*SPEEDS, "decode_ms", "seconds") if k in found[0]}
            rows.append(row | {"rounds": len(found)} | {"least_and_most": _range(found)})
    by_work = {_key(row): row for row in rows if row["engine"] == OURS}
    for row in rows:
        own = by_work.get(_key(row))
        if own is not None and row["engine"] != OURS:
            row["ours_over_theirs"] = _ratios(own, row)
    return rows


def _ratios(own: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, float]:
    """Of a prompt of one token no reading speed can be told."""
    speeds = [k for k in SPEEDS if k in own and row.get(k)]
    return {k: own[k] / row[k] for k in speeds if k != "prefill_tok_s" or row.get("depth")}


def _range(found: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    return {k: [min(r[k] for r in found), max(r[k] for r in found)] for k in SPEEDS if k in found[0]}


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["what"], row.get("depth"), row.get("n"), row.get("prompt"), row.get("decode")


def quiet(patience_s: float) -> float | None:
    """Waits until others leave the machine alone, or for so long; the cores that they use then. None: unknown here."""
    end = time.monotonic() + patience_s
    while True:
        busy = busy_cores(LOOK_S)
        if busy is None or busy <= BUSY_CORES or time.monotonic() >= end:
            return busy


def busy_cores(seconds: float) -> float | None:
    """Cores at work while this process sleeps, from the system's own count; None where it has none."""
    before = _ticks()
    if before is None:
        return None
    time.sleep(seconds)
    after = _ticks()
    if after is None or after[1] <= before[1]:
        return None
    return (os.cpu_count() or 1) * (1 - (after[0] - before[0]) / (after[1] - before[1]))


def _ticks() -> tuple[int, int] | None:
    """(idle, all) since the system's begin, over all cores."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    numbers = [int(word) for word in first[1:9]]  # guests are in user already
    return numbers[3] + numbers[4], sum(numbers)
