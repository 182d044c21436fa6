"""An answer's milliseconds over HTTP: `include: ["explain"]` tells what `legato explain` tells."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from live import Live, alphabet_assembly, running

from legato.core.events import Event, Usage
from legato.kernels.cpu import load_library
from legato.measure.calibrated import machine_path
from legato.server.model import Card
from legato.server.wire import LENGTH, Ready, Step, frame, from_engine

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
BODY = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, "include": ["explain"]}


def told(live: Live, path: str, body: dict[str, Any], stream: bool) -> Any:
    reply = live.post(path, body | {"stream": stream})
    assert reply.status == 200, reply.body
    if not stream:
        return reply.json["explain"]
    chunks = [event for event in reply.events if event != "[DONE]"]
    assert all("explain" not in chunk for chunk in chunks[:-1])
    return chunks[-1]["explain"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "prompt"), [(TEXT, {"prompt": "hijk"}), (CHAT, {"messages": [{"role": "user", "content": "abc"}]})]
)
def test_an_answer_explains_itself(letters: Live, path: str, prompt: dict[str, Any], stream: bool) -> None:
    began = time.perf_counter()
    shown = told(letters, path, prompt | BODY, stream)
    waited = 1e3 * (time.perf_counter() - began)
    summary = shown["summary"]
    assert set(shown) == {"steps", "summary", "advice"} and summary["output_tokens"] == 12
    parts = {part["name"]: part["ms"] for part in summary["parts"]}
    assert sum(parts.values()) == pytest.approx(summary["total_ms"], abs=1e-3) and summary["total_ms"] < waited
    assert all(ms >= 0 for ms in parts.values()) and parts["prefill_computed"] > 0 and parts["tokenise"] > 0
    assert (parts["template"] > 0) == (path == CHAT)


def test_each_prompt_of_several_is_explained_and_grammars_have_their_time(letters: Live) -> None:
    first, second = told(letters, TEXT, {"prompt": ["ab", "xyz"], **BODY}, False)
    assert (first["summary"]["prompt_tokens"], second["summary"]["prompt_tokens"]) == (2, 3)
    regex = {"prompt": "a", "structured_outputs": {"regex": "[x-z]{3,9}"}, "include": ["explain"]}
    parts = {part["name"]: part["ms"] for part in told(letters, TEXT, regex, False)["summary"]["parts"]}
    assert parts["grammar"] > 0


def test_nothing_of_other_keys_is_told(alphabet: Path) -> None:
    keys = ("sk-one-of-two", "sk-two-of-two")
    with running(alphabet_assembly(alphabet), api_keys=keys) as live:
        live.post(TEXT, {"prompt": "a" * 60, "max_tokens": 1})
        assert told(live, TEXT, {"prompt": "a" * 50 + "b" * 10, **BODY}, False)["summary"]["miss"] is None


def test_a_damaged_calibration_is_told_without_its_place(alphabet: Path, tmp_path: Path) -> None:
    library = load_library()
    if isinstance(library, str):
        pytest.skip(library)
    load = alphabet_assembly(alphabet, backend="native", cache_dir=str(tmp_path), threads=1)
    with running(load) as live:
        assert "never calibrated" in told(live, TEXT, {"prompt": "a", **BODY}, False)["summary"]["note"]
        machine_path(tmp_path, live.parts.executor.isa, 1).parent.mkdir()
        machine_path(tmp_path, live.parts.executor.isa, 1).write_text("{}")
    with running(load) as live:
        note = told(live, TEXT, {"prompt": "a", **BODY}, False)["summary"]["note"]
    assert "legato calibrate" in note and str(tmp_path) not in note


def test_who_cannot_explain_refuses(echo: Live) -> None:
    refused = echo.post(TEXT, {"prompt": "a", "include": ["explain"]})
    assert refused.status == 400 and refused.error["param"] == "include"
    assert "explain" not in echo.post(TEXT, {"prompt": "a", "max_tokens": 1}).json


def test_what_an_explanation_needs_crosses_to_another_process(letters: Live) -> None:
    """Accounts with the events, and what the model runs on with the card: the same on the other side."""
    usage = Usage(3, 2, 0, 1, {"arrived": 1.0})
    usage.account.trace.add(2.0, 3, 1, 0.5)
    usage.account.preempted.append((1.0, 1.5))
    usage.account.costs = (0.1, 0.2)
    sent = Step([Event("r", 1, 0, usage=usage)])
    back = from_engine(frame(sent)[LENGTH.size :])
    assert isinstance(back, Step) and back.events[0].usage is not None
    assert back.events[0].usage.account == usage.account
    card = Card.of(letters.parts)
    assert card.setting is not None
    ready = from_engine(frame(Ready(card))[LENGTH.size :])
    assert isinstance(ready, Ready) and msgspec.structs.asdict(ready)["card"].setting == card.setting
