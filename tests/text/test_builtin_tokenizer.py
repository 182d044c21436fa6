"""The built-in model's tokenizer: Hugging Face's ids, and quickly built.

Oracles: a tokenizers object built here from the file's lists and SmolLM2's published settings; transformers' reader
of GGUF files, where it is right (it does not cut digits one by one for this vocabulary).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import regex

from legato.text.tokenizer import Tokenizer

Builtin = tuple[Path, Mapping[str, Any]]


@pytest.fixture(scope="module")
def tokenizer(builtin: Builtin) -> Tokenizer:
    return Tokenizer.from_gguf(*builtin)


def _published(metadata: Mapping[str, Any]) -> Any:
    """SmolLM2's tokenizer.json: digits alone, then GPT-2's pattern, byte-level, 17 special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = list(metadata["tokenizer.ggml.tokens"])
    merges = [tuple(line.split(" ")) for line in metadata["tokenizer.ggml.merges"]]
    core = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    core.pre_tokenizer = pre_tokenizers.Sequence(steps)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, normalized=False) for t in tokens[:17]])
    return core


def test_ids_are_those_of_the_published_tokenizer(
    tokenizer: Tokenizer, builtin: Builtin, awkward_strings: list[str]
) -> None:
    core = _published(builtin[1])
    specials = [tokenizer.token_text(i) for i in range(17)]
    strings = [*awkward_strings, *specials, "".join(specials), " ".join(specials)]
    for text in [*strings, "x" * 100_000, " " * 100_000, "\U0001f600" * 25_000, "7" * 100_000]:
        for parse in (True, False):
            core.encode_special_tokens = not parse
            ids = core.encode(text, add_special_tokens=False).ids
            assert tokenizer.encode(text, parse_special=parse) == ids, text[:80]
            assert tokenizer.decode(ids) == core.decode(ids)


@pytest.mark.slow
def test_ids_are_those_of_transformers_where_it_cuts_digits_no_differently(
    tokenizer: Tokenizer, builtin: Builtin, awkward_strings: list[str]
) -> None:
    path = builtin[0]
    auto = importlib.import_module("transformers").AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    compared = 0
    for text in awkward_strings:
        if not regex.search(r"\p{N}{2}|[^\p{N}]\p{N}", text):
            assert tokenizer.encode(text, parse_special=True) == auto.encode(text), text
            compared += 1
    assert compared > 200
    assert tokenizer.vocab_size == len(auto)
    assert auto.chat_template == tokenizer.chat_template


def test_what_the_file_says_of_its_special_tokens(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.vocab_size) == (1, False, 49152)
    assert tokenizer.eos_ids[0] == 2 and tokenizer.token_text(2) == "<|im_end|>"
    assert tokenizer.special_tokens["bos_token"] == "<|im_start|>"
    assert [i for i in range(49152) if tokenizer.is_special(i)] == list(range(17))
    assert tokenizer.chat_template is not None and "<|im_start|>" in tokenizer.chat_template


def test_building_the_tokenizer_costs_little_more_than_the_package_itself_needs(builtin: Builtin) -> None:
    """Against the bare constructor, under the same load: an absolute time would be the machine's, not ours."""
    from tokenizers import models

    vocab = {t: i for i, t in enumerate(builtin[1]["tokenizer.ggml.tokens"])}
    merges = [tuple(line.split(" ")) for line in builtin[1]["tokenizer.ggml.merges"]]
    bare = _fastest(lambda: models.BPE(vocab, merges))
    assert _fastest(lambda: Tokenizer.from_gguf(*builtin)) < 5 * bare


def _fastest(work: Callable[[], object]) -> float:
    """Processor seconds of this thread, so that neighbours on the machine count little."""
    best = float("inf")
    for _ in range(3):
        began = time.thread_time()
        work()
        best = min(best, time.thread_time() - began)
    return best
