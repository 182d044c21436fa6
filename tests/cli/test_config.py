"""Settings: argument before environment before default, each with its source; bad values refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from legato.config import SETTINGS, Config, ServeConfig, unknown_variables
from legato.errors import UsageError


def test_defaults_say_that_they_are_defaults() -> None:
    config = Config.resolve({}, {})
    assert config.model == "smollm2-135m" and config.backend == "auto" and config.page_size == 16
    assert set(config.sources.values()) == {"default"}


def test_an_argument_wins_over_the_environment_over_the_default() -> None:
    environ = {"LEGATO_THREADS": "3", "LEGATO_KV": "int4"}
    config = Config.resolve({"threads": 2, "kv": None}, environ)
    assert (config.threads, config.sources["threads"]) == (2, "argument")
    assert (config.kv, config.sources["kv"]) == ("int4", "LEGATO_KV")
    assert Config.resolve({}, {"LEGATO_THREADS": ""}).threads is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backend", "cuda"),
        ("threads", 0),
        ("threads", "two"),
        ("threads", True),
        ("isa", "sse9"),
        ("kv", "int3"),
        ("weights", "q2_k"),
        ("kv_memory", "lots"),
        ("kv_memory", "12K"),
        ("kv_memory", "nan"),
        ("kv_memory", "infG"),
        ("context", 1),
        ("page_size", 24),
        ("page_size", 512),
        ("max_seqs", -1),
        ("itl_slo_ms", 0),
        ("itl_slo_ms", "nan"),
        ("max_step_tokens", 0),
        ("naive", "perhaps"),
        ("color", "blue"),
        ("model", ""),
        ("cache_dir", ""),
    ],
)
def test_a_bad_value_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{name}="):
        Config.resolve({name: value}, {})
    if isinstance(value, str) and value:
        with pytest.raises(UsageError, match=f"^LEGATO_{name.upper()}="):
            Config.resolve({}, {f"LEGATO_{name.upper()}": value})


@pytest.mark.parametrize("name", ["model", "cache_dir", "session_dir"])
def test_a_path_with_a_nul_is_refused_where_it_enters(name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name}="):
        Config.resolve({name: "a\0b"}, {})


@pytest.mark.parametrize("given", [("",), ("a-good-key", " "), ("short",), ("k\u00e9y-of-many",), ",", " , "])
def test_a_key_that_is_none_is_refused_and_not_left_out(given: object) -> None:
    with pytest.raises(UsageError, match="api_keys is not allowed"):
        ServeConfig.resolve({"api_keys": given}, {})
    if isinstance(given, str):
        with pytest.raises(UsageError, match="LEGATO_API_KEYS is not allowed"):
            ServeConfig.resolve({}, {"LEGATO_API_KEYS": given})


def test_keys_in_the_environment_are_separated_by_commas() -> None:
    assert ServeConfig.resolve({}, {"LEGATO_API_KEYS": "first-key, 2nd-key2,"}).api_keys == ("first-key", "2nd-key2")
    assert ServeConfig.resolve({"api_keys": ()}, {"LEGATO_API_KEYS": ""}).api_keys == ()


def test_near_names_are_offered() -> None:
    with pytest.raises(UsageError, match="did you mean threads"):
        Config.resolve({"thread": 2}, {})
    with pytest.raises(UsageError, match="did you mean reference"):
        Config.resolve({"backend": "referense"}, {})


@pytest.mark.parametrize(
    ("text", "size"), [("1M", 2**20), ("1.5G", 3 * 2**29), ("2GiB", 2**31), ("1048576", 2**20), (2**20, 2**20)]
)
def test_sizes_have_units(text: object, size: int) -> None:
    assert Config.resolve({"kv_memory": text}, {}).kv_memory == size


def test_the_cache_folder_follows_the_desktop_convention() -> None:
    assert Config.resolve({}, {"XDG_CACHE_HOME": "/var/c"}).cache_dir == Path("/var/c/legato")
    assert Config.resolve({}, {"XDG_CACHE_HOME": "relative"}).cache_dir == Path.home() / ".cache/legato"
    assert Config.resolve({}, {"LEGATO_CACHE_DIR": "~/here"}).cache_dir == Path.home() / "here"


@pytest.mark.parametrize(
    ("environ", "color"),
    [
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, "never"),
        ({"FORCE_COLOR": "1"}, "always"),
        ({"NO_COLOR": ""}, "auto"),
        ({"TERM": "dumb"}, "never"),
        ({"NO_COLOR": "1", "LEGATO_COLOR": "always"}, "always"),
    ],
)
def test_colour_listens_to_what_terminals_agree_on(environ: dict[str, str], color: str) -> None:
    assert Config.resolve({}, environ).color == color


def test_misspelt_variables_are_found() -> None:
    names = {f"LEGATO_{name.upper()}" for name in SETTINGS}
    assert unknown_variables({"LEGATO_THREAD": "2", "HOME": "/", **dict.fromkeys(names, "x")}) == ["LEGATO_THREAD"]
