"""One line a request, as text or as JSON; never a prompt, never a key, never a control character.

Knows: which figures a line holds. Does not know: where lines go (the logging package's handlers do).
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from dataclasses import asdict, dataclass, field

from legato.measure.percentiles import percentile
from legato.server.ask import Result

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

requests = logging.getLogger("legato.request")


@dataclass(slots=True)
class RequestLine:
    """What is told of one request."""

    request_id: str = ""
    method: str = ""
    path: str = ""
    status: int = 0
    seconds: float = 0.0
    client: str = ""
    tenant: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    queue_ms: float | None = None
    ttft_ms: float | None = None
    itl_p50_ms: float | None = None
    itl_p99_ms: float | None = None
    tok_s: float | None = None
    finish_reason: str | None = None
    problem: str | None = None
    fields: dict[str, object] = field(default_factory=dict)

    def note(self, result: Result) -> None:
        """Takes the figures of answers; times only of those that are whole, as they are told with an answer's end."""
        timings = result.timings
        self.prompt_tokens, self.completion_tokens = result.prompt_tokens, result.completion_tokens
        self.cached_tokens = result.cached_tokens
        if all(output.finish_reason is not None for _, output in result.choices):
            self.queue_ms, self.ttft_ms = round(timings.queue_ms, 1), round(timings.ttft_ms, 1)
            self.tok_s = round(timings.decode_tok_s, 1)
            self._note_gaps(result)
        reasons = dict.fromkeys(str(o.finish_reason) for _, o in result.choices if o.finish_reason is not None)
        self.finish_reason = ",".join(reasons) or None

    def _note_gaps(self, result: Result) -> None:
        """Of each prompt's answer that ended last."""
        gaps = sorted(gap for c in result.completions if c.usage is not None for gap in c.usage.account.trace.gaps())
        if gaps:
            self.itl_p50_ms, self.itl_p99_ms = (round(1e3 * percentile(gaps, q), 2) for q in (50, 99))

    def write(self) -> None:
        """Puts the line out."""
        shown = {k: v for k, v in asdict(self).items() if v not in (None, "", {})}
        shown.update(shown.pop("fields", {}))
        shown["seconds"] = round(self.seconds, 4)
        level = logging.WARNING if self.status >= 500 else logging.INFO
        requests.log(level, "request", extra={"fields": shown})


class Formatter(logging.Formatter):
    """`ts level message key=value ...`, or the same as one JSON object."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = getattr(record, "fields", {})
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        if self._as_json:
            shown = {"ts": stamp, "level": record.levelname.lower(), "message": message, **fields}
            return json.dumps(shown, ensure_ascii=False, default=str)
        parts = [stamp, record.levelname.lower(), CONTROL.sub(" ", message) if not record.exc_info else message]
        parts += [f"{name}={_shown(value)}" for name, value in fields.items()]
        return " ".join(parts)


def _shown(value: object) -> str:
    text = CONTROL.sub("?", str(value))
    return json.dumps(text, ensure_ascii=False) if " " in text or '"' in text else text


def set_up(form: str) -> None:
    """Lines of this package go to standard error. `form`: text, json, or auto (text for people at a terminal)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(form == "json" or (form == "auto" and not sys.stderr.isatty())))
    logger = logging.getLogger("legato")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    faults = logging.getLogger("uvicorn.error")
    faults.handlers[:] = [handler]
    faults.setLevel(logging.ERROR)
    faults.propagate = False
