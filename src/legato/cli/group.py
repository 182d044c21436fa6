"""The command group: names and one-line helps known at once, modules loaded when a command is called.

Knows: the table of commands. Does not know: their options.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

import legato as package
from legato.cli.undisturbed import undisturbed

# name -> (module, its help in one line); the help is repeated here so that `legato --help` loads nothing else.
COMMANDS: dict[str, tuple[str, str]] = {
    "generate": ("legato.cli.generate", "Answer one prompt."),
    "chat": ("legato.cli.chat", "Talk with a model in the terminal."),
    "serve": ("legato.cli.serve", "Answer over HTTP: OpenAI's API, with limits, keys and figures."),
    "launch": ("legato.cli.launch", "Connect another program to the server: show or write its settings."),
    "explain": ("legato.cli.explain", "Answer one prompt and show where its milliseconds went, and what would help."),
    "replay": ("legato.cli.replay", "Repeat the answer of a receipt, token by token."),
    "sessions": ("legato.cli.sessions", "List, show, delete saved conversations."),
    "models": ("legato.cli.models", "List built-in models and which are on this machine."),
    "check": ("legato.cli.check", "Show what a model file holds and how it will run."),
    "plan": ("legato.cli.plan", "Predict memory, speed and price before anything is downloaded."),
    "doctor": ("legato.cli.doctor", "Look at this machine: what is used, what is not, and why."),
    "perplexity": ("legato.cli.perplexity", "Measure how well a model predicts a text."),
    "bench": ("legato.cli.bench", "Measure speed, with reports: decode, prefill, tradeoff, cache, ..."),
    "report": ("legato.cli.report", "Show a saved record of an experiment as an HTML file."),
    "calibrate": ("legato.cli.calibrate", "Measure this machine's walls."),
}


class LazyGroup(click.Group):
    """Loads `module.command` for a name in its table."""

    def __init__(self, *args: Any, table: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        with undisturbed():
            from legato.config import let_blas_sleep

            let_blas_sleep()
            command = import_module(self.table[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and name not in self.table and not name.startswith("-"):
            near = get_close_matches(name, self.table, 1)
            hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(self.table)}"
            ctx.fail(f"no command {name!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])


@click.command(
    cls=LazyGroup,
    table=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="--debug after any command shows the trace of an error.",
)
@click.version_option(package.__version__, prog_name="legato", message="%(prog)s %(version)s")
@click.pass_context
def legato(ctx: click.Context) -> None:
    """Language models whose tokens keep their pace, on the machine you have.

    \b
    legato generate "Why is the sky blue?"     one answer
    legato chat                                a conversation
    legato doctor                              what this machine can do
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
