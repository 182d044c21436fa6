"""`legato chat`: a conversation in the terminal.

Knows: its options, reading lines, Ctrl-C at the prompt. Does not know: what commands do (`session`), how answers come.
"""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from typing import Any

import click

from legato.cli.options import config_of, model_options, sampling_of, sampling_options, session_options
from legato.cli.terminal import Terminal

MAX_TOKENS = 1024
TEMPERATURE = 0.7
QUOTES = '"""'


@click.command("chat")
@model_options
@sampling_options(temperature=TEMPERATURE, max_tokens=MAX_TOKENS)
@session_options
@click.option("--system", metavar="TEXT", help="the system message")
@click.option("--session", metavar="NAME", help="keep the conversation under this name, or go on with it")
def command(system: str | None, session: str | None, **options: Any) -> int:
    """Talk with a model. /help lists what can be typed; Ctrl-C stops an answer, twice it ends the program."""
    from legato.cli.loading import open_llm
    from legato.cli.session import ChatSession

    config, params = config_of(options), sampling_of(options)
    terminal = Terminal(config.color)
    if session is not None:
        from legato.runtime.session_folder import checked_name

        checked_name(session)
    with open_llm(config, terminal) as llm:
        chat = ChatSession(llm, params, terminal, system)
        if session is not None:
            chat.keep_as(session)
        if sys.stdin.isatty():
            terminal.dim(f"{llm.name}, context {llm.context_length} tokens. /help lists commands, /exit ends.")
        return talk(chat, LineReader(terminal))


def talk(session: Any, reader: LineReader) -> int:
    """Reads and answers until the end of input, /exit, or two Ctrl-C without a message between them."""
    interrupted = False
    while True:
        try:
            text = reader.read()
        except KeyboardInterrupt:
            if interrupted:
                return 130
            interrupted = True
            session.terminal.dim("Ctrl-C again, or /exit, ends")
            continue
        if text is None:
            return 0
        if not text.strip():
            continue
        interrupted = session.take(text)
        if session.ended:
            return 0


class LineReader:
    '''Messages from standard input: a line, or several between """ and """. Shows a prompt only to a person.'''

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        if isinstance(
            sys.stdin, io.TextIOWrapper
        ):  # UTF-8 whatever the locale says; other bytes are refused as they come
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        self.person = sys.stdin.isatty()
        if self.person and sys.stdout.isatty():
            with suppress(ImportError):
                import readline  # noqa: F401  (arrow keys and history in input())

    def read(self) -> str | None:
        """The next message, None at the end of input. KeyboardInterrupt passes through."""
        line = self._line("> ")
        if line is None or not line.lstrip().startswith(QUOTES):
            return line
        text = line.lstrip()[len(QUOTES) :]
        while QUOTES not in text:
            more = self._line(". ")
            if more is None:
                break
            text += "\n" + more
        return text.split(QUOTES, 1)[0].strip("\n")

    def _line(self, prompt: str) -> str | None:
        if self.person and sys.stdout.isatty():
            try:
                return input(prompt)
            except EOFError:
                self.terminal.say("")
                return None
        if self.person:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
