"""Saved sessions over the page-echo model: what is in its slots goes to files, and comes back.

Knows: a page-echo model's slots as pages of bytes. Does not know: what is saved when, what must come out.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from page_echo import PageEcho

from legato.runtime.session_file import Disk, Fingerprint
from legato.runtime.session_folder import SessionFolder
from legato.schedule.cache_manager import CacheManager
from legato.sessions import Here, Sessions


class EchoPages:
    """What sessions use of an executor, over a page-echo model's slots."""

    def __init__(self, echo: PageEcho) -> None:
        self.echo = echo

    def views(self) -> list[np.ndarray]:
        size = self.echo.page_size
        return [np.frombuffer(a, np.uint64).reshape(-1, size) for a in (self.echo.ids, self.echo.chain)]

    def read_pages(self, page_ids: Sequence[int]) -> np.ndarray:
        ids = np.asarray(page_ids, np.int64)
        return np.concatenate([view[ids] for view in self.views()], axis=1).view(np.uint8)

    def write_pages(self, page_ids: Sequence[int], data: np.ndarray) -> None:
        ids, numbers, size = np.asarray(page_ids, np.int64), data.view(np.uint64), self.echo.page_size
        for i, view in enumerate(self.views()):
            view[ids] = numbers[:, i * size : (i + 1) * size]


class Unsynced(Disk):
    """No power is cut in these worlds."""

    def sync(self, handle: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


def echo_sessions(folder: Path, echo: PageEcho, cache: CacheManager, kv: str = "int8") -> Sessions:
    """The sessions of one engine's life, in `folder`."""
    size = echo.page_size
    print_ = Fingerprint("echo", "s", "auto", kv, "none", size, 16 * size, 1, "0")
    here = Here("echo", cache, EchoPages(echo), lambda: print_)  # type: ignore[arg-type]
    return Sessions(SessionFolder(folder, 1 << 30, Unsynced()), here, threading.RLock())
