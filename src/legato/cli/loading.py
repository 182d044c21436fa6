"""Opens a model for a command, with progress on standard error.

Knows: `LLM`, the terminal. Does not know: what the model is used for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from legato.cli.terminal import Terminal
from legato.cli.undisturbed import undisturbed
from legato.config import Config

if TYPE_CHECKING:
    from legato.llm import LLM


def open_llm(config: Config, terminal: Terminal, capacity: bool = False) -> LLM:
    """The loaded model; use it as a context manager.

    capacity  say how many users fit, too
    """
    with undisturbed(), terminal.bar(patience=0) as fetching, terminal.bar() as loading:
        from legato.llm import LLM

        # what matters is told in one line; --debug shows more
        logging.getLogger("legato").addHandler(logging.NullHandler())
        llm = LLM(config=config, fetching=fetching, loading=loading)
    for note in llm.notes:
        terminal.note(note)
    if capacity:
        terminal.dim(llm.parts.capacity)
    return llm
