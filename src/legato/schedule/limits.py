"""What one engine can hold and carry, and whether a request can ever fit.

Knows: counts of tokens, pages and sequences. Does not know: what is running, arrays, time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from legato.core.request import Request
from legato.errors import CapacityError, UsageError
from legato.schedule.page_pool import pages_for


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes fixed for an engine's life. Raises `UsageError` for a size below 1.

    num_pages, page_size  the KV cache: pages, and tokens a page
    max_tokens            rows of one step
    max_seqs              sequences of one step
    context_length        positions of the model
    """

    num_pages: int
    page_size: int
    max_tokens: int
    max_seqs: int
    context_length: int

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**40:
                raise UsageError(f"{f.name}={value!r} is not allowed: give a whole number of at least 1")
        if self.context_length < 2:
            raise UsageError("context_length=1 is not allowed: a prompt and its answer need at least 2 tokens")

    @property
    def max_running(self) -> int:
        """Sequences that may run at once: every one of them gets at least one row of a step."""
        return min(self.max_seqs, self.max_tokens)

    def lifetime_pages(self, max_length: int) -> int:
        """Pages of a sequence at its longest. The last token is never read back, so it has no slot."""
        return pages_for(max_length - 1, self.page_size)

    def max_length(self, request: Request) -> int:
        """The most tokens one answer of `request` may come to, prompt included; `CapacityError` if it can never fit.

        A max_tokens past the context's end is cut there. Without one, the cache's end counts like the context's.
        """
        prompt = len(request.prompt_ids)
        if prompt + 1 > self.context_length:
            fix = "shorten the prompt, or use a model with a longer context"
            raise CapacityError("prompt tokens + 1", prompt + 1, self.context_length, "tokens of context", fix)
        length = self.context_length
        if request.params.max_tokens is None:
            length = max(prompt + 1, min(length, self.num_pages * self.page_size + 1))
        else:
            length = min(length, prompt + request.params.max_tokens)
        needed = self.lifetime_pages(length)
        if needed > self.num_pages:
            fix = "shorten the prompt, lower max_tokens, or give the cache more memory"
            raise CapacityError(
                "pages of prompt and answer", needed, self.num_pages, f"pages of {self.page_size} tokens", fix
            )
        return length
