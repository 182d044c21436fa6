"""The clients that `legato launch` knows: what each has to be told, and in which file it keeps that.

Knows: names of variables and settings of other programs. Does not know: how files are changed.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from legato.cli.settings_file import BlockEdit, Edit, JsonEdit, toml_problem, yaml_problem

NO_KEY = "none"  # clients insist on a key; a server without keys takes any
CONTEXT = 8192  # tokens, where no server was asked


@dataclass(frozen=True, slots=True)
class Where:
    """The server: `url` without /v1, the model's name, a key, the tokens that a conversation may have."""

    url: str
    model: str
    key: str
    context: int = CONTEXT

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


@dataclass(frozen=True, slots=True)
class Client:
    """One program.

    shown  what a person types, or copies
    file   its settings file; None: it has none that could be written
    edit   what goes in there
    then   how to start it after that
    """

    name: str
    about: str
    shown: Callable[[Where], str]
    file: Path | None = None
    edit: Callable[[Where], Edit] | None = None
    then: str = ""


def _exports(values: dict[str, str]) -> str:
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items())


def _quoted(text: str) -> str:
    """A string as JSON, TOML and YAML all write it."""
    return json.dumps(text, ensure_ascii=False)


def _claude_env(where: Where) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": where.url,
        "ANTHROPIC_AUTH_TOKEN": where.key,
        "ANTHROPIC_MODEL": where.model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": where.model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": where.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": where.model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }


def _codex(where: Where) -> tuple[str, ...]:
    return (
        "[model_providers.legato]",
        'name = "Legato"',
        f"base_url = {_quoted(where.v1)}",
        'wire_api = "responses"',
        f"http_headers = {{ Authorization = {_quoted(f'Bearer {where.key}')} }}",
        "",
        "[profiles.legato]",
        f"model = {_quoted(where.model)}",
        'model_provider = "legato"',
    )


def _opencode(where: Where) -> JsonEdit:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Legato",
        "options": {"baseURL": where.v1, "apiKey": where.key},
        "models": {where.model: {"name": where.model}},
    }
    return JsonEdit({("provider", "legato"): provider, ("model",): f"legato/{where.model}"})


def _continue(where: Where) -> tuple[str, ...]:
    return (
        "name: Legato",
        "version: 0.0.1",
        "schema: v1",
        "models:",
        "  - name: Legato",
        "    provider: openai",
        f"    model: {_quoted(where.model)}",
        f"    apiBase: {_quoted(where.v1)}",
        f"    apiKey: {_quoted(where.key)}",
        "    roles: [chat, edit, apply]",
    )


def _aider(where: Where) -> tuple[str, ...]:
    return (
        f"openai-api-base: {_quoted(where.v1)}",
        f"openai-api-key: {_quoted(where.key)}",
        f"model: {_quoted(f'openai/{where.model}')}",
    )


def _llm(where: Where) -> tuple[str, ...]:
    lines = (
        "- model_id: legato",
        f"  model_name: {_quoted(where.model)}",
        f"  api_base: {_quoted(where.v1)}",
    )
    return (
        lines if where.key == NO_KEY else (*lines, "  headers:", f"    Authorization: {_quoted(f'Bearer {where.key}')}")
    )


def _open_webui(where: Where) -> str:
    values = {"OPENAI_API_BASE_URL": where.v1, "OPENAI_API_KEY": where.key}
    return _exports(values) + "\nopen-webui serve"


def _curl(where: Where) -> str:
    body = {"model": where.model, "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    head = f"curl {shlex.quote(where.v1 + '/chat/completions')} -H 'content-type: application/json'"
    key = "" if where.key == NO_KEY else f" -H {shlex.quote(f'authorization: Bearer {where.key}')}"
    return f"{head}{key} -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"


def _python(where: Where) -> str:
    return f"""from openai import OpenAI

client = OpenAI(base_url={where.v1!r}, api_key={where.key!r})
answer = client.chat.completions.create(
    model={where.model!r},
    messages=[{{"role": "user", "content": "Hello"}}],
)
print(answer.choices[0].message.content)"""


def _langchain(where: Where) -> str:
    return f"""from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    base_url={where.v1!r},
    api_key={where.key!r},
    model={where.model!r},
    stream_usage=True,
    use_responses_api=False,
)
print(model.invoke("Hello").content)"""


def _llama_index(where: Where) -> str:
    return f"""from llama_index.llms.openai_like import OpenAILike

model = OpenAILike(
    api_base={where.v1!r},
    api_key={where.key!r},
    model={where.model!r},
    is_chat_model=True,
    is_function_calling_model=True,
    context_window={where.context},
)
print(model.complete("Hello"))"""


def _apps(home: Path, config: Path) -> Path:
    """Where click keeps programs' folders; opencode, by the package xdg-basedir, has none of its own on a Mac."""
    return home / "Library" / "Application Support" if sys.platform == "darwin" else config


def clients(home: Path, config: Path | None = None) -> dict[str, Client]:
    """All of them, by name; `config`: where programs keep their settings that follow XDG_CONFIG_HOME."""
    config = config or home / ".config"
    toml, mapping, listing = toml_problem, yaml_problem(listed=False), yaml_problem(listed=True)
    found = [
        Client(
            "claude",
            "Claude Code, by its environment",
            lambda w: _exports(_claude_env(w)) + "\nclaude",
            home / ".claude" / "settings.json",
            lambda w: JsonEdit({("env", name): value for name, value in _claude_env(w).items()}),
            "claude",
        ),
        Client(
            "codex",
            "Codex CLI, a provider and a profile",
            lambda w: "\n".join(_codex(w)),
            home / ".codex" / "config.toml",
            lambda w: BlockEdit(_codex(w), toml),
            "codex --profile legato",
        ),
        Client(
            "opencode",
            "opencode, a provider and its model",
            lambda w: _opencode(w).put("", Path("opencode.json")).rstrip("\n"),
            config / "opencode" / "opencode.json",
            _opencode,
            "opencode",
        ),
        Client(
            "continue",
            "Continue, in the editor",
            lambda w: "\n".join(_continue(w)),
            home / ".continue" / "config.yaml",
            lambda w: BlockEdit(_continue(w), mapping),
            "the editor, and choose Legato",
        ),
        Client(
            "aider",
            "aider",
            lambda w: "\n".join(_aider(w)),
            home / ".aider.conf.yml",
            lambda w: BlockEdit(_aider(w), mapping),
            "aider",
        ),
        Client(
            "llm",
            "llm, one more model",
            lambda w: "\n".join(_llm(w)),
            _apps(home, config) / "io.datasette.llm" / "extra-openai-models.yaml",
            lambda w: BlockEdit(_llm(w), listing),
            "llm -m legato 'Hello'",
        ),
        Client("open-webui", "Open WebUI, by its environment", _open_webui),
        Client("curl", "one request", _curl),
        Client("python", "OpenAI's library", _python),
        Client("langchain", "LangChain", _langchain),
        Client("llama-index", "LlamaIndex, by OpenAILike", _llama_index),
    ]
    return {client.name: client for client in found}
