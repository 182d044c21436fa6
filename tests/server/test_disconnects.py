"""Clients that go away at any moment: their pages come free at once, and whoever stays gets an exact answer."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from apart import apart, echo_command, echo_text, tokenizer_of
from live import Live, echo_assembly, running

TEXT = "/v1/completions"
STAYS: dict[str, Any] = {"prompt": [9, 9, 9], "max_tokens": 100, "ignore_eos": True, "temperature": 0}
PACE_S, SEQS, QUEUE, AT_ONCE = 0.002, 8, 400, 40
FREE_S, STANDSTILL_S = 0.25, 2.0  # a machine with others on it stands still now and then

Idle = Callable[[], bool]


@pytest.fixture(scope="module")
def thread(alphabet: Path) -> Iterator[tuple[Live, Idle]]:
    with running(echo_assembly(alphabet, pace=PACE_S, max_seqs=SEQS), queue=QUEUE) as live:
        yield live, live.idle


@pytest.fixture(scope="module")
def process(alphabet: Path) -> Iterator[tuple[Live, Idle]]:
    with apart(alphabet, echo_command(pace=PACE_S), max_seqs=SEQS, queue=QUEUE) as made:
        yield made.live, made.idle


def leave(live: Live, draw: random.Random, stream: bool, times: int) -> None:
    """Asks, and goes: while queued, in the prompt, in the answer; with a farewell or without."""
    links: list[socket.socket] = []
    for _ in range(times):
        prompt = [draw.randrange(256) for _ in range(draw.choice([1, 30, 300]))]
        body = {"prompt": prompt, "max_tokens": 90, "ignore_eos": True, "stream": stream, "n": draw.choice([1, 1, 3])}
        links.append(live.open(body))
        time.sleep(draw.random() * 0.002)
        if draw.random() < 0.5:
            hang_up(links.pop(draw.randrange(len(links))), draw)
    draw.shuffle(links)
    for link in links:
        time.sleep(draw.random() * 0.002)
        hang_up(link, draw)


def hang_up(link: socket.socket, draw: random.Random) -> None:
    if draw.random() < 0.5:  # a reset
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


def disconnects(live: Live, idle: Idle, text: str, stream: bool, times: int) -> None:
    draw, waits = random.Random(stream), []
    for _ in range(times // AT_ONCE):
        found: list[Any] = []
        staying = threading.Thread(target=lambda found=found: found.append(live.post(TEXT, STAYS)))
        staying.start()
        leave(live, draw, stream, AT_ONCE)
        waits.append(live.wait(lambda: live.server.service.num_in_flight <= 1, STANDSTILL_S, "whoever left is gone"))
        staying.join()
        assert found[0].json["choices"][0]["text"] == text
        waits.append(live.wait(idle, STANDSTILL_S, "pages are free"))
    assert sorted(waits)[9 * (len(waits) - 1) // 10] < FREE_S, waits


QUICK = [("thread", 80), ("process", 80)]
MANY = [pytest.param(*case, marks=pytest.mark.slow) for case in (("thread", 1000), ("process", 600))]


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "plain"])
@pytest.mark.parametrize(("place", "times"), [*QUICK, *MANY])
def test_disconnects_at_any_moment_give_everything_back(
    alphabet: Path, request: pytest.FixtureRequest, place: str, stream: bool, times: int
) -> None:
    """2,000 in a thread, 1,200 in a process."""
    live, idle = request.getfixturevalue(place)
    params = {name: value for name, value in STAYS.items() if name != "prompt"}
    text = echo_text(tokenizer_of(alphabet), STAYS["prompt"], **params)
    disconnects(live, idle, text, stream, times)
