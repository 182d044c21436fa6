"""What a config.json alone means to the decoder, without a file on disk.

Knows: settings by name, how they become a spec. Does not know: weights, how settings are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from legato.core.spec import ArchSpec
from legato.models.families import Draft
from legato.models.translate import finish, translate
from legato.weights.metadata import Metadata
from legato.weights.source import ModelSource


def spec_of(config: Mapping[str, Any], context: int | None = None) -> ArchSpec:
    """The spec of a folder that has these settings; every one of them must be understood."""
    source = ModelSource(
        path=Path("folder"),
        kind="folder",
        config=dict(config),
        metadata=Metadata("folder", {}),
        tensors={},
        tokenizer_files={},
        notes=[],
        total_bytes=0,
        weight_files=(),
    )
    translation = translate(source)
    spec = translation.family.read(Draft(translation.settings, translation.family.name, context))
    finish(translation.settings)
    return spec
