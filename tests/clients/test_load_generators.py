"""guidellm and aiperf as they are installed: every request answered, and their counts of tokens are the server's.

Both cut their made-up prompts with the served model's own tokenizer, offline.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub_files
import pytest
from installed import Client, Served

from legato.assemble import open_tokenizer
from legato.weights.source import open_model

pytestmark = pytest.mark.slow

REQUESTS, PROMPT, ANSWER = 6, 40, 12


@pytest.fixture(scope="session")
def guidellm(find: Callable[[str], Client]) -> Client:
    return find("guidellm")


@pytest.fixture(scope="session")
def aiperf(find: Callable[[str], Client]) -> Client:
    return find("aiperf")


@pytest.fixture
def tokenizer(builtin_path: Path, tmp_path: Path) -> Path:
    return hub_files.write_tokenizer(open_tokenizer(open_model(builtin_path)), tmp_path / "hf")


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_guidellm(guidellm: Client, keyed: Served, tokenizer: Path, tmp_path: Path, route: str) -> None:
    there = f"target={keyed.url},model={keyed.model},api_key={keyed.key}"
    asked = {
        "backend": f"kind=openai_http,{there},request_format={route}",
        "profile": "kind=concurrent,streams=2",
        "constraint": f"kind=max_requests,count={REQUESTS}",
        "tokenizer": f"kind=hf_auto,model={tokenizer}",
        "data": f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={ANSWER}",
        "output": f"kind=json,path={tmp_path / 'report.json'}",
    }
    options = [word for name, value in asked.items() for word in (f"--{name}", value)]
    guidellm.command(tmp_path, "guidellm", "run", *options, "--disable-console")
    (run,) = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["benchmarks"]
    assert run["metrics"]["request_totals"] == {
        "successful": REQUESTS,
        "errored": 0,
        "incomplete": 0,
        "total": REQUESTS,
    }
    for done in run["requests"]["successful"]:
        assert done["output"]
        assert done["output_metrics"]["text_tokens"] == ANSWER
        assert done["input_metrics"]["text_tokens"] >= PROMPT
        if route == "/v1/completions":  # no template around the prompt
            assert done["input_metrics"]["text_tokens"] == PROMPT
    first, all_of_it = (run["metrics"][name]["successful"] for name in ("time_to_first_token_ms", "request_latency"))
    assert 0 < first["max"] < 1000 * all_of_it["max"], "the stream came as one piece"


@pytest.mark.parametrize("kind", ["chat", "completions", "responses", "messages"])
def test_aiperf(aiperf: Client, keyed: Served, tokenizer: Path, tmp_path: Path, kind: str) -> None:
    found = measured(aiperf, keyed, tmp_path, kind, "--api-key", keyed.key)
    assert found["request_count"]["avg"] == REQUESTS
    assert found["request_error_rate"]["avg"] == 0
    assert found["input_sequence_length"]["min"] == found["input_sequence_length"]["max"] == PROMPT
    assert found["output_sequence_length"]["max"] == pytest.approx(ANSWER, abs=2)  # of texts that it cut anew
    if kind != "responses":  # there it reads usage of completed ones only, and ours ended at their length
        assert found["usage_completion_tokens"]["max"] == ANSWER
    if kind == "completions":
        assert found["usage_prompt_tokens"]["min"] == found["usage_prompt_tokens"]["max"] == PROMPT
    assert 0 < found["time_to_first_token"]["max"] < found["request_latency"]["max"]


def test_aiperf_reads_our_metrics(aiperf: Client, open_to_all: Served, tokenizer: Path, tmp_path: Path) -> None:
    """It asks /metrics for them without a key."""
    measured(aiperf, open_to_all, tmp_path, "chat")
    read = json.loads((tmp_path / "out" / "server_metrics_export.json").read_text(encoding="utf-8"))
    assert any(name.startswith("legato") for name in read["metrics"])


def measured(client: Client, served: Served, folder: Path, kind: str, *more: str) -> Any:
    """Its JSON report of a small run."""
    sizes = {
        "request-count": REQUESTS,
        "concurrency": 2,
        "num-dataset-entries": REQUESTS,
        "prompt-input-tokens-mean": PROMPT,
        "prompt-output-tokens-mean": ANSWER,
        "workers-max": 1,
        "random-seed": 1,
    }
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    where = ["--output-artifact-dir", str(folder / "out"), "--ui", "none", "--no-gpu-telemetry"]
    what = ["--model", served.model, "--url", served.url, "--endpoint-type", kind, "--tokenizer", hub_files.NAME]
    client.command(folder, "aiperf", "profile", "--streaming", *what, *options, *where, *more)
    return json.loads((folder / "out" / "profile_export_aiperf.json").read_text(encoding="utf-8"))
