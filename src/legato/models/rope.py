"""Rotary embeddings: every published way to scale them becomes one list of frequencies.

Knows: the settings that describe a rotary embedding, and the arithmetic of each type.
Does not know: families, attention, arrays of positions.

Sources: the papers named below; the settings' names and defaults are those of transformers' rope utilities,
and of the GGUF specification for `freq_factors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from legato.core.spec import RopeSpec
from legato.models.settings import Settings

Frequencies = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rope:
    """A rotary embedding, and how many positions it serves."""

    spec: RopeSpec
    positions: int
    note: str | None = None


@dataclass(frozen=True, slots=True)
class _Plain:
    """What a scaling type starts from: settings, plain frequencies, and lengths.

    positions  what the model says it was made for; original: what it was first trained on
    context    what will be used, if the caller said so
    """

    settings: Settings
    inv_freq: Frequencies
    theta: float
    positions: int
    original: int
    context: int | None

    def rope(self, inv_freq: Frequencies, scale: float = 1.0) -> Rope:
        return Rope(RopeSpec(tuple(float(f) for f in inv_freq), scale), self.positions)


def read_rope(
    c: Settings,
    head_dim: int,
    *,
    theta_key: str = "rope_theta",
    section: str | None = None,
    scaled: bool = True,
    partial: bool = False,
    context: int | None = None,
) -> Rope:
    """The rotary embedding that `c` describes, in today's form (`rope_parameters`) or the older (`rope_scaling`).

    theta_key  where the base is, if not with the rest
    section    the part of `rope_parameters` to read, where kinds of layers differ
    scaled     whether an older `rope_scaling` applies to this kind of layer
    partial    whether the family may rotate only a part of each head
    context    how many positions will be used, if the caller said so
    """
    p = _rope_settings(c, section, scaled)
    positions = c.whole("max_position_embeddings")
    inner = p.whole("original_max_position_embeddings", positions)
    original = c.optional_whole("original_max_position_embeddings") or inner
    base = p.number("rope_theta", c.number(theta_key))
    if base <= 1:
        key, holder = ("rope_theta", p) if "rope_theta" in p else (theta_key, c)
        raise holder.wrong(key, f"{base:g} is not above 1")
    share = p.number("partial_rotary_factor", c.number("partial_rotary_factor", 1.0))
    dim = c.whole("rope_dim", int(head_dim * share))
    if dim % 2 or dim > head_dim:
        raise c.wrong("rope_dim", f"a rotary embedding of {dim} dims does not fit heads of {head_dim}")
    if dim != head_dim and not partial:
        raise c.refuse("partial_rotary_factor", f"rotates {dim} of {head_dim} dims, which this family does not do")
    kind = p.text("rope_type", p.text("type", "default"))
    if kind not in _TYPES:
        key = "rope_type" if "rope_type" in p else "type"
        raise p.refuse(key, f"unknown rope type {kind!r}; known are {', '.join(sorted(_TYPES))}")
    plain = base ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    rope = _TYPES[kind](_Plain(p, plain, base, positions, original, context))
    if not np.isfinite(np.asarray(rope.spec.inv_freq, np.float32)).all():
        raise p.wrong("factor", "gives frequencies that are not finite numbers")
    return rope


def _rope_settings(c: Settings, section: str | None, scaled: bool) -> Settings:
    """The mapping that holds rope settings; an empty one when the file has none."""
    nested = c.section("rope_parameters") if "rope_scaling" not in c else None
    c.raw("rope_parameters")
    if nested is not None and section is not None:
        nested = nested.section(section)
    older = c.section("rope_scaling") if scaled else None
    return older or nested or c.nothing("rope_scaling")


def _default(p: _Plain) -> Rope:
    return p.rope(p.inv_freq)


def _linear(p: _Plain) -> Rope:
    """Positions divided by a factor (position interpolation, arXiv 2306.15595)."""
    return p.rope(p.inv_freq / p.settings.number("factor"))


def _llama3(p: _Plain) -> Rope:
    """Long wavelengths divided by a factor, short ones kept, those between blended (Llama 3.1's model card code)."""
    factor = p.settings.number("factor")
    low, high = p.settings.number("low_freq_factor"), p.settings.number("high_freq_factor")
    if high <= low:
        raise p.settings.wrong("high_freq_factor", f"{high} is not above low_freq_factor={low}")
    turns = p.original * p.inv_freq / (2 * math.pi)  # rotations over the original context
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return p.rope(p.inv_freq * (keep + (1 - keep) / factor))


def _yarn(p: _Plain) -> Rope:
    """Frequencies that turn seldom are interpolated, those that turn often kept (YaRN, arXiv 2309.00071)."""
    s = p.settings
    factor = s.number("factor", max(1.0, p.positions / p.original))
    dims = 2 * len(p.inv_freq)

    def dim_of(rotations: float) -> float:
        return dims * math.log(p.original / (rotations * 2 * math.pi)) / (2 * math.log(p.theta))

    low, high = dim_of(s.number("beta_fast", 32.0)), dim_of(s.number("beta_slow", 1.0))
    if s.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    ramp = np.clip((np.arange(len(p.inv_freq)) - low) / ((high - low) or 0.001), 0.0, 1.0)
    scale = s.optional_number("attention_factor")
    mscale, all_dims = s.optional_number("mscale"), s.optional_number("mscale_all_dim")
    if scale is None:
        both = mscale is not None and all_dims is not None
        scale = _yarn_scale(factor, mscale) / _yarn_scale(factor, all_dims) if both else _yarn_scale(factor)
    return p.rope(p.inv_freq * ((1 - ramp) + ramp / factor), scale)


def _yarn_scale(factor: float, weight: float | None = 1.0) -> float:
    return 0.1 * (weight or 1.0) * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(p: _Plain) -> Rope:
    """Own divisors for each frequency, one set up to the original context and one beyond (LongRoPE, arXiv 2402.13753).

    The set is chosen once, by the context that will be used, because keys in the cache cannot change sets midway.
    """
    s = p.settings
    count = len(p.inv_freq)
    short, long = s.numbers("short_factor", count), s.numbers("long_factor", count)
    factor = s.number("factor", max(1.0, p.positions / p.original))
    scale = s.optional_number("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(max(2, p.original))) if factor > 1 else 1.0
    use_long = p.context is not None and p.context > p.original
    inv_freq = p.inv_freq / np.asarray(long if use_long else short)
    spec = RopeSpec(tuple(float(f) for f in inv_freq), scale)
    if use_long or p.positions <= p.original:
        return Rope(spec, p.positions)
    note = f"rotary factors for contexts up to {p.original}; a longer context (up to {p.positions}) must be asked for"
    return Rope(spec, p.original, note)


def _freq_factors(p: _Plain) -> Rope:
    """Each frequency divided by its own number, as GGUF files carry llama3's scaling."""
    return p.rope(p.inv_freq / np.asarray(p.settings.numbers("freq_factors", len(p.inv_freq))))


_TYPES: dict[str, Callable[[_Plain], Rope]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # the name in Phi-3's first configs
    "freq_factors": _freq_factors,
}
