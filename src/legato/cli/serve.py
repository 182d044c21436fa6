"""`legato serve`: the model over HTTP.

Knows: its options, the banner. Does not know: HTTP, protocols, the engine.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from legato.cli.options import Decorator, config_of, model_options
from legato.cli.terminal import Terminal
from legato.config import SERVE_SETTINGS, SETTINGS, ServeConfig

if TYPE_CHECKING:
    from legato.assemble import Assembly


def _option(name: str, metavar: str) -> Decorator:
    return click.option(f"--{name.replace('_', '-')}", name, metavar=metavar, help=SERVE_SETTINGS[name].help)


@click.command("serve")
@model_options
@click.option("--max-seqs", metavar="N", help=SETTINGS["max_seqs"].help)
@click.option("--itl-slo-ms", metavar="MS", help=SETTINGS["itl_slo_ms"].help)
@_option("host", "ADDRESS")
@_option("port", "N")
@click.option("--api-key", "api_keys", metavar="KEY", multiple=True, help="lets clients in; may be repeated")
@click.option("--insecure", is_flag=True, default=None, help=SERVE_SETTINGS["insecure"].help)
@_option("served_name", "NAME")
@_option("queue", "N")
@_option("drain_s", "SECONDS")
@_option("log_format", "NAME")
def command(**options: Any) -> int:
    """Answer over HTTP: OpenAI's API at /v1; ready when /ready answers 200."""
    given = {name: options.pop(name) for name in SERVE_SETTINGS}
    given["api_keys"] = given["api_keys"] or None
    serve_config, config = ServeConfig.resolve(given), config_of(options)
    from legato.assemble import assemble, model_name
    from legato.server import lifecycle, log

    log.set_up(serve_config.log_format)
    terminal = Terminal(config.color)

    def load() -> Assembly:
        with terminal.bar(patience=0) as fetching, terminal.bar() as loading:
            return assemble(config, fetching, loading)

    def announce(parts: Assembly, url: str) -> None:
        for note in parts.notes:
            terminal.note(note)
        for line in banner(parts, serve_config, url, serve_config.served_name or model_name(config, parts.source)):
            terminal.say(line)

    return lifecycle.serve(serve_config, load, lambda parts: model_name(config, parts.source), announce)


def banner(parts: Assembly, serve: ServeConfig, url: str, name: str) -> list[str]:
    """What a person needs to begin, in at most 12 lines."""
    plan, limits, executor = parts.kv_plan, parts.engine.scheduler.limits, parts.executor
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello"}], "stream": True})
    key = " -H 'authorization: Bearer KEY'" if serve.api_keys else ""
    kept = f"{plan.num_tokens:,} tokens in {plan.total_bytes / 1e6:,.0f} MB of {parts.kv_format}"
    lines = [
        f"legato serves {name} at {url}",
        f"  model     {parts.source.path.name}, context {limits.context_length:,}",
        f"  memory    keys and values: {kept}, {plan.full_contexts:.1f} full contexts",
        f"  machine   {executor.isa}, {executor.threads} threads, {limits.max_running} answers at once",
        f"  keys      {len(serve.api_keys)} needed" if serve.api_keys else "  keys      none: this is open",
        f"  try       curl {url}/v1/chat/completions -H 'content-type: application/json'{key} -d '{body}'",
    ]
    if serve.sources.get("port") == "default" and not url.endswith(f":{serve.port}"):
        lines.append(f"  note      port {serve.port} is in use, so this is the next free one")
    return lines
