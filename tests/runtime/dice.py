"""An executor of dice and two grammars, for tests that need no model.

Knows: positions. Does not know: weights, what is drawn from its logits.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from bytes_vocabulary import SIZE

from legato.core.request import Grammar, GrammarKind
from legato.kernels.choice import choose

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 4}, "b": {"enum": [True, None, 10]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
JSON = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
DIGITS = Grammar(GrammarKind.REGEX, "[0-9]{3,6}")


class Dice:
    """An executor whose logits depend on the position alone, with ends and braces made likely."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._logits = np.zeros((0, SIZE + 3), np.float32)

    def run(self, batch: Any) -> Any:
        rows = batch.positions_T[batch.logit_rows_R]
        self._logits = np.stack([self.row(int(p)) for p in rows]) if len(rows) else self._logits[:0]
        return self._logits

    def row(self, position: int) -> Any:
        return np.random.default_rng((self._seed, position)).normal(size=SIZE + 3).astype(np.float32)

    def argmax(self) -> list[int]:
        best: list[int] = self._logits.argmax(axis=1).tolist()
        return best

    def choose(self, *row_and_how: Any) -> int:
        return choose(*row_and_how)
