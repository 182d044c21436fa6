"""Rows with a grammar: always in it, whatever the sampling, the drafts, the faults, or the neighbours."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
from bytes_vocabulary import EOS, SIZE, text_of
from dice import DIGITS, JSON, SCHEMA, Dice

from legato.core.plan import Plan, Slice, SliceResult
from legato.core.request import Grammar, GrammarKind, Request, SamplingParams
from legato.core.sequence import Sequence
from legato.runtime.runner import Runner
from legato.runtime.sampler import mask_row
from legato.schedule.accept import accept
from legato.text.grammar import GrammarFault, Grammars, Matcher


def runner_of(grammars: Grammars | None, seed: int = 0) -> Runner:
    return Runner(Dice(seed), page_size=16, vocab_size=SIZE, eos_ids=(EOS,), grammars=grammars)  # type: ignore[arg-type]


def sequence(params: SamplingParams, seq_id: int = 0, index: int = 0) -> Sequence:
    request = Request("r", (1, 2), params)
    return Sequence(seq_id, request, index, 2 + (params.max_tokens or 400), pages=list(range(64)))


def decode(runner: Runner, seqs: list[Sequence], draft: Any = None) -> list[str | None]:
    """Runs all to their ends, together; the errors. `draft(seq)` gives guesses."""
    errors: list[str | None] = [None] * len(seqs)
    while live := [s for s in seqs if not s.finished]:
        slices = []
        for seq in live:
            seq.draft_ids = draft(seq) if draft else []
            seq.num_computed_tokens = len(seq.token_ids) - 1
            slices.append(Slice(seq, seq.num_computed_tokens, 1 + len(seq.draft_ids), 1 + len(seq.draft_ids)))
        for piece, result in zip(slices, runner.run(Plan(tuple(slices))), strict=True):
            event = accept(piece, result, frozenset({EOS}))
            piece.seq.finish_reason = event.finish_reason
            if event.error:
                errors[seqs.index(piece.seq)] = event.error
    runner.forget([s.seq_id for s in seqs])
    return errors


PARAMS = [
    {},
    {"temperature": 1.0},
    {"temperature": 3.0, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.5},
    {"temperature": 2.0, "min_p": 0.3},
    {"logprobs": 3},
    {"temperature": 1.0, "repetition_penalty": 5.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
    {"logit_bias": {EOS: 100.0, 65: 100.0}},
    {"min_tokens": 60},
    {"ignore_eos": True},
    {"temperature": 1.0, "ignore_eos": True, "min_tokens": 60},
    {"stop_token_ids": (ord("}"),), "min_tokens": 200},
    {"temperature": 1.0, "stop_token_ids": (ord("x"),)},
]


@pytest.mark.parametrize("chosen", PARAMS, ids=range(len(PARAMS)))
def test_an_answer_is_in_its_grammar_whatever_the_sampling(grammars: Grammars, chosen: dict[str, Any]) -> None:
    for seed in range(12):
        seq = sequence(SamplingParams(grammar=JSON, seed=seed, max_tokens=400, **chosen))
        assert decode(runner_of(grammars, seed), [seq]) == [None]
        assert seq.finish_reason == "stop"
        if seq.token_ids[-1] == EOS:
            jsonschema.validate(json.loads(text_of(seq.output_ids)), SCHEMA)


@pytest.mark.parametrize("chosen", PARAMS, ids=range(len(PARAMS)))
def test_drafts_and_rebuilt_state_change_nothing(grammars: Grammars, chosen: dict[str, Any]) -> None:
    for seed in range(6):
        params = SamplingParams(grammar=JSON, seed=seed, max_tokens=400, **chosen)
        plain, drafted, rebuilt = sequence(params), sequence(params), sequence(params)
        decode(runner_of(grammars, seed), [plain])
        dice = random.Random(seed)

        def guess(seq: Sequence, plain: Sequence = plain, dice: random.Random = dice) -> list[int]:
            """The true tokens, sometimes with a wrong one among them, sometimes past the end."""
            at = len(seq.token_ids)
            ids = [*plain.token_ids, EOS, 65][at : at + dice.randrange(6)]
            return [i if dice.random() < 0.8 else dice.randrange(SIZE) for i in ids]

        assert decode(runner_of(grammars, seed), [drafted], guess) == [None]
        runner = runner_of(grammars, seed)

        def forget(seq: Sequence, runner: Runner = runner) -> list[int]:
            runner.forget([seq.seq_id])
            return []

        assert decode(runner, [rebuilt], forget) == [None]
        assert plain.token_ids == drafted.token_ids == rebuilt.token_ids
        assert plain.finish_reason == drafted.finish_reason == rebuilt.finish_reason


def test_the_greedy_short_cut_is_the_masked_argmax(grammars: Grammars) -> None:
    for seed in range(12):
        short = sequence(SamplingParams(grammar=DIGITS, max_tokens=20))
        masked = sequence(SamplingParams(grammar=DIGITS, max_tokens=20, logprobs=0))
        decode(runner_of(grammars, seed), [short])
        decode(runner_of(grammars, seed), [masked])
        assert short.token_ids == masked.token_ids


def test_neighbours_without_a_grammar_keep_their_tokens(grammars: Grammars) -> None:
    free = [SamplingParams(temperature=t, seed=7, max_tokens=30, ignore_eos=True) for t in (0.0, 1.0)]
    alone = [sequence(p, i) for i, p in enumerate(free)]
    decode(runner_of(None), alone)
    beside = [sequence(p, i) for i, p in enumerate(free)]
    bound = [
        sequence(SamplingParams(grammar=g, seed=3, temperature=1.0, max_tokens=60), 10 + i)
        for i, g in enumerate((JSON, DIGITS))
    ]
    bound += [
        sequence(SamplingParams(grammar=DIGITS, seed=3, temperature=1.0, max_tokens=60, n=3), 20 + i, i)
        for i in range(3)
    ]
    assert decode(runner_of(grammars), [beside[0], *bound, beside[1]]) == [None] * 7
    assert [s.token_ids for s in beside] == [s.token_ids for s in alone]
    assert all(text_of(s.output_ids).isdigit() for s in bound[1:])
    assert len({tuple(s.token_ids) for s in bound[2:]}) > 1


@pytest.mark.parametrize("where", ["follow", "takes", "allowed", "matcher"])
@pytest.mark.parametrize("nth", [0, 1, 4])
def test_a_fault_in_the_grammar_ends_its_own_request_only(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch, where: str, nth: int
) -> None:
    calls = [0]

    def fail(*_: Any, **__: Any) -> Any:
        calls[0] += 1
        if calls[0] > nth or where == "matcher":
            raise GrammarFault("broken on purpose")
        return original(*_, **__)

    owner = Grammars if where == "matcher" else Matcher
    original = getattr(owner, where)
    monkeypatch.setattr(owner, where, fail)
    plain = sequence(SamplingParams(max_tokens=20, ignore_eos=True), 1)
    bound = sequence(SamplingParams(grammar=JSON, max_tokens=300), 0)
    errors = decode(runner_of(grammars), [bound, plain])
    assert errors[1] is None and len(plain.output_ids) == 20
    assert errors[0] is not None and "broken on purpose" in errors[0] and bound.finish_reason == "error"


def test_whatever_the_library_raises_is_a_fault_of_the_grammar(grammars: Grammars) -> None:
    class Panic(BaseException):
        pass

    class Broken:
        def deep_copy(self) -> Broken:
            return self

        def __getattr__(self, name: str) -> Any:
            raise Panic("at 0x7f0000000000")

    matcher = Matcher(Broken(), (EOS,))  # type: ignore[arg-type]
    for call in (lambda: matcher.takes(1), matcher.allowed, lambda: matcher.follow([1], 0, [])):
        with pytest.raises(GrammarFault, match=r"^the grammar failed \(Panic\)$"):
            call()


def test_bad_logits_and_an_empty_mask_are_errors(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, params = runner_of(grammars), SamplingParams(grammar=DIGITS, temperature=1.0, max_tokens=9)
    monkeypatch.setattr(Dice, "row", lambda self, position: np.full(SIZE + 3, np.nan, np.float32))
    assert "not finite" in str(decode(runner, [sequence(params)])[0])
    monkeypatch.undo()
    monkeypatch.setattr(Matcher, "allowed", lambda self: bytes(-(-SIZE // 32) * 4))
    assert "allows none" in str(decode(runner, [sequence(params)])[0])


def test_a_sequence_that_was_never_admitted_is_an_error(grammars: Grammars) -> None:
    stranger = SamplingParams(grammar=Grammar(GrammarKind.REGEX, "never seen"), max_tokens=3)
    assert "not admitted" in str(decode(runner_of(grammars), [sequence(stranger)])[0])
    assert "cannot constrain" in str(decode(runner_of(None), [sequence(stranger)])[0])


def test_masking_a_row_leaves_the_allowed_tokens_as_they_are() -> None:
    rng = np.random.default_rng(1)
    for size in (1, 31, 32, 33, 268, 49_152):
        allowed = rng.random(size) < 0.5
        bits = np.packbits(allowed, bitorder="little").tobytes()
        row = rng.normal(size=size).astype(np.float32)
        masked = row.copy()
        mask_row(masked, bits + bytes(-len(bits) % 4))
        assert (masked[allowed] == row[allowed]).all() and (masked[~allowed] == -np.inf).all()


def test_only_a_grammars_end_overrules_ignore_eos() -> None:
    seq = sequence(SamplingParams(ignore_eos=True, min_tokens=5))
    for complete, reason in ((False, None), (True, "stop")):
        piece = Slice(seq, len(seq.token_ids) - 1, 1, 1)
        assert accept(piece, SliceResult([EOS], complete=complete), frozenset({EOS})).finish_reason == reason
