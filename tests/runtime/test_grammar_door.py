"""A grammar is honoured or refused by name, never ignored."""

from __future__ import annotations

import pytest

from legato.core.request import Grammar, GrammarKind, SamplingParams
from legato.errors import RequestError
from legato.runtime.runner import Runner


class NoDevice:
    """An executor that nothing reaches."""

    def choose(self, *given: object) -> int:
        raise AssertionError


def test_without_a_compiler_a_grammar_is_refused_by_name() -> None:
    runner = Runner(NoDevice(), page_size=16, vocab_size=10, eos_ids=(0,))  # type: ignore[arg-type]
    runner.admit(SamplingParams())
    with pytest.raises(RequestError, match="grammar"):
        runner.admit(SamplingParams(grammar=Grammar(GrammarKind.REGEX, "a+")))
