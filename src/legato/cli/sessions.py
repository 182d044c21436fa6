"""`legato sessions`: what is saved, and what of it may go.

Knows: its subcommands and what they print. Does not know: files' format, models (none is loaded).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click
from msgspec import to_builtins

from legato.cli.options import config_of, json_lines_option, json_option, session_options
from legato.cli.terminal import Terminal
from legato.config import Config
from legato.errors import UsageError
from legato.runtime.session_folder import SessionFolder, SessionInfo

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@click.group("sessions")
def command() -> None:
    """Saved conversations: list, show, fork, delete, expire. `legato chat --session NAME` goes on with one."""


@contextmanager
def _folder(options: dict[str, Any]) -> Iterator[tuple[SessionFolder, Terminal]]:
    config = config_of(options)
    folder = SessionFolder(config.session_dir, config.session_cap)
    try:
        yield folder, Terminal(config.color)
    finally:
        folder.close()


@command.command("list")
@session_options
@json_lines_option
def list_command(as_json: bool, **options: Any) -> None:
    """All sessions, the latest save first."""
    with _folder(options) as (folder, terminal):
        found = folder.infos()
    if as_json:
        for info in found:
            terminal.json(asdict(info))
        return
    for info in found:
        terminal.answer(_line(info) + "\n")
    total = sum(info.bytes for info in found)
    terminal.dim(f"{len(found)} in {folder.path}, {_mb(total)} of {_mb(folder.cap)}")


@command.command("show")
@click.argument("name")
@session_options
@json_option
def show(name: str, as_json: bool, **options: Any) -> int:
    """One session: its numbers and its messages. Reads and checks every page; exit code 1 if it is damaged."""
    with _folder(options) as (folder, terminal), folder.open(name) as file:
        info = folder.info(name, check=True)
        messages = file.header.messages
        fingerprint = to_builtins(file.header.fingerprint)
    if as_json:
        terminal.json({**asdict(info), "fingerprint": fingerprint, "conversation": messages})
        return 0 if info.problem is None else 1
    terminal.answer(_line(info) + "\n")
    terminal.answer("".join(f"{field:<11} {value}\n" for field, value in fingerprint.items()))
    for message in messages:
        terminal.answer(f"[{message.get('role')}] {message.get('content')}\n")
    return 0 if info.problem is None else 1


@command.command("fork")
@click.argument("name")
@click.argument("new_name")
@session_options
def fork(name: str, new_name: str, **options: Any) -> None:
    """A copy of NAME under NEW_NAME that goes its own way."""
    with _folder(options) as (folder, terminal):
        terminal.answer(_line(folder.fork(name, new_name)) + "\n")


@command.command("delete")
@click.argument("names", nargs=-1, required=True)
@session_options
def delete(names: tuple[str, ...], **options: Any) -> None:
    """Deletes sessions for good."""
    with _folder(options) as (folder, terminal):
        for name in names:
            folder.delete(name)
            terminal.dim(f"{name} deleted")


@command.command("expire")
@click.option("--older-than", metavar="AGE", help="saved longer ago than this: 30d, 12h, 45m")
@click.option("--keep", metavar="SIZE", help="delete the oldest until the rest takes no more than this: 500M")
@session_options
def expire(older_than: str | None, keep: str | None, **options: Any) -> None:
    """Deletes old sessions."""
    if older_than is None and keep is None:
        raise UsageError("say what may go: --older-than AGE, or --keep SIZE")
    keep_bytes = None if keep is None else Config.resolve({"session_cap": keep}).session_cap
    age_s = None if older_than is None else _age(older_than)
    with _folder(options) as (folder, terminal):
        gone = folder.expire(older_than_s=age_s, keep_bytes=keep_bytes)
    for name in gone:
        terminal.answer(f"{name}\n")
    terminal.dim(f"{len(gone)} deleted")


def _age(text: str) -> float:
    found = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip().lower())
    if found is None:
        raise UsageError(f"--older-than {text!r} is not allowed: give a number and a unit, such as 30d, 12h or 45m")
    return int(found[1]) * float(_UNITS[found[2]])


def _line(info: SessionInfo) -> str:
    if info.problem is not None and not info.tokens:
        return f"{info.name:<24} {info.problem}"
    saved = datetime.fromtimestamp(info.saved_at).strftime("%Y-%m-%d %H:%M")
    size = f"{info.tokens} tokens ({info.cached_tokens} with keys and values), {_mb(info.bytes)}"
    problem = f", {info.problem}" if info.problem else ""
    return f"{info.name:<24} {saved}  {size}, {info.messages} messages, {info.model}{problem}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
