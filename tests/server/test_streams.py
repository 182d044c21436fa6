"""Answers stay exact in company; what nobody waits for any more is given back at once."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from live import NAME, Live, echo_assembly, expected, running

from legato.core.plan import Plan
from legato.server.limits import ServerLimits

TEXT = "/v1/completions"


@pytest.fixture(scope="module")
def paced(alphabet: Path) -> Iterator[Live]:
    """Slow enough that a request can be met in the middle."""
    with running(echo_assembly(alphabet, pace=0.002, max_seqs=8), queue=400) as live:
        yield live
        live.wait(live.idle, 5.0, "everything given back")


def shown_text(events: list[Any], index: int = 0) -> str:
    choices = [c for e in events if e != "[DONE]" for c in e["choices"] if c["index"] == index]
    return "".join(c["text"] for c in choices)


def test_streams_in_company_are_exact(paced: Live) -> None:
    """32 at once, some with shared beginnings, several answers, or sampled: each as if it were alone."""
    shared, wrong = [7] * 24, []

    def one(i: int) -> None:
        draw = random.Random(i)
        ids = (shared if i % 3 == 0 else []) + [draw.randrange(256) for _ in range(draw.randrange(1, 40))]
        params = {"max_tokens": draw.randrange(1, 40), "temperature": i % 2, "seed": i, "n": 1 + i % 3}
        reply = paced.post(TEXT, {"prompt": ids, "stream": i % 4 != 0, **params})
        for index in range(params["n"]):
            text, _, reason = expected(paced, ids, index, **params)
            if i % 4 == 0:
                choice = reply.json["choices"][index]
                found = choice["text"], choice["finish_reason"]
            else:
                ends = [c["finish_reason"] for e in reply.events[:-1] for c in e["choices"] if c["index"] == index]
                found = shown_text(reply.events, index), ends[-1]
            if found != (text, reason):
                wrong.append((i, index, found, text, reason))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_stop_string_never_leaks_and_ends_the_work(paced: Live) -> None:
    for seed in range(8):
        params = {"max_tokens": 60, "temperature": 1, "seed": seed, "ignore_eos": True}
        text, _, _ = expected(paced, [1, seed], **params)
        stop = text[20:23]
        body = {"prompt": [1, seed], "stop": stop, **params}
        whole = paced.post(TEXT, body).json["choices"][0]
        assert whole["text"] == text[: text.index(stop)] and whole["stop_reason"] == stop
        assert shown_text(paced.post(TEXT, body | {"stream": True}).events) == whole["text"]


def test_a_reader_that_takes_nothing_is_dropped(alphabet: Path) -> None:
    with running(echo_assembly(alphabet, context=60000, num_pages=9000), limits=ServerLimits(stall_s=0.3)) as live:
        link = socket.socket()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect(("127.0.0.1", live.port))
        body = {
            "prompt": [1],
            "max_tokens": 50000,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            "n": 16,
        }
        data = json.dumps(body).encode()
        head = f"POST {TEXT} HTTP/1.1\r\nhost: ::1\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
        link.sendall(f"{head}\r\n\r\n".encode() + data)
        live.wait(lambda: live.server.service.num_in_flight > 0, 5, "admitted")
        live.wait(live.idle, 40, "dropped")
        link.close()


def test_signs_of_life_while_nothing_comes(alphabet: Path) -> None:
    with running(echo_assembly(alphabet), limits=ServerLimits(ping_s=0.2)) as live:
        gate = threading.Event()
        live.parts.runner.during = lambda plan: gate.wait(25)  # type: ignore[attr-defined]
        opening = threading.Thread(
            target=lambda: (
                live.wait(lambda: bool(live.server.service.streams()), 20, "asked"),
                time.sleep(1),
                gate.set(),
            )
        )
        opening.start()
        reply = live.post(TEXT, {"prompt": [1], "stream": True})
        opening.join()
        assert 1 <= reply.body.count(b": ping\n\n") <= 5
        assert reply.events[-1] == "[DONE]"


def test_a_fault_in_one_request_is_an_error_event_and_nobody_elses(alphabet: Path) -> None:
    with running(echo_assembly(alphabet, pace=0.001)) as live:
        runner: Any = live.parts.runner
        runner.spoil = lambda seq: seq.request.prompt_ids[0] == 13 and seq.num_output_tokens == 5
        neighbour = live.open({"prompt": [1], "max_tokens": 50, "temperature": 0})
        body = {"prompt": [13], "max_tokens": 50, "ignore_eos": True}
        events = live.post(TEXT, body | {"stream": True}).events
        assert events[-1] == "[DONE]" and events[-2]["error"]["message"] == "spoiled on purpose"
        plain = live.post(TEXT, body)
        assert plain.status == 500 and plain.error["message"] == "spoiled on purpose"
        assert plain.headers["x-should-retry"] == "false"
        assert b"200 OK" in neighbour.recv(65536)
        neighbour.close()
        live.wait(live.idle, 2, "everything given back")


def test_a_failed_step_keeps_its_reasons_to_itself(alphabet: Path) -> None:
    with running(echo_assembly(alphabet)) as live:

        def during(plan: Plan) -> None:
            raise ZeroDivisionError("secret at 0xdeadbeef in /srv/x.py")

        live.parts.runner.during = during  # type: ignore[attr-defined]
        reply = live.post(TEXT, {"prompt": [1]})
        assert reply.status == 500 and reply.error["message"] == "the step failed: ZeroDivisionError"
        live.parts.runner.during = lambda plan: None  # type: ignore[attr-defined]
        assert live.post(TEXT, {"prompt": [1], "max_tokens": 1}).status == 200


# -- OpenAI's own client ----------------------------------------------------------------------------------------------


def test_openais_client_reads_everything(letters: Live) -> None:
    client = openai.OpenAI(base_url=letters.url + "/v1", api_key="none", max_retries=0)
    assert client.models.list().data[0].id == NAME and client.models.retrieve(NAME).id == NAME
    hello: Any = [{"role": "user", "content": "hello"}]
    chat = client.chat.completions.create(model=NAME, messages=hello, max_tokens=3, temperature=0, logprobs=True)
    assert chat.choices[0].message.content == "abc" and chat.choices[0].finish_reason == "length"
    assert chat.usage is not None and chat.usage.total_tokens == 10
    with client.chat.completions.create(
        model=NAME, messages=hello, max_tokens=3, temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "abc"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
    text = client.completions.create(model=NAME, prompt=["ab", "x"], max_tokens=2, temperature=0)
    assert [c.text for c in text.choices] == ["cd", "yz"]
    parts = client.completions.create(model=NAME, prompt="ab", max_tokens=3, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in parts) == "cde"


def test_openais_client_raises_the_right_errors(letters: Live) -> None:
    client = openai.OpenAI(base_url=letters.url + "/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="not here"):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.BadRequestError, match="temperature=9000") as refused:
        client.completions.create(model=NAME, prompt="a", temperature=9000)
    assert refused.value.param == "temperature" and refused.value.code == "invalid_value"


def test_openais_client_raises_on_an_error_in_mid_stream(alphabet: Path) -> None:
    with running(echo_assembly(alphabet, ends=False)) as live:
        runner: Any = live.parts.runner
        runner.spoil = lambda seq: seq.num_output_tokens == 3
        client = openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="spoiled"):
            list(client.completions.create(model=NAME, prompt=[1, 2], max_tokens=9, stream=True))
