"""`legato launch`: what another program has to be told to talk with the server, shown or written into its settings.

Knows: its options, how to ask a server what it serves. Does not know: programs' settings (launch_clients), files.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from difflib import get_close_matches
from pathlib import Path

import click

from legato.cli import settings_file
from legato.cli.launch_clients import CONTEXT, NO_KEY, Client, Where, clients
from legato.config import config_home
from legato.errors import UsageError

ASK_S = 3.0


@click.command("launch")
@click.argument("client", required=False)
@click.option("--url", metavar="URL", default="http://127.0.0.1:8000", show_default=True, help="where the server is")
@click.option("-m", "--model", metavar="NAME", help="the model's name (default: what the server says)")
@click.option("--api-key", metavar="KEY", help="a key of the server, if it wants one")
@click.option("--write", "writing", is_flag=True, help="write it into the client's settings; the old ones are kept")
@click.option("--undo", "undoing", is_flag=True, help="take out what --write put in")
def command(client: str | None, url: str, model: str | None, api_key: str | None, writing: bool, undoing: bool) -> int:
    """Connect another program to the server: show its settings, write them, or take them back."""
    known = clients(Path.home(), config_home())
    if client is None:
        for found in known.values():
            click.echo(f"{found.name:12} {found.about}")
        return 0
    if client not in known:
        near = get_close_matches(client.lower(), known, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise UsageError(f"client={client!r} is not known; {hint}")
    if writing and undoing:
        raise UsageError("--write and --undo cannot be asked for at once; choose one")
    found = known[client]
    if undoing:
        return _undo(found, url)
    where = _where(url, model, api_key)
    return _write(found, where) if writing else _show(found, where)


def _show(client: Client, where: Where) -> int:
    click.echo(client.shown(where))
    if client.file is not None:
        click.echo(f"# --write puts this into {client.file}", err=True)
    return 0


def _write(client: Client, where: Where) -> int:
    if client.file is None or client.edit is None:
        raise UsageError(f"{client.name} has no settings file to write; leave --write out and copy what is shown")
    changed = settings_file.write(client.file, client.edit(where))
    click.echo(f"{client.file}: {'written' if changed else 'as it should be already'}", err=True)
    click.echo(f"start {client.then}; legato launch {client.name} --undo takes it back", err=True)
    return 0


def _undo(client: Client, url: str) -> int:
    if client.file is None or client.edit is None:
        raise UsageError(f"{client.name} has no settings file, so there is nothing to take back")
    done = settings_file.undo(client.file, client.edit(Where(url, "", NO_KEY)))
    click.echo(f"{client.file}: {'as it was before' if done else 'nothing of ours is in it'}", err=True)
    return 0


def _where(url: str, model: str | None, api_key: str | None) -> Where:
    base = url.rstrip("/").removesuffix("/v1")
    if not base.startswith(("http://", "https://")):
        raise UsageError(
            f"url={url!r} is not allowed: http:// or https:// and an address, such as http://127.0.0.1:8000"
        )
    for name, value in (("url", base), ("model", model or ""), ("api-key", api_key or "")):
        if not value.isprintable():
            raise UsageError(f"{name} is not allowed: printable characters only")
    if model:
        return Where(base, model, api_key or NO_KEY)
    name, context = _served(base, api_key)
    return Where(base, name, api_key or NO_KEY, context)


def _served(url: str, api_key: str | None) -> tuple[str, int]:
    """The name of the model that the server at `url` has, and the tokens of its context."""
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    hint = "start `legato serve`, or give --url, or --model to do without it"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/v1/models", headers=headers), timeout=ASK_S
        ) as reply:
            card = json.loads(reply.read(1 << 20))["data"][0]
            name, context = card["id"], card.get("max_model_len")
    except urllib.error.HTTPError as error:
        fix = "give --api-key" if error.code == 401 else hint
        raise UsageError(f"the server at {url} answered {error.code}; {fix}") from None
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise UsageError(f"no server says at {url} which model it has; {hint}") from None
    if not isinstance(name, str) or not name.isprintable():
        raise UsageError(f"the server at {url} names a model that cannot be written down; give --model")
    return name, context if type(context) is int and context > 0 else CONTEXT
