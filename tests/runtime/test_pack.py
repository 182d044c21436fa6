"""Plans become arrays: rows in order, slots through the page table, logit rows at the end of each slice."""

import random
from pathlib import Path

import numpy as np
import pytest

from legato.core.plan import Plan, Slice
from legato.core.request import Request
from legato.core.sequence import Sequence
from legato.errors import CapacityError
from legato.runtime.kv_store import free_memory, plan_pages
from legato.runtime.pack import Packer, pack


def sequence(prompt, pages, drafts=()):
    return Sequence(0, Request("r", tuple(prompt)), pages=list(pages), draft_ids=list(drafts))


def test_a_mixed_step():
    chunk = sequence(range(100, 110), [7, 2, 9])
    decode = sequence([5, 6, 7], [4, 6], drafts=[8, 9])
    batch = pack(Plan((Slice(chunk, 3, 6, 0), Slice(decode, 2, 3, 3))), page_size=4)
    assert batch.input_ids_T.tolist() == [103, 104, 105, 106, 107, 108, 7, 8, 9]
    assert batch.positions_T.tolist() == [3, 4, 5, 6, 7, 8, 2, 3, 4]
    assert batch.slot_mapping_T[:6].tolist() == [31, 8, 9, 10, 11, 36]
    assert batch.cu_seqlens_q_S1.tolist() == [0, 6, 9]
    assert batch.seq_lens_S.tolist() == [9, 5]
    assert batch.slot_mapping_T[6:].tolist() == [18, 19, 24]
    assert batch.page_table_SP[0].tolist() == [7, 2, 9]
    assert batch.logit_rows_R.tolist() == [6, 7, 8]
    assert all(getattr(batch, name).dtype == np.int32 for name in batch.__slots__)


def test_drafts_beyond_the_pages_are_a_programming_error():
    with pytest.raises(AssertionError):
        pack(Plan((Slice(sequence([1, 2, 3], [0]), 0, 3, 1),)), page_size=2)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_between_two_plans_they_are_packed_as_if_from_nothing(seed):
    """Streams go on, come, go, change places, guess, are cut short, and have their pages exchanged under them."""
    rng, page_size = random.Random(seed), 4 << seed % 3
    packer, live, reused = Packer(page_size), [], 0
    last = None
    for _ in range(150):
        event = rng.random()
        if not live or event < 0.05:
            live.append(sequence(rng.choices(range(99), k=rng.randint(1, 12)), []))
        elif event < 0.08:
            live.remove(rng.choice(live))
        elif event < 0.1:
            rng.shuffle(live)
        elif event < 0.16 and live[0].pages:
            live[0].pages[rng.randrange(len(live[0].pages))] = rng.randrange(1000)
            live[0].num_remaps += 1
        elif event < 0.2:
            live[0].draft_ids = [1, 2]
        slices = []
        for seq in live:
            start, length = seq.num_computed_tokens, seq.num_tokens - seq.num_computed_tokens
            length = rng.randint(1, length)
            while len(seq.pages) * page_size < start + length:
                seq.pages.append(rng.randrange(1000))
            slices.append(Slice(seq, start, length, rng.randint(0, length) if rng.random() < 0.1 else 1))
        got, want = packer.pack(Plan(tuple(slices))), pack(Plan(tuple(slices)), page_size)
        width = want.page_table_SP.shape[1]
        for name in want.__slots__:
            mine = getattr(got, name)[:, :width] if name == "page_table_SP" else getattr(got, name)
            assert mine.dtype == np.int32 and mine.tolist() == getattr(want, name).tolist(), name
        reused, last = reused + (got is last), got
        if rng.random() < 0.05:
            continue  # the step failed: all stand where they stood
        for s in slices:
            s.seq.num_computed_tokens = min(s.end, len(s.seq.token_ids))
            s.seq.draft_ids = []
            if s.seq.num_computed_tokens == len(s.seq.token_ids):
                s.seq.token_ids.append(rng.randrange(99))
    assert reused > 10


def test_the_pool_takes_what_is_allowed_and_never_more_than_half_of_what_is_free():
    assert plan_pages(1000, 32, 320, kv_memory=10_500, free_bytes=10**6).num_pages == 10
    plan = plan_pages(1000, 32, 320, kv_memory=None, free_bytes=10**9)
    assert plan.num_pages == 40 and plan.full_contexts == 4
    assert plan_pages(1000, 32, 320, kv_memory=None, free_bytes=30_000).num_pages == 15
    with pytest.raises(CapacityError, match="30000"):
        plan_pages(1000, 32, 320, kv_memory=40_000, free_bytes=30_000)
    with pytest.raises(CapacityError, match="kv-memory"):
        plan_pages(1000, 32, 320, kv_memory=500, free_bytes=30_000)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_container_limit_counts(tmp_path):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", "MemTotal: 100 kB\nMemAvailable: 50 kB\n")
    assert free_memory(proc, cgroup) == 50 * 1024
    write(cgroup / "memory.max", "max\n")
    assert free_memory(proc, cgroup) == 50 * 1024
    write(cgroup / "memory.max", "30000\n")
    write(cgroup / "memory.current", "20000\n")
    write(cgroup / "memory.stat", "inactive_file 5000\nother 3\n")
    assert free_memory(proc, cgroup) == 15_000


def test_the_smallest_limit_on_the_way_up_counts(tmp_path):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", "MemAvailable: 1000 kB\n")
    write(proc / "self" / "cgroup", "0::/slice/unit\n")
    for group, limit, used in (("", "max", 0), ("slice", "90000", 30000), ("slice/unit", "80000", 10000)):
        write(cgroup / group / "memory.max", limit)
        write(cgroup / group / "memory.current", str(used))
    assert free_memory(proc, cgroup) == 60_000
    write(cgroup / "slice" / "unit" / "memory.high", "15000")
    assert free_memory(proc, cgroup) == 5_000


def test_version_1_and_a_path_that_lies_outside_the_container(tmp_path):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", "MemAvailable: 1000 kB\n")
    write(proc / "self" / "cgroup", "9:name=systemd:/x\n4:cpu,memory:/docker/0123\n0::/../..\nnonsense\n")
    write(cgroup / "memory" / "memory.limit_in_bytes", "70000")
    write(cgroup / "memory" / "memory.usage_in_bytes", "50000")
    write(cgroup / "memory" / "memory.stat", "inactive_file 1\ntotal_inactive_file 9000\n")
    assert free_memory(proc, cgroup) == 29_000
    write(cgroup / "memory" / "docker" / "0123" / "memory.limit_in_bytes", "9223372036854771712")
    write(cgroup / "memory" / "docker" / "0123" / "memory.usage_in_bytes", "5")
    assert free_memory(proc, cgroup) == 29_000


def test_the_pool_says_how_many_users_it_holds():
    def said(kv_memory: int) -> str:
        return plan_pages(1000, 16, 160, kv_memory=kv_memory, free_bytes=10**10).describe()

    assert (
        said(25_000_000) == "25 MB for keys and values: 400,000 tokens, so 2500 users x 160 tokens of context at once"
    )
    assert "so 1 user x 160" in said(10_000)
    assert "so not one whole context of 160 tokens at once" in said(9_000)
