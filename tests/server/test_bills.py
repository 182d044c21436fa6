"""Joules and money in the answers of every protocol; nothing of them where nobody declared or measured any."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import Live

from legato import LLM, SamplingParams
from legato.measure.energy import open_rates

CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 6}
ROUTES = {"/v1/chat/completions": CHAT, "/v1/completions": {"prompt": "a", "max_tokens": 6}, "/v1/messages": CHAT}


@pytest.fixture
def billed(letters: Live) -> Iterator[Live]:
    letters.server.service.rates, _ = open_rates(False, 100.0, 3.6)
    yield letters
    letters.server.service.rates = None


@pytest.mark.parametrize("route", ROUTES)
def test_an_answer_tells_its_bill(billed: Live, route: str) -> None:
    timings = billed.ask("POST", route, ROUTES[route]).json["timings"]
    assert timings["energy_source"] == "declared"
    assert 0 < timings["machine_ms"] <= timings["ttft_ms"] + timings["decode_ms"] + 50
    assert timings["energy_j"] == pytest.approx(0.1 * timings["machine_ms"], rel=1e-3)
    assert timings["price"] == pytest.approx(1e-6 * timings["machine_ms"], rel=1e-3)


def test_a_stream_tells_its_bill_with_its_timings(billed: Live) -> None:
    events = billed.ask("POST", "/v1/chat/completions", CHAT | {"stream": True}).events
    (timings,) = [event["timings"] for event in events if event != "[DONE]" and "timings" in event]
    assert timings["energy_j"] > 0


def test_several_prompts_are_one_bill(billed: Live) -> None:
    one = billed.ask("POST", "/v1/completions", {"prompt": "a", "max_tokens": 6}).json["timings"]
    four = billed.ask("POST", "/v1/completions", {"prompt": ["a", "b", "c", "d"], "max_tokens": 6}).json["timings"]
    assert four["machine_ms"] > one["machine_ms"] / 2 and four["energy_j"] > 0


def test_nothing_is_told_that_nobody_asked_for(letters: Live) -> None:
    timings = letters.ask("POST", "/v1/chat/completions", CHAT).json["timings"]
    assert not {"machine_ms", "energy_j", "energy_source", "price"} & timings.keys()


def test_shares_of_answers_that_ran_together_add_up_to_the_steps(alphabet: Path) -> None:
    with LLM(str(alphabet), backend="reference", watts=40.0, price_per_hour=1.0) as llm:
        done = llm.generate(["a", "bcd", "e"], SamplingParams(max_tokens=12, ignore_eos=True))
        steps = llm.parts.engine.ledger.total.seconds
    bills = [completion.bill for completion in done if completion.bill is not None]
    assert len(bills) == 3 and sum(bill.seconds for bill in bills) == pytest.approx(steps, rel=1e-6)
    assert sum(bill.energy_j or 0.0 for bill in bills) == pytest.approx(40.0 * steps, rel=1e-6)


def test_the_program_tells_it_too(alphabet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from legato.cli import main

    words = ["generate", "a", "-m", str(alphabet), "--backend", "reference", "--max-tokens", "3", "--watts", "20"]
    assert main([*words, "--json"]) == 0
    timings: dict[str, Any] = json.loads(capsys.readouterr().out)["timings"]
    assert timings["energy_source"] == "declared" and "price" not in timings
    assert main(words) == 0
    assert "J (declared)" in capsys.readouterr().err
