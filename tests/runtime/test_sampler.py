"""A token depends on its own row, its own past, and (seed, index, position); on nothing else."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legato.core.request import Request, SamplingParams
from legato.core.sequence import Sequence
from legato.kernels.choice import choose
from legato.runtime.sampler import NotFiniteError, Sampler, logprobs_of, needs_logits, uniform
from legato.runtime.verify import verify

VOCAB = 40


def sequence(prompt=(1, 2, 3), output=(), index=0, **params):
    seq = Sequence(7, Request("r", tuple(prompt), SamplingParams(**params)), index=index)
    seq.token_ids.extend(output)
    return seq


def row(seed=0, size=VOCAB):
    return np.random.default_rng(seed).normal(size=size).astype(np.float32) * 3


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max())
    return e / e.sum()


def drawn_from(logits, params, draw):
    return choose(logits, params.temperature, params.top_k, params.top_p, params.min_p, draw)


def naive_support(probs, params):
    """Which ids may come out, by the definitions and nothing clever."""
    order = sorted(range(len(probs)), key=lambda i: (-probs[i], i))
    if params.min_p:
        order = [i for i in order if probs[i] >= params.min_p * probs.max()]
    if params.top_k:
        order = order[: params.top_k]
    if params.top_p < 1:
        total = sum(probs[i] for i in order) if params.top_k or params.min_p else 1.0
        kept, mass = [], 0.0
        for i in order:
            kept.append(i)
            mass += probs[i]
            if mass >= params.top_p * total:
                break
        order = kept
    return order


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    st.sampled_from([0, 1, 5, 39, 400]),
    st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    st.floats(0, 1, exclude_max=True),
)
def test_a_draw_falls_in_the_support_where_the_definitions_put_it(seed, temperature, top_k, top_p, min_p, draw):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = row(seed)
    probs = softmax(logits / np.float32(temperature))
    support = naive_support(probs, params)
    token_id = drawn_from(logits, params, draw)
    assert token_id in support or math.isclose(probs[token_id], probs[support[-1]], rel_tol=1e-4)
    if 0 < params.top_k < VOCAB or params.min_p or params.top_p < 1:
        by_id = sorted(support)
        mass = np.cumsum([probs[i] for i in by_id])
        expected = by_id[min(int(np.searchsorted(mass, draw * mass[-1], side="right")), len(support) - 1)]
        near = abs(mass - draw * mass[-1]).min() < 1e-4
        assert token_id == expected or near


def test_the_shortcut_for_large_vocabularies_equals_sorting_everything():
    logits = row(3, 5000) * 2
    params = SamplingParams(temperature=1.0, top_p=0.8)
    probs = softmax(logits)
    support = naive_support(probs, params)
    drawn = {drawn_from(logits, params, d) for d in np.linspace(0, 0.9999, 400)}
    assert drawn <= set(support) and support[0] in drawn


def test_frequencies_follow_the_softmax():
    logits, params = row(5, 8), SamplingParams(temperature=1.0)
    draws = [drawn_from(logits, params, uniform(11, 0, position)) for position in range(20_000)]
    seen = np.bincount(draws, minlength=8) / 20_000
    assert np.abs(seen - softmax(logits)).max() < 0.015


def test_the_random_number_is_fixed_by_its_three_integers_alone():
    assert uniform(1, 0, 5) == uniform(1, 0, 5)
    assert len({uniform(1, 0, 5), uniform(2, 0, 5), uniform(1, 1, 5), uniform(1, 0, 6)}) == 4
    assert uniform(-1, 0, 0) == uniform(2**64 - 1, 0, 0)
    values = [uniform(3, 0, p) for p in range(4000)]
    assert min(values) >= 0 and max(values) < 1 and abs(np.mean(values) - 0.5) < 0.02


def test_answers_of_one_request_differ_and_neighbours_do_not_matter():
    sampler = Sampler(VOCAB, [0])
    raw = row(9)
    first, second = (sequence(index=i, temperature=5.0, seed=4) for i in (0, 1))
    alone = [sampler.sample(first, [], row(i))[0] for i in range(20)]
    mixed = []
    for i in range(20):
        sampler.sample(second, [], raw)
        mixed.append(sampler.sample(first, [], row(i))[0])
    assert alone == mixed
    assert [sampler.sample(s, [], raw)[0] for s in (first, second)] != [None, None]


def test_penalties_by_their_formulas():
    sampler = Sampler(VOCAB, [0])
    raw = np.zeros(VOCAB, np.float32)
    raw[[1, 2, 20]] = [2.0, -2.0, 1.9]
    assert sampler.sample(sequence(prompt=(1, 2)), [], raw)[0] == 1
    assert sampler.sample(sequence(prompt=(1, 2), repetition_penalty=2.0), [], raw)[0] == 20
    assert sampler.sample(sequence(prompt=(1,), presence_penalty=2.0), [], raw)[0] == 1, "prompt tokens do not count"
    sampler.forget([7])
    assert sampler.sample(sequence(output=(1,), presence_penalty=0.5), [], raw)[0] == 20
    sampler.forget([7])
    assert sampler.sample(sequence(output=(1, 1, 1), frequency_penalty=0.04), [], raw)[0] == 20
    sampler.forget([7])
    assert sampler.sample(sequence(output=(1,), frequency_penalty=0.04), [], raw)[0] == 1
    sampler.forget([7])
    assert sampler.sample(sequence(frequency_penalty=0.2), [1], raw)[0] == 20, "accepted drafts count"


def test_bias_min_tokens_and_padded_vocabulary():
    sampler = Sampler(30, [3])
    raw = np.zeros(VOCAB, np.float32)
    raw[35], raw[3], raw[8] = 9.0, 5.0, 4.0
    assert sampler.sample(sequence(), [], raw)[0] == 3, "ids past the tokenizer's vocabulary are never chosen"
    assert sampler.sample(sequence(min_tokens=2), [], raw)[0] == 8
    assert sampler.sample(sequence(min_tokens=2), [5, 6], raw)[0] == 3
    assert sampler.sample(sequence(min_tokens=1, stop_token_ids=(8,)), [], raw)[0] not in (3, 8)
    assert sampler.sample(sequence(logit_bias={10: 100.0}), [], raw)[0] == 10
    assert raw[10] == 0, "the caller's row is left as it was"


def test_logprobs_come_from_the_raw_row():
    raw = row(2)
    expected = np.log(softmax(raw))
    sampler = Sampler(VOCAB, [0])
    token_id, found = sampler.sample(sequence(logprobs=5, temperature=3.0, seed=1, repetition_penalty=3.0), [], raw)
    assert found is not None and found.token_id == token_id
    assert found.logprob == pytest.approx(expected[token_id], abs=1e-6)
    assert found.rank == 1 + int((raw > raw[token_id]).sum())
    order = np.argsort(-expected)[:5]
    assert [i for i, _ in found.top] == list(order)
    assert [v for _, v in found.top] == pytest.approx(expected[order], abs=1e-6)
    assert logprobs_of(raw, 3, 0).top == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_refused(bad):
    raw = row(1)
    raw[4] = bad
    with pytest.raises(NotFiniteError):
        Sampler(VOCAB, [0]).sample(sequence(temperature=1.0), [], raw)


def test_a_plain_greedy_row_needs_no_logits():
    assert not needs_logits(SamplingParams(), 0)
    for params in (
        SamplingParams(temperature=0.1),
        SamplingParams(logprobs=0),
        SamplingParams(logit_bias={1: 1.0}),
        SamplingParams(repetition_penalty=1.1),
        SamplingParams(min_tokens=1),
    ):
        assert needs_logits(params, 0)
    assert not needs_logits(SamplingParams(min_tokens=1), 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), min_size=7, max_size=7))
def test_verification_never_changes_what_would_have_been_said(drafts, truth):
    accepted = verify(drafts, lambda i, done: truth[i])
    assert accepted == truth[: len(accepted)]
    agreed = next((i for i, d in enumerate(drafts) if d != truth[i]), len(drafts))
    assert len(accepted) == agreed + 1
