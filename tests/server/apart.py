"""A server whose engine is a child process: the page-echo model, or whatever a command starts.

Knows: the server's own entry points, what a child is told. Does not know: protocols.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from live import NAME, Live, serving

from legato.assemble import open_tokenizer
from legato.config import Config
from legato.core.request import Request, SamplingParams
from legato.server.engine_process import COMMAND, EngineProcess, Served, Watch
from legato.server.limits import ServerLimits
from legato.server.service import State
from legato.text.tokenizer import Tokenizer
from legato.weights.source import open_model

HERE = Path(__file__).parent
PATIENT = Watch(restarts=1000, pause_s=0.01, most_pause_s=0.05, tick_s=0.05)


@dataclass
class Apart:
    """A live server, and its engine's process."""

    live: Live

    @property
    def bridge(self) -> EngineProcess:
        return cast(EngineProcess, self.live.server.service.bridge)

    @property
    def pid(self) -> int:
        return self.bridge.pid

    def health(self) -> int:
        return self.live.ask("GET", "/health").status

    def ready_again(self) -> None:
        """Waits for another engine without asking all the time: it needs the processor more."""
        self.live.wait(lambda: self.live.server.service.state is State.READY, 20, "ready again")
        assert self.health() == 200

    def idle(self) -> bool:
        """Nothing in flight, no page in use, nobody's state kept."""
        service, stats = self.live.server.service, self.live.stats()
        known = service.num_in_flight or service._streams or self.bridge._waiting
        return not (known or stats["running"] or stats["waiting"] or stats["kv_pages"]["in_use"])


def echo_command(**options: object) -> list[str]:
    return [sys.executable, str(HERE / "echo_child.py"), json.dumps(options)]


def rogue_command(first: bytes = b"", second: bytes = b"", then: str = "ends") -> list[str]:
    """Sends `first`, waits to be told what to load if there is a `second`, sends that, ends or stays."""
    says = {"first": first.hex(), "second": second.hex(), "then": then}
    return [sys.executable, "-I", "-S", str(HERE / "rogue_child.py"), json.dumps(says)]


@contextmanager
def apart(
    model: Path,
    command: Sequence[str] = COMMAND,
    watch: Watch = PATIENT,
    before: Callable[[int], None] | None = None,
    limits: ServerLimits | None = None,
    max_seqs: int = 16,
    **settings: Any,
) -> Iterator[Apart]:
    """Ready, until the block ends."""
    config = Config.resolve({"model": str(model), "backend": "reference", "max_seqs": max_seqs}, {})
    served = Served(config, lambda source: NAME)
    with serving(lambda loop: EngineProcess(served, loop, watch, command), before, limits, **settings) as live:
        yield Apart(live)


def tokenizer_of(model: Path) -> Tokenizer:
    return open_tokenizer(open_model(model))


def echo_text(tokenizer: Tokenizer, ids: list[int], context: int = 400, **params: Any) -> str:
    """What the page-echo model must answer."""
    from page_echo import plain_answer

    request = Request("expected", tuple(ids), SamplingParams(**params))
    most = min(context, len(ids) + (request.params.max_tokens or context))
    out, reason, _ = plain_answer(request, 0, tokenizer.vocab_size, frozenset(tokenizer.eos_ids), most)
    return tokenizer.decode(out[:-1] if reason == "stop" else out)
