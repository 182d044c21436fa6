"""What the scheduler, the cache and the ledger take of a step: next to nothing, at sixty-four sequences too."""

from __future__ import annotations

import pytest
from clockwork import ask

from legato.core.plan import Plan, SliceResult
from legato.engine import Engine


class NoModel:
    def run(self, plan: Plan) -> list[SliceResult]:
        return [SliceResult([7] if s.end == s.seq.num_tokens else []) for s in plan.slices]

    def forget(self, seq_ids: object) -> None:
        pass


@pytest.mark.parametrize("tenants, waiting", [(1, 0), (16, 100)])
def test_a_step_of_sixty_four_streams_costs_the_host_under_300_microseconds(tenants: int, waiting: int) -> None:
    """The best of many steps: a busy machine is no judge. Measured near 200 us, and 16 us to learn from it."""
    assert any(best_host_seconds(tenants, waiting) < 300e-6 for _ in range(8))


def best_host_seconds(tenants: int, waiting: int) -> float:
    sizes = {"num_pages": 6000, "page_size": 16, "max_tokens": 512, "max_seqs": 64, "context_length": 4096}
    engine = Engine(NoModel(), vocab_size=50_000, **sizes)
    for i in range(64 + waiting):
        engine.add(ask(f"r{i}", 300, 400, tenant=f"t{i % tenants}"))
    while engine.scheduler.num_running < 64 or any(s.num_output_tokens < 2 for s in engine.scheduler._running.values()):
        engine.step()
    engine.ledger.recent.clear()
    for _ in range(150):
        engine.step()
    records = list(engine.ledger.recent)
    assert {r.decode_tokens for r in records} == {64}
    return min(r.seconds - r.laps["run"] for r in records)
