"""The planner's door: from the names that people use to a `Plan`. Nothing is downloaded, no weight is read.

    from legato.planner import plan
    print(plan("llama-3.1-70b", context=128_000, machine="h100").kv_bytes)

Knows: presets, local config.json and GGUF headers, machines by name, this machine's calibration.
Does not know: how anything is counted or predicted, terminals.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from legato.config import Config
from legato.errors import ModelFileError, RequestError, UsageError
from legato.measure.config_shape import Described, describe_config
from legato.measure.devices import find_device
from legato.measure.machine import Machine, usable_cpus
from legato.measure.plan import DEPTHS, KV_FORMATS, Plan, Setting, make_plan, with_bits
from legato.measure.predict import CHUNK
from legato.measure.presets import find_preset, unknown_preset

THIS = "this"
USABLE = 0.9  # of this machine's memory
USUAL_CONTEXT, USUAL_OUTPUT = 2048, 256

# Bits a weight, scales included, by the names that files and flags use; a number stands for itself.
WEIGHTS: dict[str, float] = {
    **{"f32": 32.0, "bf16": 16.0, "f16": 16.0, "fp8": 8.0, "int8": 8.0, "q8_0": 8.5, "q6_k": 6.5625, "q5_1": 6.0},
    **{"q5_0": 5.5, "q5_k": 5.5, "q4_1": 5.0, "q4_0": 4.5, "q4_k": 4.5, "q4_k_m": 4.85, "iq4_xs": 4.25},
    **{"mxfp4": 4.25, "int4": 4.15625, "q3_k": 3.4375, "q2_k": 2.625},
}


_UNITS = {"": 1, "M": 2**20, "G": 2**30, "T": 2**40}


def plan(
    model: str,
    *,
    context: int | None = None,
    output: int | None = None,
    users: int = 1,
    machine: str | None = None,
    kv: str | None = None,
    weights: str | None = None,
    price_per_hour: float | None = None,
    memory_bytes: int | None = None,
    depths: tuple[int, ...] = DEPTHS,
    cache_dir: Path | None = None,
) -> Plan:
    """What `model` would do on `machine`.

    model         a preset's name, a config.json, a folder with one, or a GGUF file of which the header is enough
    context       tokens of prompt and answer together (2048, or the model's); `output` of them are the answer (256, or
                  an eighth of context)
    machine       a data sheet's name, "this" as calibrated, or None: "this", or a rough guess where never calibrated
    kv            format of keys and values: bf16 on a data sheet, int8 (the engine's default) on this machine
    weights       a format's name or bits a weight, instead of those that were published
    memory_bytes  instead of the machine's own
    cache_dir     where calibrations are kept (the user's cache folder)
    Raises `UsageError`, `RequestError` or `ModelFileError` with one line that names the culprit.
    """
    described = describe(model)
    if weights is not None:
        described = with_bits(described, *_weights(weights))
    place = find_machine(machine, cache_dir)
    found = place.machine if memory_bytes is None else replace(place.machine, memory_bytes=memory_bytes)
    described = replace(described, notes=(*described.notes, *place.notes))
    if context is None:
        context = min(USUAL_CONTEXT, described.shape.context_length)
    if output is None:
        output = max(1, min(USUAL_OUTPUT, context // 8)) if isinstance(context, int) else 1
    if kv is None:
        kv = "bf16" if place.kind == "data sheet" else "int8"
    setting = Setting(context, output, users, kv, price_per_hour, place.usable, place.chunk, depths)
    return make_plan(_shown(model), described, found, setting, place.kind)


def describe(model: str) -> Described:
    """The model that a name means, counted from what is on this machine."""
    try:
        path = Path(model).expanduser()
        exists = bool(model) and path.exists()
    except (OSError, ValueError, RuntimeError):  # too long a name, a null byte, nobody's home
        path, exists = Path(model), False
    if exists:
        return _describe_path(path)
    preset = find_preset(model)
    if preset is not None:
        return preset.describe()
    if model.startswith("hf:"):
        raise UsageError(f"{_shown(model)}: plan downloads nothing; give its config.json, or a preset's name")
    if model.endswith((".gguf", ".json")):
        raise UsageError(f"no file {_shown(model)}; give a config.json, a folder, a GGUF file, or a preset's name")
    raise unknown_preset(model)


def _describe_path(path: Path) -> Described:
    if path.is_dir():
        inner = path / "config.json"
        if inner.is_file():
            return _describe_path(inner)
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) == 1:
            return _describe_path(ggufs[0])
        raise ModelFileError(path, "config.json", "missing; plan needs it, or a GGUF file by name")
    if path.suffix == ".json":
        from legato.weights.jsonfile import read_json

        return describe_config(os.fspath(path), read_json(path))
    from legato.measure.gguf_shape import describe_gguf
    from legato.weights.gguf import read_gguf_header

    header = read_gguf_header(path)
    return describe_gguf(header.path, dict(header.metadata.items()), header.tensors)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a plan is made for.

    kind    how its rates are known: "calibrated", "data sheet" or "not calibrated"
    usable  part of its memory that weights, keys and values may take
    chunk   rows of a prompt in one step
    notes   what to know of it
    """

    machine: Machine
    kind: str
    usable: float = USABLE
    chunk: int = CHUNK
    notes: tuple[str, ...] = ()


def find_machine(name: str | None, cache_dir: Path | None = None) -> Place:
    """A data sheet by its name; this machine as last calibrated by "this", or by None, which may also be a guess.

    cache_dir  where calibrations are kept (the user's cache folder)
    """
    if name is not None and name.lower() != THIS:
        device = find_device(name)
        return Place(device.machine(), "data sheet", device.usable, device.chunk)
    from legato.measure.calibrated import read_machine

    found = read_machine(Config.resolve().cache_dir if cache_dir is None else cache_dir)
    if found.machine is not None and found.machine.products:
        return Place(found.machine, "calibrated")
    why = found.note or "this machine was calibrated with the slow reference backend: plans need the native kernels"
    if name is not None:
        raise UsageError(f"{why}, or name a data sheet with --machine")
    return Place(_guess(), "not calibrated", notes=(why,))


def _guess() -> Machine:
    cores = usable_cpus()
    return replace(Machine.ordinary(cores), name=f"this machine, {cores} cores")


def _weights(text: str) -> tuple[float, str]:
    name = text.strip().lower()
    if name in WEIGHTS:
        return WEIGHTS[name], name
    try:
        bits = float(name)
    except ValueError:
        bits = 0.0
    if not 1.0 <= bits <= 32.0:
        raise RequestError("quant", text, f"bits a weight from 1 to 32, or one of {', '.join(WEIGHTS)}")
    return bits, f"{bits:g} bits"


def size_of(field: str, text: str) -> int:
    """Bytes: "24G", "1.5T", "805306368"."""
    number = text.strip().upper().removesuffix("IB").removesuffix("B")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    try:
        size = float(number.removesuffix(unit)) * _UNITS[unit]
    except ValueError:
        size = 0.0
    if not 2**20 <= size <= 2**60:
        raise RequestError(field, text, "a size from 1M to 1000000T, such as 24G")
    return int(size)


def _shown(model: str) -> str:
    return model if len(model) <= 120 else model[:117] + "..."


__all__ = ["KV_FORMATS", "THIS", "WEIGHTS", "Place", "describe", "find_machine", "plan", "size_of"]
