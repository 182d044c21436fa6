"""Who has had how much: tenants of equal priority are served evenly.

Knows: tenants by name, the service each has received and was promised. Does not know: priorities, queues, time.

A virtual token counter a tenant (Sheng et al., "Fairness in Serving Large Language Models", arXiv 2401.00588): prompt
tokens count 1, answer tokens 2; tokens found in the cache, and those computed again after preemption, count nothing.
What an admitted prompt has still to compute is promised: it counts for who is admitted next, but not yet for who gets
the next rows. Whoever comes back after an absence starts at the least of those who are here, or where it left if that
is more: absence saves nothing up, and pays nothing off. When nobody is left, everybody starts anew.

Between two tenants that both wait all the time, service never differs by more than 2 x what the running sequences of
one tenant can still receive (`tests/core/test_fairness.py`).
"""

from __future__ import annotations

MAX_GONE = 1024  # tenants remembered while they are away; beyond it those who had least are forgotten
PROMPT_WEIGHT = 1
ANSWER_WEIGHT = 2


class Tenants:
    """Counters of those who have unfinished sequences, and of those who left with more than others have had."""

    __slots__ = ("_gone", "_live", "_promised", "_service")

    def __init__(self) -> None:
        self._live: dict[str, int] = {}
        self._service: dict[str, int] = {}
        self._promised: dict[str, int] = {}
        self._gone: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._live)

    def join(self, tenant: str) -> None:
        """One more unfinished sequence of `tenant`."""
        if tenant not in self._live:
            self._service[tenant] = self.claimed(tenant)
            self._gone.pop(tenant, None)
            self._promised[tenant] = self._live[tenant] = 0
        self._live[tenant] += 1

    def leave(self, tenant: str) -> None:
        """One fewer."""
        self._live[tenant] -= 1
        if self._live[tenant]:
            return
        del self._live[tenant], self._promised[tenant]
        self._gone[tenant] = self._service.pop(tenant)
        if not self._live:
            self._gone.clear()
        elif len(self._gone) > MAX_GONE:
            kept = sorted(self._gone.items(), key=lambda item: item[1])[MAX_GONE // 2 :]
            self._gone = dict(kept)

    def promise(self, tenant: str, prompt_tokens: int) -> None:
        """A prompt was admitted with so many tokens to compute, or (below 0) has left with so many to go."""
        self._promised[tenant] += PROMPT_WEIGHT * prompt_tokens

    def serve(self, tenant: str, prompt_tokens: int, answer_tokens: int) -> None:
        """Promised prompt tokens were computed, answer tokens were given."""
        self._promised[tenant] -= PROMPT_WEIGHT * prompt_tokens
        self._service[tenant] += PROMPT_WEIGHT * prompt_tokens + ANSWER_WEIGHT * answer_tokens

    def service(self, tenant: str) -> int:
        """What `tenant` has received."""
        return self._service[tenant]

    def claimed(self, tenant: str) -> int:
        """What it has received and was promised; of one who is not here, where it would start."""
        if tenant in self._live:
            return self._service[tenant] + self._promised[tenant]
        return max(min(self._service.values(), default=0), self._gone.get(tenant, 0))
