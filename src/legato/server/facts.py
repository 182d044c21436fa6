"""What a model's files say of it, for clients that list models.

Knows: a model's source. Does not know: protocols, the engine.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from legato.weights.source import ModelSource


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """family: the architecture's name; weights: the format that most bytes are in; file: its name, without a path."""

    family: str = ""
    kind: str = "gguf"
    file: str = ""
    size_bytes: int = 0
    parameters: int = 0
    weights: str = ""


def facts_of(source: ModelSource) -> ModelFacts:
    """Looks at names and shapes only."""
    sizes: Counter[str] = Counter()
    parameters = 0
    for tensor in source.tensors.values():
        sizes[tensor.format.name] += tensor.nbytes
        parameters += math.prod(tensor.shape)
    family = source.metadata.get_str("general.architecture", "") or str(source.config.get("model_type") or "")
    most = sizes.most_common(1)
    return ModelFacts(
        family=family,
        kind="gguf" if source.kind == "gguf" else "safetensors",
        file=source.path.name,
        size_bytes=source.total_bytes,
        parameters=parameters,
        weights=most[0][0] if most else "",
    )
