"""Why a prompt was not found in the cache: causes, positions and token ids.

Knows: the words for it. Does not know: the tree it was looked up in, text.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class MissCause(enum.StrEnum):
    TEXT = "different_text"  # another token than what was computed before
    TEMPLATE = "different_template"  # the same, and one of the two is a control token (told where those are known)
    NEW = "new_text"  # nothing was ever computed behind the matched tokens, as far as is remembered
    SHORT = "shorter_than_a_page"  # what is shared fills no page
    EVICTED = "evicted"  # it was computed, and given up for somebody else's pages
    SALT = "other_salt"  # the same tokens were computed under another salt, which shares nothing
    LOGPROBS = "prompt_logprobs"  # the prompt's logprobs were asked for, so all of it is computed


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a prompt's cached prefix was no longer, when the sequence was first admitted.

    matched     tokens found
    index       tokens that are equal to something computed before: the first difference is at this position
    token_id    the prompt's token there (None: the prompt ends)
    other_id    the nearest computed text's token there (None: nothing follows it, or it may not be told)
    evicted_at, evicted_by  EVICTED only: clock reading in seconds, and the request whose pages it made room for
    """

    cause: MissCause
    matched: int
    index: int
    token_id: int | None = None
    other_id: int | None = None
    evicted_at: float | None = None
    evicted_by: str | None = None

    def for_strangers(self) -> Miss:
        """What may be told to somebody who must not learn of other users' texts: no word of theirs."""
        if self.cause is MissCause.SALT:
            return replace(self, cause=MissCause.NEW)
        return replace(self, evicted_by=None)
