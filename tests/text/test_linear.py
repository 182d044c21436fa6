"""Encoding takes time in proportion to the text, for every kind of text and both kinds of merging.

Knows: what a slow regular expression or a quadratic merge would be fed with. Does not know: absolute speeds.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable

import pytest
from vocabularies import ByteLevelKind, SentencePieceKind

from legato.text.tokenizer import Tokenizer

SIZES = (16_384, 65_536, 262_144)

KINDS: dict[str, Callable[[int], str]] = {
    "letters": lambda n: "a" * n,
    "words": lambda n: ("The quick brown fox jumps. " * (n // 27 + 1))[:n],
    "blanks": lambda n: " " * n,
    "lines": lambda n: "\n" * n,
    "blanks, then a letter": lambda n: " " * n + "x",
    "digits": lambda n: "1234567890" * (n // 10),
    "marks": lambda n: "!?" * (n // 2),
    "emoji": lambda n: "\U0001f468\u200d\U0001f469" * (n // 3),
    "Chinese": lambda n: "天地玄黄" * (n // 4),
    "accents": lambda n: "e" + "\u0301" * n,
    "NULs": lambda n: "\0" * n,
    "control tokens": lambda n: "<|im_end|>" * (n // 10),
    "nearly control tokens": lambda n: "<|im_end|" * (n // 9),
    "quotes": lambda n: "'s't" * (n // 4),
}


def _fastest(work: Callable[[], object]) -> float:
    """Processor seconds of this thread, so that neighbours on the machine count little."""
    best = math.inf
    for _ in range(3):
        began = time.thread_time()
        work()
        best = min(best, time.thread_time() - began)
    return best


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary", ["llama-bpe", "sentencepiece"])
def test_twice_the_text_takes_about_twice_the_time(
    vocabulary: str, kind: str, byte_level: Callable[[str], ByteLevelKind], llama_spm: SentencePieceKind
) -> None:
    """Nearer to twice a doubling than to the four times of a square: the border is their geometric mean, 2.83.

    The text is one word merged with one heap, which takes n log n and leaves the caches on the way: 2.3 to 2.7 are
    measured for the worst kinds on a busy machine.
    """
    known = llama_spm if vocabulary == "sentencepiece" else byte_level(vocabulary)
    tokenizer = Tokenizer.from_gguf("model.gguf", known.metadata)
    for parse in (True, False) if "control" in kind else (True,):
        times = []
        for text in map(KINDS[kind], SIZES):
            times.append(_fastest(lambda text=text, parse=parse: tokenizer.encode(text, parse_special=parse)))
        doublings = [math.sqrt(b / a) for a, b in itertools.pairwise(times)]
        assert min(doublings) < math.sqrt(8) and math.prod(doublings) < 8, (parse, times)
