"""Small vocabularies of every kind, trained here.

Knows: how tokenizers, sentencepiece and transformers make vocabularies. Does not know: Legato's own code.
"""

from __future__ import annotations

import inspect
import io
import json
import textwrap
import types
from typing import Any

import pytest
from awkward import LINES, SPECIALS, USER_DEFINED

TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
ODD = r"[^\r\n\p{L}\p{N}]?"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL
QWEN2 = LLAMA3.replace("{1,3}", "")
DEEPSEEK3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + TAIL
)

# tokenizer.ggml.pre -> the patterns that cut text in turn, as the models' own tokenizer.json files have them
PATTERNS: dict[str, list[str]] = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [LLAMA3],
    "smaug-bpe": [LLAMA3],
    "qwen2": [QWEN2],
    "deepseek-r1-qwen": [QWEN2],
    "qwen35": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + TAIL
    ],
    "tekken": [f"{ODD}{UP}*{LOW}+|{ODD}{UP}+{LOW}*" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + TAIL],
    "gpt-4o": [f"{ODD}{UP}*{LOW}+{SUFFIX}|{ODD}{UP}+{LOW}*{SUFFIX}" + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + TAIL],
    "deepseek-v3": [r"\p{N}{1,3}", "[一-龥\u3040-\u309f\u30a0-\u30ff]+", DEEPSEEK3],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+", r"\p{N}"],
    "command-r": [r"\p{N}", GPT2],
}
NFC = {"qwen2", "qwen35", "command-r"}
WHOLE_WORDS = {"llama-bpe", "tekken"}


def _corpus() -> list[str]:
    source = "".join(inspect.getsource(m) for m in (textwrap, json.decoder, io, types))
    return LINES * 40 + source.splitlines(keepends=True)


def _pre_tokenizer(patterns: list[str]) -> Any:
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


class ByteLevelKind:
    """A byte-level BPE trained with one kind's patterns: as a tokenizers object, and as GGUF metadata."""

    def __init__(self, pre: str) -> None:
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        self.pre = pre
        core = Tokenizer(models.BPE(ignore_merges=pre in WHOLE_WORDS))
        if pre in NFC:
            core.normalizer = normalizers.NFC()
        core.pre_tokenizer = _pre_tokenizer(PATTERNS[pre])
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=900,
            special_tokens=[AddedToken(t, normalized=False, special=True) for t in SPECIALS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(_corpus(), trainer)
        core.add_tokens([AddedToken(t, normalized=False, special=False) for t in USER_DEFINED])
        self.core = core
        model = json.loads(core.to_str())["model"]
        self.merges: list[tuple[str, str]] = [tuple(m) for m in model["merges"]]
        vocab = core.get_vocab(with_added_tokens=True)
        self.tokens = sorted(vocab, key=vocab.__getitem__)
        kinds = dict.fromkeys(SPECIALS, 3) | dict.fromkeys(USER_DEFINED, 4)
        self.metadata: dict[str, object] = {
            "general.architecture": "llama",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": [kinds.get(t, 1) for t in self.tokens],
            "tokenizer.ggml.merges": [" ".join(m) for m in self.merges],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 0,
            "tokenizer.ggml.add_bos_token": False,
        }


class SentencePieceKind:
    """A SentencePiece BPE with byte fallback: its processor, and the same as GGUF metadata."""

    def __init__(self, architecture: str = "llama", **options: Any) -> None:
        import sentencepiece as spm

        self.options: dict[str, Any] = dict(
            model_type="bpe", vocab_size=1100, byte_fallback=True, character_coverage=0.98, split_digits=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2, num_threads=1, add_dummy_prefix=True,
            user_defined_symbols=[],
        ) | options  # fmt: skip
        model = io.BytesIO()
        corpus = [s.rstrip("\n") for s in _corpus() if s.strip()]
        spm.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=model, **self.options)
        self.processor = spm.SentencePieceProcessor(model_proto=model.getvalue())
        size = self.processor.get_piece_size()
        self.pieces: list[str] = [self.processor.id_to_piece(i) for i in range(size)]
        self.metadata: dict[str, object] = {
            "general.architecture": architecture,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": self.pieces,
            "tokenizer.ggml.scores": [self.processor.get_score(i) for i in range(size)],
            "tokenizer.ggml.token_type": [self._type(i) for i in range(size)],
            "tokenizer.ggml.bos_token_id": self.options["bos_id"],
            "tokenizer.ggml.eos_token_id": self.options["eos_id"],
            "tokenizer.ggml.unknown_token_id": self.options["unk_id"],
            "tokenizer.ggml.add_space_prefix": self.options["add_dummy_prefix"],
            "tokenizer.ggml.remove_extra_whitespaces": self.options["remove_extra_whitespaces"],
        }

    def _type(self, token_id: int) -> int:
        """tokenizer.ggml.token_type: 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte."""
        kinds = {2: self.processor.is_unknown, 3: self.processor.is_control, 6: self.processor.is_byte}
        found = [kind for kind, holds in kinds.items() if holds(token_id)]
        return found[0] if found else 4 if self.pieces[token_id] in self.options["user_defined_symbols"] else 1

    def by_transformers(self, architecture: str) -> Any:
        """The tokenizers object that transformers builds for a GGUF file of that architecture with this vocabulary."""
        fields = {k.removeprefix("tokenizer.ggml."): v for k, v in self.metadata.items()}
        return gguf_mapping().convert_gguf_tokenizer(architecture, fields | {"tokenizer_type": "llama"})[0]


def gguf_mapping() -> Any:
    """transformers' reader of tokenizers in GGUF files, where this version has it in its own module."""
    name = "transformers.integrations.gguf.gguf_tokenizer_mapping"
    return pytest.importorskip(name, reason="this transformers keeps its GGUF tokenizers elsewhere")
