"""Messages between the server and its engine's process: what is said arrives as it was, and nonsense is found out."""

from __future__ import annotations

import contextlib
from dataclasses import fields, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legato import errors
from legato.core.events import Event, Usage
from legato.core.miss import Miss, MissCause
from legato.core.plan import TokenLogprobs
from legato.core.request import Grammar, GrammarKind, Request, SamplingParams
from legato.core.sequence import FinishReason
from legato.engine import EngineStats
from legato.measure.ledger import StepRecord
from legato.schedule.cache_manager import KvReport
from legato.schedule.scheduler import TenantReport
from legato.server import wire
from legato.server.bridge import Snapshot
from legato.server.model import Card, Wall
from legato.server.problems import problem_of
from legato.server.wire import Frames, WireError

TRIES = settings(max_examples=60, derandomize=True, deadline=None)
whole, number = st.integers(0, 2**31 - 1), st.floats(-1e9, 1e9)
logprobs = st.builds(TokenLogprobs, whole, number, whole, st.lists(st.tuples(whole, number), max_size=3).map(tuple))
marks = st.dictionaries(st.sampled_from(["arrived", "scheduled", "first_token", "finished"]), number)
misses = st.builds(
    Miss, st.sampled_from(MissCause), whole, whole, st.none() | whole, st.none() | whole, st.none() | number
)
events = st.builds(
    Event,
    st.text(min_size=1, max_size=9),
    whole,
    st.integers(0, 15),
    st.lists(whole, max_size=4),
    st.none() | st.lists(logprobs, max_size=2),
    st.none() | st.lists(logprobs, max_size=2),
    st.none() | st.sampled_from(FinishReason),
    st.none() | whole,
    st.none() | st.text(max_size=9),
    st.none() | st.builds(Usage, whole, whole, whole, whole, marks, st.none() | misses),
    number,
)
params = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2) | st.just(1),
    top_k=whole,
    logit_bias=st.dictionaries(whole, st.floats(-100, 100), max_size=3),
    seed=st.none() | st.integers(-(2**63), 2**64 - 1),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=2).map(tuple),
    stop_token_ids=st.lists(whole, max_size=2).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
    n=st.integers(1, 16),
    grammar=st.none() | st.builds(Grammar, st.sampled_from(GrammarKind), st.text(min_size=1, max_size=20)),
)
requests = st.builds(
    Request,
    st.text(min_size=1, max_size=9),
    st.lists(whole, min_size=1, max_size=9).map(tuple),
    params,
    st.integers(-(2**31), 2**31 - 1),
    st.text(max_size=9),
    st.text(max_size=9),
    st.none() | st.floats(0.1, 1e6),
)


def snapshot() -> Snapshot:
    record = StepRecord(1.5, 0.25, 1, 2, 3, laps={"run": 0.1})
    kv = KvReport(*range(1, 1 + len(fields(KvReport))))
    tenant = TenantReport(**{field.name: 2 for field in fields(TenantReport)})
    stats = EngineStats(1, 2, kv, 3, 4, 5, 6, 7, 0.5, {"me": tenant}, record)
    return Snapshot(9.5, stats, (record, replace(record, started=2.5)), 0.25, frozenset({"r1", "r2"}))


def there(message: Any, decode: Any) -> Any:
    (body,) = Frames().feed(wire.frame(message))
    return decode(body)


@TRIES
@given(st.lists(events, max_size=4))
def test_events_arrive_as_they_were(step: list[Event]) -> None:
    (arrived,) = [there(wire.Step(step), wire.from_engine)]
    assert arrived.events == step and [e.at for e in arrived.events] == [e.at for e in step]


@TRIES
@given(st.lists(requests, max_size=3))
def test_requests_arrive_as_they_were(asked: list[Request]) -> None:
    arrived = there(wire.Submit(7, asked), wire.to_engine)
    assert arrived == wire.Submit(7, asked)
    assert all(isinstance(r.prompt_ids, tuple) and isinstance(r.params.stop, tuple) for r in arrived.requests)


def test_everything_else_arrives_as_it_was() -> None:
    card = Card(128, 259, "avx2", 2, "int8", 16, "d" * 32, "auto", "4 users", ("a note",))
    fault = wire.fault_of(errors.EngineError("x"))
    for message in (
        wire.Hello("1"),
        wire.Loading("loading weights", 1, 2),
        wire.Ready(card),
        wire.Refused(fault),
        wire.Reply(3),
        wire.Reply(3, fault, Wall(10.0, 1000, 10)),
        wire.Told(snapshot()),
        wire.Beat(0.5, 10.0),
    ):
        assert there(message, wire.from_engine) == message
    chosen: dict[str, wire.Setting] = {"model": "/x.gguf", "threads": None, "kv_memory": 1 << 40, "naive": False}
    for order in (
        wire.Start("1", chosen, "json"),
        wire.Abort("r1", None, FinishReason.STOP),
        wire.Admit(4, SamplingParams(grammar=Grammar(GrammarKind.REGEX, "a+"))),
        wire.Measure(5),
    ):
        assert there(order, wire.to_engine) == order


# -- frames -----------------------------------------------------------------------------------------------------------


@TRIES
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.randoms(use_true_random=False))
def test_frames_may_come_in_any_pieces(bodies: list[bytes], draw: Any) -> None:
    data = b"".join(wire.LENGTH.pack(len(body)) + body for body in bodies)
    frames, found, at = Frames(), [], 0
    while at < len(data):
        size = draw.randrange(1, 30)
        found += list(frames.feed(data[at : at + size]))
        at += size
    assert found == bodies


@TRIES
@given(st.binary(max_size=60))
def test_nonsense_is_a_wire_error_and_nothing_else(data: bytes) -> None:
    for decode in (wire.from_engine, wire.to_engine):
        with pytest.raises(WireError):
            decode(data + b"\xc1")  # a byte that MessagePack never has
        try:
            decode(data)
        except WireError as error:
            assert "\n" not in str(error)
    with contextlib.suppress(WireError):
        list(Frames().feed(data))


@pytest.mark.parametrize(
    "made",
    [
        {"type": "step", "events": [{"request_id": "r", "seq_id": 1, "index": 0, "finish_reason": "tired"}]},
        {"type": "step", "events": {}},
        {"type": "beat", "busy_s": "long", "limit_s": 1},
        {"type": "ready", "card": {}},
        {"type": "what"},
        {"type": "start", "version": "1", "settings": {}},
        {},
        [],
        7,
    ],
    ids=str,
)
def test_what_is_no_message_of_an_engine(made: object) -> None:
    with pytest.raises(WireError):
        wire.from_engine(msgspec.msgpack.encode(made))


def test_what_a_request_may_not_be_is_refused_at_this_door_too() -> None:
    good = {"request_id": "r", "prompt_ids": [1], "params": {"temperature": 9000.0}}
    with pytest.raises(WireError, match="temperature"):
        wire.to_engine(msgspec.msgpack.encode({"type": "submit", "ref": 1, "requests": [good]}))


def test_lengths_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for head in (b"\0\0\0\0", b"\xff\xff\xff\xff", wire.LENGTH.pack(wire.MAX_FRAME + 1)):
        with pytest.raises(WireError, match="a frame of"):
            list(Frames().feed(head))
    monkeypatch.setattr(wire, "MAX_FRAME", 1000)
    with pytest.raises(WireError, match="1000 of a frame"):
        wire.frame(wire.Submit(1, [Request("r", (1 << 30,) * 1000)]))
    with pytest.raises(WireError, match="cannot be sent"):
        wire.frame(wire.Loading("\ud800", 1, 2))


# -- errors -----------------------------------------------------------------------------------------------------------

ERRORS = [
    errors.RequestError("temperature", 9000, "a number from 0 to 100", "0 is greedy"),
    errors.RequestError("seed", 10**5000, "less"),
    errors.RequestError("x", {"a": [1]}, "something else"),
    errors.CapacityError("prompt tokens", 900, 128, "tokens of context", "shorten the prompt"),
    errors.OverloadedError("the queue is full", 1.25),
    errors.UsageError("kv_memory=1 is not allowed"),
    errors.ModelFileError("/a/b.gguf", "magic", "is not GGUF"),
    errors.UnsupportedModelError("/a/b.gguf", "general.architecture", "is not known"),
    errors.DownloadError("no"),
    errors.SessionError("no"),
    errors.EngineError("a fault"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_arrive_with_all_that_clients_are_told(error: errors.LegatoError) -> None:
    arrived = wire.error_of(there(wire.Reply(1, wire.fault_of(error)), wire.from_engine).fault)
    assert type(arrived) is type(error) and str(arrived) == str(error) and arrived.exit_code == error.exit_code
    ours, theirs = problem_of(error), problem_of(arrived)
    assert (ours.status, ours.message, ours.param, ours.code, ours.retry_after_s) == (
        theirs.status,
        theirs.message,
        theirs.param,
        theirs.code,
        theirs.retry_after_s,
    )


def test_every_error_of_ours_can_cross_and_others_keep_their_words() -> None:
    made = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LegatoError)}
    assert {type(error) for error in ERRORS} == made - {errors.LegatoError, errors.EngineAwayError}
    fault = wire.fault_of(ZeroDivisionError("secret at 0xdeadbeef"))
    assert fault.message == "the engine failed: ZeroDivisionError" and not fault.facts
    assert type(wire.error_of(wire.Fault("Surprise", "x"))) is errors.EngineError
