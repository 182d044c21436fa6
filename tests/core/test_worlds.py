"""Exactness under company: whatever shares, guesses, fails or leaves, every answer equals plain decoding."""

from __future__ import annotations

import pytest
from worlds import run_world

WORLDS, BATCHES = 2000, 8


@pytest.mark.parametrize("batch", range(BATCHES))
def test_two_thousand_worlds_answer_as_plain_decoding_does(batch: int, caplog: pytest.LogCaptureFixture) -> None:
    """Requests join, leave, share, fork, guess, preempt, are late, saved, restored; after each step pages add up."""
    caplog.set_level("CRITICAL")  # devices fail on purpose in some worlds
    for seed in range(batch, WORLDS, BATCHES):
        run_world(seed)


def test_the_worlds_reach_what_they_are_for(caplog: pytest.LogCaptureFixture) -> None:
    """A sample of them preempts, evicts, hits, verifies drafts, recomputes naively and fails on purpose."""
    caplog.set_level("CRITICAL")
    worlds = [run_world(seed) for seed in range(150)]
    stats = [world.engine.stats() for world in worlds]
    assert sum(s.num_preemptions > 0 for s in stats) >= 5
    assert sum(s.num_faults > 0 for s in stats) >= 2
    assert sum(s.kv.free < s.kv.total // 2 for s in stats) >= 10, "the cache fills up"
    assert sum(0 < s.total.accepted_tokens < s.total.draft_tokens for s in stats) >= 5
    assert sum(not world.use_cache for world in worlds) >= 3
    assert sum(len(world.requests) for world in worlds) >= 150
    led = sum(world.engine.scheduler.followers.num_strangers > 0 for world in worlds)
    assert led >= 3, "prompts wait for others to compute what they share"
    assert sum(world.num_loaded > 0 for world in worlds) >= 3, "conversations come back from files"
    assert sum(world.num_forked > 0 for world in worlds) >= 3
    assert sum(s.num_expired > 0 for s in stats) >= 5, "deadlines pass"
    assert sum(world.num_refused > 0 for world in worlds) >= 5, "the door is closed now and then"
    assert sum(not world.engine.scheduler.continuous for world in worlds) >= 3
