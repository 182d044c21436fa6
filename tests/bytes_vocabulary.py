"""A tokenizer of 256 bytes, a few words and two control tokens, for tests that need no real vocabulary."""

from __future__ import annotations

from typing import Any

from legato.core.request import Grammar
from legato.text.grammar import Grammars

WORDS = (b'{"', b'":', b'", "', b"true", b"false", b"null", b"10", b"aa", b"\xc3\xa9", b"<|tool|>")
EOS = 256 + len(WORDS)
CONTROL = EOS + 1
SIZE = EOS + 2


class BytesTokenizer:
    """The parts of `Tokenizer` that grammars ask for."""

    vocab_size = SIZE
    eos_ids = (EOS,)

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < 256:
            return bytes([token_id])
        return (*WORDS, b"<|end|>", b"<|tool|>")[token_id - 256]

    def is_special(self, token_id: int) -> bool:
        return token_id >= EOS

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(text.encode())


def text_of(ids: list[int]) -> str:
    tokenizer = BytesTokenizer()
    return b"".join(tokenizer.token_bytes(i) for i in ids if i < EOS).decode("utf-8", "replace")


def matches(grammars: Grammars, grammar: Grammar, text: str) -> bool:
    """Whether `text` is a whole answer."""
    grammars.admit(grammar)
    matcher, ids = grammars.matcher(grammar), list(text.encode())
    for i, byte in enumerate(ids):
        matcher.follow(ids[:i], 0, [])
        if not matcher.takes(byte):
            return False
    matcher.follow(ids, 0, [])
    return matcher.takes(EOS)
