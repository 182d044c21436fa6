"""Bad inputs beside streams that must not notice: corpus/ (one file a class), and numbers made from the field tables.

A case is a line of JSON: `expect` the statuses that are right, `path`, `headers`, and what is sent:
    body   JSON, in which {"$repeat": [text or list, count]} stands for something long
    text   the body's text;  hex  its bytes;  big  [before, unit, count, after] of its text
    wire   the whole request, as latin-1
"""

from __future__ import annotations

import json
import threading
import time
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any

import msgspec
import pytest
from live import UNSPEAKABLE, Live, Reply, alphabet_assembly, echo_assembly, expected, raw, running

from legato.server.limits import ServerLimits
from legato.server.protocols.openai.fields import ChatBody, CompletionBody

FOLDER = Path(__file__).parent / "corpus"
CONSTRAINED = {"schemas", "regexes", "grammars"}  # for a model that takes constraints
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
CANARIES = 8

Case = dict[str, Any]


def cases(name: str) -> list[Case]:
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    return [{**json.loads(line), "class": name} for line in lines if line]


def classes() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.jsonl"))


def grown(value: Any) -> Any:
    """The body with all repetitions written out."""
    if isinstance(value, dict):
        if value.keys() == {"$repeat"}:
            what, count = value["$repeat"]
            return grown(what) * count
        return {key: grown(item) for key, item in value.items()}
    return [grown(item) for item in value] if isinstance(value, list) else value


def payload(case: Case) -> bytes:
    if "hex" in case:
        return bytes.fromhex(case["hex"])
    if "text" in case:
        return str(case["text"]).encode()
    if "big" in case:
        before, unit, count, after = case["big"]
        return f"{before}{unit * count}{after}".encode()
    return json.dumps(grown(case["body"])).encode()


def wired(live: Live, request: bytes) -> Reply:
    head, _, body = raw(live, request).partition(b"\r\n\r\n")
    return Reply(int(head.split(b" ", 2)[1]), {}, body)


def send(live: Live, case: Case) -> Reply:
    if "wire" in case:
        return wired(live, case["wire"].encode("latin-1"))
    headers = {name.replace("-", "_"): value for name, value in case.get("headers", {}).items()}
    return live.post(case["path"], payload(case), **headers)


def judged(live: Live, case: Case) -> str:
    """What is wrong with the answer to a case; "" for nothing."""
    begun = time.monotonic()
    try:
        reply = send(live, case)
    except Exception as error:
        return f"no answer: {error!r}"
    seconds, shown = time.monotonic() - begun, reply.body[:300]
    if reply.status not in case["expect"]:
        return f"status {reply.status}: {shown!r}"
    if seconds > 10:
        return f"{seconds:.1f} s"
    if reply.status >= 400 and UNSPEAKABLE.search(reply.body.decode(errors="replace")):
        return f"says too much: {shown!r}"
    if reply.status >= 400 and ("wire" not in case or reply.body.startswith(b"{")):
        told = reply.error
        if set(told) != {"message", "type", "param", "code"} or not 0 < len(told["message"]) < 600:
            return f"not an error of ours: {shown!r}"
    return ""


class Canary:
    """One stream after another for the same prompt; each has to bring the same bytes of text."""

    def __init__(self, live: Live, body: dict[str, Any], text: str) -> None:
        self.live, self.body, self.text = live, body | {"stream": True}, text
        self.rounds, self.faults, self.over = 0, list[str](), threading.Event()
        self.thread = threading.Thread(target=self.sing)
        self.thread.start()

    def sing(self) -> None:
        while not self.over.is_set():
            try:
                events = self.live.post(TEXT, self.body).events
                assert events[-1] == "[DONE]", events[-1]
                found = "".join(e["choices"][0]["text"] for e in events[:-1])
            except Exception as error:
                self.faults.append(repr(error))
                return
            self.rounds += 1
            if found != self.text:
                self.faults.append(f"{found!r} is not {self.text!r}")


@contextmanager
def canaries(live: Live, songs: list[tuple[dict[str, Any], str]]) -> Iterator[None]:
    """Streams that run until the block ends, were right throughout, and left nothing behind."""
    engine = live.parts.engine
    before = engine.stats()
    sung = [Canary(live, body, text) for body, text in songs]
    try:
        yield
    finally:
        for canary in sung:
            canary.over.set()
        for canary in sung:
            canary.thread.join(30)
    for canary in sung:
        assert not canary.faults and canary.rounds > 0, canary.faults
    live.wait(live.idle, 5, "everything given back")
    kv, stats = engine.stats().kv, engine.stats()
    assert kv.in_use == 0 and kv.free + kv.cached == kv.total == before.kv.total
    assert (stats.num_faults, stats.num_leaks) == (before.num_faults, before.num_leaks)
    assert live.ask("GET", "/health").status == 200


def echo_songs(live: Live) -> list[tuple[dict[str, Any], str]]:
    """The oracle is plain decoding with nothing but a list."""
    more = {"max_tokens": 120, "temperature": 0, "ignore_eos": True}
    known = {"max_tokens": 120, "ignore_eos": True}
    return [({"prompt": [5, i], **more}, expected(live, [5, i], **known)[0]) for i in range(CANARIES)]


def letter_songs() -> list[tuple[dict[str, Any], str]]:
    """After each letter comes the next one."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [
        ({"prompt": letters[i : i + 2], "max_tokens": 40, "temperature": 0}, letters[i + 2 :]) for i in range(CANARIES)
    ]


def sent_all(live: Live, chosen: list[Case]) -> list[str]:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda case: judged(live, case), chosen))
    return [f"{case['class']}/{case['id']}: {fault}" for case, fault in zip(chosen, found, strict=True) if fault]


def faults_beside_canaries(live: Live, songs: list[tuple[dict[str, Any], str]], chosen: list[Case]) -> list[str]:
    with canaries(live, songs):
        return sent_all(live, chosen)


@pytest.fixture(scope="module")
def target(alphabet: Path) -> Iterator[Live]:
    with running(echo_assembly(alphabet, max_seqs=32, pace=0.002)) as live:
        yield live


@pytest.fixture(scope="module")
def lettered(alphabet: Path) -> Iterator[Live]:
    with running(alphabet_assembly(alphabet)) as live:
        yield live


def test_the_corpus_is_what_it_says() -> None:
    found = [case for name in classes() for case in cases(name)]
    names = [(case["class"], case["id"]) for case in found]
    assert len(names) == len(set(names)) >= 740 and len(classes()) == 13
    for case in found:
        assert len({"body", "text", "hex", "big", "wire"} & case.keys()) == 1, case["id"]
        assert all(200 <= status < 500 or status in (501, 505) for status in case["expect"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in classes() if name not in CONSTRAINED])
def test_bad_inputs_are_refused_and_disturb_nobody(target: Live, name: str) -> None:
    assert faults_beside_canaries(target, echo_songs(target), cases(name)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CONSTRAINED))
def test_bad_constraints_are_refused_and_disturb_nobody(lettered: Live, name: str) -> None:
    assert faults_beside_canaries(lettered, letter_songs(), cases(name)) == []


# -- numbers, from the field tables -----------------------------------------------------------------------------------

EDGES: list[Any] = [
    -(2**64), -(2**63) - 1, -(2**31) - 1, -101, -3, -1, -1e-9, 0, 1e-9, 0.5, 1, 1.5, 2.5, 16, 17, 21, 101,
    2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 1e30, 1e308, "1", True, [], {}, [1],
]  # fmt: skip


def kinds_of(annotation: Any) -> set[type]:
    return set(typing.get_args(annotation)) if isinstance(annotation, UnionType) else {annotation}


def numeric_cases() -> list[Case]:
    """Every number field of both bodies, with every edge. Legal ones are answered, others refused by name."""
    made: list[Case] = []
    for path, kind, base in (
        (TEXT, CompletionBody, {"prompt": [5]}),
        (CHAT, ChatBody, {"messages": [{"role": "user", "content": "x"}]}),
    ):
        for field in msgspec.structs.fields(kind):
            if not {int, float} & (own := kinds_of(field.type)) or own & {list, dict}:
                continue
            for i, edge in enumerate(EDGES):
                wrong = isinstance(edge, (str, list, dict, bool)) or (float not in own and edge != int(edge))
                body = {**base, "max_tokens": 2, "n": 1, field.name: edge}
                expect = [400] if wrong else [200, 400, 429]
                made.append({"class": "numbers", "id": f"{path} {field.name} {i}", "expect": expect, "path": path,
                             "body": body})  # fmt: skip
    return made


@pytest.mark.slow
def test_numbers_at_every_edge_of_every_field(target: Live) -> None:
    made = numeric_cases()
    assert len(made) >= 900 and len({case["id"].split()[1] for case in made}) >= 17
    assert faults_beside_canaries(target, echo_songs(target), made) == []


# -- every route, every limit ---------------------------------------------------------------------------------------


def limited_routes(live: Live) -> list[str]:
    return [route.path for route in live.server.routes.routes if isinstance(route.body, type)]


def filled(before: bytes, size: int) -> bytes:
    return before + b" " * (size - len(before))


@pytest.mark.slow
def test_every_route_holds_every_limit_of_requests(target: Live) -> None:
    """From the route table: at the limit whatever the route says itself, past it the same refusal everywhere."""
    limits = ServerLimits()
    with canaries(target, echo_songs(target)):
        for path in limited_routes(target):
            for size in (limits.body - 1, limits.body):
                assert target.post(path, filled(b'{"unheard":1}', size)).status in (400, 501), (path, size)
            head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            larger = f"{head}content-length: {limits.body + 1}\r\n\r\n"
            assert wired(target, larger.encode()).status in (413, 501), path
            for depth in (limits.depth + 1, 5000, 100_000):
                for field in ("messages", "prompt", "input", "tools"):
                    deep = b'{"%s":' % field.encode() + b"[" * depth + b"]" * depth + b"}"
                    assert target.post(path, deep).status in (400, 501), (path, depth, field)
        for route in target.server.routes.routes:
            path = route.path if route.stem is None else route.stem + "x"
            body = b"{}" if route.body is not None else None
            many = {f"x_{i}": "1" for i in range(limits.headers + 1)}
            assert target.ask(route.method, path, body, **many).status == 431, path
            fits = {f"x_{i}": "1" for i in range(limits.headers - 10)}
            assert target.ask(route.method, path, body, **fits).status != 431, path
            assert target.ask(route.method, path, body, x_a="y" * limits.header_bytes).status == 431, path
            assert target.ask(route.method, path, body, x_a="y" * (limits.header_bytes - 1000)).status != 431, path


LIMITS: list[tuple[str, Any, Any]] = [
    ("n", 16, 17), ("stop", ["x"] * 16, ["x"] * 17), ("stop", "x" * 256, "x" * 257),
    ("logit_bias", {str(i): 1 for i in range(259)}, {str(i): 1 for i in range(1025)}),
    ("stop_token_ids", [5] * 16, [5] * 17), ("prompt_logprobs", 20, 21), ("cache_salt", "s" * 128, "s" * 129),
    ("temperature", 100, 100.5), ("top_p", 1, 1.001), ("min_p", 1, 1.001), ("presence_penalty", 2, 2.1),
    ("frequency_penalty", -2, -2.1), ("repetition_penalty", 100, 100.1), ("seed", 2**64 - 1, 2**64),
    ("priority", 2**31 - 1, 2**31), ("top_k", 2**31 - 1, 2**31), ("deadline_ms", 86_400_000, 86_400_001),
]  # fmt: skip


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_the_last_legal_value_and_the_first_that_is_not(target: Live, path: str) -> None:
    chat = path == CHAT
    base: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]} if chat else {"prompt": [5]}
    own: list[tuple[str, Any, Any]] = (
        [("messages", base["messages"] * 8, base["messages"] * 2049), ("top_logprobs", 20, 21)]
        if chat
        else [("prompt", ["a"] * 64, ["a"] * 65), ("logprobs", 20, 21), ("prompt", [5] * 398, [5] * 400)]
    )
    for name, good, bad in LIMITS + own:
        more = {"logprobs": True} if name == "top_logprobs" else {}
        body = {**base, "max_tokens": 1, **more}
        answered = target.post(path, {**body, name: good})
        assert answered.status == 200, (name, answered.body)
        refused = target.post(path, {**body, name: bad})
        assert refused.status == 400 and refused.error["param"] is not None, (name, refused.body)
