"""A chat's state and its /commands.

Knows: the messages so far, sampling choices, what each /command does. Does not know: where lines come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from legato.cli.answer import interrupted, show_answer
from legato.cli.terminal import Terminal
from legato.completion import Completion
from legato.core.request import SamplingParams
from legato.errors import LegatoError, UsageError

if TYPE_CHECKING:
    from legato.llm import LLM, Message

T = TypeVar("T", int, float)
ROLES = ("system", "user", "assistant")

HELP = '''\
/system TEXT   set the system message and start again (no TEXT: show it)
/temp T        temperature, 0 is greedy (no T: show it)
/seed S        fix the seed; /seed off draws a new one for each answer
/retry         answer the last message again
/clear         forget the conversation, keep the system message
/save FILE     write the conversation as JSON
/load FILE     go on from a saved conversation
/stats         tokens and times of the conversation
/exit          end (also Ctrl-D)
"""            starts and ends a message of several lines'''


class ChatSession:
    """Takes one line at a time; `ended` after /exit."""

    def __init__(self, llm: LLM, params: SamplingParams, terminal: Terminal, system: str | None) -> None:
        self.llm, self.params, self.terminal, self.system = llm, params, terminal, system
        self.messages: list[Message] = []
        self.completions: list[Completion] = []
        self.ended = False
        self.name: str | None = None  # of the saved session, where there is one
        if not llm.has_template:
            terminal.note("this model has no chat template: it goes on from the bare text of the conversation")
        self.clear("")

    def keep_as(self, name: str) -> None:
        """Goes on with the saved session `name` if there is one; every answer from now on is saved under it."""
        sessions = self.llm.sessions
        sessions.folder.lock()
        self.name = name
        if name not in sessions.folder:
            self.terminal.dim(f"new session {name}")
            return
        given = self.system
        restored = sessions.restore(name)
        try:
            self.messages = _messages({"messages": list(restored.messages)})
        except ValueError as error:
            raise UsageError(f"session {name!r} is no plain conversation: {error}; choose another name") from None
        self.system = next((m["content"] for m in self.messages if m["role"] == "system"), None)
        if given is not None and given != self.system:
            self.terminal.note(f"session {name} has its own system message, --system is not used; /system starts anew")
        turns = sum(message["role"] == "user" for message in self.messages)
        read = f"{restored.loaded_tokens} tokens read in {restored.load_s:.2f} s"
        self.terminal.dim(f"session {name}: {turns} questions, {read}")
        if restored.note is not None:
            self.terminal.note(restored.note)

    def take(self, text: str) -> bool:
        """A message or a /command. True when Ctrl-C stopped the answer. Refusals are told, and the chat goes on."""
        try:
            _check_text(text)
            if text.startswith("/"):
                return self._command(text)
            return self._answer([*self.messages, {"role": "user", "content": text}])
        except LegatoError as error:
            self.terminal.say(f"error: {error}")
            return False

    def _command(self, text: str) -> bool:
        name, _, argument = text[1:].partition(" ")
        commands: dict[str, Callable[[str], bool | None]] = {
            "help": lambda _: self.terminal.say(HELP),
            "system": self.set_system,
            "temp": self.set_temperature,
            "seed": self.set_seed,
            "retry": self.retry,
            "clear": self.clear,
            "save": self.save,
            "load": self.load,
            "stats": self.stats,
            "exit": self.exit,
        }
        if name not in commands:
            raise UsageError(f"no command /{name}; /help lists them (a message may not start with /)")
        return bool(commands[name](argument.strip()))

    def _answer(self, messages: list[Message]) -> bool:
        """Only an answered question becomes part of the conversation."""
        completion = show_answer(self.llm, messages, self.params, self.terminal, quiet=False)
        if completion.error is not None:
            raise LegatoError(f"{completion.error}; the question is forgotten, try again")
        self.messages = [*messages, {"role": "assistant", "content": completion.text}]
        self.completions.append(completion)
        if self.name is not None:
            self.llm.sessions.save(self.name, completion, messages=self.messages)
        return interrupted(completion)

    def set_system(self, text: str) -> None:
        if text:
            self.system = text
            self.clear("")
            self.terminal.dim("system message set, conversation cleared")
        else:
            self.terminal.dim(self.system or "no system message; the model's template may add its own")

    def set_temperature(self, text: str) -> None:
        if text:
            self.params = replace(self.params, temperature=_number(text, "/temp", float))
        self.terminal.dim(f"temperature {self.params.temperature:g}")

    def set_seed(self, text: str) -> None:
        if text == "off":
            self.params = replace(self.params, seed=None)
        elif text:
            self.params = replace(self.params, seed=_number(text, "/seed", int))
        last = f" (last answer: {self.completions[-1].receipt.seed})" if self.completions else ""
        self.terminal.dim(f"seed {'drawn for each answer' if self.params.seed is None else self.params.seed}{last}")

    def retry(self, _: str) -> bool:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise UsageError("nothing to retry yet; write a message first")
        if self.params.greedy or self.params.seed is not None:
            self.terminal.note("temperature 0 or a fixed seed gives the same answer again; see /temp and /seed off")
        return self._answer(self.messages[:-1])

    def clear(self, _: str) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs a file name: /save talk.json")
        from legato.replay import replace_file

        path = Path(name).expanduser()
        saved = {"model": self.llm.name, "messages": self.messages}
        data = (json.dumps(saved, ensure_ascii=False, indent=1) + "\n").encode("utf-8")
        try:
            if path.exists() and not path.is_file():  # a pipe or a terminal
                path.write_bytes(data)
            else:
                replace_file(path.resolve(), data)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}; choose a place that can be written") from None
        self.terminal.dim(f"{len(self.messages)} messages saved in {path}")

    def load(self, name: str) -> None:
        if not name:
            raise UsageError("/load needs a file name: /load talk.json")
        path = Path(name).expanduser()
        try:
            messages = _messages(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}; give a file that /save wrote") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}: {error}; give a file that /save wrote") from None
        self.messages = messages
        self.system = next((m["content"] for m in messages if m["role"] == "system"), None)
        self.terminal.dim(f"{len(messages)} messages loaded")

    def stats(self, _: str) -> None:
        done = self.completions
        tokens = sum(c.num_output_tokens for c in done)
        decode_s = sum(c.timings.decode_ms for c in done) / 1e3
        cached = sum(c.timings.cached_tokens for c in done)
        prompt = sum(c.prompt_tokens for c in done)
        rate = f", {(tokens - len(done)) / decode_s:.1f} tok/s" if decode_s else ""
        size = len(self.llm.render(self.messages)) if self.messages else 0
        self.terminal.dim(
            f"{len(done)} answers, {tokens} tokens{rate}; prompts {prompt} tok, {cached} of them cached; "
            f"conversation {size} of {self.llm.context_length} tokens"
        )

    def exit(self, _: str) -> None:
        self.ended = True


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        before = len(text[: error.start].encode("utf-8", "surrogateescape"))
        raise UsageError(f"byte {before} of this line is not UTF-8; convert the text to UTF-8 first") from None


def _number(text: str, command: str, kind: Callable[[str], T]) -> T:
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{command} needs a number, not {text!r}") from None


def _messages(saved: object) -> list[Message]:
    """The messages of a saved conversation; ValueError when it is not one."""
    messages = saved.get("messages") if isinstance(saved, dict) else None
    if not isinstance(messages, list):
        raise ValueError("no list of messages")
    for m in messages:
        if not isinstance(m, dict) or m.get("role") not in ROLES or not isinstance(m.get("content"), str):
            raise ValueError(f"a message needs a role ({', '.join(ROLES)}) and text as content")
    return [{"role": m["role"], "content": m["content"]} for m in messages]
