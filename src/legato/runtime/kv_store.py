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

    def describe(self) -> str:
        """`1.6 GB for keys and values: 131,072 tokens, so 16 users x 8,192 tokens of context at once`."""
        size = f"{self.total_bytes / 1e9:.1f} GB" if self.total_bytes >= 1e9 else f"{self.total_bytes / 1e6:.0f} MB"
        users = int(self.full_contexts)
        many = f"{users} user{'s' * (users != 1)} x {self.context_length:,} tokens of context"
        if not users:
            many = f"not one whole context of {self.context_length:,} tokens"
        return f"{size} for keys and values: {self.num_tokens:,} tokens, so {many} at once"


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
    free = [_meminfo_available(proc / "meminfo"), _cgroup_left(cgroup, proc)]
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


def _cgroup_left(root: Path, proc: Path) -> int | None:
    """Limit minus use of this process's control group, or of one above it if that has less left."""
    left = [_group_left(folder, names) for folder, names in _groups(root, proc)]
    return min((bytes_left for bytes_left in left if bytes_left is not None), default=None)


@dataclass(frozen=True, slots=True)
class _Names:
    """A version's files: limits, use, and the line of memory.stat with page cache that can be given up."""

    limits: tuple[str, ...]
    used: str
    reclaimable: str


_V2 = _Names(("memory.max", "memory.high"), "memory.current", "inactive_file")
_V1 = _Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


def _groups(root: Path, proc: Path) -> list[tuple[Path, _Names]]:
    """Folders that may bound this process: its own group's and all above, of versions 2 and 1.

    In a container the kernel may name a group that lies outside; then the mounted root is the container's own.
    """
    found = [(root, _V2), (root / "unified", _V2), (root / "memory", _V1)]
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        bases = [(root / "memory", _V1)] if "memory" in controllers.split(",") else []
        bases += [(root, _V2), (root / "unified", _V2)] if not controllers else []
        found += [(base.joinpath(*parts[:n]), names) for base, names in bases for n in range(1, len(parts) + 1)]
    return found


def _group_left(folder: Path, names: _Names) -> int | None:
    """None where nothing is limited or known; the page cache in use counts as free."""
    limits = [limit for limit in (_number(folder / name) for name in names.limits) if limit is not None]
    used = _number(folder / names.used)
    if not limits or used is None:
        return None
    return max(min(limits) - used + _reclaimable(folder / "memory.stat", names.reclaimable), 0)


def _number(path: Path) -> int | None:
    """None for "max" and for a file that is not there."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _reclaimable(stat: Path, name: str) -> int:
    try:
        for line in stat.read_text().splitlines():
            if line.startswith(name + " "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
