"""Load on a scripted server: what is sent, what is counted, and every way in which a server can fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import fake_openai as fake
import pytest
from fake_openai import Act, FakeServer, good, running

from legato.bench import serve
from legato.bench.link import Client, Origin
from legato.bench.prompts import WORDS, Prompt, Writer, counter
from legato.bench.serve import Level, Load, Served, Target, endpoint, tried
from legato.bench.serve_metrics import Limits
from legato.errors import LegatoError, UsageError
from legato.weights.catalog import Silent

PROMPT = Prompt("a b c d")


def loaded(
    server: FakeServer,
    count: int = 6,
    level: Level | None = None,
    decode: int = 5,
    timeout_s: float = 5.0,
    chat: bool = False,
    during: Callable[[Load], Any] | None = None,
    limits: Limits | None = None,
) -> Served:
    """A load of `count` requests, without a trial before it."""

    async def main() -> Served:
        client = Client(Origin.of(server.url))
        target = Target(endpoint("", chat), "fake", chat=chat)
        load = Load(client, target, [PROMPT] * count, decode, level or Level(concurrency=3), timeout_s)
        if during is not None:
            asyncio.get_running_loop().call_soon(during, load)
        try:
            return await load.run(limits or Limits(), 1, Silent(), "load")
        finally:
            client.close()

    return asyncio.run(main())


def test_answers_are_counted_and_timed() -> None:
    with running(FakeServer(pace=0.004)) as server:
        told = loaded(server, count=9).result
    assert (told.completed, told.output_tokens, told.errors, told.counted) == (9, 45, {}, "usage")
    assert told.prompt_tokens == 4 and told.tokens_per_chunk == 1 and told.goodput == told.request_s
    assert told.itl_ms.p50 >= 3.5 and told.ttft_ms.p50 >= 3.5 and told.e2e_ms.p50 >= 19
    assert told.tpot_ms.p50 == pytest.approx(told.itl_ms.p50, rel=0.8)
    assert server.most_together == 3
    assert all(body["ignore_eos"] and body["stream"] and body["max_tokens"] == 5 for body in server.asked)


def test_chats_of_odd_chunks_are_counted_by_usage() -> None:
    with running(FakeServer(lambda n: fake.chatty)) as server:
        told = loaded(server, chat=True).result
    assert (told.completed, told.output_tokens, told.tokens_per_chunk, told.prompt_tokens) == (6, 24, 2.0, 9)
    assert server.asked[0]["messages"] == [{"role": "user", "content": "a b c d"}]


@pytest.mark.parametrize(("act", "tokens", "counted"), [(fake.closing, 5, "chunks"), (fake.whole, 4, "usage")])
def test_other_ways_to_answer(act: Act, tokens: int, counted: str) -> None:
    with running(FakeServer(lambda n: act)) as server:
        told = loaded(server).result
    assert (told.completed, told.output_tokens, told.counted, told.errors) == (6, 6 * tokens, counted, {})


FAULTS = {
    "connection dropped": fake.dropped,
    "not JSON": fake.garbage,
    "not HTTP": fake.not_http,
    "error event": fake.error_event,
    "http 429": fake.refused("429 Too Many Requests", "queue full"),
    "http 500": fake.refused("500 Internal Server Error", "oops"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_counted_by_its_kind_and_harms_nobody_else(kind: str) -> None:
    with running(FakeServer(lambda n: FAULTS[kind] if n % 3 == 1 else good)) as server:
        told = loaded(server, count=9).result
    assert (told.requests, told.completed, told.errors, told.stopped) == (9, 6, {kind: 3}, None)
    assert told.output_tokens == 30 and told.itl_ms.max > 0
    assert told.problems[kind]


def test_an_answer_without_an_end_is_no_answer() -> None:
    with running(FakeServer(lambda n: fake.cut)) as server:
        assert loaded(server).result.errors == {"connection dropped": 6}


def test_a_link_that_was_closed_behind_our_back_is_replaced() -> None:
    with running(FakeServer(lambda n: fake.leaves_after)) as server:
        told = loaded(server, level=Level(concurrency=1)).result
    assert (told.completed, told.errors) == (6, {})


def test_a_server_that_dies_is_told_once_and_what_came_before_is_kept() -> None:
    with running(FakeServer(dies_at=7)) as server:
        told = loaded(server, count=50).result
    assert 4 <= told.completed <= 7 and told.requests < 50
    assert told.stopped is not None and "stopped answering" in told.stopped
    assert set(told.errors) <= {"connection dropped", "connection refused"} and told.out_tok_s > 0


def test_a_server_that_says_nothing_any_more_is_given_up() -> None:
    with running(FakeServer(lambda n: fake.stalled if n >= 4 else good)) as server:
        told = loaded(server, count=50, timeout_s=1.0).result
    assert told.stopped is not None and "not a byte within 1 s" in told.stopped
    assert (told.completed, told.errors["stalled"]) == (4, 3)


def test_one_silent_answer_beside_others_may_wait() -> None:
    with running(FakeServer(lambda n: fake.stalled if n == 0 else good, pace=0.05)) as server:
        told = loaded(server, count=12, timeout_s=1.0).result
    assert (told.completed, told.errors) == (11, {"stalled": 1})


def test_stopping_keeps_what_ended() -> None:
    def soon(load: Load) -> None:
        asyncio.get_running_loop().call_later(0.25, load.stop)

    with running(FakeServer(pace=0.01)) as server:
        told = loaded(server, count=500, during=soon).result
    assert told.stopped == serve.INTERRUPTED and 3 <= told.completed == told.requests < 100 and not told.errors


def test_open_arrivals_wait_for_no_answer() -> None:
    with running(FakeServer(pace=0.3)) as server:
        served = loaded(server, count=10, level=Level(rate=50, poisson=False))
    told = served.result
    assert (told.completed, server.most_together) == (10, 10) and told.rate == 50
    dues = [trace.due for trace in sorted(served.traces, key=lambda t: t.index)]
    gaps = [late - early for early, late in pairwise(dues) if late and early]
    assert all(gap == pytest.approx(0.02) for gap in gaps)
    assert told.late_ms is not None and 0 <= told.late_ms.p50 < 500


def test_poisson_arrivals_come_from_the_seed() -> None:
    level = Level(rate=4.0)
    moments = level.due(4000, 7)
    assert moments == level.due(4000, 7) != level.due(4000, 8)
    assert moments[0] == 0 and moments == sorted(moments)
    gaps = [late - early for early, late in pairwise(moments)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.25, rel=0.05)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.1)


def test_the_generator_measures_its_own_lag() -> None:
    def block(load: Load) -> None:
        asyncio.get_running_loop().call_later(0.1, time.sleep, 0.15)

    with running(FakeServer(pace=0.02)) as server:
        generator = loaded(server, during=block, decode=10).generator
    assert generator.lag_ms.max >= 100 and generator.lag_ms.p50 < 100
    assert generator.cpu_us_per_chunk > 0 and generator.cpu_share > 0


def test_endpoints() -> None:
    assert endpoint("", False) == "/v1/completions" and endpoint("", True) == "/v1/chat/completions"
    assert endpoint("/v1", True) == "/v1/chat/completions" and endpoint("/v3", False) == "/v3/completions"
    assert endpoint("/api", False) == "/api/v1/completions"
    assert endpoint("/any/chat/completions", False) == "/any/chat/completions"


def attempt(server: FakeServer, **more: Any) -> Target:
    async def main() -> Target:
        client = Client(Origin.of(server.url))
        try:
            await serve.models(client)
            return await tried(client, Target(endpoint("", False), "fake"), PROMPT, 2.0)
        finally:
            client.close()

    return asyncio.run(main())


def test_fields_that_a_server_refuses_are_left_out() -> None:
    with running(FakeServer(refuses=("ignore_eos",))) as server:
        assert attempt(server) == Target("/v1/completions", "fake", ignore_eos=False)
    with running(FakeServer(refuses=("ignore_eos", "stream_options"))) as server:
        assert attempt(server) == Target("/v1/completions", "fake", ignore_eos=False, usage=False)
        assert server.asked and "stream_options" not in server.asked[-1]


def test_a_server_that_cannot_be_loaded_is_refused_before_anything_is_sent() -> None:
    with running(FakeServer(refuses=("model",))) as server, pytest.raises(LegatoError, match="http 400: unknown model"):
        attempt(server)
    with (
        running(FakeServer(lambda n: fake.stalled)) as server,
        pytest.raises(LegatoError, match="no answer within 2 s"),
    ):
        attempt(server)
    with running(FakeServer(key="k")) as server, pytest.raises(UsageError, match="--api-key"):
        attempt(server)
    with running(FakeServer()) as server:
        pass
    with pytest.raises(LegatoError, match=r"no server answers at .*refused"):
        attempt(server)


@pytest.mark.parametrize("form", ["prompt", "content", "messages"])
def test_prompts_have_the_tokens_asked_for(form: str) -> None:
    """The fake tokenizer puts one token before each text, and cuts one of the words in two."""

    async def main(server: FakeServer) -> list[Prompt]:
        client = Client(Origin.of(server.url))
        writer = Writer(3, await counter(client, "fake", chat=form == "messages"))
        prefix = (await writer.prompt(20)).text or ""
        prompts = [await writer.prompt(n, prefix) for n in (40, 41, 100, 300)]
        client.close()
        assert all((p.text or "").startswith(prefix) for p in prompts)
        return prompts

    with running(FakeServer(tokenize=form)) as server:
        prompts = asyncio.run(main(server))
    assert [prompt.tokens for prompt in prompts] == [40, 41, 100, 300]
    assert "money" in WORDS and len({prompt.text for prompt in prompts}) == 4


def test_without_a_tokenizer_a_word_is_a_token() -> None:
    async def main(server: FakeServer) -> Prompt:
        client = Client(Origin.of(server.url))
        count = await counter(client, "fake", chat=False)
        assert count is None
        writer = Writer(3, count)
        prefix = (await writer.prompt(5)).text or ""
        client.close()
        return await writer.prompt(17, prefix)

    with running(FakeServer(tokenize=None)) as server:
        prompt = asyncio.run(main(server))
    assert prompt.tokens is None and len((prompt.text or "").split()) == 17
