"""Grammars through the whole engine: batches, chunks, prefix hits, preemption and aborts change no token."""

from __future__ import annotations

import json
import random

from bytes_vocabulary import EOS, SIZE, text_of
from dice import DIGITS, JSON, Dice

from legato.core.request import Grammar, Request, SamplingParams
from legato.engine import Engine
from legato.runtime.runner import Runner
from legato.text.grammar import Grammars


def engine_of(grammars: Grammars, num_pages: int) -> Engine:
    runner = Runner(Dice(1), page_size=4, vocab_size=SIZE, eos_ids=(EOS,), grammars=grammars)  # type: ignore[arg-type]
    return Engine(
        runner,
        num_pages=num_pages,
        page_size=4,
        max_tokens=24,
        max_seqs=8,
        context_length=120,
        vocab_size=SIZE,
        eos_ids=frozenset({EOS}),
    )


def requests() -> list[Request]:
    dice = random.Random(3)
    made = []
    for i in range(24):
        grammar: Grammar | None = dice.choice([JSON, DIGITS, None])
        params = SamplingParams(
            grammar=grammar,
            temperature=dice.choice([0.0, 1.0, 2.0]),
            seed=i,
            n=dice.choice([1, 1, 2]),
            max_tokens=40,
            ignore_eos=dice.random() < 0.3,
            min_tokens=dice.choice([0, 0, 12]),
            repetition_penalty=dice.choice([1.0, 1.3]),
        )
        shared = (7,) * dice.choice([0, 8, 20])
        made.append(Request(f"r{i}", (*shared, *(dice.randrange(256) for _ in range(dice.randrange(1, 12)))), params))
    return made


def run(
    engine: Engine, asked: list[Request], abort: set[str] = frozenset()
) -> dict[tuple[str, int], tuple[list[int], str]]:  # type: ignore[assignment]
    """Tokens and reason of every answer, of requests that arrive a few a step."""
    waiting, out = list(asked), {}
    tokens: dict[tuple[str, int], list[int]] = {}
    steps = 0
    while waiting or engine.has_work:
        for _ in range(3):
            if waiting:
                engine.add(waiting.pop(0))
        steps += 1
        if steps == 9:
            for name in abort:
                engine.abort(name)
        for event in engine.step():
            key = event.request_id, event.index
            tokens.setdefault(key, []).extend(event.token_ids)
            assert event.error is None, event.error
            if event.finish_reason is not None:
                out[key] = tokens[key], str(event.finish_reason)
    return out


def test_company_and_a_short_cache_change_no_token(grammars: Grammars) -> None:
    asked = requests()
    alone: dict[tuple[str, int], tuple[list[int], str]] = {}
    for request in asked:
        alone |= run(engine_of(grammars, 200), [request])
    crowded = engine_of(grammars, 40)
    assert run(crowded, asked) == alone
    assert crowded.stats().num_preemptions > 0
    for request in asked:
        for index in range(request.params.n):
            ids, reason = alone[request.request_id, index]
            if request.params.grammar is DIGITS:
                assert text_of(ids).isdigit() and reason == "stop"
            elif request.params.grammar is JSON and reason == "stop":
                assert set(json.loads(text_of(ids))) == {"a", "b"}


def test_aborts_leave_nothing_behind_and_change_no_neighbour(grammars: Grammars) -> None:
    asked = requests()
    engine = engine_of(grammars, 60)
    whole = run(engine_of(grammars, 60), asked)
    gone = {f"r{i}" for i in range(0, 24, 3)}
    left = run(engine, asked, gone)
    assert {k: v for k, v in left.items() if k[0] not in gone} == {k: v for k, v in whole.items() if k[0] not in gone}
    assert not engine._runner.sampler._matchers  # type: ignore[attr-defined]
