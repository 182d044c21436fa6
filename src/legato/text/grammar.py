"""`Grammars`: what an answer must match, compiled once; `Matcher`: where one answer stands in it.

Knows: a vocabulary's bytes, the compiler (llguidance), how much compiled grammars may take together.
Does not know: logits, sampling, requests, which keywords are honoured (grammar_schema).

At admission a grammar is read (grammar_schema), compiled in a child that can be killed (grammar_worker), and only then
compiled here. What is compiled is kept for as long as there is room; each answer walks a copy of its own.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from legato.core.request import Grammar, GrammarKind
from legato.errors import EngineError, RequestError
from legato.text.grammar_schema import compilable
from legato.text.grammar_worker import Refused, Worker, compiled, limits
from legato.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

CACHE_BYTES = 64 << 20
TIME_LIMITS_S = {GrammarKind.JSON_SCHEMA: 2.0, GrammarKind.REGEX: 1.0, GrammarKind.LARK: 2.0}
_SOUND = 4096  # how many grammars are remembered to be sound after they have left the cache
# Measured: what a compiled grammar takes, at most, beside its text and for each byte of it.
_OWN_BYTES, _BYTES_A_BYTE = 192 << 10, 96


class GrammarFault(Exception):
    """A matcher cannot go on: its limits are reached, or a token was chosen that its grammar does not have."""


class Matcher:
    """One answer's place in its grammar. It follows the answer's tokens and may be taken back to any earlier place.

    Raises `GrammarFault` when the grammar cannot go on; nothing else.
    """

    def __init__(self, prototype: LLMatcher, eos_ids: Collection[int]) -> None:
        self._matcher = prototype.deep_copy()
        self._eos_ids = frozenset(eos_ids)
        self._certain = 0  # tokens taken that can never be taken back
        self._ahead: list[int] = []  # tokens taken after those

    def follow(self, token_ids: Sequence[int], start: int, accepted: Sequence[int]) -> None:
        """Stands after the answer `token_ids[start:] + accepted`; only the accepted may ever be taken back."""
        wanted = [*token_ids[start + self._certain :], *accepted]
        same = 0
        for ours, theirs in zip(self._ahead, wanted, strict=False):
            if ours != theirs:
                break
            same += 1
        with _Guard():
            back = len(self._ahead) - same
            if back and not self._matcher.rollback(back):
                raise GrammarFault("the grammar cannot be taken back")
            if wanted[same:] and not self._matcher.consume_tokens(wanted[same:]):
                raise GrammarFault(self._fault() if self._matcher.is_error() else "the answer left its grammar")
        self._certain = len(token_ids) - start
        self._ahead = list(accepted)

    def takes(self, token_id: int) -> bool:
        """Whether the grammar allows `token_id` next."""
        with _Guard():
            if token_id in self._eos_ids:
                return bool(self._matcher.is_accepting())
            return bool(self._matcher.validate_tokens([token_id]) == 1)

    def allowed(self) -> bytes:
        """A bit for each token, the first token's lowest. When the grammar is complete, only the end tokens' bits."""
        with _Guard():
            mask = self._matcher.compute_bitmask()
            if self._matcher.is_error():
                raise GrammarFault(self._fault())
        return bytes(mask)

    def _fault(self) -> str:
        reason = str(self._matcher.stop_reason())
        return (
            f"the grammar is too complex here ({reason})" if "Complex" in reason else f"the grammar failed ({reason})"
        )


class _Guard:
    """Whatever the compiled library raises inside is a fault of this grammar alone; its panics are no `Exception`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and not isinstance(error, (GrammarFault, KeyboardInterrupt, SystemExit)):
            raise GrammarFault(f"the grammar failed ({type(error).__name__})") from None


class Grammars:
    """Compiled grammars of one vocabulary. Safe to use from several threads.

    tokenizer   whose tokens answers are made of; control tokens are no text, so no grammar of text has them
    vocab_size  ids from here on are never allowed
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._tokenizer, self._size, self._room = tokenizer, vocab_size, cache_bytes
        self._eos_ids = [i for i in tokenizer.eos_ids if i < vocab_size]
        self._lock = threading.Lock()
        self._vocabulary: Any = None
        self._worker = Worker()
        self._compiled: OrderedDict[Grammar, tuple[LLMatcher, int]] = OrderedDict()
        self._sound: OrderedDict[bytes, None] = OrderedDict()
        self._taken = 0

    @property
    def num_compiled(self) -> int:
        return len(self._compiled)

    @property
    def taken_bytes(self) -> int:
        """What the compiled grammars are reckoned to take."""
        return self._taken

    @property
    def worker_pid(self) -> int | None:
        return self._worker.pid

    def admit(self, grammar: Grammar) -> None:
        """Compiles `grammar` unless that was done, within seconds. Raises `RequestError` saying what is refused."""
        with self._lock:
            if grammar in self._compiled:
                return
        text = compilable(grammar)
        try:
            if self._digest(grammar) not in self._sound:
                self._worker.check(grammar.kind.value, text, TIME_LIMITS_S[grammar.kind])
            self._compile(grammar, text)
        except Refused as error:
            raise RequestError("grammar", grammar.kind.value, f"a grammar that compiles: {error}") from None

    def matcher(self, grammar: Grammar) -> Matcher:
        """A new answer's place at the beginning of an admitted grammar."""
        with self._lock:
            found = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
                return Matcher(found[0], self._eos_ids)
            known = self._digest(grammar) in self._sound
        if not known:
            raise GrammarFault("the grammar was not admitted")
        try:  # it has had to make room for others since
            return Matcher(self._compile(grammar, compilable(grammar)), self._eos_ids)
        except (Refused, RequestError) as error:
            raise GrammarFault(str(error)) from None

    def close(self) -> None:
        """Ends the child process, if there is one."""
        self._worker.close()

    def _digest(self, grammar: Grammar) -> bytes:
        return hashlib.sha256(f"{grammar.kind.value}\0{grammar.text}".encode("utf-8", "surrogatepass")).digest()

    def _compile(self, grammar: Grammar, text: str) -> LLMatcher:
        from llguidance import LLMatcher

        vocabulary = self._own_vocabulary()
        try:
            made = LLMatcher(vocabulary, compiled(grammar.kind.value, text), log_level=0, limits=limits())
        except ValueError as error:
            raise Refused(str(error)[:200]) from None
        if made.is_error():
            raise Refused(" ".join(made.get_error().split())[:200])
        with self._lock:
            self._keep(grammar, made)
        return made

    def _keep(self, grammar: Grammar, made: LLMatcher) -> None:
        """Remembers a compiled grammar; those unused for longest make room."""
        self._sound[self._digest(grammar)] = None
        if len(self._sound) > _SOUND:
            self._sound.popitem(last=False)
        size = _OWN_BYTES + _BYTES_A_BYTE * len(grammar.text.encode())
        if grammar not in self._compiled:
            self._compiled[grammar] = made, size
            self._taken += size
        while self._taken > self._room and len(self._compiled) > 1:
            self._taken -= self._compiled.popitem(last=False)[1][1]

    def _own_vocabulary(self) -> Any:
        """The vocabulary in the compiler's form: a fraction of a second's work, done when a grammar first comes."""
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(self._tokenizer, self._size, self._eos_ids)
            return self._vocabulary


class _Words:
    """What the compiler asks of a tokenizer: every token's exact bytes. 0xFF marks control tokens: no text has it."""

    def __init__(self, tokenizer: Tokenizer, size: int, eos_ids: Sequence[int]) -> None:
        special = [i for i in range(size) if tokenizer.is_special(i) or i in eos_ids]
        controls = frozenset(special)
        self.eos_token_id = eos_ids[0]
        self.bos_token_id = None
        self.special_token_ids = special
        self.tokens = [b"\xff" * (i in controls) + tokenizer.token_bytes(i) for i in range(size)]
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._tokenizer.encode(text, add_special=False)


def _vocabulary(tokenizer: Tokenizer, size: int, eos_ids: Sequence[int]) -> Any:
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError as error:
        raise EngineError(f"grammars need the package llguidance, which cannot be imported: {error}") from None
    if not eos_ids:
        raise RequestError("grammar", "any", "no grammar: this model's vocabulary has no token that ends an answer")
    words = _Words(tokenizer, size, eos_ids)
    return LLTokenizer(TokenizerWrapper(words), n_vocab=size, eos_token=list(eos_ids))
