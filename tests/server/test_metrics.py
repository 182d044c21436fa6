"""`/metrics`: its form, its figures, its bounds; the dashboard that reads it; traces."""

from __future__ import annotations

import asyncio
import json
import random
import re
import string
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live import NAME, Live, alphabet_assembly, echo_assembly, running
from prometheus_client.parser import text_string_to_metric_families

from legato.core.events import Event, Usage
from legato.core.sequence import FinishReason
from legato.measure.ledger import StepRecord
from legato.server import lifecycle
from legato.server.meters import REFUSALS, Histogram, Meters
from legato.server.model import Wall

DASHBOARD = Path(lifecycle.__file__).parent / "grafana.json"
HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"messages": HELLO, "temperature": 0, "max_tokens": 5}


@pytest.fixture(scope="module")
def live(alphabet: Path) -> Iterator[Live]:
    with running(alphabet_assembly(alphabet), vllm_metrics=True) as made:
        service = made.server.service
        made.on_loop(lambda: service.ready(replace(service.model, wall=Wall(10.0, 3_000_000, 512))))
        yield made


def samples(live: Live) -> dict[str, float]:
    """Every series by its name and labels."""
    text = live.ask("GET", "/metrics").body.decode()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in found, key
            found[key] = sample.value
    return found


# -- form -------------------------------------------------------------------------------------------------------------


def test_prometheus_own_parser_reads_it(live: Live) -> None:
    reply = live.ask("GET", "/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(reply.body.decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names)) > 50 and all(family.documentation for family in families)
    assert all(re.fullmatch(r"(legato|process)_[a-z_]+|vllm:[a-z0-9_]+", name) for name in names)
    for family in families:
        assert family.type in ("counter", "gauge", "histogram"), family
        if family.type == "histogram":
            buckets = [s.value for s in family.samples if s.name.endswith("_bucket")]
            count = next(s.value for s in family.samples if s.name.endswith("_count"))
            assert buckets == sorted(buckets) and buckets[-1] == count


def test_vllms_names_come_only_when_asked_for(live: Live, echo: Live) -> None:
    assert b"vllm:" not in echo.ask("GET", "/metrics").body
    live.post("/v1/chat/completions", CHAT)
    found = samples(live)
    own = f"{{engine=0,model_name={NAME}}}"
    assert found["vllm:num_requests_running" + own] == found["legato_requests_running"]
    assert found["vllm:time_to_first_token_seconds_count" + own] == found["legato_time_to_first_token_seconds_count"]
    for theirs, ours in (
        ("gpu_cache_usage_perc", "kv_usage_ratio"),
        ("time_per_output_token_seconds_count", "inter_token_latency_seconds_count"),
        ("request_inference_time_seconds_count", "working_seconds_count"),
        ("request_params_n_sum", "answers_asked_sum"),
        ("request_params_max_tokens_sum", "answer_limit_tokens_sum"),
        ("request_max_num_generation_tokens_sum", "answer_limit_tokens_sum"),
    ):
        assert found[f"vllm:{theirs}{own}"] == found[f"legato_{ours}"], theirs
    length = f"{{engine=0,finished_reason=length,model_name={NAME}}}"
    assert found["vllm:request_success_total" + length] == found["legato_answers_total{finish_reason=length}"] > 0


def test_what_routers_look_for_before_they_send_anything_is_there(live: Live) -> None:
    text = live.ask("GET", "/metrics").body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (adapters,) = families["vllm:lora_requests_info"].samples
    assert adapters.labels == {"max_lora": "0", "waiting_lora_adapters": "", "running_lora_adapters": ""}
    (cache,) = families["vllm:cache_config_info"].samples
    pages = sum(sample.value for sample in families["legato_kv_pages"].samples)
    assert cache.labels["num_gpu_blocks"] == str(int(pages)) and cache.value == 1
    own = {"engine": "0", "model_name": NAME}
    assert {n: families[n].samples[0].labels for n in families if n.startswith("vllm:num_requests")} == {
        "vllm:num_requests_running": own,
        "vllm:num_requests_waiting": own,
    }


# -- figures ----------------------------------------------------------------------------------------------------------


def test_what_was_served_is_what_is_counted(live: Live) -> None:
    before = samples(live)
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/messages", CHAT | {"stream": True}),
        ("/v1/completions", {"prompt": "abc", "temperature": 0, "max_tokens": 5, "n": 2}),
        ("/v1/chat/completions", {"messages": []}),
    ):
        live.post(path, body)
    live.wait(live.idle, 5, "idle")
    after = samples(live)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("legato_requests_total{route=/v1/chat/completions,status=2xx}") == 1
    assert grown("legato_requests_total{route=/v1/chat/completions,status=4xx}") == 1
    assert grown("legato_requests_total{route=/v1/messages,status=2xx}") == 1
    assert grown("legato_answers_total{finish_reason=length}") == 4
    assert grown("legato_output_tokens_total") == 20 and grown("legato_prompt_tokens_total") == 7 + 7 + 3
    for name in ("time_to_first_token", "queue", "prefill", "decode", "answer", "time_per_output_token"):
        assert grown(f"legato_{name}_seconds_count") == 4, name
    assert grown("legato_inter_token_latency_seconds_count") == 16
    assert grown("legato_answers_asked_sum") == 1 + 1 + 2 and grown("legato_answers_asked_count") == 3
    assert grown("legato_answer_limit_tokens_sum") == 3 * 5
    working = grown("legato_prefill_seconds_sum") + grown("legato_decode_seconds_sum")
    assert grown("legato_working_seconds_sum") == pytest.approx(working)
    hits, misses = grown("legato_prefix_hit_tokens_total"), grown("legato_prefix_miss_tokens_total")
    assert hits + misses == 17
    assert after["legato_kv_pages{state=in_use}"] == 0
    assert after["legato_read_bytes_total"] >= 3_000_000 * after["legato_steps_total"]
    assert after["legato_wall_seconds_total"] == pytest.approx(after["legato_read_bytes_total"] / 10e9)
    assert after["process_resident_memory_bytes"] > 1e7
    live.wait(lambda: samples(live)["legato_event_loop_lag_seconds_count"] > 0, 5, "lag")
    live.wait(lambda: samples(live)["legato_step_wall_share_count"] > 0, 5, "steps that somebody looked at")


def test_a_client_that_leaves_is_counted_as_gone(alphabet: Path) -> None:
    with running(echo_assembly(alphabet, pace=0.02)) as slow:
        link = slow.open({"prompt": "x", "max_tokens": 300, "ignore_eos": True, "stream": True})
        link.recv(1000)
        link.close()
        slow.wait(slow.idle, 5, "idle")
        slow.wait(lambda: slow.server.service.meters.answers[FinishReason.ABORT] == 1, 5, "the abort counted")
        gone = "legato_requests_total{route=/v1/completions,status=gone}"
        slow.wait(lambda: samples(slow).get(gone) == 1, 5, "the request counted")


def test_histograms_count_into_the_first_bound_that_holds() -> None:
    found = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        found.add(value)
    found.add(1.5, times=10)
    assert found.counts == [2, 12, 1] and found.sum == pytest.approx(29.0)


def test_steps_are_held_against_the_wall_once() -> None:
    meters = Meters()
    decode = StepRecord(started=1.0, seconds=0.01, num_steps=1, decode_tokens=1, kv_tokens=100)
    prompt = StepRecord(started=2.0, seconds=0.01, num_steps=1, prompt_tokens=5)
    for _ in range(3):
        meters.look([decode, prompt], 40_000_000, 100_000, 10.0)
    assert sum(meters.read_bytes.counts) == 2 and meters.read_bytes.sum == 90_000_000
    assert sum(meters.wall_share.counts) == 1 and meters.wall_share.sum == pytest.approx(0.5)
    assert sum(meters.step_tokens.counts) == 2 and meters.step_tokens.sum == 6


def test_who_is_turned_away_is_counted_by_what_there_was_too_little_of(alphabet: Path) -> None:
    ask = {"prompt": "a", "max_tokens": 9}
    with running(echo_assembly(alphabet, max_seqs=1, pace=0.01, ends=False), queue=0, vllm_metrics=True) as live:
        assert live.post("/v1/completions", {"prompt": "a" * 500}).status == 400
        assert live.post("/v1/completions", ask | {"n": 2}).status == 400
        assert live.post("/v1/completions", ask | {"deadline_ms": 1}).status == 429
        with live.open(ask | {"max_tokens": 300, "stream": True}):
            live.wait(lambda: live.parts.engine.has_work, 5, "it runs")
            assert live.post("/v1/completions", ask).status == 429
        found = samples(live)
    counted = {reason: found[f"legato_refusals_total{{reason={reason}}}"] for reason in REFUSALS}
    assert counted == {"queue": 1, "key": 0, "deadline": 1, "length": 1, "away": 0, "invalid": 1}
    assert found[f"vllm:admission_rejections_total{{engine=0,model_name={NAME},reason=deadline}}"] == 1


def test_a_token_costs_less_than_a_microsecond() -> None:
    """32 streams, a token each a step; the least of several runs, for other work disturbs."""
    meters = Meters()
    usage = Usage(10, 5, 0, 0, {"arrived": 0.0, "scheduled": 0.1, "first_token": 0.2, "finished": 0.5})
    steps = [[Event(f"r{i}", i, 0, [7]) for i in range(32)] for _ in range(200)]
    best = float("inf")
    for _ in range(9):
        begun = time.perf_counter()
        for n, events in enumerate(steps):
            meters.step(events, 0.01 * n)
        best = min(best, (time.perf_counter() - begun) / (32 * len(steps)))
    assert best < 1e-6, best
    meters.step([Event(f"r{i}", i, 0, [7], finish_reason=FinishReason.STOP, usage=usage) for i in range(32)], 9.0)
    assert meters.answers[FinishReason.STOP] == 32 and not meters._last


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_the_number_of_series_does_not_grow_with_what_comes(live: Live) -> None:
    """10,000 odd methods, paths and models, straight into the application."""
    rng = random.Random(5)
    app = live.server.app

    def word(n: int) -> str:
        return "".join(rng.choices(string.ascii_letters + string.digits + "_-/%{}\"'\\ü", k=n))

    async def one(method: str, path: str, body: bytes) -> None:
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "headers": [(b"host", b"here"), (b"content-type", b"application/json")],
            "client": None,
        }
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if parts:
                return parts.pop()
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            return None

        await app(scope, receive, send)

    async def all_of_them() -> None:
        for i in range(10_000):
            model = word(12)
            if i % 10 == 0:
                body = json.dumps({"model": model, "messages": HELLO}).encode()
                await one("POST", rng.choice(["/v1/chat/completions", "/v1/messages", "/api/chat"]), body)
            elif i % 10 == 1:
                await one("GET", "/v1/models/" + model, b"")
            else:
                await one(word(rng.randint(1, 12)).upper(), "/" + word(rng.randint(0, 40)), b"")

    for path in ("/v1/chat/completions", "/v1/messages", "/api/chat"):
        live.post(path, {"model": "other", "messages": HELLO})
    live.ask("GET", "/v1/models/other")
    before = samples(live)
    asyncio.run_coroutine_threadsafe(all_of_them(), live.loop).result(60)
    after = samples(live)
    assert set(after) == set(before)
    none = "legato_requests_total{route=none,status=4xx}"
    assert after[none] - before[none] >= 7900


# -- the dashboard ----------------------------------------------------------------------------------------------------


def test_the_dashboard_asks_only_for_what_there_is(live: Live) -> None:
    live.post("/v1/chat/completions", CHAT)
    found = samples(live)
    names = {key.split("{")[0] for key in found}
    labels = {re.split(r"[{]", key)[0]: set(re.findall(r"[{,]([a-z_]+)=", key)) for key in found}
    board = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    used = {name for text in expressions for name in re.findall(r"\b(?:legato|process)_[a-z_]+|vllm:[a-z_]+", text)}
    assert len(board["panels"]) > 15 and used <= names, used - names
    for panel in board["panels"]:
        for target in panel["targets"]:
            by = re.search(r"sum by \(([a-z_, ]+)\)", target["expr"])
            wanted = set(re.split(", *", by[1])) if by else set()
            name = re.search(r"(?:legato|process)_[a-z_]+", target["expr"])
            assert name is not None and wanted <= labels[name[0]], target["expr"]
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= wanted, target["legendFormat"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)) and board["uid"] == "legato"


def test_every_family_of_ours_is_on_the_dashboard_or_said_not_to_be(live: Live) -> None:
    text = DASHBOARD.read_text()
    families = {f.name for f in text_string_to_metric_families(live.ask("GET", "/metrics").body.decode())}
    shown_by_others = {"kv_usage_ratio", "prefix_miss_tokens", "output_tokens", "steps", "working_seconds"}
    rare = {
        "model_info",
        "context_tokens",
        "page_leaks",
        "accepted_draft_tokens",
        "answers_asked",
        "answer_limit_tokens",
    }
    left_out = {f"legato_{name}" for name in shown_by_others | rare}
    ours = {name for name in families if not name.startswith("vllm:")}
    assert {name for name in ours if not re.search(rf"\b{name}(?:_total|_bucket)?{{", text)} == left_out


# -- traces -----------------------------------------------------------------------------------------------------------


def test_a_span_tells_times_and_counts_and_no_words(live: Live) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from legato.server.traces import Traces

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces = Traces(live.server.service, provider)
    app = live.server.app
    observers = app._observers
    app._observers = (*observers, traces.tell)
    try:
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        live.post("/v1/chat/completions", CHAT, traceparent=parent)
        live.ask("GET", "/v1/models")
        live.wait(lambda: bool(exporter.get_finished_spans()), 5, "a span")
    finally:
        app._observers = observers
        traces.close()
    (span,) = exporter.get_finished_spans()
    assert span.name == f"chat {NAME}" and span.parent is not None
    assert format(span.context.trace_id, "032x") == "0af7651916cd43dd8448eb211c80319c"
    assert span.attributes is not None and span.attributes["gen_ai.usage.output_tokens"] == 5
    assert span.attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert span.attributes["http.route"] == "/v1/chat/completions"
    assert [event.name for event in span.events] == ["scheduled", "first token"]
    first = span.events[1].timestamp
    assert span.start_time is not None and span.end_time is not None and span.start_time < first <= span.end_time
    assert "hello" not in span.to_json() and "abcde" not in span.to_json()


def test_without_opentelemetry_it_says_how_to_get_it(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from legato.errors import UsageError
    from legato.server.traces import Traces

    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(UsageError, match=r"legato\[otel\]"):
        Traces(live.server.service)


def test_serving_loads_no_opentelemetry() -> None:
    import subprocess
    import sys

    code = "import sys, legato.server.lifecycle; sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
