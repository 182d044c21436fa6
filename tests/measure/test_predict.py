"""Predicted step times: what must be true of them on any machine.

A made-up llama-like model and a data sheet stand in for everything.
"""

from __future__ import annotations

from legato.core.spec import Activation, ArchSpec, AttentionSpec, LayerSpec, MlpKind, MlpSpec, NormKind, NormSpec
from legato.measure.cost import Role
from legato.measure.machine import Machine
from legato.measure.predict import Predictor

NORM = NormSpec(NormKind.RMS, 1e-5)
BITS = dict.fromkeys(Role, 4.5)
H100 = Machine.from_sheet("H100", memory_gb_s=3350, tops={8: 1979, 16: 989}, memory_bytes=80 << 30)


def model(window: int | None = None) -> ArchSpec:
    attention = AttentionSpec(num_heads=9, num_kv_heads=3, head_dim=64, scale=0.125, window=window)
    layer = LayerSpec(attention, MlpSpec(MlpKind.GATED, 1536, Activation.SILU), NORM, NORM)
    return ArchSpec("made-up", 576, 49152, 8192, (layer,) * 30, NORM, tied=True)


def test_deeper_and_more_streams_take_longer() -> None:
    predictor = Predictor(model(), BITS, "int8", H100)
    times = [predictor.itl(depth).seconds for depth in (0, 500, 8000)]
    assert times == sorted(times) and times[0] > 0
    times = [predictor.itl(500, streams).seconds for streams in (1, 4, 32)]
    assert times == sorted(times)


def test_a_step_cost_is_positive_and_near_the_prediction() -> None:
    predictor = Predictor(model(), BITS, "int8", H100)
    cost = predictor.step_cost()
    assert 0.8 < (cost.step + cost.row + cost.logit_row + cost.kv_token + cost.visit) / predictor.itl(0).seconds < 1.25
