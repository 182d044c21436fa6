"""Builds a vocabulary from a GGUF file's metadata: byte-level BPE ("gpt2") and SentencePiece BPE ("llama").

Knows: the tokenizer.ggml.* keys and how each pre-tokenizer's name cuts text.
Does not know: how the file is read (its metadata arrives as a mapping), encoding, chat templates' meaning.

Sources: the GGUF specification's tokenizer section; the table of pre-tokenizer names of llama.cpp
(src/llama-vocab.cpp) and the tokenizer.json files that its patterns were taken from.
"""

from __future__ import annotations

import numbers
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legato.errors import ModelFileError, UnsupportedModelError
from legato.text.spelling import BLANK, Spelling
from legato.text.vocabulary import TURN_ENDS, Vocabulary, blamed_on

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Core

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # tokenizer.ggml.token_type; 5 is "unused"

_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(suffix: str) -> str:
    """A word of capitals then small letters, or of capitals alone, each with one odd character before it."""
    return rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{suffix}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{suffix}"


def _word(digits: str) -> str:
    return _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text is cut before merging: patterns in turn, each match a piece; then perhaps GPT-2's own pattern.

    digits         every digit alone, first of all
    ignore_merges  a piece that is a whole token is that token, whatever the merges say
    add_bos        what tokenizer.ggml.add_bos_token is taken for when the file does not say
    nfc            text is brought to normal form C first
    """

    patterns: tuple[str, ...] = ()
    gpt2: bool = False
    digits: bool = False
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False


_GPT2 = PreTokenizer(gpt2=True)
_DIGITS = PreTokenizer(gpt2=True, digits=True)
_LLAMA3 = PreTokenizer((_word(r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True)
_THREES = PreTokenizer((_word(r"\p{N}{1,3}"),))
_QWEN2 = PreTokenizer((_word(r"\p{N}"),), nfc=True)
_QWEN_DISTILLED = PreTokenizer((_word(r"\p{N}"),))
_QWEN35 = PreTokenizer(
    (_CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _TAIL,), nfc=True
)
_TEKKEN = PreTokenizer((_cased("") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _TAIL,), ignore_merges=True, add_bos=True)
_GPT4O = PreTokenizer((_cased(_CONTRACTION + "?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _TAIL,))
_DEEPSEEK_CODER = PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+"), digits=True)
_DEEPSEEK3 = PreTokenizer(
    (
        r"\p{N}{1,3}",
        "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*" + _TAIL,
    )
)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    **dict.fromkeys(("gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "exaone4", "mpt", "olmo", "jais"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITS),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        _LLAMA3,
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _THREES),
    **dict.fromkeys(("qwen2", "stablelm2", "hunyuan", "megrez", "kormo", "f2llmv2"), _QWEN2),
    "deepseek-r1-qwen": _QWEN_DISTILLED,
    "qwen35": _QWEN35,
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O),
    "deepseek-coder": _DEEPSEEK_CODER,
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), _DEEPSEEK3),
    "command-r": PreTokenizer(gpt2=True, digits=True, nfc=True),
}

# Their scores do not follow the order of their merges; the order of the tokens does.
_MERGED_IN_TOKEN_ORDER = frozenset({"gemma", "gemma2", "gemma3", "gemma3n", "gemma3_text"})
# Phi-3's control tokens swallow the blanks after them, save these three; a GGUF file does not say so.
_PHI3_KEEPS_BLANKS = frozenset({"<unk>", "<s>", "<|endoftext|>"})


@dataclass(frozen=True, slots=True)
class _Fields:
    """The metadata, each value checked for its type as it is taken."""

    path: Path
    metadata: Mapping[str, object]

    def wrong(self, key: str, problem: str) -> ModelFileError:
        return ModelFileError(self.path, key, problem)

    def text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, f"is a {type(value).__name__}, not a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(key, default)
        if not isinstance(value, numbers.Integral) and type(value).__name__ != "bool":
            raise self.wrong(key, f"is a {type(value).__name__}, not true or false")
        return bool(value)

    def token_id(self, name: str, size: int, default: int | None = None) -> int | None:
        key = f"tokenizer.ggml.{name}"
        value = self.metadata.get(key)
        if value is None:
            return default if default is not None and default < size else None
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not 0 <= int(value) < size:
            raise self.wrong(key, f"is {value!r}, outside the vocabulary of {size} tokens")
        return int(value)

    def array(self, name: str, kind: type, length: int | None = None) -> list[Any] | None:
        """The array as a list of `kind` (str, numbers.Integral, numbers.Real), or None where the file has none."""
        key = f"tokenizer.ggml.{name}"
        value = self.metadata.get(key)
        if value is None:
            return None
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise self.wrong(key, f"is a {type(value).__name__}, not an array")
        items = list(value)
        if odd := [t.__name__ for t in set(map(type, items)) if not issubclass(t, kind)]:
            raise self.wrong(key, f"holds a {sorted(odd)[0]} where each entry should be a {kind.__name__}")
        if length is not None and len(items) != length:
            raise self.wrong(key, f"has {len(items)} entries for {length} tokens")
        return items


def load(path: Path, metadata: Mapping[str, object]) -> Vocabulary:
    """The vocabulary that `metadata` describes. Raises `ModelFileError` / `UnsupportedModelError` naming the key."""
    fields = _Fields(path, metadata)
    model = fields.text("tokenizer.ggml.model")
    if model is None:
        raise fields.wrong("tokenizer.ggml.model", "is missing: the file carries no tokenizer")
    if model not in ("gpt2", "llama"):
        raise UnsupportedModelError(path, "tokenizer.ggml.model", f"{model!r} is not run; gpt2 and llama are")
    tokens = fields.array("tokens", str)
    if not tokens:
        raise fields.wrong("tokenizer.ggml.tokens", "is missing or empty")
    types = fields.array("token_type", numbers.Integral, len(tokens)) or [NORMAL] * len(tokens)
    with blamed_on(path, "tokenizer.ggml"):
        if model == "gpt2":
            return _byte_level(fields, tokens, types)
        return _sentencepiece(fields, tokens, types)


def _byte_level(fields: _Fields, tokens: list[str], types: list[int]) -> Vocabulary:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    name = fields.text("tokenizer.ggml.pre")
    rule = PRE_TOKENIZERS.get(name or "")
    if rule is None:
        problem = "is missing" if name is None else f"{name!r} is not known"
        raise UnsupportedModelError(fields.path, "tokenizer.ggml.pre", f"{problem}; known: {', '.join(PRE_TOKENIZERS)}")
    lines = fields.array("merges", str)
    if lines is None:
        raise fields.wrong("tokenizer.ggml.merges", "is missing")
    vocab = _ids(tokens)
    with blamed_on(fields.path, "tokenizer.ggml.merges"):
        merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
        core = Tokenizer(models.BPE(vocab, merges, ignore_merges=rule.ignore_merges))
    if rule.nfc:
        core.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if rule.digits and rule.gpt2 else []
    steps += [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    if rule.digits and not rule.gpt2:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.gpt2))
    core.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return _finish(fields, core, Spelling(byte_level=True), tokens, types, vocab, rule.add_bos, (None, None, None))


def _sentencepiece(fields: _Fields, tokens: list[str], types: list[int]) -> Vocabulary:
    from tokenizers import Regex, Tokenizer, models, normalizers

    if fields.array("precompiled_charsmap", numbers.Integral):
        key = "tokenizer.ggml.precompiled_charsmap"
        raise UnsupportedModelError(
            fields.path, key, "is not run: this vocabulary normalises text by a table of its own"
        )
    in_order = fields.text("general.architecture") in _MERGED_IN_TOKEN_ORDER
    if in_order:  # runs of blanks are stored as blanks there, and merged like any other token
        tokens = [BLANK * len(t) if " " in t and not t.strip(" ") else t for t in tokens]
    vocab = _ids(tokens)
    unmade = {tokens[i] for i, t in enumerate(types) if t in (UNKNOWN, CONTROL, BYTE)}
    lines = fields.array("merges", str)
    with blamed_on(fields.path, "tokenizer.ggml.merges"):
        if lines is not None:
            merges = [
                (left, right) for left, right in (line.split(" ") for line in lines) if left + right not in unmade
            ]
        elif in_order:
            merges = _merges_by_score(tokens, range(0, -len(tokens), -1), vocab, unmade)
        else:
            scores = fields.array("scores", numbers.Real, len(tokens))
            if scores is None:
                raise fields.wrong("tokenizer.ggml.scores", "is missing")
            merges = _merges_by_score(tokens, scores, vocab, unmade)
        unk = fields.token_id("unknown_token_id", len(tokens), 0)
        fallback = BYTE in types
        unknown = None if unk is None else tokens[unk]
        core = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback))
    prefix_space = fields.flag("tokenizer.ggml.add_space_prefix", True)
    steps: list[Any] = []
    if fields.flag("tokenizer.ggml.remove_extra_whitespaces", False):
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if prefix_space:
        steps.append(normalizers.Prepend(BLANK))
    steps.append(normalizers.Replace(" ", BLANK))
    core.normalizer = normalizers.Sequence(steps)
    spelling = Spelling(blank=BLANK, byte_fallback=fallback, strip=int(prefix_space))
    return _finish(fields, core, spelling, tokens, types, vocab, True, (1, 2, 0))


def _ids(tokens: list[str]) -> dict[str, int]:
    """token -> id; of two equal tokens the first is the one that text becomes."""
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        vocab = {token: i for i, token in reversed(list(enumerate(tokens)))}
    return vocab


def _merges_by_score(
    tokens: list[str], scores: Any, vocab: Mapping[str, int], unmade: Collection[str]
) -> list[tuple[str, str]]:
    """Every way to make a token of two others, best token first; of one token's ways, the longest left part first.

    Equal scores are settled as Hugging Face's conversion does, by the lengths of the parts. Control and byte tokens
    are never made by merging: their text in a prompt is only text.
    """
    merges: list[tuple[str, str]] = []
    ranked = sorted(range(len(tokens)), key=scores.__getitem__, reverse=True)
    for _, group in groupby(ranked, key=scores.__getitem__):
        ways: list[tuple[str, str]] = []
        made = 0
        for i in group:
            token = tokens[i]
            if len(token) < 2 or token in unmade:
                continue
            made += 1
            for cut in range(len(token) - 1, 0, -1):
                left = token[:cut]
                if left in vocab and (right := token[cut:]) in vocab:
                    ways.append((left, right))
        if made > 1:
            ways.sort(key=lambda way: (len(way[0]), len(way[1])), reverse=True)
        merges += ways
    return merges


def _finish(
    fields: _Fields,
    core: Core,
    spelling: Spelling,
    tokens: list[str],
    types: list[int],
    vocab: dict[str, int],
    add_bos: bool,
    defaults: tuple[int | None, int | None, int | None],
) -> Vocabulary:
    """Adds the tokens that are matched whole, and reads the ids and the template."""
    from tokenizers import AddedToken

    size = len(tokens)
    special = frozenset(i for i, t in enumerate(types) if t in (CONTROL, UNKNOWN))
    swallows = fields.text("general.architecture") == "phi3" and not spelling.byte_level
    core.add_special_tokens(
        [
            AddedToken(
                tokens[i], normalized=False, special=True, rstrip=swallows and tokens[i] not in _PHI3_KEEPS_BLANKS
            )
            for i in sorted(special)
        ]
    )
    whole = [i for i, t in enumerate(types) if t == USER_DEFINED and tokens[i].strip(BLANK)]
    core.add_tokens([AddedToken(tokens[i], normalized=False, special=False) for i in whole])
    literal = special.union(whole) if spelling.byte_level else special
    literals = {i: tokens[i].encode("utf-8", "replace") for i in literal}
    if len(vocab) != size:
        literals |= {i: spelling.bytes_of(t) for i, t in enumerate(tokens) if vocab[t] != i and i not in literals}
    bos, eos = (fields.token_id(f"{n}_token_id", size, d) for n, d in zip(("bos", "eos"), defaults, strict=False))
    ends = [eos, fields.token_id("eot_token_id", size), fields.token_id("eom_token_id", size)]
    ends += [i for name in TURN_ENDS if (i := vocab.get(name)) in special]
    names = {
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": fields.token_id("unknown_token_id", size, defaults[2]),
        "pad_token": fields.token_id("padding_token_id", size),
    }
    with_bos = bos is not None and fields.flag("tokenizer.ggml.add_bos_token", add_bos)
    with_eos = eos is not None and fields.flag("tokenizer.ggml.add_eos_token", False)
    return Vocabulary(
        origin=fields.path,
        core=core,
        spelling=spelling,
        size=size,
        special_ids=special,
        literals=literals,
        bos_id=bos,
        eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        prefix=(bos,) if with_bos and bos is not None else (),
        suffix=(eos,) if with_eos and eos is not None else (),
        chat_template=fields.text("tokenizer.chat_template"),
        special_tokens={name: tokens[i] for name, i in names.items() if i is not None},
    )
