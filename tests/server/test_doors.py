"""Who gets in and what is turned away: every route, every key state, every limit, and words that give nothing away."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import NAME, UNSPEAKABLE, Live, echo_assembly, raw, running

from legato.assemble import Assembly
from legato.server import lifecycle
from legato.server.auth import Keys
from legato.server.http11 import protocol_class
from legato.server.limits import ServerLimits
from legato.server.problems import Problem
from legato.server.routes import Route

KEY, OTHER = "sk-first-of-two-keys", "sk-second-of-two-keys"
OPEN = {"/", "/live", "/ready", "/health"}


@pytest.fixture(scope="module")
def locked(alphabet: Path) -> Iterator[Live]:
    with running(echo_assembly(alphabet), api_keys=(KEY, OTHER)) as live:
        yield live


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def concrete(route: Route) -> str:
    return route.path if route.stem is None else route.stem + NAME


KEY_STATES = {
    "none": {"authorization": ""},
    "wrong": {"authorization": "Bearer sk-wrong"},
    "empty": {"authorization": "Bearer "},
    "prefix": {"authorization": f"Bearer {KEY[:-1]}"},
    "longer": {"authorization": f"Bearer {KEY}x"},
    "other scheme": {"authorization": f"Basic {KEY}"},
    "other header": {"authorization": "", "x_api_key": "sk-wrong"},
}


@pytest.mark.parametrize("state", KEY_STATES)
def test_without_a_good_key_only_probes_answer(locked: Live, state: str) -> None:
    for route in locked.server.routes.routes:
        reply = locked.ask(route.method, concrete(route), {} if route.body is not None else None, **KEY_STATES[state])
        if route.path in OPEN or route.path.startswith("/ui/"):
            assert route.open and reply.status == 200, route
        else:
            assert reply.status == 401 and "key" in str(reply.json["error"]), route
            assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("headers", [{"authorization": f"Bearer {OTHER}"}, {"authorization": "", "x_api_key": KEY}])
def test_every_good_key_opens_every_route(locked: Live, headers: dict[str, str]) -> None:
    for route in locked.server.routes.routes:
        reply = locked.ask(route.method, concrete(route), {} if route.body is not None else None, **headers)
        assert reply.status not in (401, 404, 405), route


WAYS_AROUND = [
    "/v1/models/", "/V1/MODELS", "//v1/models", "/v1//models", "/./v1/models", "/live/../v1/models",
    "/v1/models?x=/live",
    "/v1/models#/live", "/%2e/v1/models", "/v1%2fmodels", "/%76%31/models", "/live%2f..%2fv1/models", "/live/", "/LIVE",
    "/live;x", "/live%00", "/live%20", "/nothing", "http://127.0.0.1/v1/models",
    "http://127.0.0.1/live/../v1/models",
]  # fmt: skip


@pytest.mark.parametrize("path", WAYS_AROUND)
@pytest.mark.parametrize("host", ["x", "127.0.0.1/live?", "/live", "x/live?y", ""])
def test_no_spelling_of_a_path_or_host_goes_around_the_key(locked: Live, path: str, host: str) -> None:
    answer = raw(locked, f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
    assert status_of(answer) in (400, 401), answer
    assert b'"object"' not in answer


def test_keys_are_compared_whole_and_never_shown() -> None:
    keys = Keys([KEY, OTHER])
    names = {keys.tenant([(b"x-api-key", key.encode())]) for key in (KEY, OTHER)}
    assert len(names) == 2 and all(name.startswith("key-") and KEY not in name for name in names)
    for wrong in (KEY[:-1], KEY + " x", "", KEY.upper()):
        with pytest.raises(Problem, match="not known"):
            keys.tenant([(b"authorization", b"Bearer " + wrong.encode())])
    assert Keys([]).tenant([]) == ""


HOSTS = ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1:80", "10.1.2.3", "[::1]:8000", "::1", "a.localhost:1",
         "host.docker.internal:8000", ""]  # fmt: skip
OTHERS = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1.", "evil",
          "[evil]:80", "localhost@evil.example", "internal.evil:1", "127.0.0.1:80:evil"]  # fmt: skip


def test_without_keys_only_names_of_this_machine_are_answered(echo: Live) -> None:
    """A page whose own name leads here after its first answer (DNS rebinding) is of the same site to its browser."""
    for host in HOSTS:
        said = raw(echo, f"GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        assert status_of(said) == 200, host
    for host in OTHERS:
        for path in ("/v1/models", "/api/tags", "/metrics", "/nothing"):
            said = raw(echo, f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
            assert status_of(said) == 403 and b"--api-key" in said and b"evil" not in said, (host, path)


def test_with_keys_any_name_will_do(locked: Live) -> None:
    head = f"GET /v1/models HTTP/1.1\r\nhost: evil.example\r\nx-api-key: {KEY}\r\nconnection: close\r\n\r\n"
    assert status_of(raw(locked, head.encode())) == 200


# -- statuses ---------------------------------------------------------------------------------------------------------


def test_paths_and_methods(echo: Live) -> None:
    assert echo.ask("GET", "/nothing").status == 404
    wrong = echo.ask("GET", "/v1/completions")
    assert wrong.status == 405 and wrong.headers["allow"] == "POST"
    assert echo.ask("HEAD", "/live").status == 200
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert echo.ask(method, "/v1/models").status == 405


def test_bodies_that_are_no_json(echo: Live) -> None:
    for kind in ("text/plain", "multipart/form-data", "application/octet-stream"):
        assert echo.post("/v1/completions", {"prompt": "a"}, content_type=kind).status == 415
    form = "application/x-www-form-urlencoded"
    assert echo.post("/v1/completions", {"prompt": "a", "max_tokens": 1}, content_type=form).status == 200
    assert echo.post("/v1/completions", {"prompt": "a"}, content_type=form, origin="http://evil").status == 415


def test_a_packed_body_is_refused_by_name(echo: Live) -> None:
    body = gzip.compress(b'{"prompt":"a","max_tokens":1}')
    for path in ("/v1/completions", "/v1/messages", "/api/generate", "/tokenize"):
        reply = echo.post(path, body, content_encoding="gzip")
        assert reply.status == 415 and b"content-encoding" in reply.body, path
    assert echo.post("/v1/completions", {"prompt": "a", "max_tokens": 1}, content_encoding="identity").status == 200


@pytest.mark.parametrize(
    "request_line", [b"\x16\x03\x01\x02\x00", b"BREW /live HTTP/1.1", b"GET /live SPDY/3", b"GET"], ids=repr
)
def test_what_is_no_http_is_told_so_in_the_common_words(echo: Live, request_line: bytes) -> None:
    said = raw(echo, request_line + b"\r\nhost: localhost\r\n\r\n")
    assert status_of(said) == 400 and b"connection: close" in said
    head, _, body = said.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None and int(length[1]) == len(body)
    error = json.loads(body)["error"]
    assert error["type"] == "invalid_request_error" and error["code"] == "invalid_http" and "host" in error["message"]


def test_a_path_that_nobody_has_is_missed_in_the_words_of_its_folder(echo: Live) -> None:
    assert isinstance(echo.ask("GET", "/api/nothing").json["error"], str)
    assert echo.ask("GET", "/v1/messages/nothing").json["type"] == "error"
    for path in ("/v1/nothing", "/nothing", "/v1/models/", "/nothing/else"):
        assert echo.ask("GET", path).error["code"] == "not_found"


def test_too_large_a_body_is_refused_before_it_is_read(echo: Live) -> None:
    limit = echo.server.limits.body
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    said = raw(echo, f"{head}content-length: {limit + 1}\r\n\r\n".encode())
    assert status_of(said) == 413 and b"connection: close" in said
    link = socket.create_connection(("127.0.0.1", echo.port), timeout=10)
    link.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
    part = b"%x\r\n%s\r\n" % (1 << 16, b" " * (1 << 16))
    sent = 0
    try:
        while sent < 16 * limit:
            link.sendall(part)
            sent += len(part)
    except OSError:
        pass
    assert sent < 4 * limit, "the rest was taken"
    link.close()
    just = b'{"prompt":"a","max_tokens":1}'
    assert echo.post("/v1/completions", just + b" " * (limit - len(just))).status == 200


def test_headers_are_bounded(echo: Live) -> None:
    many = "".join(f"x-{i}: 1\r\n" for i in range(70))
    assert status_of(raw(echo, f"GET /live HTTP/1.1\r\nhost: localhost\r\n{many}\r\n".encode())) == 431
    assert status_of(raw(echo, f"GET /live HTTP/1.1\r\nhost: localhost\r\nx-a: {'y' * 17000}\r\n\r\n".encode())) == 431


def test_a_head_without_end_is_cut_off(echo: Live) -> None:
    for start in (b"GET /live HTTP/1.1\r\nx-a: ", b"GET /", b"GET /live HTTP/1.1\r\n"):
        with socket.create_connection(("127.0.0.1", echo.port), timeout=10) as link:
            sent, part = 0, b"x: y\r\n" * 4096 if start.endswith(b"\n") else b"a" * 32768
            link.sendall(start)
            with contextlib.suppress(OSError):
                while sent < 64 << 20:
                    link.sendall(part)
                    sent += len(part)
            assert sent < 16 << 20, "it took everything"
    assert echo.ask("GET", "/live").status == 200


def test_a_head_that_does_not_come_is_given_up(alphabet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "protocol_class", lambda: protocol_class(head_s=0.2))
    with running(echo_assembly(alphabet)) as live:
        links = [socket.create_connection(("127.0.0.1", live.port), timeout=10) for _ in range(20)]
        for link in links[:10]:
            link.sendall(b"GET /live HTTP/1.1\r\nhost: localhost\r\n")
        assert live.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status == 200
        assert all(link.recv(100) == b"" for link in links)
        kept = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
        for _ in range(3):  # between requests the longer patience of a kept connection counts
            kept.request("GET", "/live")
            assert kept.getresponse().read() == b'{"status":"live"}'
            kept.auto_open = 0
            time.sleep(0.3)
        kept.close()


def test_a_body_that_does_not_come_is_given_up(alphabet: Path) -> None:
    with running(echo_assembly(alphabet), limits=ServerLimits(body_s=0.2)) as live:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: ::1\r\ncontent-type: application/json\r\ncontent-length: 9\r\n"
        assert status_of(raw(live, head + b"\r\n{")) == 408


BAD = [
    b"", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b'{"prompt":}', b'{"prompt":"a"} x', b'\xff\xfe{"prompt":"a"}',
    b'\xef\xbb\xbf{"prompt":"a"}', b'{"prompt":"\\ud800"}', b'{"prompt":"\xff"}', b'{"prompt":NaN}',
    b'{"prompt":"a","temperature":NaN}', b'{"prompt":"a","temperature":1e999}', b'{"prompt":"a","temperature":-1}',
    b'{"prompt":"a","temperature":"1"}', b'{"prompt":"a","temperature":true}', b'{"prompt":"a","top_p":0}',
    b'{"prompt":"a","top_p":1.01}', b'{"prompt":"a","n":0}', b'{"prompt":"a","n":17}', b'{"prompt":"a","n":1000000000}',
    b'{"prompt":"a","n":1.5}', b'{"prompt":"a","best_of":5}', b'{"prompt":"a","max_tokens":0}',
    b'{"prompt":"a","max_tokens":-1}', b'{"prompt":"a","max_tokens":9223372036854775808}',
    b'{"prompt":"a","max_tokens":1e400}', b'{"prompt":"a","logprobs":21}', b'{"prompt":"a","logprobs":-1}',
    b'{"prompt":"a","logprobs":true}', b'{"prompt":"a","seed":1e30}', b'{"prompt":"a","seed":36893488147419103232}',
    b'{"prompt":"a","stop":[]  ,"stop":[""]}', b'{"prompt":"a","stop":[1]}',
    b'{"prompt":"a","stop":"' + b"x" * 300 + b'"}',
    b'{"prompt":"a","stop":[' + b",".join([b'"x"'] * 17) + b"]}", b'{"prompt":"a","logit_bias":{"x":1}}',
    b'{"prompt":"a","logit_bias":{"-1":1}}', b'{"prompt":"a","logit_bias":{"259":1}}',
    b'{"prompt":"a","logit_bias":{"1":101}}',
    b'{"prompt":"a","logit_bias":{"99999999999999999999":1}}', b'{"prompt":"a","logit_bias":[1]}',
    b'{"prompt":"a","stop_token_ids":[259]}', b'{"prompt":"a","stop_token_ids":[-1]}',
    b'{"prompt":"a","stop_token_ids":[1.5]}',
    b'{"prompt":""}', b'{"prompt":[]}', b'{"prompt":[[]]}', b'{"prompt":[259]}', b'{"prompt":[-1]}',
    b'{"prompt":[1.5]}',
    b'{"prompt":[true]}', b'{"prompt":[4294967296]}', b'{"prompt":[18446744073709551616]}', b'{"prompt":["a",[1]]}',
    b'{"prompt":["a",1]}', b'{"prompt":[[1,"a"]]}', b'{"prompt":{"a":1}}', b'{"prompt":null}',
    b'{"prompt":' + json.dumps(["a"] * 65).encode() + b"}", b'{"prompt":' + json.dumps([1] * 400).encode() + b"}",
    b'{"prompt":"' + b"a" * 5000 + b'"}', b'{"prompt":"a","suffix":"b"}', b'{"prompt":"a","model":"other"}',
    b'{"prompt":"a","model":7}', b'{"prompt":"a","temprature":1}', b'{"prompt":"a","__proto__":{}}',
    b'{"prompt":"a","priority":1e30}', b'{"prompt":"a","priority":2147483648}', b'{"prompt":"a","cache_salt":"a b"}',
    b'{"prompt":"a","cache_salt":"' + b"s" * 129 + b'"}', b'{"prompt":"a","deadline_ms":0}',
    b'{"prompt":"a","deadline_ms":-5}',
    b'{"prompt":"a","guided_json":{"not":{}}}', b'{"prompt":"a","structured_outputs":{"regex":"("}}',
    b'{"prompt":"a","kv_transfer_params":{"tp_size":1}}', b'{"prompt":"a","bad_words":["x"]}',
    b'{"prompt":"a","truncate_prompt_tokens":0}', b'{"prompt":"a","min_tokens":20,"max_tokens":3}',
    b'{"prompt":"a","stream_options":{"include_usage":true}}', b'{"prompt":"a","stream":"yes"}',
    b'{"prompt":"a","response_format":{"type":"xml"}}', b'{"prompt":"a","repetition_penalty":0}',
    b'{"prompt":"a","presence_penalty":3}', b'{"prompt":"a","metadata":' + b"[" * 100000 + b"]" * 100000 + b"}",
    b'{"prompt":' + b"[" * 200 + b"1" + b"]" * 200 + b"}", b"[" * 1000000, b'{"a":' * 100000,
]  # fmt: skip
BAD_CHATS: list[object] = [
    {"messages": []}, {"messages": "hello"}, {"messages": [{}]}, {"messages": [{"role": "user"}]}, {"messages": [1]},
    {"messages": [{"role": "boss", "content": "x"}]}, {"messages": [{"role": "user", "content": 5}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}]}]},
    {"messages": [{"role": "user", "content": "x"}], "tool_choice": "required"},
    {"messages": [{"role": "user", "content": "x"}], "modalities": ["audio"]},
    {"messages": [{"role": "user", "content": "x"}], "audio": {"voice": "a"}},
    {"messages": [{"role": "user", "content": "x"}], "chat_template": "{{ x }}"},
    {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"tokenize": True}},
    {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"messages": []}},
    {"messages": [{"role": "user", "content": "x"}], "top_logprobs": 3},
    {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 21},
    {"messages": [{"role": "user", "content": "x"}], "continue_final_message": True},
    {"messages": [{"role": "user", "content": "x"}] * 2049},
    {"messages": [{"role": "user", "content": "x" * 5000}]},
]  # fmt: skip


def test_bad_bodies_are_told_what_is_wrong_and_disturb_nobody(echo: Live) -> None:
    canaries = [
        echo.open({"prompt": [5, i], "max_tokens": 390, "temperature": 0, "ignore_eos": True}) for i in range(4)
    ]
    for path, bodies in (
        ("/v1/completions", BAD),
        ("/v1/chat/completions", [json.dumps(b).encode() for b in BAD_CHATS]),
    ):
        for body in bodies:
            reply = echo.post(path, body)
            shown = body[:120]
            assert 400 <= reply.status < 500, (shown, reply.status, reply.body)
            error = reply.error
            assert set(error) == {"message", "type", "param", "code"} and len(error["message"]) < 600, shown
            assert not UNSPEAKABLE.search(error["message"]), (shown, error)
    for link in canaries:
        link.close()
    echo.wait(echo.idle, 5, "everything given back")


def test_a_refusal_names_field_value_range_and_fix(echo: Live) -> None:
    for body, param, *words in [
        ({"prompt": "a", "temperature": 101}, "temperature", "101", "0 to 100"),
        ({"prompt": "a", "temprature": 1}, "temprature", "did you mean temperature"),
        ({"prompt": "a", "logprobs": 30}, "logprobs", "30", "0 to 20"),
        ({"prompt": [[1], [7, 300]]}, "prompt[1]", "300", "0 to 258"),
        ({"prompt": [1] * 400}, "prompt tokens + 1", "401", "400", "shorten"),
        ({"prompt": "a", "guided_json": {"a": 1}}, "guided_json", "no grammar"),
    ]:
        error = echo.post("/v1/completions", body).error
        assert error["param"] == param and all(word in error["message"] for word in words), error
    long = echo.post("/v1/completions", {"prompt": [1] * 400}).error
    assert long["code"] == "context_length_exceeded"


def test_request_ids_are_echoed_when_harmless(echo: Live) -> None:
    assert echo.ask("GET", "/live", x_request_id="abc-123:4").headers["x-request-id"] == "abc-123:4"
    for odd in ("a b", "x" * 129, "a\tb", "é"):
        shown = raw(
            echo, f"GET /live HTTP/1.1\r\nhost: localhost\r\nx-request-id: {odd}\r\nconnection: close\r\n\r\n".encode()
        )
        assert b"\r\nx-request-id: req-" in shown


def test_a_full_queue_says_when_to_come_back(alphabet: Path) -> None:
    with running(echo_assembly(alphabet, max_seqs=2, pace=0.01), queue=2) as live:
        body = {"prompt": [3, 4], "max_tokens": 300, "ignore_eos": True, "stream": True}
        links = [live.open(body) for _ in range(4)]
        live.wait(lambda: live.server.service.num_in_flight == 4, 5, "four admitted")
        reply = live.post("/v1/completions", body)
        assert reply.status == 429 and reply.error["code"] == "rate_limit_exceeded"
        assert int(reply.headers["retry-after"]) >= 1 and int(reply.headers["retry-after-ms"]) >= 1000
        assert live.post("/v1/completions", body | {"n": 5}).status == 400, "never, not later"
        for link in links:
            link.close()
        live.wait(live.idle, 5, "everything given back")
        assert live.post("/v1/completions", {"prompt": [3], "max_tokens": 1}).status == 200


def test_nobody_waits_in_the_queue_for_ever(alphabet: Path) -> None:
    with running(echo_assembly(alphabet, max_seqs=1, pace=0.01), limits=ServerLimits(queue_s=0.5)) as live:
        long = {"prompt": [3, 4], "max_tokens": 390, "ignore_eos": True}
        with live.open(long):
            live.wait(lambda: live.parts.engine.scheduler.num_running == 1, 5, "running")
            refused = live.post("/v1/completions", {"prompt": [5], "max_tokens": 1})
            assert refused.status == 503 and refused.error["code"] == "queue_timeout"
            assert "retry-after" in refused.headers
            streamed = live.post("/v1/completions", {"prompt": [5], "max_tokens": 1, "stream": True})
            assert streamed.events[-2]["error"]["code"] == "queue_timeout"
            live.wait(lambda: live.server.service.num_in_flight == 1, 1, "they are gone, the one that runs goes on")


def test_deadlines(alphabet: Path) -> None:
    """Refused when it cannot be met; otherwise what there is by then is the answer."""
    with running(echo_assembly(alphabet, pace=0.005)) as live:
        body = {"prompt": [3, 4], "max_tokens": 390, "ignore_eos": True}
        assert live.post("/v1/completions", body | {"max_tokens": 60}).status == 200, "steps are known now"
        late = live.post("/v1/completions", body | {"deadline_ms": 300})
        assert late.status == 429 and "deadline_ms=300 cannot be met" in late.error["message"]
        assert "retry-after" in late.headers
        cut = live.post("/v1/completions", body | {"deadline_ms": 600, "ignore_eos": False, "min_tokens": 390})
        assert cut.status in (200, 429)
        if cut.status == 200:
            (choice,) = cut.json["choices"]
            assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "deadline")


def test_one_key_cannot_take_all_places(alphabet: Path) -> None:
    with running(echo_assembly(alphabet, max_seqs=2, pace=0.01), queue=6, api_keys=(KEY, OTHER)) as live:
        body = {"prompt": [3, 4], "max_tokens": 60, "ignore_eos": True, "n": 4}
        with live.open(body, key=KEY):
            live.wait(lambda: live.server.service.num_in_flight == 4, 5, "four admitted")
            refused = live.post("/v1/completions", body)
            assert refused.status == 429 and "this key" in refused.error["message"]
            small = {"prompt": [3], "max_tokens": 1}
            assert live.post("/v1/completions", small, authorization=f"Bearer {OTHER}").status == 200


def test_no_key_finds_what_another_has_sent(alphabet: Path) -> None:
    body = {"prompt": list(range(1, 40)), "max_tokens": 1}

    def cached(live: Live, key: str, **more: object) -> int:
        usage = live.post("/v1/completions", body | more, authorization=f"Bearer {key}").json["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    with running(echo_assembly(alphabet), api_keys=(KEY, OTHER)) as live:
        assert cached(live, KEY) == 0 and cached(live, KEY) > 0
        assert cached(live, OTHER) == 0 and cached(live, OTHER) > 0
        assert cached(live, OTHER, cache_salt="a") == 0 and cached(live, OTHER, cache_salt="a") > 0
        assert cached(live, KEY, cache_salt="a") == 0, "a client's salt is added to its key, not put in its place"
    with running(echo_assembly(alphabet), api_keys=(KEY,)) as live:
        assert cached(live, KEY) == 0 and cached(live, KEY) > 0 and cached(live, KEY, cache_salt="a") == 0


def test_not_being_ready_is_said_on_every_route(alphabet: Path) -> None:
    gate, made = threading.Event(), echo_assembly(alphabet)

    def load() -> Assembly:
        gate.wait(20)
        return made()

    threading.Timer(0.5, gate.set).start()
    seen: list[tuple[int, int, int]] = []

    def peek(port: int) -> None:
        early = Live(None, None, port, None)  # type: ignore[arg-type]
        refused = early.post("/v1/completions", {"prompt": "a"})
        assert refused.error["code"] == "loading" and refused.headers["retry-after"] == "1"
        seen.append((early.ask("GET", "/live").status, early.ask("GET", "/ready").status, refused.status))

    with running(load, before=peek) as live:
        assert seen == [(200, 503, 503)]
        assert live.ask("GET", "/ready").json == {"status": "ok", "state": "ready"}


# -- other protocols that a request offers ----------------------------------------------------------------------------

BODY = json.dumps({"prompt": "abc", "max_tokens": 3, "seed": 1, "ignore_eos": True}).encode()
PLAIN = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
SOCKET = b"connection: Upgrade\r\nupgrade: websocket\r\n"
LENGTH = b"content-length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("offer", [H2C, SOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("pause_at", [0, -5, -len(BODY), -len(BODY) - 2, 40], ids=str)
def test_an_offer_of_another_protocol_is_taken_no_notice_of(echo: Live, offer: bytes, pause_at: int) -> None:
    """Java's client offers HTTP/2 with every request, and sends its body all the same."""
    asked = PLAIN + offer + LENGTH + BODY
    with socket.create_connection(("127.0.0.1", echo.port), timeout=10) as link:
        for request in (asked, PLAIN + LENGTH + BODY):  # and the connection goes on
            cut = len(request) + pause_at if pause_at <= 0 else pause_at
            link.sendall(request[:cut])
            if cut < len(request):
                time.sleep(0.05)
                link.sendall(request[cut:])
            answer = http.client.HTTPResponse(link)
            answer.begin()
            assert answer.status == 200
            assert len(json.loads(answer.read())["choices"][0]["logprobs"] or "none") == 4


def test_so_are_offers_with_bodies_in_chunks_and_one_behind_the_other(echo: Live) -> None:
    chunks = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (10, BODY[:10], len(BODY) - 10, BODY[10:])
    asked = [PLAIN + H2C + CHUNKED + chunks, PLAIN + SOCKET + LENGTH + BODY] * 2
    last = b"GET /live HTTP/1.1\r\nhost: localhost\r\nconnection: close, upgrade\r\nupgrade: h2c\r\n\r\n"
    answer = raw(echo, b"".join(asked) + last)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 5, answer.decode()
    bad = raw(echo, PLAIN + H2C + b"content-length: 3\r\nconnection: close\r\n\r\nabc")
    assert status_of(bad) == 400 and b"not a JSON object" in bad
    assert status_of(raw(echo, PLAIN + H2C + b"content-length: x\r\n\r\n")) == 400
