"""Token ids are Hugging Face's, for every kind of vocabulary and however awkward the text.

Oracles: tokenizers objects built here from published patterns, a merge loop in plain Python, transformers' own
readers of GGUF metadata and of folders, and sentencepiece itself.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import regex
from awkward import SPECIALS
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import NFC, PATTERNS, WHOLE_WORDS, ByteLevelKind, SentencePieceKind, gguf_mapping

from legato.errors import ModelFileError, UnsupportedModelError
from legato.text.gguf_vocab import PRE_TOKENIZERS
from legato.text.spelling import BYTE_OF_CHAR, CHAR_OF_BYTE
from legato.text.tokenizer import Tokenizer

ByteLevel = Callable[[str], ByteLevelKind]


def _gguf(metadata: dict[str, object], **changes: object) -> Tokenizer:
    changed = {f"tokenizer.ggml.{k}": v for k, v in changes.items()}
    return Tokenizer.from_gguf("model.gguf", {**metadata, **changed})


def _reference_ids(core: Any, text: str, parse_special: bool) -> list[int]:
    core.encode_special_tokens = not parse_special
    ids: list[int] = core.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("pre", PATTERNS)
def test_byte_level_ids_are_those_of_a_tokenizer_built_from_the_published_patterns(
    pre: str, byte_level: ByteLevel, awkward_strings: list[str]
) -> None:
    kind = byte_level(pre)
    tokenizer = _gguf(kind.metadata)
    for text in awkward_strings:
        for parse in (True, False):
            ids = tokenizer.encode(text, add_special=False, parse_special=parse)
            assert ids == _reference_ids(kind.core, text, parse), (text, parse)


def _merged(piece: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte pair encoding as it is defined: join the leftmost pair of the lowest rank until none is left."""
    symbols = [CHAR_OF_BYTE[b] for b in piece.encode()]
    while True:
        pairs = [(ranks[p], i) for i, p in enumerate(itertools.pairwise(symbols)) if p in ranks]
        if not pairs:
            return symbols
        _, at = min(pairs)
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_ids_are_those_of_a_merge_loop_in_plain_python(
    pre: str, byte_level: ByteLevel, awkward_strings: list[str]
) -> None:
    kind = byte_level(pre)
    tokenizer = _gguf(kind.metadata)
    ids = {token: i for i, token in enumerate(kind.tokens)}
    ranks = {pair: i for i, pair in enumerate(kind.merges)}
    whole = regex.compile("|".join(map(regex.escape, ["<think>", "</think>"])))
    for text in awkward_strings:
        if len(text) > 200:
            continue
        expected: list[int] = []
        for part in regex.split(f"({whole.pattern})", text):
            if whole.fullmatch(part):
                expected.append(ids[part])
                continue
            pieces = [importlib.import_module("unicodedata").normalize("NFC", part) if pre in NFC else part]
            for pattern in PATTERNS[pre]:
                pieces = [p for piece in pieces for p in regex.split(f"({pattern})", piece, flags=regex.V0) if p]
            for piece in pieces:
                spelled = "".join(CHAR_OF_BYTE[b] for b in piece.encode())
                known = pre in WHOLE_WORDS and spelled in ids
                expected += [ids[spelled]] if known else [ids[s] for s in _merged(piece, ranks)]
        assert tokenizer.encode(text, add_special=False) == expected, text


def test_every_pattern_that_transformers_knows_for_a_gguf_name_is_ours_too() -> None:
    theirs = gguf_mapping().GGUF_PRE_TOKENIZER_SPLITS
    shared = {name: pattern for name, pattern in theirs.items() if name in PRE_TOKENIZERS}
    assert len(shared) >= 20
    for name, pattern in shared.items():
        assert PRE_TOKENIZERS[name].patterns == (pattern,), name


def test_llama_style_sentencepiece_ids_are_those_of_transformers_and_of_sentencepiece(
    llama_spm: SentencePieceKind, awkward_strings: list[str]
) -> None:
    tokenizer = _gguf(llama_spm.metadata)
    # transformers' Phi-3 reader puts the space before the first word as SentencePiece and llama.cpp do for Llama
    core = llama_spm.by_transformers("phi3")
    for text in awkward_strings:
        assert tokenizer.encode(text, add_special=False, parse_special=True) == _reference_ids(core, text, True), text
        if "think>" not in text:  # transformers starts anew after a token that is matched whole, sentencepiece does not
            assert tokenizer.encode(text, add_special=False) == llama_spm.processor.encode(text), text


def test_gemma_style_sentencepiece_ids_are_those_of_transformers(
    gemma_spm: SentencePieceKind, awkward_strings: list[str]
) -> None:
    tokenizer = _gguf(gemma_spm.metadata)
    core = gemma_spm.by_transformers("gemma3")
    for text in awkward_strings:
        assert tokenizer.encode(text, add_special=False, parse_special=True) == _reference_ids(core, text, True), text
    turn = tokenizer.encode("<start_of_turn>", add_special=False, parse_special=True)
    assert len(turn) == 1 and tokenizer.encode("<start_of_turn>", parse_special=True) == [2, *turn]
    assert tokenizer.decode(tokenizer.encode("  two\n\n\n   x ")) == "  two\n\n\n   x "


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_that_trims_blanks_is_honoured(prefix: bool, awkward_strings: list[str]) -> None:
    kind = SentencePieceKind(remove_extra_whitespaces=True, add_dummy_prefix=prefix)
    tokenizer = _gguf(kind.metadata)
    for text in awkward_strings:
        if "\u2581" not in text:  # sentencepiece takes this very character for a blank when it trims
            assert tokenizer.encode(text, add_special=False) == kind.processor.encode(text), text


def test_sentencepiece_with_its_own_normal_form_is_refused(llama_spm: SentencePieceKind) -> None:
    with pytest.raises(UnsupportedModelError, match="precompiled_charsmap"):
        _gguf(llama_spm.metadata, precompiled_charsmap=[0, 180, 2, 0])


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe"])
def test_text_comes_back_from_its_ids_byte_for_byte(
    pre: str, byte_level: ByteLevel, awkward_strings: list[str]
) -> None:
    kind = byte_level(pre)
    tokenizer = _gguf(kind.metadata)
    kind.core.encode_special_tokens = True
    for text in awkward_strings:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text == kind.core.decode(ids)


def test_sentencepiece_text_comes_back_from_its_ids(llama_spm: SentencePieceKind, awkward_strings: list[str]) -> None:
    tokenizer = _gguf(llama_spm.metadata)
    core = llama_spm.by_transformers("phi3")
    for text in awkward_strings:
        ids = tokenizer.encode(text, parse_special=True)
        assert tokenizer.decode(ids) == core.decode(ids), text
        plain = tokenizer.encode(text, add_special=False)
        if "think>" not in text and "\u2581" not in text:
            assert tokenizer.decode(plain) == text
            assert tokenizer.decode(plain, continues=True) == (" " + text if text else "")


@settings(derandomize=True, deadline=None, max_examples=60)
@given(ids=st.lists(st.integers(-5, 1300), max_size=60), skip=st.booleans())
def test_any_ids_decode_to_their_bytes(byte_level: ByteLevel, ids: list[int], skip: bool) -> None:
    kind = byte_level("gpt-2")
    tokenizer = _gguf(kind.metadata)
    assert tokenizer.decode(ids, skip_special=skip) == tokenizer.join(ids, skip_special=skip).decode("utf-8", "replace")
    known = [i for i in ids if 0 <= i < len(kind.tokens)]
    assert tokenizer.decode(ids, skip_special=skip) == kind.core.decode(known, skip_special_tokens=skip)


def test_a_control_token_in_plain_text_stays_text(
    byte_level: ByteLevel, llama_spm: SentencePieceKind, gemma_spm: SentencePieceKind
) -> None:
    tokenizers = [_gguf(byte_level(pre).metadata) for pre in PATTERNS]
    tokenizers += [_gguf(llama_spm.metadata), _gguf(gemma_spm.metadata)]
    for tokenizer in tokenizers:
        control = [i for i in range(tokenizer.vocab_size) if tokenizer.is_special(i)]
        assert len(control) >= 3
        for i in control:
            text = f"x{tokenizer.token_text(i)}y"
            ids = tokenizer.encode(text, add_special=False)
            assert not set(ids) & set(control)
            assert tokenizer.decode(ids) == text
            assert i in tokenizer.encode(text, parse_special=True, add_special=False)


def test_a_control_token_that_merges_would_make_stays_text(tmp_path: Path) -> None:
    """In such a tokenizer.json the merges spell </s>; the tokenizers package alone makes the control token of text."""
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as Core

    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", "<", "/", "s", ">", "/s", "/s>", "\u2581", "x"])}
    merges = [("/", "s"), ("/s", ">"), ("<", "/s>")]
    core = Core(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Replace(" ", "\u2581")
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    core.save(str(tmp_path / "tokenizer.json"))
    assert 2 in _reference_ids(core, "x</s>x", False)
    tokenizer = Tokenizer.from_files({"tokenizer.json": tmp_path / "tokenizer.json"})
    ids = tokenizer.encode("x</s>x")
    assert ids == [10, 3, 4, 5, 6, 10]
    assert tokenizer.decode(ids) == "x</s>x"


def test_lone_surrogates_become_replacement_characters(byte_level: ByteLevel) -> None:
    tokenizer = _gguf(byte_level("qwen2").metadata)
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udfff")) == "a\ufffdb\ufffd"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "\U0001f600"


def test_start_and_end_tokens_are_added_once_and_only_when_asked(byte_level: ByteLevel, llama_spm: Any) -> None:
    smol = _gguf(byte_level("smollm").metadata)
    assert (smol.bos_id, smol.add_bos) == (1, False)
    assert smol.encode("hi") == smol.encode("hi", add_special=False)
    both = _gguf(byte_level("smollm").metadata, add_bos_token=True, add_eos_token=True)
    assert both.encode("hi") == [1, *smol.encode("hi"), 0]
    assert both.encode("") == [1, 0]
    llama3 = {k: v for k, v in byte_level("llama-bpe").metadata.items() if k != "tokenizer.ggml.add_bos_token"}
    assert _gguf(llama3).add_bos  # Llama 3 files may leave it out, and mean it
    assert _gguf(llama_spm.metadata).encode("hi")[0] == 1
    rendered = both.encode("<|im_start|>user\nhi<|im_end|>", add_special=False, parse_special=True)
    assert rendered[0] == 1 and rendered.count(1) == 1 and rendered[-1] == 2


def test_every_token_that_ends_a_turn_is_an_end(byte_level: ByteLevel, gemma_spm: SentencePieceKind) -> None:
    assert _gguf(byte_level("smollm").metadata, eos_token_id=2).eos_ids == (2, 3, 0)
    gemma = _gguf(gemma_spm.metadata)
    assert gemma.eos_ids == (1, gemma.encode("<end_of_turn>", add_special=False, parse_special=True)[0])
    assert gemma.special_tokens["eos_token"] == gemma.token_text(1)


def test_phi3_control_tokens_swallow_the_blanks_after_them(llama_spm: SentencePieceKind) -> None:
    phi = Tokenizer.from_gguf("phi.gguf", llama_spm.metadata | {"general.architecture": "phi3"})
    plain = _gguf(llama_spm.metadata)
    assert phi.encode("</s>\n hi", parse_special=True) == phi.encode("</s>hi", parse_special=True)
    assert plain.encode("</s>\n hi", parse_special=True) != plain.encode("</s>hi", parse_special=True)


def test_equal_tokens_decode_alike_and_text_becomes_the_first(byte_level: ByteLevel) -> None:
    kind = byte_level("gpt-2")
    tokens = [*kind.tokens, "hello", "hello"]
    tokenizer = _gguf(kind.metadata, tokens=tokens, token_type=[3] * 4 + [1] * (len(tokens) - 4))
    assert tokenizer.token_bytes(len(tokens) - 1) == tokenizer.token_bytes(len(tokens) - 2) == b"hello"
    assert tokenizer.vocab_size == len(tokens)


def test_token_bytes_are_exact(byte_level: ByteLevel, llama_spm: SentencePieceKind) -> None:
    kind = byte_level("gpt-2")
    tokenizer = _gguf(kind.metadata)
    for i, token in enumerate(kind.tokens):
        expected = token.encode() if token in SPECIALS else bytes(BYTE_OF_CHAR[c] for c in token)
        assert tokenizer.token_bytes(i) == expected
    assert tokenizer.token_bytes(-1) == tokenizer.token_bytes(10**9) == b""
    spm = _gguf(llama_spm.metadata)
    names = {piece: i for i, piece in enumerate(llama_spm.pieces)}
    assert spm.token_bytes(names["<0xE2>"]) == b"\xe2"
    assert spm.token_text(names["<0xE2>"]) == "\ufffd"


# -- what a damaged or foreign file gets ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("model", "bert", UnsupportedModelError),
        ("model", None, ModelFileError),
        ("model", 7, ModelFileError),
        ("pre", "martian", UnsupportedModelError),
        ("pre", None, UnsupportedModelError),
        ("tokens", None, ModelFileError),
        ("tokens", [], ModelFileError),
        ("tokens", "abc", ModelFileError),
        ("tokens", [1, 2], ModelFileError),
        ("tokens", 5, ModelFileError),
        ("token_type", [1], ModelFileError),
        ("token_type", ["x"] * 906, ModelFileError),
        ("merges", None, ModelFileError),
        ("merges", ["a"], ModelFileError),
        ("merges", ["nosuch token"], ModelFileError),
        ("merges", [b"a b"], ModelFileError),
        ("bos_token_id", 10**6, ModelFileError),
        ("bos_token_id", -1, ModelFileError),
        ("eos_token_id", "2", ModelFileError),
        ("add_bos_token", "yes", ModelFileError),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(key: str, value: object, error: type, byte_level: ByteLevel) -> None:
    with pytest.raises(error) as caught:
        _gguf(byte_level("gpt-2").metadata, **{key: value})
    assert f"tokenizer.ggml.{key}" in str(caught.value) and "model.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sentencepiece_vocabulary_needs_scores(llama_spm: SentencePieceKind) -> None:
    for wrong in (None, [0.0], ["x"] * len(llama_spm.pieces)):
        with pytest.raises(ModelFileError, match=r"tokenizer\.ggml\.scores"):
            _gguf(llama_spm.metadata, scores=wrong)


# -- Hugging Face folders ---------------------------------------------------------------------------------------------


def _folder(path: Path) -> dict[str, Path]:
    return {p.name: p for p in path.iterdir()}


def _auto(path: Path) -> Any:
    return importlib.import_module("transformers").AutoTokenizer.from_pretrained(str(path))


def _save(kind: ByteLevelKind, path: Path, surround: str = "$A", **config: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    special = [(t, i) for i, t in enumerate(SPECIALS) if t in surround]
    kind.core.encode_special_tokens = False
    kind.core.post_processor = TemplateProcessing(single=surround, special_tokens=special)
    kind.core.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", **config}
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def _assert_as_transformers(tokenizer: Tokenizer, auto: Any, strings: list[str]) -> None:
    assert tokenizer.vocab_size == len(auto)
    for text in strings:
        ids = auto.encode(text)
        assert tokenizer.encode(text, parse_special=True) == ids, text
        bare = auto.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, parse_special=True, add_special=False) == bare, text
        assert tokenizer.encode(text) == auto.encode(text, split_special_tokens=True), text
        for skip in (True, False):
            theirs = auto.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert tokenizer.decode(ids, skip_special=skip) == theirs, text


@pytest.mark.parametrize(
    ("pre", "config"),
    [
        ("gpt-2", {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}),
        ("smollm", {"bos_token": "<|im_start|>", "unk_token": "<|endoftext|>", "pad_token": "<|im_end|>"}),
        ("qwen2", {"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|endoftext|>", "bos_token": None}),
        ("llama-bpe", {"bos_token": "<|im_start|>", "surround": "<|im_start|> $A", "add_bos_token": False}),
        (
            "deepseek-v3",
            {
                "bos_token": {"__type": "AddedToken", "content": "<|im_start|>"},
                "surround": "<|im_start|> $A <|im_end|>",
            },
        ),
        ("tekken", {"bos_token": "<new>", "added_tokens_decoder": {"950": {"content": "<tool>", "special": False}}}),
    ],
)
def test_a_folder_with_byte_level_vocabulary_gives_the_ids_of_auto_tokenizer(
    pre: str, config: dict[str, Any], byte_level: ByteLevel, tmp_path: Path, awkward_strings: list[str]
) -> None:
    _save(byte_level(pre), tmp_path, **config)
    auto = _auto(tmp_path)
    tokenizer = Tokenizer.from_files(_folder(tmp_path))
    _assert_as_transformers(tokenizer, auto, awkward_strings)
    assert tokenizer.bos_id == auto.bos_token_id
    assert tokenizer.eos_ids[0] == auto.eos_token_id


@pytest.mark.parametrize("family", ["LlamaTokenizer", "GemmaTokenizer", "Phi3"])
def test_a_folder_with_sentencepiece_vocabulary_gives_the_ids_of_auto_tokenizer(
    family: str, llama_spm: Any, gemma_spm: Any, tmp_path: Path, awkward_strings: list[str]
) -> None:
    transformers = importlib.import_module("transformers")
    kind = gemma_spm if family == "GemmaTokenizer" else llama_spm
    core = kind.by_transformers({"LlamaTokenizer": "llama", "GemmaTokenizer": "gemma3", "Phi3": "phi3"}[family])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=core, add_bos_token=True, **names)
    wrapped.save_pretrained(str(tmp_path))
    tokenizer = Tokenizer.from_files(_folder(tmp_path))
    _assert_as_transformers(tokenizer, _auto(tmp_path), awkward_strings)
    assert tokenizer.add_bos and tokenizer.strip == (family != "GemmaTokenizer")


def test_truncation_and_padding_of_a_file_are_not_applied(byte_level: ByteLevel, tmp_path: Path) -> None:
    kind = byte_level("gpt-2")
    kind.core.enable_truncation(4)
    kind.core.enable_padding(length=64)
    _save(kind, tmp_path)
    kind.core.no_truncation()
    kind.core.no_padding()
    ids = Tokenizer.from_files(_folder(tmp_path)).encode("one two three four five six seven")
    assert ids == _reference_ids(kind.core, "one two three four five six seven", False) and len(ids) > 6


def test_ends_come_from_every_file(byte_level: ByteLevel, tmp_path: Path) -> None:
    _save(byte_level("smollm"), tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    assert Tokenizer.from_files(_folder(tmp_path)).eos_ids == (5, 2, 3, 0)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert Tokenizer.from_files(_folder(tmp_path)).eos_ids == (7, 2, 3, 0)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(ModelFileError, match="eos_token_id"):
        Tokenizer.from_files(_folder(tmp_path))


def test_the_chat_template_is_found_wherever_it_is(byte_level: ByteLevel, tmp_path: Path) -> None:
    kind = byte_level("smollm")
    _save(kind, tmp_path)
    assert Tokenizer.from_files(_folder(tmp_path)).chat_template is None
    _save(kind, tmp_path, chat_template="A")
    assert Tokenizer.from_files(_folder(tmp_path)).chat_template == "A"
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    _save(kind, tmp_path, chat_template=named)
    assert Tokenizer.from_files(_folder(tmp_path)).chat_template == "D"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "J"}')
    assert Tokenizer.from_files(_folder(tmp_path)).chat_template == "J"
    (tmp_path / "chat_template.jinja").write_text("{{ 'ü' }}\n", encoding="utf-8")
    assert Tokenizer.from_files(_folder(tmp_path)).chat_template == "{{ 'ü' }}\n"


_DAMAGE: dict[str, Callable[[Path], object]] = {
    "no such file": lambda p: p.unlink(),
    "empty": lambda p: p.write_bytes(b""),
    "cut in half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "not JSON": lambda p: p.write_bytes(b"\xff\xfe{"),
    "a list": lambda p: p.write_text("[]"),
    "too deep": lambda p: p.write_text("[" * 100_000),
    "a null model": lambda p: p.write_text('{"version": "1.0", "model": null}'),
    "an unknown model": lambda p: p.write_text('{"version": "1.0", "model": {"type": "Oracle"}}'),
    "no decoder": lambda p: p.write_text(json.dumps(json.loads(p.read_text()) | {"decoder": None})),
    "another decoder": lambda p: p.write_text(
        json.dumps(json.loads(p.read_text()) | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}})
    ),
    "a merge of nothing": lambda p: p.write_text(p.read_text().replace('"merges":[', '"merges":[["zz","yy"],', 1)),
    "a token of a huge id": lambda p: p.write_text(p.read_text().replace('"vocab":{', '"vocab":{"zz":4294967295,', 1)),
    "an added token of a huge id": lambda p: p.write_text(p.read_text().replace('"id":0', '"id": 4000000000', 1)),
    "a precompiled normalizer": lambda p: p.write_text(
        json.dumps(
            json.loads(p.read_text()) | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}}
        )
    ),
    "the same in escapes": lambda p: p.write_text(
        json.dumps(
            json.loads(p.read_text()) | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}}
        ).replace("Precom", "\\u0050recom")
    ),
    "a bad pattern": lambda p: p.write_text(p.read_text().replace("\\\\p{N}", "(((", 1)),
}


@pytest.mark.parametrize("damage", _DAMAGE)
def test_a_damaged_tokenizer_json_gives_one_error_naming_it(damage: str, byte_level: ByteLevel, tmp_path: Path) -> None:
    _save(byte_level("smollm"), tmp_path)
    files = _folder(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(text), separators=(",", ":")))
    _DAMAGE[damage](tmp_path / "tokenizer.json")
    with pytest.raises(ModelFileError) as caught:
        Tokenizer.from_files(files)
    assert "tokenizer.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", ["", "[", "[1]", "{" * 5000, '{"a": \udcff}'])
def test_a_damaged_side_file_gives_one_error_naming_it(
    name: str, content: str, byte_level: ByteLevel, tmp_path: Path
) -> None:
    _save(byte_level("smollm"), tmp_path)
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelFileError, match=name):
        Tokenizer.from_files(_folder(tmp_path))


def test_a_folder_without_tokenizer_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        Tokenizer.from_files({"config.json": tmp_path / "config.json"})
