"""How large the page pool may be: from the memory that is really free, or from what the user allows.

Knows: bytes a page, /proc/meminfo, control-group limits. Does not know: what is in a page, who owns it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from legato.errors import CapacityError

# Without --kv-memory: room for this many full contexts, but never more than half of what is free.
_DEFAULT_CONTEXTS = 4


@dataclass(frozen=True, slots=True)
class KvPlan:
    """The pool, and what it means for users."""

    num_pages: int
    page_size: int
    page_bytes: int
    context_length: int

    @property
    def num_tokens(self) -> int:
        return self.num_pages * self.page_size

    @property
    def total_bytes(self) -> int:
        return self.num_pages * self.page_bytes

    @property
    def full_contexts(self) -> float:
        """How many users with a full context fit at once."""
        return self.num_tokens / self.context_length


def plan_pages(page_bytes: int, page_size: int, context_length: int, kv_memory: int | None, free_bytes: int) -> KvPlan:
    """Pages for `kv_memory` bytes, or for a few full contexts within half of the free memory.

    Raises CapacityError when what was asked for is not free, or holds less than one page.
    """
    if kv_memory is not None and kv_memory > free_bytes:
        raise CapacityError("kv_memory", kv_memory, free_bytes, "bytes that are free", "ask for less, or free memory")
    wanted = -(-context_length // page_size) * _DEFAULT_CONTEXTS * page_bytes
    budget = kv_memory if kv_memory is not None else min(wanted, free_bytes // 2)
    if budget < page_bytes:
        raise CapacityError(
            "kv_memory", page_bytes, budget, "bytes", "one page of the cache needs more; allow more with --kv-memory"
        )
    return KvPlan(budget // page_bytes, page_size, page_bytes, context_length)


def free_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be taken without swapping: MemAvailable, or what the control group leaves if that is less."""
    free = [_meminfo_available(proc / "meminfo"), _cgroup_left(cgroup)]
    known = [f for f in free if f is not None]
    return min(known) if known else 2**63 - 1


def _meminfo_available(path: Path) -> int | None:
    try:
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_left(root: Path) -> int | None:
    """Limit minus use, of control groups version 2 or 1; the page cache in use counts as free."""
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit = (root / limit_name).read_text().strip()
            if limit == "max":
                return None
            used = int((root / used_name).read_text())
            stat = dict(line.split() for line in (root / limit_name).with_name("memory.stat").read_text().splitlines())
            return max(int(limit) - used + int(stat.get("inactive_file", 0)), 0)
        except (OSError, ValueError):
            continue
    return None
