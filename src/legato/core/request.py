"""What a caller asked for: `SamplingParams` and `Request`, both frozen, both validated once.

Knows: token ids and numbers. Does not know: text (stop strings are carried, never matched here), arrays, clocks.
"""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from legato.errors import RequestError

MAX_N = 16
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_BIASES = 1024
MAX_TEXT = 256
MAX_GRAMMAR = 64 << 10
MAX_DEADLINE_MS = 86_400_000.0


def _check(ok: bool, name: str, value: object, allowed: str, fix: str = "") -> None:
    if not ok:
        raise RequestError(name, value, allowed, fix)


def _is_number(x: object) -> bool:
    return _is_int(x) or (isinstance(x, float) and math.isfinite(x))


def _is_int(x: object) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def fresh_seed() -> int:
    return int.from_bytes(os.urandom(8), "little") >> 11


class GrammarKind(enum.StrEnum):
    JSON_SCHEMA = "json_schema"  # `text` is a JSON schema; "{}" allows any JSON object
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must match as a whole: `text` in the language of `kind`. It is compiled at admission."""

    kind: GrammarKind
    text: str

    def __post_init__(self) -> None:
        _check(isinstance(self.kind, GrammarKind), "grammar", self.kind, f"one of {', '.join(GrammarKind)}")
        fits = isinstance(self.text, str) and 0 < len(self.text) <= MAX_GRAMMAR
        _check(fits, "grammar", self.text, f"1 to {MAX_GRAMMAR} characters")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. Raises `RequestError` naming field, value, range and fix.

    temperature  0 is greedy; otherwise logits are divided by it
    top_k        keep the k likeliest (0: all)
    top_p        keep the smallest set whose probability reaches p
    min_p        keep tokens with probability >= min_p x the likeliest's
    repetition_penalty  divides (positive) or multiplies (negative) logits of tokens seen in prompt or output
    presence_penalty, frequency_penalty  subtracted once / per occurrence, of tokens in the output
    logit_bias   token id -> added to its logit
    seed         fixes this request's tokens, whatever its neighbours; None: drawn by the engine
    max_tokens   None: up to the context's end
    stop         strings that end the answer and are not part of it
    grammar      what the answer must match; None: anything
    logprobs     None: none; k: the chosen token's and the k likeliest's, after temperature-free log-softmax
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        def ranged(name: str, low: float, high: float, fix: str = "") -> None:
            v = getattr(self, name)
            _check(_is_number(v) and low <= v <= high, name, v, f"a number from {low:g} to {high:g}", fix)

        def whole(name: str, low: int, high: int) -> None:
            v = getattr(self, name)
            _check(_is_int(v) and low <= v <= high, name, v, f"a whole number from {low} to {high}")

        ranged("temperature", 0.0, 100.0, "0 is greedy")
        whole("top_k", 0, 2**31 - 1)
        ranged("top_p", 0.0, 1.0)
        _check(self.top_p > 0, "top_p", self.top_p, "more than 0, at most 1")
        ranged("min_p", 0.0, 1.0)
        ranged("repetition_penalty", 0.01, 100.0, "1 is off")
        ranged("presence_penalty", -2.0, 2.0)
        ranged("frequency_penalty", -2.0, 2.0)
        _check(isinstance(self.logit_bias, Mapping), "logit_bias", self.logit_bias, "a mapping of token id to bias")
        _check(len(self.logit_bias) <= MAX_BIASES, "logit_bias", len(self.logit_bias), f"at most {MAX_BIASES} entries")
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        for token_id, bias in self.logit_bias.items():
            _check(_is_int(token_id) and 0 <= token_id < 2**31, "logit_bias", token_id, "token ids from 0")
            _check(_is_number(bias) and -100 <= bias <= 100, "logit_bias", bias, "biases from -100 to 100")
        if self.seed is not None:
            whole("seed", -(2**63), 2**64 - 1)
        if self.max_tokens is not None:
            whole("max_tokens", 1, 2**31 - 1)
        whole("min_tokens", 0, 2**31 - 1)
        if self.max_tokens is not None:
            allowed = f"at most max_tokens={self.max_tokens}"
            _check(self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, allowed)
        self._check_stops()
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                whole(name, 0, MAX_LOGPROBS)
        whole("n", 1, MAX_N)
        _check(isinstance(self.ignore_eos, bool), "ignore_eos", self.ignore_eos, "true or false")
        _check(self.grammar is None or isinstance(self.grammar, Grammar), "grammar", self.grammar, "a Grammar")

    def seeded(self) -> SamplingParams:
        """The same, with a seed drawn if there is none: of 53 bits, which any JSON reader keeps exact."""
        return self if self.seed is not None else replace(self, seed=fresh_seed())

    def _check_stops(self) -> None:
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            _check(isinstance(value, (tuple, list)), name, value, "a list")
            _check(len(value) <= MAX_STOPS, name, len(value), f"at most {MAX_STOPS} entries")
            object.__setattr__(self, name, tuple(value))
        for s in self.stop:
            _check(isinstance(s, str) and 0 < len(s) <= 1024, "stop", s, "non-empty strings of up to 1024 characters")
        for t in self.stop_token_ids:
            _check(_is_int(t) and 0 <= t < 2**31, "stop_token_ids", t, "token ids from 0")

    def check_vocab(self, vocab_size: int) -> None:
        """Refuses token ids outside the vocabulary; called at admission, where the model is known."""
        for t in self.logit_bias:
            _check(t < vocab_size, "logit_bias", t, f"token ids from 0 to {vocab_size - 1}")
        for t in self.stop_token_ids:
            _check(t < vocab_size, "stop_token_ids", t, f"token ids from 0 to {vocab_size - 1}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


SAMPLING_FIELDS = tuple(f.name for f in fields(SamplingParams))


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the engine: token ids in, sampling choices, and who may share its cache.

    salt    prefixes are shared only between requests of equal salt
    priority  lower runs first
    tenant  whose request it is (an API key's name): tenants of equal priority are served evenly
    deadline_ms  from arrival until the whole answer must be there; what there is then is the answer
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams = SamplingParams()
    priority: int = 0
    salt: str = ""
    tenant: str = ""
    deadline_ms: float | None = None

    def __post_init__(self) -> None:
        for name, low in (("request_id", 1), ("salt", 0), ("tenant", 0)):
            value = getattr(self, name)
            fits = isinstance(value, str) and low <= len(value) <= MAX_TEXT
            _check(fits, name, value, f"{low} to {MAX_TEXT} characters")
        whole = _is_int(self.priority) and -(2**31) <= self.priority < 2**31
        _check(whole, "priority", self.priority, f"a whole number from {-(2**31)} to {2**31 - 1}")
        if self.deadline_ms is not None:
            fits = _is_number(self.deadline_ms) and 0 < self.deadline_ms <= MAX_DEADLINE_MS
            _check(fits, "deadline_ms", self.deadline_ms, f"more than 0, at most {MAX_DEADLINE_MS:g} milliseconds")
        _check(isinstance(self.params, SamplingParams), "params", self.params, "a SamplingParams")
        _check(isinstance(self.prompt_ids, (tuple, list)), "prompt_ids", self.prompt_ids, "a list of token ids")
        object.__setattr__(self, "prompt_ids", tuple(self.prompt_ids))
        _check(len(self.prompt_ids) > 0, "prompt", "", "at least one token", "give a prompt that is not empty")
        for t in self.prompt_ids:
            _check(_is_int(t) and 0 <= t < 2**31, "prompt_ids", t, "token ids from 0")

    def check_vocab(self, vocab_size: int) -> None:
        """Refuses ids outside the vocabulary, in the prompt and in every field that names tokens."""
        worst = max(self.prompt_ids)
        _check(worst < vocab_size, "prompt_ids", worst, f"token ids from 0 to {vocab_size - 1}")
        self.params.check_vocab(vocab_size)
