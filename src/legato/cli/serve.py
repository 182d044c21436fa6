"""`legato serve`: the model over HTTP.

Knows: its options, the banner. Does not know: HTTP, protocols, the engine.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from legato.cli.options import Decorator, bill_options, config_of, model_options
from legato.cli.terminal import Terminal
from legato.config import SERVE_SETTINGS, SETTINGS, ServeConfig

if TYPE_CHECKING:
    from legato.assemble import Assembly
    from legato.config import Config
    from legato.server.lifecycle import MakeBridge
    from legato.server.model import Model
    from legato.server.progress import Hear
    from legato.weights.source import ModelSource


def _option(name: str, metavar: str) -> Decorator:
    return click.option(f"--{name.replace('_', '-')}", name, metavar=metavar, help=SERVE_SETTINGS[name].help)


@click.command("serve")
@model_options
@bill_options
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
@click.option("--engine-process/--engine-thread", default=None, help=SERVE_SETTINGS["engine_process"].help)
@click.option("--vllm-metrics", is_flag=True, default=None, help=SERVE_SETTINGS["vllm_metrics"].help)
@click.option("--otel", is_flag=True, default=None, help=SERVE_SETTINGS["otel"].help)
def command(**options: Any) -> int:
    """Answer over HTTP: OpenAI's API at /v1; ready when /ready answers 200."""
    given = {name: options.pop(name) for name in SERVE_SETTINGS}
    given["api_keys"] = given["api_keys"] or None
    serve_config, config = ServeConfig.resolve(given), config_of(options)
    from legato.measure.energy import open_rates
    from legato.server import lifecycle, log

    log.set_up(serve_config.log_format)
    terminal = Terminal(config.color)

    def announce(model: Model, url: str) -> None:
        for line in banner(model, serve_config, url):
            terminal.say(line)

    rates, notes = open_rates(config.energy, config.watts, config.price_per_hour)
    for note in notes:
        terminal.note(note)
    place = _process if serve_config.engine_process else _thread
    return lifecycle.serve(serve_config, place(config, serve_config, terminal), announce, rates)


def _thread(config: Config, serve: ServeConfig, terminal: Terminal) -> MakeBridge:
    """The engine beside the event loop."""
    from legato.assemble import assemble, model_name
    from legato.server.engine_thread import EngineThread
    from legato.server.model import Model, Wall
    from legato.server.progress import FETCHING, Heard

    def load(hear: Hear) -> tuple[Assembly, Model]:
        with terminal.bar(patience=0) as fetching, terminal.bar() as loading:
            parts = assemble(config, Heard(hear, fetching, FETCHING), Heard(hear, loading))
        return parts, Model.of(parts, serve.served_name or model_name(config, parts.source))

    return lambda loop: EngineThread(load, loop, Wall.of)


def _process(config: Config, serve: ServeConfig, terminal: Terminal) -> MakeBridge:
    """The engine in a process of its own."""
    from legato.assemble import model_name
    from legato.server.engine_process import EngineProcess, Served

    def name(source: ModelSource) -> str:
        return serve.served_name or model_name(config, source)

    served = Served(config, name, serve.log_format, terminal.bar(patience=0), terminal.bar())
    return lambda loop: EngineProcess(served, loop)


def banner(model: Model, serve: ServeConfig, url: str) -> list[str]:
    """What a person needs to begin, in at most 12 lines."""
    body = json.dumps({"model": model.name, "messages": [{"role": "user", "content": "Hello"}], "stream": True})
    key = " -H 'authorization: Bearer KEY'" if serve.api_keys else ""
    apart = ", the engine in a process of its own" if serve.engine_process else ""
    queue = 4 * model.max_seqs if serve.queue is None else serve.queue
    lines = [
        f"legato serves {model.name} at {url}",
        f"  model     {model.facts.file}, context {model.context_length:,}",
        f"  memory    {model.capacity} ({model.kv})",
        f"  machine   {model.isa}, {model.threads} threads{apart}",
        f"  answers   {model.max_seqs} at once, {queue} waiting",
        f"  keys      {len(serve.api_keys)}" if serve.api_keys else "  keys      none: whoever reaches this may ask",
        f"  try       curl {url}/v1/chat/completions -H 'content-type: application/json'{key} -d '{body}'",
    ]
    if serve.sources.get("port") == "default" and not url.endswith(f":{serve.port}"):
        lines.append(f"  note      port {serve.port} is in use, so this is the next free one")
    return lines + [f"  note      {note}" for note in model.notes[: 12 - len(lines)]]
