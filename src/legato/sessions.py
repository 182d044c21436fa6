"""Named conversations that outlive the process: saved with their keys and values, and taken up where they stopped.

Knows: an engine's cache and executor, the folder of saved sessions. Does not know: how a file looks, text, terminals.

A restore puts pages back into the prefix tree as if they had just been computed; the next request with these tokens
finds them there. So a restore can never change an answer, only the time until it comes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from legato.completion import Completion
from legato.core.request import Request
from legato.core.sequence import Sequence as EngineSequence
from legato.core.spec import ArchSpec
from legato.errors import RequestError, UsageError
from legato.kernels.ops import PAGE_LAYOUT, ByteArray, Executor
from legato.runtime.session_file import Fingerprint, SessionFile
from legato.runtime.session_folder import SessionFolder, SessionInfo
from legato.schedule.cache_manager import CacheManager

Message = Mapping[str, Any]
Predict = Callable[[int, int], float | None]
"""Seconds that computing prompt tokens [start, end) would take; None: not known."""

LOAD_BYTES_S = 500e6  # until a load has been measured
_TELLING_BYTES = 4 << 20  # a load of less says more of the moment than of the disk


@dataclass(frozen=True, slots=True)
class Restored:
    """A conversation taken up again.

    cached_tokens   found in memory already
    loaded_tokens   read from disk; all others are computed by the next request
    note            why not all were loaded, for a person; None when they were
    """

    name: str
    token_ids: list[int]
    messages: list[Message]
    salt: str
    cached_tokens: int
    loaded_tokens: int
    load_s: float
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Here:
    """The loaded model as sessions see it. `fingerprint` is asked for when first needed: it reads the model's file."""

    model: str
    cache: CacheManager
    executor: Executor
    fingerprint: Callable[[], Fingerprint]


class Sessions:
    """Save, restore, fork, list, expire.

    turn     held while the cache and its pages are touched: no step may run meanwhile
    predict  what recomputing would cost; None, or an answer of None: loading is always chosen
    """

    def __init__(
        self, folder: SessionFolder, here: Here, turn: threading.RLock, predict: Predict | None = None
    ) -> None:
        self.folder = folder
        self.predict = predict
        self._here, self._turn = here, turn
        self._load_bytes_s = LOAD_BYTES_S

    def save(
        self,
        name: str,
        conversation: Completion | Sequence[int],
        *,
        messages: Iterable[Message] = (),
        salt: str = "",
    ) -> SessionInfo:
        """Writes or replaces session `name`: the tokens of a completion (or a list), and what of them is cached."""
        ids = _token_ids(conversation)
        told = [_told(message) for message in messages]
        cache, executor = self._here.cache, self._here.executor
        with self._turn:
            seq = _traveller(ids, salt)
            try:
                cache.match(seq)
                pages_NB = executor.read_pages(seq.pages)
            finally:
                cache.release(seq)
        here = self._here
        return self.folder.save(
            name,
            model=here.model,
            fingerprint=here.fingerprint(),
            salt=salt,
            token_ids=ids,
            messages=told,
            pages_NB=pages_NB,
        )

    def restore(self, name: str) -> Restored:
        """Takes session `name` up again. What cannot be loaded, for whatever reason, is left to be computed.

        Raises `UsageError` for an unknown name, or tokens of another model; `SessionError` when not even the tokens
        can be read.
        """
        self.folder.lock()
        with self.folder.open(name) as file:
            header, here = file.header, self._here.fingerprint()
            if header.fingerprint.model != here.model:
                if not header.messages:
                    raise UsageError(f"session {name!r} was saved with the model {header.model}; load that model")
                note = f"saved with another model, {header.model}: everything is computed again"
                return Restored(name, [], list(header.messages), header.salt, 0, 0, 0.0, note)
            difference = header.fingerprint.difference(here)
            if difference is None:
                return self._load(name, file)
            note = f"computed again: {difference}"
            return Restored(name, header.token_ids, list(header.messages), header.salt, 0, 0, 0.0, note)

    def fork(self, name: str, new_name: str) -> SessionInfo:
        """A copy that goes its own way; `new_name` must be free."""
        return self.folder.fork(name, new_name)

    def list(self) -> tuple[SessionInfo, ...]:
        """The latest save first."""
        return tuple(self.folder.infos())

    def delete(self, name: str) -> None:
        self.folder.delete(name)

    def expire(self, *, older_than_s: float | None = None, keep_bytes: int | None = None) -> tuple[str, ...]:
        """Deletes sessions by age, or the oldest until the rest is small enough; their names."""
        return tuple(self.folder.expire(older_than_s=older_than_s, keep_bytes=keep_bytes))

    def close(self) -> None:
        """Lets other processes write in the folder."""
        self.folder.close()

    # -- loading --------------------------------------------------------------------------------------------------

    def _load(self, name: str, file: SessionFile) -> Restored:
        header, size = file.header, self._here.cache.page_size
        cached = self._find(header.token_ids, header.salt)
        done = Restored(name, header.token_ids, list(header.messages), header.salt, cached, 0, 0.0)
        note = self._better_computed(cached, file)
        if note is not None:
            return replace(done, note=note)
        started, loaded = time.perf_counter(), 0
        for first, pages_NB in file.pages(cached // size):
            added = self._adopt(header.token_ids, header.salt, first, pages_NB)
            loaded += added * size
            if added < len(pages_NB):
                note = f"memory for keys and values is full: {len(header.token_ids) - cached - loaded} tokens are left"
                break
        took = time.perf_counter() - started
        num_bytes = loaded // size * header.fingerprint.page_bytes
        if num_bytes >= _TELLING_BYTES:
            self._load_bytes_s = (self._load_bytes_s + num_bytes / max(took, 1e-6)) / 2
        if note is None and file.problem is not None:
            note = f"the file is damaged ({file.problem}): what is lost is computed again"
        return replace(done, loaded_tokens=loaded, load_s=took, note=note)

    def _better_computed(self, cached: int, file: SessionFile) -> str | None:
        """Why nothing is loaded, or None when loading is the faster way."""
        if not self._here.cache.shares:
            return "computed again: the engine runs without a cache"
        fingerprint = file.header.fingerprint
        end = file.num_pages * fingerprint.page_size
        if end <= cached or self.predict is None:
            return None
        compute_s = self.predict(cached, end)
        load_s = (end - cached) // fingerprint.page_size * fingerprint.page_bytes / self._load_bytes_s
        if compute_s is None or load_s <= compute_s:
            return None
        return f"computed again: about {1e3 * compute_s:.0f} ms, loading {1e3 * load_s:.0f} ms"

    def _find(self, token_ids: Sequence[int], salt: str) -> int:
        """Tokens that are in memory; they count as used now."""
        with self._turn:
            seq = _traveller(token_ids, salt)
            found = self._here.cache.match(seq)
            self._here.cache.release(seq)
        return found

    def _adopt(self, token_ids: Sequence[int], salt: str, first: int, pages_NB: ByteArray) -> int:
        """Puts computed pages behind the `first` ones of a text; returns how many found room (or were there)."""
        cache, size = self._here.cache, self._here.cache.page_size
        with self._turn:
            seq = _traveller(token_ids[: (first + len(pages_NB)) * size], salt)
            try:
                held = cache.match(seq) // size
                if held < first:
                    return 0
                end = min(first + len(pages_NB), held + cache.num_available)
                if not cache.grow(seq, end * size):
                    return 0
                self._here.executor.write_pages(seq.pages[held:end], pages_NB[held - first : end - first])
                seq.num_computed_tokens = end * size
                cache.commit(seq)
            finally:
                cache.release(seq)
        return max(0, end - first)


def fingerprint_of(
    *, digest: str, spec: ArchSpec, weights: str, kv: str, executor: Executor, page_size: int, version: str
) -> Fingerprint:
    """Of a loaded model; `digest` is that of its files, `version` that of this package."""
    return Fingerprint(
        model=digest,
        spec=sha256(repr(spec).encode()).hexdigest()[:32],
        weights=weights,
        kv=kv,
        isa=executor.isa,
        page_size=page_size,
        page_bytes=executor.read_pages([0]).shape[1],
        layout=PAGE_LAYOUT,
        engine=version,
    )


def _traveller(token_ids: Sequence[int], salt: str) -> EngineSequence:
    """A sequence that only maps pages. One token more, because the last one of a sequence is always computed."""
    return EngineSequence(-1, Request("session", (*token_ids, 0), salt=salt))


def _told(message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError("messages", message, "mappings of text, numbers and lists")
    return dict(message)


def _token_ids(conversation: object) -> list[int]:
    if isinstance(conversation, Completion):
        return [*conversation.prompt_ids, *conversation.token_ids]
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise RequestError("conversation", conversation, "a completion or a list of token ids that is not empty")
    return list(Request("check", tuple(conversation)).prompt_ids)
