"""Builds a vocabulary from the files of a Hugging Face folder.

Knows: tokenizer.json, tokenizer_config.json, special_tokens_map.json, generation_config.json, chat_template.*.
Does not know: how a folder is found or fetched, weights, encoding. Nothing in a folder is ever run.

Source: the files that the tokenizers and transformers packages write, and how transformers reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legato.errors import ModelFileError, UnsupportedModelError
from legato.text.spelling import spelling_of_decoder, state_of
from legato.text.vocabulary import TURN_ENDS, Vocabulary, blamed_on

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Core

MAX_TOKENIZER_BYTES = 256 << 20
MAX_JSON_BYTES = 32 << 20
MAX_TEMPLATE_BYTES = 4 << 20
MAX_IDS = 1 << 22

# Large numbers, a normalizer that is not run, and letters written as escapes, which only hides something: a file that
# holds one of these is read as JSON first. Others are not: that would cost more than all the rest of loading.
_SUSPECT = re.compile(rb':\s*[0-9]{7,}|"Precompiled"|\\u00[2-7]')
_SIZES = frozenset({"max_length", "stride", "Fixed", "pad_to_multiple_of"})  # numbers that are no ids
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def load(files: Mapping[str, Path]) -> Vocabulary:
    """The vocabulary of a folder given as name -> path. Raises `ModelFileError` naming the file at fault."""
    path = files.get("tokenizer.json")
    if path is None:
        where = next(iter(files.values())).parent if files else Path()
        raise ModelFileError(where, "tokenizer.json", "is missing from the model's folder")
    config = _json_object(files, "tokenizer_config.json")
    named = _named_tokens(files, config)
    core = _core(path)
    with blamed_on(files.get("tokenizer_config.json", path), "special tokens"):
        _add_configured_tokens(core, config, named)
    spelling = spelling_of_decoder(path, state_of(path, core.decoder))
    added = core.get_added_tokens_decoder()
    special = frozenset(i for i, token in added.items() if token.special)
    literal = added if spelling.byte_level else special  # an added token is its own text, whatever its letters
    ids = {name: i for name, text in named.items() if (i := core.token_to_id(text)) is not None}
    prefix, suffix = _surroundings(path, core)
    return Vocabulary(
        origin=path,
        core=core,
        spelling=spelling,
        size=max([core.get_vocab_size(with_added_tokens=True), *(i + 1 for i in added)]),
        special_ids=special,
        literals={i: added[i].content.encode("utf-8", "replace") for i in literal},
        bos_id=ids.get("bos_token"),
        eos_ids=_eos_ids(files, core, special, ids.get("eos_token")),
        prefix=prefix,
        suffix=suffix,
        chat_template=_chat_template(files, config),
        special_tokens=named,
    )


def _core(path: Path) -> Core:
    from tokenizers import Tokenizer

    size = _size(path)
    if size > MAX_TOKENIZER_BYTES:
        raise ModelFileError(path, "size", f"is {size} bytes; at most {MAX_TOKENIZER_BYTES} are read")
    with blamed_on(path, "tokenizer.json"):
        data = path.read_bytes()
        if _SUSPECT.search(data):
            json.loads(data, object_pairs_hook=lambda pairs: _check_object(path, pairs))
        core = Tokenizer.from_buffer(data)
        core.no_truncation()
        core.no_padding()
        return core


def _check_object(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses what makes the `tokenizers` package ask for memory without bound, and end the process when it gets none.

    It makes a table as long as the largest id, and believes the length inside a precompiled normalizer.
    """
    for key, value in pairs:
        if type(value) is int and value >= MAX_IDS and key not in _SIZES:
            raise ModelFileError(
                path, f"tokenizer.json: {key[:40]!r}", f"has the id {value}; at most {MAX_IDS} are read"
            )
        if key == "type" and value == "Precompiled":
            raise UnsupportedModelError(path, "normalizer", "Precompiled is not run")
    return dict(pairs)


def _named_tokens(files: Mapping[str, Path], config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and its kind -> text, from tokenizer_config.json or else special_tokens_map.json."""
    fallback = _json_object(files, "special_tokens_map.json")
    named: dict[str, str] = {}
    for name in _NAMED:
        value = config.get(name) if config.get(name) is not None else fallback.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str) and value:
            named[name] = value
    return named


def _add_configured_tokens(core: Core, config: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """Adds what the config names and tokenizer.json lacks, as transformers does; named tokens become special."""
    from tokenizers import AddedToken

    present = {token.content: token for token in core.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    missing: list[AddedToken] = []
    for _, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        if entry["content"] not in present:
            flags = {k: bool(entry.get(k, False)) for k in ("lstrip", "rstrip", "single_word", "normalized", "special")}
            missing.append(AddedToken(entry["content"], **flags))
    if missing:
        core.add_tokens(missing)
    plain = [t for t in dict.fromkeys(named.values()) if t not in present or not present[t].special]
    if plain:
        core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in plain])


def _surroundings(path: Path, core: Core) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the file's post-processor puts before and after a text.

    tokenizer_config.json may say add_bos_token too; where there is a tokenizer.json, transformers does not listen.
    """
    with blamed_on(path, "post_processor"):
        bare = core.encode("a", add_special_tokens=False).ids
        full = core.encode("a", add_special_tokens=True).ids
    extra = len(full) - len(bare)
    start = next((s for s in range(extra + 1) if full[s : s + len(bare)] == bare), 0)
    return tuple(full[:start]), tuple(full[start + len(bare) :])


def _eos_ids(files: Mapping[str, Path], core: Core, special: frozenset[int], eos: int | None) -> tuple[int, ...]:
    """generation_config.json's ids first (they are the model's own word), then the tokenizer's, then known names."""
    wanted = _json_object(files, "generation_config.json").get("eos_token_id")
    ends = wanted if isinstance(wanted, list) else [wanted]
    if any(type(i) is not int or i < 0 for i in ends if i is not None):
        raise ModelFileError(files["generation_config.json"], "eos_token_id", f"is {wanted!r}, not token ids")
    ends = [*ends, eos, *(i for name in TURN_ENDS if (i := core.token_to_id(name)) in special)]
    return tuple(dict.fromkeys(i for i in ends if i is not None))


def _chat_template(files: Mapping[str, Path], config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else chat_template.json, else the config's: a string, or the one named "default"."""
    if (path := files.get("chat_template.jinja")) is not None:
        return _text(path, MAX_TEMPLATE_BYTES)
    where = files.get("chat_template.json")
    found = _json_object(files, "chat_template.json").get("chat_template") if where else config.get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        origin = where or files["tokenizer_config.json"]
        raise ModelFileError(origin, "chat_template", f"is a {type(found).__name__}, not a string")
    return found


def _json_object(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    """The object in file `name`, {} where the folder has none."""
    path = files.get(name)
    if path is None:
        return {}
    try:
        value = json.loads(_text(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as e:
        raise ModelFileError(path, name, f"is not valid JSON: {str(e)[:120]}") from None
    if not isinstance(value, dict):
        raise ModelFileError(path, name, f"holds a {type(value).__name__}, not an object")
    return value


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as e:
        raise ModelFileError(path, path.name, f"cannot be read: {e.strerror}") from None


def _text(path: Path, limit: int) -> str:
    size = _size(path)
    if size > limit:
        raise ModelFileError(path, path.name, f"is {size} bytes; at most {limit} are read")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise ModelFileError(path, path.name, f"cannot be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise ModelFileError(path, path.name, f"is not UTF-8 at byte {e.start}") from None
