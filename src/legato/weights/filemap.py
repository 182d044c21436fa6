"""Opens a model file for reading: mapped, read-only, and only if it is a plain file; shows its names safely.

Knows: the file system, terminals' dislikes. Does not know: any format.
"""

from __future__ import annotations

import mmap
import os
import stat

import numpy as np
from numpy.typing import NDArray

from legato.errors import ModelFileError


def map_file(path: str) -> tuple[mmap.mmap, int]:
    """The whole file as a read-only map, and its size. `ModelFileError` if it cannot be read or is empty."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a named pipe must not make us wait
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ModelFileError(path, "file", f"cannot be opened: {_reason(error)}") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(path, "file", "is not a plain file")
        if status.st_size == 0:
            raise ModelFileError(path, "file", "is empty")
        return mmap.mmap(handle, status.st_size, access=mmap.ACCESS_READ), status.st_size
    except (OSError, ValueError) as error:
        raise ModelFileError(path, "file", f"cannot be mapped: {_reason(error)}") from None
    finally:
        os.close(handle)


def let_go(data: NDArray[np.uint8]) -> None:
    """Gives back the memory that a view of a mapped file takes; whoever reads it again gets it from the file.

    Views of anything else are left alone. The operating system keeps the pages while it has room for them.
    """
    owner: object = data
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    if not isinstance(owner, mmap.mmap):
        return
    first = data.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    start, end = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, (first + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        owner.madvise(mmap.MADV_DONTNEED, start, end - start)


def _reason(error: Exception) -> str:
    return str(error.strerror if isinstance(error, OSError) and error.strerror else error)


def shown(name: str) -> str:
    """A name from a file as it may stand in a one-line message: short, and nothing that moves a terminal's cursor."""
    short = name if len(name) <= 80 else name[:77] + "..."
    return short if short.isprintable() else ascii(short)
