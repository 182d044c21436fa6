"""How a token's string in a vocabulary spells the bytes it stands for.

Knows: the byte alphabet of byte-level BPE, SentencePiece's blank and its <0xNN> bytes.
Does not know: ids, vocabularies, how text is cut into tokens.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legato.errors import ModelFileError, UnsupportedModelError

BLANK = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable Latin-1 stands for itself, the rest for 256, 257, ... in order.

    Source: the byte encoder published with GPT-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


BYTE_OF_CHAR = _byte_alphabet()
CHAR_OF_BYTE = {b: c for c, b in BYTE_OF_CHAR.items()}


@dataclass(frozen=True, slots=True)
class Spelling:
    """The rule that turns token strings into bytes, and where a text's first blank goes.

    byte_level     each character is one byte of the byte alphabet (a token with any other character is its UTF-8)
    blank          the character that stands for a space, or "" if none does
    byte_fallback  a token "<0xNN>" is the byte NN
    strip          how many leading spaces a decoded text loses (SentencePiece's own space before the first word)
    """

    byte_level: bool = False
    blank: str = ""
    byte_fallback: bool = False
    strip: int = 0

    def bytes_of(self, token: str) -> bytes:
        """The exact bytes that `token` contributes to a text."""
        if self.byte_level:
            try:
                return bytes([BYTE_OF_CHAR[c] for c in token])
            except KeyError:
                return token.encode("utf-8", "replace")
        if self.byte_fallback and (match := _BYTE_TOKEN.match(token)):
            return bytes([int(match[1], 16)])
        return (token.replace(self.blank, " ") if self.blank else token).encode("utf-8", "replace")

    def pieces_of(self, text: str) -> list[str]:
        """`text` as the smallest strings a vocabulary may hold: one a byte, or one a character."""
        if self.byte_level:
            return [CHAR_OF_BYTE[b] for b in text.encode("utf-8", "replace")]
        return list(text.replace(" ", self.blank) if self.blank else text)


def spelling_of_decoder(path: Path, decoder: object) -> Spelling:
    """Reads the `decoder` of a tokenizer.json. Raises `UnsupportedModelError` for a part that is not known."""
    if not isinstance(decoder, dict):
        raise UnsupportedModelError(path, "decoder", "is missing; only byte-level and SentencePiece decoders are run")
    rule: dict[str, Any] = {}
    _read_part(path, decoder, rule)
    return Spelling(**rule)


def _read_part(path: Path, part: dict[str, Any], rule: dict[str, Any]) -> None:
    kind = part.get("type")
    if kind == "Sequence":
        for inner in part.get("decoders", ()):
            _read_part(path, inner, rule)
    elif kind == "ByteLevel":
        rule["byte_level"] = True
    elif kind == "Replace" and part.get("pattern") == {"String": BLANK} and part.get("content") == " ":
        rule["blank"] = BLANK
    elif kind == "ByteFallback":
        rule["byte_fallback"] = True
    elif kind == "Strip" and part.get("content") == " " and not part.get("stop"):
        rule["strip"] = int(part.get("start", 0))
    elif kind == "Metaspace" and isinstance(part.get("replacement"), str):
        rule["blank"] = part["replacement"]
        rule["strip"] = int(part.get("prepend_scheme") != "never")
    elif kind != "Fuse":
        raise UnsupportedModelError(path, "decoder", f"has a part that is not run: {json.dumps(part)[:120]}")


def state_of(path: Path, component: Any) -> object:
    """The JSON that a component of the `tokenizers` package keeps of itself (None for none)."""
    if component is None:
        return None
    try:
        return json.loads(component.__getstate__())
    except (ValueError, TypeError, RecursionError) as e:
        raise ModelFileError(path, "decoder", f"cannot be read: {e}") from None
