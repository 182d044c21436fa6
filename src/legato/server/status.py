"""A line every few seconds of what the server does, as long as it does something.

Knows: the engine's last figures, and those of the line before. Does not know: clocks, when it is asked.
"""

from __future__ import annotations

import logging

from legato.measure.ledger import StepRecord
from legato.server.bridge import Snapshot
from legato.server.meters import Meters

log = logging.getLogger(__name__)


class Status:
    """Tells what has happened since it told last; a line of rates, so one over an idle time would mean little."""

    def __init__(self) -> None:
        self._at = 0.0
        self._total = StepRecord()
        self._prompt = self._cached = 0

    def tell(self, snapshot: Snapshot | None, meters: Meters) -> None:
        """running, waiting  answers; prompt_tok_s, output_tok_s  tokens computed and made a second since the last line;
        kv_percent  of the pages in use; cached_percent  of the prompts of requests that ended since, from the cache.
        """
        if snapshot is None:
            return
        stats, before, seconds = snapshot.stats, self._total, snapshot.at - self._at
        prompt, cached = meters.prompt_tokens - self._prompt, meters.cached_tokens - self._cached
        self._at, self._total = snapshot.at, stats.total
        self._prompt, self._cached = meters.prompt_tokens, meters.cached_tokens
        if stats.total.num_steps < before.num_steps:  # another engine has taken the place of one that ended
            before = StepRecord()
        if (stats.total.num_steps == before.num_steps and not stats.num_waiting) or seconds <= 0:
            return
        fields: dict[str, object] = {
            "running": stats.num_running,
            "waiting": stats.num_waiting,
            "prompt_tok_s": round((stats.total.prompt_tokens - before.prompt_tokens) / seconds, 1),
            "output_tok_s": round((stats.total.output_tokens - before.output_tokens) / seconds, 1),
            "kv_percent": round(100 * stats.kv.in_use / max(1, stats.kv.total), 1),
        }
        if prompt > 0:
            fields["cached_percent"] = round(100 * cached / prompt, 1)
        log.info("status", extra={"fields": fields})
