"""What a loaded vocabulary is, whichever file it came from, and how loading one may fail.

Knows: the parts a `Tokenizer` is made of. Does not know: file formats, encoding, decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from legato.errors import LegatoError, ModelFileError
from legato.text.spelling import Spelling

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Core

# Control tokens that end a turn or a text in the families we run; a model that emits one has finished.
TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A vocabulary ready for use.

    core          the `tokenizers` object that cuts text into ids (its decoder and post-processor are not used)
    size          one more than the largest id
    special_ids   control tokens: never made of user text, left out of decoded text
    literals      id -> bytes, where they are not what `spelling` makes of the token's string
    prefix, suffix  ids put before and after a text that asks for special tokens
    special_tokens  names that chat templates use (bos_token, eos_token, ...) -> the token's text
    """

    origin: Path
    core: Core
    spelling: Spelling
    size: int
    special_ids: frozenset[int] = frozenset()
    literals: Mapping[int, bytes] = field(default_factory=dict)
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def blamed_on(path: Path, name: str) -> Iterator[None]:
    """Turns whatever goes wrong inside into a `ModelFileError` of `path` and field `name`.

    The `tokenizers` package panics on some damaged files with an exception that is no `Exception`.
    """
    try:
        yield
    except (LegatoError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:
        reason = (str(e).strip().splitlines() or [""])[0][:200]
        raise ModelFileError(path, name, f"cannot be used: {reason or type(e).__name__}") from None
