"""Every setting, its default, and where its value came from.

Knows: names, types and ranges of settings; LEGATO_* variables and the few others that terminals agree on.
Does not know: what a setting does. Nobody else reads the environment.

A value is taken from the argument, else from LEGATO_<NAME>, else from the default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from legato.errors import UsageError

PREFIX = "LEGATO_"
DEFAULT_MODEL = "smollm2-135m"
BACKENDS = ("auto", "native", "reference")
ISAS = ("auto", "portable", "avx2", "avx512", "amx")
WEIGHTS = ("auto", "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1")
KV_FORMATS = ("auto", "f32", "bf16", "int8", "int4")
COLORS = ("auto", "always", "never")
TILE = 256  # a page must divide the attention tile
BLAS_WAIT = 20  # its threads look for work for 2^20 cycles, some 0.4 ms, where they would for 2^26
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class _Refused(ValueError):
    """What a value may be; `Config.resolve` adds the name and where the value came from."""


def _text(value: object) -> str:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value) or "\0" in str(value):
        raise _Refused("a name or a path that is not empty")
    return str(os.fspath(value))


def _path(value: object) -> Path:
    return Path(_text(value)).expanduser()


def _one_of(*allowed: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        text = str(value).lower()
        if text not in allowed:
            near = get_close_matches(text, allowed, 1)
            raise _Refused(f"one of {', '.join(allowed)}" + (f"; did you mean {near[0]}?" if near else ""))
        return text

    return parse


def _whole(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        try:
            number = int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            raise _Refused(f"a whole number from {low} to {high}")
        return number

    return parse


def _size(value: object) -> int:
    """Bytes: 268435456, "256M", "1.5G"."""
    text = str(value).strip().upper().removesuffix("IB").removesuffix("B")
    unit = text[-1:] if text[-1:] in _UNITS else ""
    try:
        size = int(float(text.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError):
        size = 0
    if size < 2**20:
        raise _Refused("a size from 1M, such as 256M or 2G")
    return size


def _page(value: object) -> int:
    size = _whole(16, TILE)(value)
    if TILE % size:
        raise _Refused("16, 32, 64, 128 or 256")
    return size


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise _Refused("true or false")


def _seconds(value: object) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) else -1.0
    except ValueError:
        number = -1.0
    if not 0 <= number <= 86_400:
        raise _Refused("a number of seconds from 0 to 86400")
    return number


def _milliseconds(value: object) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else -1.0
    except ValueError:
        number = -1.0
    if not 1 <= number <= 600_000:
        raise _Refused("milliseconds from 1 to 600000")
    return number


def _positive(most: float, what: str) -> Callable[[object], float]:
    def parse(value: object) -> float:
        try:
            number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else -1.0
        except ValueError:
            number = -1.0
        if not 0 < number <= most:
            raise _Refused(f"{what} above 0, up to {most:g}")
        return number

    return parse


def _keys(value: object) -> tuple[str, ...]:
    """Several keys, or one text of them separated by commas."""
    if isinstance(value, str):
        keys = tuple(key for part in value.split(",") if (key := part.strip())) or ("",)
    else:
        keys = tuple(str(key).strip() for key in value) if isinstance(value, (tuple, list)) else ("",)
    # One that is empty is a variable that was not set: without this the server would let everybody in.
    if not all(8 <= len(key) <= 256 and key.isascii() and key.isprintable() for key in keys):
        raise _Refused("keys of 8 to 256 printable ASCII characters")
    return keys


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: how its text is read, and a line of help. None as default means: chosen at load."""

    parse: Callable[[object], Any]
    default: Any
    help: str


def _cache_home(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "legato"


def _session_home(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_DATA_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.local/share").expanduser()) / "legato" / "sessions"


def config_home(environ: Mapping[str, str] | None = None) -> Path:
    """Where programs that follow the XDG base directories keep their settings."""
    base = (os.environ if environ is None else environ).get("XDG_CONFIG_HOME", "")
    return Path(base) if os.path.isabs(base) else Path("~/.config").expanduser()


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


SETTINGS: dict[str, Setting] = {
    "model": Setting(_text, DEFAULT_MODEL, "built-in name, .gguf file, folder, or hf:ORG/NAME"),
    "backend": Setting(_one_of(*BACKENDS), "auto", "auto, native or reference"),
    "threads": Setting(_whole(1, 1024), None, "worker threads (default: the cores this process may use)"),
    "isa": Setting(_one_of(*ISAS), "auto", "instruction set of the native backend; lower ones can be forced"),
    "weights": Setting(
        _one_of(*WEIGHTS), "auto", f"what float weights become while loading: {_listed(WEIGHTS)} (auto: as they are)"
    ),
    "kv": Setting(
        _one_of(*KV_FORMATS),
        "auto",
        f"how keys and values are kept: {_listed(KV_FORMATS)} (auto: int8; the reference backend has f32 only)",
    ),
    "kv_memory": Setting(_size, None, "memory for keys and values, such as 512M (default: from what is free)"),
    "context": Setting(_whole(2, 2**24), None, "longest prompt + answer in tokens (default: the model's)"),
    "page_size": Setting(_page, 16, "tokens a page of the cache"),
    "max_seqs": Setting(_whole(1, 4096), 16, "answers that advance together"),
    "max_step_tokens": Setting(_whole(1, 65536), 512, "tokens computed a step; longer prompts are cut into chunks"),
    "itl_slo_ms": Setting(
        _milliseconds, None, "longest pause between two tokens while prompts are read (default: 4 x the usual step)"
    ),
    "naive": Setting(_flag, False, "no cache: recompute everything for every token (slow, for comparison)"),
    "cache_dir": Setting(_path, None, "where fetched models are kept"),
    "session_dir": Setting(_path, None, "where saved conversations are kept"),
    "session_cap": Setting(_size, 2 << 30, "most space for saved conversations, such as 2G; the oldest go first"),
    "energy": Setting(_flag, False, "tell the joules of answers, where the system counts them (RAPL, NVML)"),
    "watts": Setting(
        _positive(1e6, "watts"), None, "what the machine draws while working, where it does not count joules"
    ),
    "price_per_hour": Setting(_positive(1e9, "a price"), None, "of the machine; answers tell their part of it"),
    "color": Setting(_one_of(*COLORS), "auto", "auto, always or never"),
}

SERVE_SETTINGS: dict[str, Setting] = {
    "host": Setting(_text, "127.0.0.1", "address to listen on; others than this machine need keys"),
    "port": Setting(_whole(0, 65535), 8000, "port to listen on; 0: any free one"),
    "api_keys": Setting(_keys, (), "keys that let clients in; in the environment separated by commas"),
    "insecure": Setting(_flag, False, "listen on other addresses than this machine's without any key"),
    "served_name": Setting(_text, None, "what clients call the model (default: its own name)"),
    "queue": Setting(_whole(0, 65536), None, "answers that may wait for their turn (default: 4 x max_seqs)"),
    "drain_s": Setting(_seconds, 30.0, "seconds that answers in flight get after a signal to stop"),
    "log_format": Setting(_one_of("auto", "text", "json"), "auto", "auto, text or json; auto: text at a terminal"),
    "engine_process": Setting(_flag, False, "the engine in a process of its own, which is started again when it ends"),
    "vllm_metrics": Setting(_flag, False, "figures under vLLM's names too, for dashboards and routers that want those"),
    "otel": Setting(_flag, False, "a trace of every request, to where OTEL_EXPORTER_OTLP_ENDPOINT says"),
}


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """The settings of `legato serve` beside `Config`. Keys are kept out of its `repr`."""

    host: str
    port: int
    insecure: bool
    served_name: str | None
    queue: int | None
    drain_s: float
    log_format: str
    api_keys: tuple[str, ...] = field(repr=False)
    sources: Mapping[str, str] = field(default_factory=dict)
    vllm_metrics: bool = False
    otel: bool = False
    engine_process: bool = False

    @classmethod
    def resolve(
        cls, arguments: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
    ) -> ServeConfig:
        """As `Config.resolve`."""
        values, sources = _resolved(SERVE_SETTINGS, arguments or {}, os.environ if environ is None else environ)
        return cls(**values, sources=sources)


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one process or one LLM. Build it with `Config.resolve`."""

    model: str
    backend: str
    threads: int | None
    isa: str
    weights: str
    kv: str
    kv_memory: int | None
    context: int | None
    page_size: int
    max_seqs: int
    max_step_tokens: int
    itl_slo_ms: float | None
    naive: bool
    cache_dir: Path
    session_dir: Path
    session_cap: int
    energy: bool
    watts: float | None
    price_per_hour: float | None
    color: str
    sources: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def resolve(cls, arguments: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None) -> Config:
        """Arguments that are None count as not given. Raises `UsageError` naming the setting and its source."""
        arguments = arguments or {}
        environ = os.environ if environ is None else environ
        for name in arguments:
            if name not in SETTINGS:
                near = get_close_matches(name, SETTINGS, 1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(SETTINGS)}"
                raise UsageError(f"unknown setting {name!r}; {hint}")
        values, sources = _resolved(SETTINGS, arguments, environ)
        if values["cache_dir"] is None:
            values["cache_dir"] = _cache_home(environ)
        if values["session_dir"] is None:
            values["session_dir"] = _session_home(environ)
        if sources["color"] == "default":
            values["color"], sources["color"] = _terminal_color(environ)
        return cls(**values, sources=sources)


def _resolved(
    settings: Mapping[str, Setting], arguments: Mapping[str, object], environ: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """(values, where each came from)."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, setting in settings.items():
        variable = PREFIX + name.upper()
        if arguments.get(name) is not None:
            values[name], sources[name] = _parse(name, setting, arguments[name], name), "argument"
        elif environ.get(variable, "") != "":
            values[name], sources[name] = _parse(name, setting, environ[variable], variable), variable
        else:
            values[name], sources[name] = setting.default, "default"
    return values, sources


def _parse(name: str, setting: Setting, value: object, where: str) -> Any:
    try:
        return setting.parse(value)
    except _Refused as refused:
        if name == "api_keys":  # a key is not for anybody's eyes
            raise UsageError(f"{where} is not allowed: {refused}") from None
        raise UsageError(f"{where}={value!r} is not allowed: {refused}") from None


def _terminal_color(environ: Mapping[str, str]) -> tuple[str, str]:
    """NO_COLOR and FORCE_COLOR (no-color.org, force-color.org): any non-empty value counts."""
    if environ.get("NO_COLOR"):
        return "never", "NO_COLOR"
    if environ.get("FORCE_COLOR"):
        return "always", "FORCE_COLOR"
    if environ.get("TERM") == "dumb":
        return "never", "TERM"
    return "auto", "default"


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """LEGATO_* variables that no setting reads: most likely misspelt."""
    environ = os.environ if environ is None else environ
    known = {PREFIX + name.upper() for name in (*SETTINGS, *SERVE_SETTINGS)}
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in known)


assert set(SETTINGS) | {"sources"} == {f.name for f in fields(Config)}
assert set(SERVE_SETTINGS) | {"sources"} == {f.name for f in fields(ServeConfig)}


def let_blas_sleep(environ: MutableMapping[str, str] | None = None) -> None:
    """Asks numpy's OpenBLAS, before it is loaded, to let its idle threads sleep; whoever has set this decides himself.

    It starts a thread a core when it is loaded, and each spins for some 50 ms: on a machine of few cores these are
    taken from loading the model.
    """
    (os.environ if environ is None else environ).setdefault("OPENBLAS_THREAD_TIMEOUT", str(BLAS_WAIT))
