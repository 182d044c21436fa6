"""The page-echo model in an engine's process of its own, with ways to die: `python echo_child.py OPTIONS_AS_JSON FD`.

Knows: the child's own entry point. Does not know: the server.

Where `deadly` is asked for, a prompt with one of the letters below ends the process in the middle of the step after
its third token.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / name) for name in ("server", "core", "cli")]

from live import echo_assembly  # noqa: E402

from legato.assemble import Assembly  # noqa: E402
from legato.config import Config  # noqa: E402
from legato.core.plan import Plan  # noqa: E402
from legato.server import engine_child, engine_loop  # noqa: E402
from legato.server.progress import Hear, Progress  # noqa: E402

KILLED, CRASHED, RAISED, LEFT, STUCK = b"!#$%&"


def die(letter: int) -> None:
    if letter == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    elif letter == CRASHED:
        ctypes.string_at(0)
    elif letter == RAISED:
        raise KeyboardInterrupt("secret at 0xdeadbeef")
    elif letter == LEFT:
        os._exit(7)
    else:
        time.sleep(60)


def main() -> int:
    options = json.loads(sys.argv[1])
    letters = (KILLED, CRASHED, RAISED, LEFT, STUCK) if options.get("deadly") else ()

    engine_loop.MIN_HANG_S = options.get("min_hang_s", engine_loop.MIN_HANG_S)

    def during(plan: Plan) -> None:
        time.sleep(options.get("pace", 0.0))
        for piece in plan.slices:
            seq = piece.seq
            deadly = [token for token in seq.request.prompt_ids if token in letters]
            if deadly and seq.num_output_tokens == 3:
                die(deadly[0])

    def load(config: Config, hear: Hear) -> Assembly:
        for part in range(options.get("parts", 0) + 1):
            hear(Progress("loading weights", 100 * part, 100 * options.get("parts", 0)))
            time.sleep(options.get("part_s", 0.0))
        if options.get("dies_loading"):
            os.kill(os.getpid(), signal.SIGKILL)
        parts = echo_assembly(Path(config.model), max_seqs=config.max_seqs, context=options.get("context", 400))()
        parts.runner.during = during  # type: ignore[attr-defined]
        return parts

    return engine_child.main(sys.argv[1:], load)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
