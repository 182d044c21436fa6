"""The small model that tests count with: SmolLM2-135M's shape, whole or with windows.

Knows: its sizes. Does not know: weights, rates, what is counted.
"""

from __future__ import annotations

from dataclasses import replace

from legato.bench.made_up import llama_spec
from legato.core.spec import ArchSpec


def smollm2(window: int | None = None) -> ArchSpec:
    """With a window, every second layer looks back no further."""
    spec = llama_spec(576, heads=9, kv_heads=3, mlp=1536, layers=30, vocab=49152, context=8192, tied=True)
    [layer] = set(spec.layers)
    near = replace(layer, attention=replace(layer.attention, window=window))
    return replace(spec, layers=(layer, near) * 15)


SMOLLM2 = smollm2()
