"""`legato bench serve`: what it prints, keeps and refuses; against a scripted server and against our own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_openai as fake
import pytest
from fake_openai import FakeServer, good, running

FILED = ("bench", "serve", "-n", "6", "--decode", "4")
SMALL = (*FILED, "--prompt", "12")


def test_a_row_a_level_with_the_figures_that_checks_rely_on(run: Callable[..., Any], tmp_path: Path) -> None:
    with running(FakeServer(pace=0.002)) as server:
        ran = run(
            *SMALL, "--url", server.url, "--concurrency", "1,3", "--json", "--save", tmp_path, "--tpot-slo-ms", 900
        )
    assert ran.code == 0, ran.err
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [row["concurrency"] for row in rows] == [1, 3]
    for row in rows:
        assert {"p50", "p99"} <= row["ttft_ms"].keys() & row["tpot_ms"].keys()
        assert {"p50", "p99", "max"} <= row["itl_ms"].keys()
        assert row["completed"] == 6 and row["errors"] == {} and row["out_tok_s"] > 0 and row["goodput"] > 0
        assert row["prompt_tokens"] == pytest.approx(11, abs=1)  # the fake counts words, and its tokenizer one more
        assert {"lag_ms", "cpu_share", "cpu_us_per_chunk"} <= row["generator"].keys()
    (saved,) = tmp_path.glob("serve_*.json")
    record = json.loads(saved.read_text())
    assert record["rows"] == rows and "partial" not in record
    assert record["settings"]["formulas"]["tpot"] == "(e2e - ttft) / (tokens - 1), a request"
    assert record["settings"]["prompt_length"] == "by /tokenize" and record["settings"]["limits"]["tpot_ms"] == 900
    assert len(server.asked) == 1 + 12 and len({body["prompt"] for body in server.asked}) == 13


def test_the_table_states_its_formulas(run: Callable[..., Any]) -> None:
    with running(FakeServer()) as server:
        ran = run(*SMALL, "--url", server.url, "--rate", "200", "--arrivals", "fixed")
    assert ran.code == 0 and "200 a second: 6 of 6 answers" in ran.out
    for word in ("TTFT", "ITL", "TPOT", "E2E", "lag", "late", "goodput"):
        assert word in ran.out
    assert "(e2e - ttft) / (tokens - 1)" in ran.err and "every gap between chunks" in ran.err


def test_faults_are_told_with_their_words(run: Callable[..., Any]) -> None:
    full = fake.refused("429 Too Many Requests", "queue full")
    with running(FakeServer(lambda n: full if n in (2, 3) else good)) as server:
        ran = run(*SMALL, "--url", server.url)
    assert ran.code == 0 and "4 of 6 answers" in ran.out and "http 429: 2, such as: queue full" in ran.out


def test_a_load_without_one_answer_fails_after_it_was_shown(run: Callable[..., Any], tmp_path: Path) -> None:
    long = fake.refused("400 Bad Request", "the prompt is too long")
    kept = ("--save", tmp_path / "kept.json", "--report", tmp_path / "page.html")
    with running(FakeServer(lambda n: long if n else good)) as server:
        ran = run(*SMALL, "--url", server.url, "--concurrency", "1,2", *kept)
    assert ran.code == 1 and "1 at once: 0 of 6 answers" in ran.out and "2 at once: 0 of 6 answers" in ran.out
    (line,) = (line for line in ran.err.splitlines() if line.startswith("error:"))
    assert line == "error: all 12 requests failed; the first: http 400: the prompt is too long"
    assert len(json.loads((tmp_path / "kept.json").read_text())["rows"]) == 2 and (tmp_path / "page.html").exists()
    with running(FakeServer(lambda n: long if n > 6 else good)) as server:
        assert run(*SMALL, "--url", server.url, "--concurrency", "1,2").code == 0  # one level was measured


def test_a_server_that_dies_leaves_one_line_and_a_partial_record(run: Callable[..., Any], tmp_path: Path) -> None:
    with running(FakeServer(dies_at=9)) as server:
        ran = run(*SMALL[:3], "50", *SMALL[4:], "--url", server.url, "--json", "--save", tmp_path / "kept.json")
    assert ran.code == 1
    (line,) = (line for line in ran.err.splitlines() if line.startswith("error:"))
    assert "the server stopped answering" in line
    record = json.loads((tmp_path / "kept.json").read_text())
    assert "stopped answering" in record["partial"] and record["rows"] == [json.loads(ran.out)]
    assert 0 < record["rows"][0]["completed"] < 50


def test_ctrl_c_shows_and_keeps_what_there_is(environ: dict[str, str], tmp_path: Path) -> None:
    with running(FakeServer(pace=0.01)) as server:
        command = [sys.executable, "-m", "legato", *SMALL[:3], "900", "--url", server.url, "--prompt", "4", "--json"]
        with subprocess.Popen(
            [*command, "--save", str(tmp_path / "kept.json")],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            end = time.monotonic() + 60
            while len(server.asked) < 30:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err and "interrupted after" in err
    row = json.loads(out)
    assert row["stopped"] == "interrupted" and 10 <= row["completed"] < 900
    assert json.loads((tmp_path / "kept.json").read_text())["partial"] == "interrupted"


def test_servers_without_the_extras_are_said_to_be_so(run: Callable[..., Any]) -> None:
    with running(FakeServer(refuses=("ignore_eos", "stream_options"), tokenize=None)) as server:
        ran = run(*SMALL, "--url", f"{server.url}/v1", "--chat", "-m", "another")
    assert ran.code == 0, ran.err
    for words in ("does not take ignore_eos", "chunks are counted instead", "has no /tokenize"):
        assert words in ran.err
    assert "(by chunks, 1.00 a chunk)" in ran.out
    body = server.asked[-1]
    assert body["model"] == "another" and len(body["messages"][0]["content"].split()) == 12


def test_a_shared_beginning_is_shared(run: Callable[..., Any]) -> None:
    with running(FakeServer()) as server:
        assert run(*SMALL, "--url", server.url, "--shared-prefix", "30").code == 0
    heads = {tuple(body["prompt"].split()[:28]) for body in server.asked[1:]}
    tails = {tuple(body["prompt"].split()[30:]) for body in server.asked[1:]}
    assert len(heads) == 1 and len(tails) == 6


def test_prompts_from_a_file(run: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('"one"\n\n{"prompt": "two", "max_tokens": 2}\n')
    with running(FakeServer()) as server:
        refused = run(*SMALL, "--url", server.url, "--prompts", path)
        assert refused.code == 2 and "--prompt is for random prompts" in refused.err
        assert run(*FILED, "--url", server.url, "--prompts", path).code == 0
        assert [b["prompt"] for b in server.asked[1:]].count("one") == 3
        assert {b["max_tokens"] for b in server.asked[1:] if b["prompt"] == "two"} == {2}
        path.write_text('{"messages": [{"role": "user", "content": "three"}]}\n')
        ran = run(*FILED, "--url", server.url, "--prompts", path)
        assert ran.code == 2 and "add --chat" in ran.err
        assert run(*FILED, "--url", server.url, "--prompts", path, "--chat").code == 0
        for text, words in (
            ("", "is empty"),
            ("[1]\n", "line 1"),
            ('"a"\n{"prompt": 3}\n', "line 2"),
            ("{\n", "line 1"),
        ):
            path.write_text(text)
            ran = run(*FILED, "--url", server.url, "--prompts", path)
            assert ran.code == 2 and words in ran.err
    assert run(*FILED, "--url", server.url, "--prompts", tmp_path / "none").code != 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--concurrency", "0"), "--concurrency=0"),
        (("--concurrency", ""), "--concurrency= is not allowed"),
        (("--rate", ""), "--rate= is not allowed"),
        (("--concurrency", "many"), "--concurrency=many"),
        (("--rate", "-1"), "--rate=-1"),
        (("--rate", "1", "--concurrency", "1"), "two kinds of load"),
        (("--arrivals", "fixed"), "give --rate too"),
        (("--url", "nonsense"), "--url='nonsense'"),
        (("--url", "http://127.0.0.1:1", "--threads", "2"), "--threads is for a server that this command starts"),
        (("--api-key", "secret-key"), "--api-key is for the server at --url"),
        (("--requests", "0"), "--requests"),
    ],
)
def test_what_is_refused(run: Callable[..., Any], args: tuple[str, ...], words: str) -> None:
    ran = run("bench", "serve", *args)
    assert ran.code == 2 and words in ran.err and ran.out == ""
    assert len([line for line in ran.err.splitlines() if line.startswith("error:")]) == 1


def test_nobody_answers(run: Callable[..., Any]) -> None:
    with running(FakeServer(key="k3y")) as server:
        refused = run(*SMALL, "--url", server.url)
        assert refused.code == 2 and "--api-key" in refused.err
        assert run(*SMALL, "--url", server.url, "--api-key", "k3y").code == 0
    ran = run(*SMALL, "--url", server.url)
    assert ran.code == 1 and "no server answers at http://127.0.0.1" in ran.err and "connection refused" in ran.err


def test_a_server_that_is_silent_from_the_first_question_on_is_given_up_in_time(run: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never says a word
        began = time.monotonic()
        ran = run(*SMALL, "--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.5")
    assert ran.code == 1 and time.monotonic() - began < 15
    (line,) = (line for line in ran.err.splitlines() if line.startswith("error:"))
    assert "no answer to GET /v1/models within 0.5 s" in line and line.endswith("try a longer --timeout")


def test_our_own_server_is_started_and_ended(run: Callable[..., Any], alphabet: Path, tmp_path: Path) -> None:
    """Of a vocabulary of bytes a word is several tokens, and the prompts have the length asked for all the same."""
    ran = run(
        "bench", "serve", "-m", alphabet, "-n", "4", "--prompt", "30", "--decode", "5", "--concurrency", "2", "--json"
    )
    assert ran.code == 0, ran.err
    row = json.loads(ran.out)
    assert (row["completed"], row["output_tokens"], row["errors"]) == (4, 20, {})
    assert row["prompt_tokens"] == pytest.approx(30, abs=1)
    ran = run("bench", "serve", "-m", alphabet.with_name("none.gguf"), "-n", "4")
    assert ran.code == 2 and "none.gguf" in ran.err
    (broken := tmp_path / "broken.gguf").write_bytes(b"no model")
    ran = run("bench", "serve", "-m", broken, "-n", "4")
    assert ran.code == 1 and "our own server did not start" in ran.err and "broken.gguf" in ran.err


def test_our_own_server_may_want_keys(
    run: Callable[..., Any], alphabet: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environ["LEGATO_API_KEYS"] = "a-key-of-the-environment"
    ran = run("bench", "serve", "-m", alphabet, "-n", "2", "--prompt", "10", "--decode", "3", "--concurrency", "2")
    assert ran.code == 0 and "2 of 2 answers" in ran.out, ran.err


def test_a_report_of_several_loads(run: Callable[..., Any], tmp_path: Path) -> None:
    with running(FakeServer(pace=0.002)) as server:
        ran = run(*SMALL, "--url", server.url, "--concurrency", "3,1", "--report", tmp_path / "load.html")
        alone = run(*SMALL, "--url", server.url, "--rate", "100", "--report", tmp_path / "alone.html")
    assert (ran.code, alone.code) == (0, 0), ran.err + alone.err
    page = (tmp_path / "load.html").read_text()
    assert "From 1 at once to 3 at once" in page and "every gap between chunks" in page and "ITL p99 (ms)" in page
    assert "100 a second" in (tmp_path / "alone.html").read_text()


def test_joules_and_money_where_they_are_declared(run: Callable[..., Any], alphabet: Path, tmp_path: Path) -> None:
    with running(FakeServer()) as server:
        ran = run(
            *SMALL,
            "--url",
            server.url,
            "--watts",
            "50",
            "--price-per-hour",
            "0.36",
            "--json",
            "--report",
            tmp_path / "bill.html",
        )
        table = run(*SMALL, "--url", server.url, "--watts", "50")
        plain = run(*SMALL, "--url", server.url, "--json")
    row = json.loads(ran.out)
    assert row["energy_source"] == "declared" and row["energy_j"] == pytest.approx(50 * row["seconds"], rel=1e-3)
    assert row["price_per_million_tokens"] == pytest.approx(1e6 * 0.0001 * row["seconds"] / 24, rel=1e-3)
    assert "energy (J/token)" in (tmp_path / "bill.html").read_text()
    assert "J (declared)" in table.out and "price" not in table.out
    assert not {"energy_j", "price"} & json.loads(plain.out).keys()
    offline = run(
        "bench", "offline", "-m", alphabet, "-n", "2", "--prompt", "8", "--decode", "8", "--watts", "10", "--json"
    )
    row = json.loads(offline.out)
    assert row["energy_j"] == pytest.approx(10 * row["seconds"], rel=1e-3)
    decode = run("bench", "decode", "-m", alphabet, "--depths", "4", "--decode", "6", "--watts", "10", "--json")
    row = json.loads(decode.out)
    assert row["energy_j_per_token"] == pytest.approx(0.01 * row["decode_ms"], rel=1e-3) and "energy_j" not in row
