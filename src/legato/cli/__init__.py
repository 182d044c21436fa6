"""The commands. `main` is the program: it finds the command, runs it, and turns errors into exit codes.

Knows: click, exit codes, one line per error. Does not know: what a command does (each is a module, loaded when called).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from legato.cli.undisturbed import released, undisturbed
from legato.errors import LegatoError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0 done, 1 failed, 2 wrong use, 3 unreadable model file, 130 interrupted."""
    args = [_utf8(arg) for arg in (sys.argv[1:] if argv is None else argv)]
    debug = _take_debug(args)
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(encoding="utf-8", errors="replace")
    if debug:
        import logging

        logging.basicConfig()
    try:
        with nullcontext() if argv is None else released():  # a program of its own ends with the command
            return _run(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit finds a reader
        return 1
    except LegatoError as error:
        return _fail(str(error), error.exit_code, debug)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            return _unexpected(error, debug)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail("output: no space left on the device; give it a place with room", 1, debug)
    except MemoryError:
        return _fail("out of memory; try a smaller --context, --kv-memory or model", 1, debug)
    except Exception as error:
        return _unexpected(error, debug)


def _open_streams() -> None:
    """Streams that the caller has closed: nothing comes from them, and what goes there is lost."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  (for as long as the program)


def _run(args: list[str]) -> int:
    with undisturbed():
        import click

        from legato.cli.group import legato

    try:
        code = legato.main(args, prog_name="legato", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # its message is the whole help
            error.show()
            return 2
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return _fail(error.format_message().replace("\n", " ") + hint, 2, debug=False)


def _fail(text: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print("error: " + " ".join(text.split()), file=sys.stderr)
    return code


def _unexpected(error: Exception, debug: bool) -> int:
    return _fail(f"unexpected {type(error).__name__}: {error}; run again with --debug for the trace", 1, debug)


def _take_debug(args: list[str]) -> bool:
    """Removes --debug wherever it stands before `--`, so that it may follow any command."""
    end = args.index("--") if "--" in args else len(args)
    debug = "--debug" in args[:end]
    args[:end] = [arg for arg in args[:end] if arg != "--debug"]
    return debug


def _utf8(arg: str) -> str:
    """Arguments are UTF-8 whatever the locale says; bytes that are not stay as they are and are refused where used."""
    try:
        return os.fsencode(arg).decode("utf-8")
    except UnicodeError:
        return arg
