"""The figures of a load, worked out by hand on a fixed timeline; percentiles against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legato.bench.serve_metrics import QUANTILES, Limits, Spread, Trace, summarise
from legato.measure.percentiles import percentile


def timeline() -> list[Trace]:
    """Three answers and a failure, in seconds.

    A  sent 0.0   chunks 0.2 0.3 0.5      ended 0.6   3 tokens
    B  sent 0.1   chunks 0.5 0.5 0.6 0.7  ended 0.7   9 tokens: several a chunk
    C  sent 1.0   chunk  1.1              ended 1.1   1 token: no pace
    D  sent 0.2   a 429 at 0.3
    """
    return [
        Trace(0, None, 0.0, [0.2, 0.3, 0.5], 0.6, 3, prompt_tokens=10),
        Trace(1, None, 0.1, [0.5, 0.5, 0.6, 0.7], 0.7, 9, prompt_tokens=20),
        Trace(2, None, 1.0, [1.1], 1.1, 1, prompt_tokens=30),
        Trace(3, None, 0.2, [], 0.3, 0, error="http 429", problem="queue full"),
    ]


def test_every_figure_is_the_formula_in_the_table() -> None:
    told = summarise(timeline(), Limits(), asked=5, concurrency=2)
    assert (told.asked, told.requests, told.completed, told.good) == (5, 4, 3, 3)
    assert told.seconds == pytest.approx(1.1)  # first sent 0.0, last whole answer's end 1.1
    assert told.out_tok_s == pytest.approx(13 / 1.1)
    assert told.total_tok_s == pytest.approx((13 + 60) / 1.1)
    assert told.request_s == told.goodput == pytest.approx(3 / 1.1)
    assert told.ttft_ms.p50 == pytest.approx(200) and told.ttft_ms.max == pytest.approx(400)  # 200, 400, 100
    assert told.itl_ms.mean == pytest.approx((100 + 200 + 0 + 100 + 100) / 5)  # pooled over A and B; C has none
    assert told.itl_ms.p50 == pytest.approx(100) and told.itl_ms.max == pytest.approx(200)
    assert told.tpot_ms.mean == pytest.approx(((600 - 200) / 2 + (600 - 400) / 8) / 2)  # C's single token has none
    assert told.e2e_ms.max == pytest.approx(600)
    assert told.tokens_per_chunk == pytest.approx(13 / 8)
    assert told.prompt_tokens == 20 and told.counted == "usage"
    assert told.errors == {"http 429": 1} and told.problems == {"http 429": "queue full"}
    assert told.quantiles["itl_ms"][QUANTILES.index(50)] == pytest.approx(100)


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        (Limits(ttft_ms=200.1), 2),  # A and C
        (Limits(ttft_ms=100.1), 1),
        (Limits(tpot_ms=30), 2),  # B's 25; C's 0
        (Limits(itl_ms=150), 2),  # A's longest gap is 200
        (Limits(ttft_ms=300, tpot_ms=300, itl_ms=300), 2),
        (Limits(ttft_ms=50), 0),
    ],
)
def test_a_good_request_meets_every_limit(limits: Limits, good: int) -> None:
    told = summarise(timeline(), limits, asked=4)
    assert told.good == good
    assert told.goodput == pytest.approx(good / 1.1)


def test_tokens_are_chunks_where_nobody_counts_them() -> None:
    traces = timeline()
    traces[0].counted, traces[0].prompt_tokens = "chunks", None
    told = summarise(traces, Limits(), asked=4)
    assert told.counted == "usage and chunks" and told.total_tok_s is None and told.prompt_tokens == 25


def test_lateness_is_from_due_to_sent() -> None:
    traces = [
        Trace(i, due, due + late, [due + 1], due + 2, 2) for i, (due, late) in enumerate([(0, 0.001), (1, 0.003)])
    ]
    told = summarise(traces, Limits(), asked=2, rate=1.0)
    assert told.late_ms is not None and told.late_ms.max == pytest.approx(3) and told.late_ms.mean == pytest.approx(2)


def test_nothing_came_of_it() -> None:
    for traces in ([], [Trace(0, None, 0.0, [], 1.0, error="connection refused", problem="x")]):
        told = summarise(traces, Limits(ttft_ms=1), asked=3, stopped="gone")
        assert (told.completed, told.out_tok_s, told.goodput, told.seconds) == (0, 0.0, 0.0, 0.0)
        assert told.ttft_ms == Spread() and told.prompt_tokens is None and told.stopped == "gone"


@settings(derandomize=True, max_examples=100)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.sampled_from([0, 1, 50, 90, 99, 100]))
def test_percentiles_are_numpys(values: list[float], q: float) -> None:
    assert percentile(sorted(values), q) == pytest.approx(np.percentile(values, q), rel=1e-9, abs=1e-9)
