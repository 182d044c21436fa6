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
    from legato.server.service import Model, Wall


def _option(name: str, metavar: str) -> Decorator:
    return click.option(f"--{name.replace('_', '-')}", name, metavar=metavar, help=SERVE_SETTINGS[name].help)


@click.command("serve")
@model_options
@click.option("--max-seqs", metavar="N", help=SETTINGS["max_seqs"].help)
@_option("host", "ADDRESS")
@_option("port", "N")
@click.option("--api-key", "api_keys", metavar="KEY", multiple=True, help="lets clients in; may be repeated")
@click.option("--insecure", is_flag=True, default=None, help=SERVE_SETTINGS["insecure"].help)
@_option("served_name", "NAME")
@_option("queue", "N")
@_option("drain_s", "SECONDS")
@_option("log_format", "NAME")
@click.option("--vllm-metrics", is_flag=True, default=None, help=SERVE_SETTINGS["vllm_metrics"].help)
@click.option("--otel", is_flag=True, default=None, help=SERVE_SETTINGS["otel"].help)
def command(**options: Any) -> int:
    """Answer over HTTP: OpenAI's API at /v1; ready when /ready answers 200."""
    given = {name: options.pop(name) for name in SERVE_SETTINGS}
    given["api_keys"] = given["api_keys"] or None
    serve_config, config = ServeConfig.resolve(given), config_of(options)
    from legato.assemble import assemble, model_name
    from legato.server import lifecycle, log
    from legato.server.service import Model

    log.set_up(serve_config.log_format)
    terminal = Terminal(config.color)

    def load() -> tuple[Assembly, Model]:
        with terminal.bar(patience=0) as fetching, terminal.bar() as loading:
            parts = assemble(config, fetching, loading)
        name = serve_config.served_name or model_name(config, parts.source)
        return parts, Model.of(parts, name)

    def announce(parts: Assembly, model: Model, url: str) -> None:
        for line in banner(parts, model, serve_config, url):
            terminal.say(line)

    return lifecycle.serve(serve_config, load, announce, wall_of)


def wall_of(parts: Assembly) -> Wall:
    """What bounds this model's decode steps here: a few readings of memory, and bytes in closed form."""
    from legato.assemble import step_bits
    from legato.measure import cost
    from legato.measure.machine import READ_BYTES
    from legato.server.service import Wall

    seconds = min(parts.backend.read_seconds(READ_BYTES, parts.executor.threads, passes=3))
    bits = step_bits(parts.config, parts.blueprint, parts.backend)
    kept = cost.kv_bytes_per_token(parts.spec, str(parts.kv_format))
    return Wall(round(READ_BYTES / seconds / 1e9, 3), cost.weight_read_bytes(parts.spec, bits), kept)


def banner(parts: Assembly, model: Model, serve: ServeConfig, url: str) -> list[str]:
    """What a person needs to begin, in at most 12 lines."""
    body = json.dumps({"model": model.name, "messages": [{"role": "user", "content": "Hello"}], "stream": True})
    key = " -H 'authorization: Bearer KEY'" if serve.api_keys else ""
    queue = 4 * model.max_seqs if serve.queue is None else serve.queue
    lines = [
        f"legato serves {model.name} at {url}",
        f"  model     {parts.source.path.name}, context {model.context_length:,}",
        f"  memory    {parts.capacity} ({model.kv})",
        f"  machine   {model.isa}, {model.threads} threads",
        f"  answers   {model.max_seqs} at once, {queue} waiting",
        f"  keys      {len(serve.api_keys)}" if serve.api_keys else "  keys      none: whoever reaches this may ask",
        f"  try       curl {url}/v1/chat/completions -H 'content-type: application/json'{key} -d '{body}'",
    ]
    if serve.sources.get("port") == "default" and not url.endswith(f":{serve.port}"):
        lines.append(f"  note      port {serve.port} is in use, so this is the next free one")
    return lines + [f"  note      {note}" for note in parts.notes[: 12 - len(lines)]]
