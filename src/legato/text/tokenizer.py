"""`Tokenizer`: text to token ids and back, the same for every kind of vocabulary.

Knows: ids, bytes and special tokens. Does not know: file formats (gguf_vocab, hf_files), streams, templates.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from legato.errors import EngineError
from legato.text.vocabulary import Vocabulary


class Tokenizer:
    """Encodes and decodes with one vocabulary. Safe to use from several threads.

    vocab_size      one more than the largest id
    bos_id          the id that starts a text, or None
    eos_ids         every id that ends a turn or a text, the vocabulary's own first
    add_bos         whether `encode` starts with bos_id when asked for special tokens
    chat_template   the Jinja source that came with the model, or None
    special_tokens  bos_token, eos_token, ... -> text, for chat templates
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._core = vocabulary.core
        self._special = vocabulary.special_ids
        self._bytes: dict[int, bytes] = dict(vocabulary.literals)
        self._lock = threading.Lock()
        self.vocab_size = vocabulary.size
        self.bos_id = vocabulary.bos_id
        self.eos_ids = vocabulary.eos_ids
        self.add_bos = vocabulary.bos_id is not None and vocabulary.prefix[:1] == (vocabulary.bos_id,)
        self.chat_template = vocabulary.chat_template
        self.special_tokens: Mapping[str, str] = vocabulary.special_tokens
        self.strip = vocabulary.spelling.strip

    @classmethod
    def from_files(cls, files: Mapping[str, Path]) -> Tokenizer:
        """From a Hugging Face folder given as file name -> path. Raises `ModelFileError` naming the file at fault."""
        from legato.text import hf_files

        return cls(hf_files.load(files))

    @classmethod
    def from_gguf(cls, path: str | Path, metadata: Mapping[str, object]) -> Tokenizer:
        """From a GGUF file's metadata. Raises `ModelFileError` naming the key at fault."""
        from legato.text import gguf_vocab

        return cls(gguf_vocab.load(Path(path), metadata))

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The ids of `text`, lone surrogates taken as U+FFFD.

        add_special    put the model's own start (and end) tokens around it
        parse_special  a special token's text becomes that token; otherwise it is text like any other, so that
                       no user can write a control token. For a rendered chat template, which writes its own:
                       add_special=False, parse_special=True.
        """
        ids = self._cut(text, parse_special)
        if not parse_special and not self._special.isdisjoint(ids):
            ids = [j for i in ids for j in (self._as_text(i) if i in self._special else (i,))]
        if add_special:
            return [*self._vocabulary.prefix, *ids, *self._vocabulary.suffix]
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, continues: bool = False) -> str:
        """The text of `ids`: their bytes together, with U+FFFD where they are no UTF-8. Unknown ids are nothing.

        continues  the text goes on after other text, so a SentencePiece vocabulary's first space is kept
        """
        text = self.join(ids, skip_special=skip_special).decode("utf-8", "replace")
        if continues or not self.strip:
            return text
        return text[min(self.strip, len(text) - len(text.lstrip(" "))) :]

    def join(self, ids: Iterable[int], *, skip_special: bool = True) -> bytes:
        """The bytes of `ids`, one after the other."""
        if skip_special:
            ids = (i for i in ids if i not in self._special)
        return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that a token contributes to a text; none for an id outside the vocabulary."""
        found = self._bytes.get(token_id)
        if found is None:
            token = self._core.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
            found = b"" if token is None else self._vocabulary.spelling.bytes_of(token)
            if token is not None:
                self._bytes[token_id] = found
        return found

    def token_text(self, token_id: int) -> str:
        """A token alone as text, for logprobs: U+FFFD stands where its bytes are part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token: never made of user text, left out of decoded text."""
        return token_id in self._special

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Matches the text of any control token, the longest first."""
        texts = {self.token_text(i) for i in self._special} - {""}
        return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")

    def _cut(self, text: str, parse_special: bool) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        # the switch belongs to the shared object, so nobody else may encode between setting and using it
        with self._lock:
            self._core.encode_special_tokens = not parse_special
            try:
                ids: list[int] = self._core.encode(text, add_special_tokens=False).ids
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as e:  # a panic inside the tokenizers package is no Exception
                raise EngineError(f"the tokenizer of {self._vocabulary.origin} failed on this text: {e}") from None
        return ids

    def _as_text(self, token_id: int) -> list[int]:
        """A control token's text as the smallest tokens there are.

        Some vocabularies' merges, or their rule that a whole word is its token, make a control token of plain text.
        """
        out: list[int] = []
        for piece in self._vocabulary.spelling.pieces_of(self.token_text(token_id)):
            found = self._core.token_to_id(piece)
            options = [found] if found is not None else [self._core.token_to_id(f"<0x{b:02X}>") for b in piece.encode()]
            out += [i for i in options if i is not None and i not in self._special]
        return out
