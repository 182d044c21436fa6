"""Compiles grammars to see whether that ends, in a child process that can be killed.

Knows: the compiler, limits of time and memory. Does not know: vocabularies, what is done with a sound grammar.

A compiler that runs for ever, takes all memory or overflows its stack cannot be stopped within a process. So each
grammar is compiled here first, over a vocabulary of bytes, on a stack smaller than any thread's that will do it again.

Frames on the child's socket (see sandbox):
    child -> {"ready": true}
    parent -> {"kind", "text"}      child -> {} or {"error"}      ... until closed
"""

from __future__ import annotations

import json
import re
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

MEMORY = 512 << 20  # bytes that a compilation may take
STACK = 2 << 20
FRAME = 1 << 20
_ALARM_S = 10.0  # a child that nobody waits for any more ends itself


class Refused(Exception):
    """Why a grammar is not compiled: one line."""


class Worker:
    """A child that is started when it is first needed, and again after it had to be killed. One grammar at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: Any = None

    @property
    def pid(self) -> int | None:
        return None if self._child is None else int(self._child.pid)

    def check(self, kind: str, text: str, seconds: float) -> None:
        """Raises `Refused` unless the grammar compiles within `seconds` and MEMORY, and some answer can begin."""
        from legato.text.sandbox import packed

        with self._lock:
            child = self._ensure()
            try:
                answer = child.exchange(packed({"kind": kind, "text": text}), seconds)
            except TimeoutError:
                self._drop()
                raise Refused(f"one that compiles within {seconds:g} s") from None
            except (OSError, ValueError):
                answer = None
            if answer is None:
                self._drop()
                raise Refused(f"one that compiles within {MEMORY >> 20} MiB and {STACK >> 20} MiB of stack")
            if "error" in answer:
                raise Refused(answer["error"])

    def close(self) -> None:
        """Ends the child; a later `check` starts another."""
        with self._lock:
            self._drop()

    def _ensure(self) -> Any:
        from legato.text.child import Child

        if self._child is not None and not self._child.alive:  # the system took it, not a grammar
            self._drop()
        if self._child is None:
            self._child = Child(__file__, "to compile grammars", FRAME)
        self._child.wait_ready()
        return self._child

    def _drop(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


def compiled(kind: str, text: str) -> str:
    """A checked grammar in the compiler's own form."""
    from llguidance import LLMatcher

    match kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(text)
        case "regex":
            return LLMatcher.grammar_from_regex(text)
        case _:
            return LLMatcher.grammar_from_lark(text)


def limits() -> Any:
    """Bounds on what one matcher may come to hold, and on the work of one token."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=25_000, max_grammar_size=200_000, verbose_errors=False)


def one_line(message: str) -> str:
    """The compiler's complaint without the listing that follows it."""
    return " ".join(message.strip().split("\n\n")[0].split())[:240]


# -- the child's side ---------------------------------------------------------------------------------------------


class _Bytes:
    """A vocabulary of 256 bytes, an end, and a control token that stands for any other."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([b]) for b in range(256)), b"\xffend", b"\xffother")
    special_token_ids = (256, 257)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


def _complaint(vocabulary: Any, kind: str, text: str) -> str | None:
    from llguidance import LLMatcher

    if kind == "lark":  # only the vocabulary itself has its control tokens' ids
        text = re.sub(r"<\[[0-9]+\]>", "<[257]>", text)
    try:
        grammar = compiled(kind, text)
    except ValueError as error:
        return one_line(str(error))
    wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar, vocabulary, limits=limits())
    if wrong or messages:
        return one_line(messages[0])
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=limits())
    allowed = matcher.compute_bitmask()
    if not any(allowed) or str(matcher.stop_reason()).startswith("NoExtension"):
        return "one that some answer matches"
    first = next((i for i in range(256) if allowed[i // 8] >> (i % 8) & 1), None)
    if first is not None and not matcher.is_error():  # what is too much for a parser often shows with the first byte
        matcher.consume_tokens([first])
    if matcher.is_error():
        return one_line(matcher.get_error())
    return None


def _serve(link: socket.socket, read_limit: int) -> None:
    import signal

    from llguidance import LLTokenizer, TokenizerWrapper

    from legato.text.sandbox import limit_memory, packed, receive

    vocabulary = LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=258, eos_token=256, slices=[])
    limit_memory(MEMORY)
    link.sendall(packed({"ready": True}))
    while True:
        signal.setitimer(signal.ITIMER_REAL, 0)
        frame = receive(link, read_limit)
        if frame is None:
            return
        signal.setitimer(signal.ITIMER_REAL, _ALARM_S)
        error = _complaint(vocabulary, frame["kind"], frame["text"])
        link.sendall(packed({} if error is None else {"error": error}))


def main(arguments: list[str]) -> None:
    """Runs as `python -I -S grammar_worker.py FD READ_LIMIT SYS_PATH_AS_JSON`."""
    import os
    import socket

    descriptor, read_limit, paths = arguments
    sys.path[:] = json.loads(paths)

    def serve() -> None:
        with socket.socket(fileno=int(descriptor)) as link:
            _serve(link, int(read_limit))
        os._exit(0)

    threading.stack_size(STACK)
    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main(sys.argv[1:])
