"""Who waits, and who is next: the lowest priority, then the tenant that had least, then the earliest.

Knows: waiting sequences, priorities, tenants' counters. Does not know: pages, rows, running sequences, time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from legato.core.sequence import Sequence
from legato.schedule.tenants import Tenants

_Queue = list[tuple[int, Sequence]]  # by seq_id: a preempted sequence comes back to its old place


class WaitingQueue:
    """`head` looks at one sequence a tenant; adding and removing move no more than one tenant's queue."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._levels: dict[int, dict[str, _Queue]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        """Lowest priority first; among those who wait as equals in no order that means anything."""
        for _, queues in sorted(self._levels.items()):
            for queue in queues.values():
                for _, seq in queue:
                    yield seq

    def add(self, seq: Sequence) -> None:
        queues = self._levels.setdefault(seq.request.priority, {})
        insort(queues.setdefault(seq.request.tenant, []), (seq.seq_id, seq))
        self._count += 1

    def head(self) -> Sequence | None:
        """Who is to be admitted next."""
        if not self._levels:
            return None
        queues, claimed = self._levels[min(self._levels)], self._tenants.claimed
        if len(queues) == 1:
            (queue,) = queues.values()
        else:
            queue = min(queues.items(), key=lambda item: (claimed(item[0]), item[1][0][0]))[1]
        return queue[0][1]

    def ahead_of(self, priority: int, tenant: str) -> list[Sequence]:
        """Who would be admitted before a new request, if nothing else came and prompts were all that counts."""
        ahead: list[Sequence] = []
        for level, queues in self._levels.items():
            if level < priority:
                ahead += [seq for queue in queues.values() for _, seq in queue]
            elif level == priority:
                own = [seq for _, seq in queues.get(tenant, [])]
                claim = self._tenants.claimed(tenant) + sum(seq.num_prompt_tokens for seq in own)
                ahead += own
                for name, queue in queues.items():
                    claimed = self._tenants.claimed(name)
                    for _, seq in queue if name != tenant else ():
                        if claimed > claim:
                            break
                        ahead.append(seq)
                        claimed += seq.num_prompt_tokens
        return ahead

    def remove(self, seq: Sequence) -> bool:
        """Takes `seq` out; False if it does not wait here."""
        priority, tenant = seq.request.priority, seq.request.tenant
        queues = self._levels.get(priority, {})
        queue = queues.get(tenant, [])
        at = bisect_left(queue, (seq.seq_id,))
        if at == len(queue) or queue[at][1] is not seq:
            return False
        del queue[at]
        if not queue:
            del queues[tenant]
        if not queues:
            del self._levels[priority]
        self._count -= 1
        return True
