"""Made-up prompts of a wanted length in tokens, for servers whose tokenizer is only reached over HTTP.

Knows: common words, the two forms of `/tokenize`, JSON lines of prompts. Does not know: how requests are sent.

Random words from one seed: two prompts share no more than chance. With `/tokenize` a prompt has exactly the wanted
number of tokens, or as near as words come; without it a word counts as one token, and that is said.
"""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legato.bench.link import Client, LinkError
from legato.errors import UsageError

TRIES = 8
Count = Callable[[str], Awaitable[int]]

# Short common words: in nearly every vocabulary each is one token with the space before it.
_COMMON = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother area
money story fact month lot right study book eye job word business issue side kind head house service friend father
power hour game line end member law car city name team minute idea body back parent face others level office door
health person art war history party result change morning reason research girl guy moment air teacher force
education foot boy age policy music market sense land paper fire sea road town field wall river stone tree bird
horse fish summer winter spring north south east west red blue green white black old new good high small large long
young early late hard free full open clear short real best low public bad strong sure able human local go see know
take come think look want give use find tell ask seem feel try leave call keep let begin show hear play run move
like live believe hold bring write sit stand lose pay meet include set learn lead understand watch follow stop speak
read spend grow win walk offer remember love consider appear buy wait serve die send expect build stay fall cut
reach kill remain suggest raise pass sell require report decide pull
"""
WORDS = tuple(_COMMON.split())


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one request asks.

    tokens      by the server's tokenizer; None: not told
    max_tokens  of its answer; None: as many as all
    """

    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    tokens: int | None = None
    max_tokens: int | None = None


class Writer:
    """Writes random prompts; `count` asks the server how many tokens a text has (None: it cannot be asked)."""

    def __init__(self, seed: int, count: Count | None) -> None:
        self._random = random.Random(seed)
        self._count = count
        self._per_word = 1.0  # learnt

    async def prompt(self, tokens: int, prefix: str = "") -> Prompt:
        """`prefix` and then random words, `tokens` in all (the nearest that words can reach)."""
        least = len(prefix.split())
        if self._count is None:
            return Prompt(self._words(prefix, max(1, tokens - least)))
        found = best = await self._counted(self._words(prefix, max(1, round(tokens / self._per_word) - least)))
        for _ in range(TRIES):
            text, count = found
            if count == tokens:
                break
            words = text.split(" ")
            per_word = max(1.0, count / len(words))
            more = round((tokens - count) / per_word)  # 0: less than a word; another last one may be of the right size
            kept = max(least, len(words) + more - 1) if more <= 0 else len(words)
            found = await self._counted(self._words(" ".join(words[:kept]), more if more > 0 else 1))
            best = min(best, found, key=lambda one: abs(tokens - one[1]))
        self._per_word = max(0.2, best[1] / len(best[0].split(" ")))
        return Prompt(best[0], tokens=best[1])

    async def _counted(self, text: str) -> tuple[str, int]:
        assert self._count is not None
        return text, await self._count(text)

    def _words(self, begin: str, count: int) -> str:
        return " ".join([*([begin] if begin else []), *self._random.choices(WORDS, k=count)])


async def counter(client: Client, model: str, chat: bool) -> Count | None:
    """How this server counts tokens, found out by asking; None: it has no such route.

    Of a chat the template's tokens count too, where the server takes `messages`.
    """
    forms: list[Callable[[str], dict[str, Any]]] = [
        lambda text: {"model": model, "prompt": text},  # ours, vLLM
        lambda text: {"content": text, "add_special": True},  # llama.cpp
    ]
    if chat:
        forms.insert(0, lambda text: {"model": model, "messages": [{"role": "user", "content": text}]})

    async def ask(form: Callable[[str], dict[str, Any]], text: str) -> int | None:
        status, told = await client.json("POST", "/tokenize", form(text))
        if status != 200 or not isinstance(told, dict):
            return None
        tokens = told.get("tokens")
        count = told.get("count", len(tokens) if isinstance(tokens, list) else None)
        return count if isinstance(count, int) and count > 0 else None

    for form in forms:
        try:
            if await ask(form, " ".join(WORDS[:8])) is None:
                continue
        except LinkError:
            return None

        async def count(text: str, form: Callable[[str], dict[str, Any]] = form) -> int:
            found = await ask(form, text)
            if found is None:
                raise LinkError("tokenize", "the server stopped answering /tokenize")
            return found

        return count
    return None


def read_prompts(path: Path) -> list[Prompt]:
    """JSON lines: a string, or an object with `prompt` or `messages`, and `max_tokens` if it likes."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prompts {path}: {error}; give a UTF-8 file of JSON lines") from None
    found = [_prompt(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UsageError(f'--prompts {path} is empty; give lines such as {{"prompt": "Once upon a time"}}')
    return found


def _prompt(path: Path, number: int, line: str) -> Prompt:
    try:
        told = json.loads(line)
    except ValueError:
        told = None
    if isinstance(told, str) and told:
        return Prompt(told)
    if isinstance(told, dict):
        text, messages, most = told.get("prompt"), told.get("messages"), told.get("max_tokens")
        asks = isinstance(messages, list) if messages else isinstance(text, str) and bool(text)
        if asks and (most is None or (isinstance(most, int) and not isinstance(most, bool) and most > 0)):
            return Prompt(None if messages else text, messages or None, max_tokens=most)
    raise UsageError(
        f"--prompts {path} line {number} is not usable: a JSON string, or an object with a prompt or messages, "
        "and max_tokens above 0 if it has one"
    )
