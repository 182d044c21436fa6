"""A folder of saved sessions: names, one writer at a time, a cap on its size.

Knows: file names, locks, which session is the oldest. Does not know: what is in a file (`session_file`), engines.

Reading needs no lock: a file is replaced as a whole or not at all. Whoever may write holds the lock of the folder until
`close`, so that two processes never answer to each other's half of a conversation.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from legato.errors import CapacityError, RequestError, SessionError, UsageError
from legato.kernels.ops import ByteArray
from legato.runtime.session_file import (
    Disk,
    Fingerprint,
    Header,
    SessionFile,
    digest_pages,
    file_bytes,
    open_session,
    write_session,
)

SUFFIX = ".session"
LOCK = ".lock"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What a listing shows. `problem`: why it cannot be restored, or not whole (only `check` reads pages)."""

    name: str
    tokens: int
    cached_tokens: int
    messages: int
    bytes: int
    model: str
    created_at: float
    saved_at: float
    serial: int
    problem: str | None = None


def checked_name(name: object) -> str:
    """`RequestError` for anything that could be a path, hidden, or longer than 64 characters."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        allowed = "1 to 64 letters, digits, dots, dashes and underscores, not starting with a dot"
        raise RequestError("session name", name, allowed)
    return name


class SessionFolder:
    """The sessions under `path`, which is made when something is first written.

    cap    most bytes of all files together; the oldest saves are given up first
    clock  seconds since the epoch, for a person
    """

    def __init__(self, path: Path, cap: int, disk: Disk | None = None, clock: Callable[[], float] = time.time) -> None:
        self.path, self.cap = path, cap
        self._disk = disk or Disk()
        self._clock = clock
        self._lock: int | None = None

    # -- reading --------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        try:
            found = sorted(os.listdir(self.path))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SessionError(f"{self.path}: cannot be read: {error.strerror or error}") from None
        names = [name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX)]
        return [name for name in names if _NAME.fullmatch(name)]

    def __contains__(self, name: str) -> bool:
        return self._file(name).is_file()

    @contextmanager
    def open(self, name: str) -> Iterator[SessionFile]:
        """`UsageError` for a name that is not here, `SessionError` for a file that cannot be read at all."""
        try:
            with open_session(self._disk, self._file(name)) as found:
                yield found
        except FileNotFoundError:
            near = get_close_matches(name, self.names(), 1)
            hint = f"did you mean {near[0]}?" if near else "`legato sessions list` shows those there are"
            raise UsageError(f"no session {name!r} in {self.path}; {hint}") from None

    def infos(self) -> list[SessionInfo]:
        """The latest save first."""
        found = [info for info in map(self._info, self.names()) if info is not None]
        return sorted(found, key=lambda info: -info.serial)

    def info(self, name: str, check: bool = False) -> SessionInfo:
        """`check` reads all pages too."""
        with self.open(name) as file:
            if check:
                file.check()
            return _described(name, file.header, file.size, file.problem)

    def _info(self, name: str) -> SessionInfo | None:
        """None: it went away meanwhile."""
        try:
            return self.info(name)
        except UsageError:
            return None
        except SessionError as error:
            with suppress(OSError):
                stat = self._file(name).stat()
                return SessionInfo(name, 0, 0, 0, stat.st_size, "", stat.st_mtime, stat.st_mtime, 0, problem=str(error))
            return None

    # -- writing --------------------------------------------------------------------------------------------------

    def lock(self) -> None:
        """Makes the folder, and keeps others from writing in it until `close`. `SessionError` if somebody does."""
        if self._lock is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            said = error.strerror or error
            raise SessionError(f"{self.path}: {said}; choose another folder with --session-dir") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise SessionError(
                f"{self.path}: another process uses these sessions; end it, or choose another folder with --session-dir"
            ) from None
        self._lock = handle
        for name in os.listdir(self.path):  # what a killed process left half-written
            if name.startswith(".") and name.endswith(SUFFIX + ".tmp"):
                with suppress(OSError):
                    self._disk.remove(self.path / name)

    def close(self) -> None:
        """Lets others write; safe to call twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def save(
        self,
        name: str,
        *,
        model: str,
        fingerprint: Fingerprint,
        salt: str,
        token_ids: list[int],
        messages: list[dict[str, Any]],
        pages_NB: ByteArray,
    ) -> SessionInfo:
        """Writes or replaces a session, then gives up the oldest others until all fit under the cap.

        Files that cannot be read are left alone: that may pass.
        """
        path = self._file(name)
        self.lock()
        now, found = self._clock(), self.infos()
        header = Header(
            serial=1 + max((info.serial for info in found), default=0),
            created_at=self._created_at(name, now),
            saved_at=now,
            model=model,
            fingerprint=fingerprint,
            salt=salt,
            token_ids=token_ids,
            messages=messages,
            page_digests=digest_pages(pages_NB),
        )
        self._write(path, header, pages_NB)
        others = [info for info in found if info.name != name and info.serial]
        self._shrink(others, self.cap - file_bytes(header))
        return _described(name, header, file_bytes(header))

    def fork(self, name: str, new_name: str) -> SessionInfo:
        """A copy under a name that is free. Damaged pages are left out of it."""
        path = self._file(new_name)
        self.lock()
        if new_name in self:
            raise UsageError(f"there is a session {new_name!r} already; choose another name, or delete it first")
        with self.open(name) as file:
            pages = [rows for _, rows in file.pages()]
            header = file.header
        kept = sum(len(rows) for rows in pages)
        empty = np.zeros((0, header.fingerprint.page_bytes), np.uint8)
        return self.save(
            path.name.removesuffix(SUFFIX),
            model=header.model,
            fingerprint=header.fingerprint,
            salt=header.salt,
            token_ids=header.token_ids,
            messages=header.messages,
            pages_NB=np.concatenate([empty, *pages])[:kept],
        )

    def delete(self, name: str) -> None:
        path = self._file(name)
        self.lock()
        try:
            self._disk.remove(path)
        except FileNotFoundError:
            with self.open(name):
                pass
        except OSError as error:
            raise SessionError(f"{path}: cannot be deleted: {error.strerror or error}") from None

    def expire(self, *, older_than_s: float | None = None, keep_bytes: int | None = None) -> list[str]:
        """Deletes what was saved longer ago, and the oldest until the rest is small enough; their names."""
        if older_than_s is not None and not 0 <= older_than_s < math.inf:
            raise RequestError("older_than_s", older_than_s, "seconds from 0")
        if keep_bytes is not None and not 0 <= keep_bytes < math.inf:
            raise RequestError("keep_bytes", keep_bytes, "bytes from 0")
        self.lock()
        found = self.infos()
        old = []
        if older_than_s is not None:
            limit = self._clock() - older_than_s
            old = [info for info in found if info.saved_at < limit]
            for info in old:
                self.delete(info.name)
        left = [info for info in found if info not in old]
        more = [] if keep_bytes is None else self._shrink(left, keep_bytes)
        return [info.name for info in old] + more

    def _shrink(self, infos: list[SessionInfo], room: int) -> list[str]:
        """Deletes the oldest until the rest fits in `room` bytes."""
        total, gone = sum(info.bytes for info in infos), []
        for info in sorted(infos, key=lambda info: info.serial):
            if total <= room:
                break
            with suppress(SessionError, UsageError):
                self.delete(info.name)
                total -= info.bytes
                gone.append(info.name)
        return gone

    def _write(self, path: Path, header: Header, pages_NB: ByteArray) -> None:
        try:
            size = file_bytes(header)
        except (TypeError, ValueError, RecursionError, OverflowError) as error:
            raise RequestError("messages", type(error).__name__, "mappings of text, numbers and lists") from None
        if size > self.cap:
            fix = "allow more with --session-cap, or start a new conversation"
            raise CapacityError("session", size, self.cap, "bytes of all sessions together", fix)
        write_session(self._disk, path, header, pages_NB)

    def _created_at(self, name: str, now: float) -> float:
        with suppress(SessionError, UsageError), self.open(name) as file:
            return file.header.created_at
        return now

    def _file(self, name: str) -> Path:
        return self.path / (checked_name(name) + SUFFIX)


def _described(name: str, header: Header, size: int, problem: str | None = None) -> SessionInfo:
    return SessionInfo(
        name=name,
        tokens=len(header.token_ids),
        cached_tokens=header.num_pages * header.fingerprint.page_size,
        messages=len(header.messages),
        bytes=size,
        model=header.model,
        created_at=header.created_at,
        saved_at=header.saved_at,
        serial=header.serial,
        problem=problem,
    )
