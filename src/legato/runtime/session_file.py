"""One saved conversation as a file: tokens, messages, and pages of keys and values, each with its checksum.

Knows: the format, checksums, whole-file replacement. Does not know: names, folders, engines.

    block   "LEGATOKV" | uint32 version | uint32 length | header: MessagePack of `Header` | 16 bytes of digest
    pages   one after the other, `page_bytes` each; the header holds the digest of each
    block   the same again
    end     uint64: bytes of a block

Numbers are little-endian. A digest is the first half of a SHA-256. The tokens stand in the file twice, so that one
damaged place costs keys and values, which can be computed again, but not the conversation. Whatever comes out of here
has been checked: the header by its digest, types and sizes, every page by its digest.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from legato.errors import SessionError
from legato.kernels.ops import ByteArray

MAGIC, VERSION, DIGEST_BYTES = b"LEGATOKV", 1, 16
_PREFIX, _END = struct.Struct("<8sII"), struct.Struct("<Q")
_MOST_HEADER = 256 << 20
_CHUNK = 16 << 20  # bytes of pages that are read and checked at a time

Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class Fingerprint(msgspec.Struct, frozen=True):
    """What must be equal for saved keys and values to be those that this engine would compute, bit for bit.

    model     digest of the model's files
    spec      digest of the resolved architecture: rope scaling depends on settings too
    weights   the setting that may make other weights while loading
    layout    `kernels.ops.PAGE_LAYOUT`
    engine    version of this package
    """

    model: str
    spec: str
    weights: str
    kv: str
    isa: str
    page_size: Annotated[int, msgspec.Meta(ge=1, le=2**16)]
    page_bytes: Annotated[int, msgspec.Meta(ge=1, lt=2**40)]
    layout: int
    engine: str

    def difference(self, other: Fingerprint) -> str | None:
        """In words: the first thing in which `other` (this engine's) differs."""
        for name in self.__struct_fields__:
            if getattr(self, name) != getattr(other, name):
                return f"{name} was {getattr(self, name)}, here it is {getattr(other, name)}"
        return None


class Header(msgspec.Struct, frozen=True):
    """Everything but the pages. `serial` grows with every save in a folder; clocks may go back."""

    serial: Count
    created_at: float
    saved_at: float
    model: str
    fingerprint: Fingerprint
    salt: str
    token_ids: list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]]
    messages: list[dict[str, Any]]
    page_digests: bytes

    @property
    def num_pages(self) -> int:
        return len(self.page_digests) // DIGEST_BYTES


class Disk:
    """The calls to the system that saving and loading make; tests hand in one that fails."""

    def create(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def open(self, path: Path) -> int:
        # Without O_NONBLOCK a pipe of that name would be waited for.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)

    def write(self, handle: int, data: memoryview) -> int:
        return os.write(handle, data)

    def read(self, handle: int, into: memoryview, offset: int) -> int:
        return os.preadv(handle, [into], offset)

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def sync(self, handle: int) -> None:
        os.fsync(handle)

    def close(self, handle: int) -> None:
        os.close(handle)

    def replace(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def sync_folder(self, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def digest_pages(pages_NB: ByteArray) -> bytes:
    """The digests of all pages, one after the other."""
    return b"".join(_digest(row) for row in pages_NB)


def file_bytes(header: Header) -> int:
    """What the file of this header takes."""
    return 2 * len(_block(header)) + header.num_pages * header.fingerprint.page_bytes + _END.size


def write_session(disk: Disk, path: Path, header: Header, pages_NB: ByteArray) -> None:
    """Replaces `path` as a whole, or leaves it as it was and raises `SessionError`."""
    block = _block(header)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        handle = disk.create(temporary)
        try:
            for piece in (block, pages_NB.reshape(-1).data, block, _END.pack(len(block))):
                _write_all(disk, handle, memoryview(piece))
            disk.sync(handle)
        finally:
            disk.close(handle)
        disk.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            disk.remove(temporary)
        said = f"{error.strerror or error}; what was there stays as it was"
        raise SessionError(f"{path}: cannot be written: {said}; {_MEND}") from None
    except BaseException:
        with suppress(OSError):
            disk.remove(temporary)
        raise
    with suppress(OSError):  # the file is in place; only its survival of a power cut is less sure
        disk.sync_folder(path.parent)


_MEND = "free space (`legato sessions expire`) or choose another --session-dir"


def _write_all(disk: Disk, handle: int, data: memoryview) -> None:
    while data:
        written = disk.write(handle, data[:_CHUNK])
        if written <= 0:
            raise OSError("nothing more is written")
        data = data[written:]


@dataclass(slots=True)
class SessionFile:
    """An open session. `problem`: the first damage found so far, for a person; the rest can still be used.

    num_pages  pages that may be asked for
    """

    header: Header
    size: int
    problem: str | None
    _disk: Disk
    _handle: int
    _pages_at: int

    @property
    def num_pages(self) -> int:
        return self.header.num_pages

    def pages(self, first: int = 0) -> Iterator[tuple[int, ByteArray]]:
        """(number of the first, pages) in order, each page checked; ends before the first damaged one."""
        page_bytes = self.header.fingerprint.page_bytes
        step = max(1, _CHUNK // page_bytes)
        for start in range(first, self.num_pages, step):
            count = min(step, self.num_pages - start)
            data = self._read(self._pages_at + start * page_bytes, count * page_bytes)
            whole = np.frombuffer(data, np.uint8, len(data) // page_bytes * page_bytes).reshape(-1, page_bytes)
            good = self._count_good(start, whole)
            if good:
                yield start, whole[:good]
            if good < count:
                self.problem = f"page {start + good} is damaged"
                return

    def check(self) -> str | None:
        """Reads everything; the first damage, or None."""
        for _ in self.pages():
            pass
        return self.problem

    def _count_good(self, start: int, pages_NB: ByteArray) -> int:
        digests = self.header.page_digests
        for i, row in enumerate(pages_NB):
            at = (start + i) * DIGEST_BYTES
            if _digest(row) != digests[at : at + DIGEST_BYTES]:
                return i
        return len(pages_NB)

    def _read(self, offset: int, count: int) -> bytearray:
        """Fewer bytes where the file ends or cannot be read."""
        try:
            return _read_at(self._disk, self._handle, offset, max(0, min(count, self.size - offset)))
        except OSError as error:
            self.problem = f"cannot be read: {error.strerror or error}"
            return bytearray()


@contextmanager
def open_session(disk: Disk, path: Path) -> Iterator[SessionFile]:
    """Raises `FileNotFoundError`, or `SessionError` when not even the tokens can be read, or of another version."""
    try:
        handle = disk.open(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SessionError(f"{path}: cannot be opened: {error.strerror or error}") from None
    try:
        yield _open(disk, path, handle)
    finally:
        with suppress(OSError):  # nothing was written
            disk.close(handle)


@dataclass(frozen=True, slots=True)
class _Block:
    header: Header
    size: int


def _open(disk: Disk, path: Path, handle: int) -> SessionFile:
    try:
        size = disk.size(handle)
        front, back = _unblock(disk, handle, 0, size), _last_block(disk, handle, size)
    except OSError as error:
        raise SessionError(f"{path}: cannot be read: {error.strerror or error}") from None
    if isinstance(front, _Block):
        problem = f"its second header {back}" if isinstance(back, str) else None
        used = front
    elif isinstance(back, _Block):
        problem, used = f"its first header {front}", back
    else:
        raise SessionError(f"{path}: {front}; it cannot be restored, delete it")
    if problem is None and (front != back or file_bytes(used.header) != size):
        problem = "its size is not what its header says"
    return SessionFile(used.header, size, problem, disk, handle, used.size)


def _last_block(disk: Disk, handle: int, size: int) -> _Block | str:
    try:
        end = _read_at(disk, handle, max(0, size - _END.size), _END.size)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    at = size - _END.size - _END.unpack(end)[0] if len(end) == _END.size else 0
    return _unblock(disk, handle, at, size) if at > 0 else "is missing"


def _unblock(disk: Disk, handle: int, at: int, size: int) -> _Block | str:
    """The header in the block at `at`, or what is wrong with it."""
    try:
        prefix = bytes(_read_at(disk, handle, at, _PREFIX.size))
        if len(prefix) < _PREFIX.size:
            return "is too short"
        magic, version, length = _PREFIX.unpack(prefix)
        if magic != MAGIC or length > min(size, _MOST_HEADER):
            return "is no session's, or damaged"
        rest = bytes(_read_at(disk, handle, at + _PREFIX.size, length + DIGEST_BYTES))
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    body, digest = rest[:length], rest[length:]
    if hashlib.sha256(prefix + body).digest()[:DIGEST_BYTES] != digest:
        return "is damaged"
    if version != VERSION:
        return f"is of version {version}, and this Legato reads version {VERSION}"
    try:
        header = msgspec.msgpack.decode(body, type=Header)
    except (msgspec.MsgspecError, RecursionError) as error:
        return f"says nonsense: {error}"
    ragged = len(header.page_digests) % DIGEST_BYTES != 0
    if ragged or header.num_pages * header.fingerprint.page_size > len(header.token_ids):
        return "says nonsense: more pages than tokens"
    return _Block(header, _PREFIX.size + length + DIGEST_BYTES)


def _block(header: Header) -> bytes:
    body = msgspec.msgpack.encode(header)
    block = _PREFIX.pack(MAGIC, VERSION, len(body)) + body
    return block + hashlib.sha256(block).digest()[:DIGEST_BYTES]


def _digest(data: ByteArray) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]  # type: ignore[arg-type]


def _read_at(disk: Disk, handle: int, offset: int, count: int) -> bytearray:
    """Up to `count` bytes; fewer only at the end of the file."""
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        got = disk.read(handle, view[done:], offset + done)
        if got == 0:
            break
        done += got
    view.release()
    del data[done:]
    return data
