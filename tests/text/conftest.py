"""Small vocabularies of every kind, trained here, and 300 awkward strings to cut.

Knows: how tokenizers, sentencepiece and transformers make vocabularies. Does not know: Legato's own code.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from awkward import LINES, SPECIALS, USER_DEFINED, awkward
from hypothesis import settings

settings.register_profile("text", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("text")

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


@pytest.fixture(scope="session")
def awkward_strings() -> list[str]:
    strings = awkward()
    assert len(strings) >= 300
    return strings


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


@pytest.fixture(scope="session")
def byte_level() -> Callable[[str], ByteLevelKind]:
    made: dict[str, ByteLevelKind] = {}
    return lambda pre: made[pre] if pre in made else made.setdefault(pre, ByteLevelKind(pre))


class SentencePieceKind:
    """A SentencePiece BPE with byte fallback: the .model file, its processor, and the same as GGUF metadata."""

    def __init__(self, folder: Path, name: str, architecture: str = "llama", **options: Any) -> None:
        import sentencepiece as spm
        from sentencepiece import sentencepiece_model_pb2 as pb

        self.architecture = architecture
        self.path = folder / f"{name}.model"
        settings_ = dict(
            model_type="bpe", vocab_size=1100, byte_fallback=True, character_coverage=0.98, split_digits=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2, num_threads=1,
        ) | options  # fmt: skip
        text = io.BytesIO()
        corpus = [s.rstrip("\n") for s in _corpus() if s.strip()]
        spm.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=text, **settings_)
        self.path.write_bytes(text.getvalue())
        self.processor = spm.SentencePieceProcessor(model_proto=text.getvalue())
        self.proto = pb.ModelProto()
        self.proto.ParseFromString(text.getvalue())
        pieces = self.proto.pieces
        normalizer = self.proto.normalizer_spec
        self.metadata: dict[str, object] = {
            "general.architecture": architecture,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": [p.piece for p in pieces],
            "tokenizer.ggml.scores": [p.score for p in pieces],
            "tokenizer.ggml.token_type": [p.type for p in pieces],
            "tokenizer.ggml.bos_token_id": settings_["bos_id"],
            "tokenizer.ggml.eos_token_id": settings_["eos_id"],
            "tokenizer.ggml.unknown_token_id": settings_["unk_id"],
            "tokenizer.ggml.add_space_prefix": normalizer.add_dummy_prefix,
            "tokenizer.ggml.remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
        }
        if normalizer.precompiled_charsmap:
            self.metadata["tokenizer.ggml.precompiled_charsmap"] = list(normalizer.precompiled_charsmap)

    def by_transformers(self, architecture: str) -> Any:
        """The tokenizers object that transformers builds for a GGUF file of that architecture with this vocabulary."""
        mapping = importlib.import_module("transformers.integrations.gguf.gguf_tokenizer_mapping")
        fields = {k.removeprefix("tokenizer.ggml."): v for k, v in self.metadata.items()}
        return mapping.convert_gguf_tokenizer(architecture, fields | {"tokenizer_type": "llama"})[0]


@pytest.fixture(scope="session")
def llama_spm(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceKind:
    folder = tmp_path_factory.mktemp("spm")
    return SentencePieceKind(folder, "llama", user_defined_symbols=["<think>", "</think>"])


@pytest.fixture(scope="session")
def gemma_spm(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceKind:
    blanks = ["\u2581" * n for n in range(2, 9)] + ["\n\n", "\n\n\n"]
    return SentencePieceKind(
        tmp_path_factory.mktemp("spm"), "gemma", "gemma3",
        add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        control_symbols=["<start_of_turn>", "<end_of_turn>"], user_defined_symbols=blanks, vocab_size=1150,
    )  # fmt: skip
