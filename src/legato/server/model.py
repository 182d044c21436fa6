"""`Model`: what is known of the one model that is served; `Card`: what its engine says of itself.

Knows: loaded models, what bounds their steps. Does not know: where the engine runs, HTTP.

Text is made where HTTP is: tokenizer and template belong to the server. Everything else a card tells, so that weights
may be in another process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from legato.assemble import Assembly, step_bits
from legato.core.request import SamplingParams
from legato.measure import cost
from legato.measure.case import Setting
from legato.measure.machine import READ_BYTES
from legato.server.facts import ModelFacts, facts_of
from legato.text.template import ChatTemplate
from legato.text.tokenizer import Tokenizer
from legato.weights.source import ModelSource, digest


@dataclass(frozen=True, slots=True)
class Wall:
    """A decode step reads all of `weight_bytes`, and `kv_bytes_per_token` for each token before it."""

    read_gb_s: float
    weight_bytes: int
    kv_bytes_per_token: int

    @classmethod
    def of(cls, parts: Assembly) -> Wall:
        """A few readings of memory, and bytes in closed form. On the engine's thread, between two steps."""
        seconds = min(parts.backend.read_seconds(READ_BYTES, parts.executor.threads, passes=3))
        bits = step_bits(parts.config, parts.blueprint, parts.backend)
        kept = cost.kv_bytes_per_token(parts.spec, str(parts.kv_format))
        return cls(round(READ_BYTES / seconds / 1e9, 3), cost.weight_read_bytes(parts.spec, bits), kept)


@dataclass(frozen=True, slots=True)
class Card:
    """What an engine says of itself once it can work.

    digest, weights  as in `Receipt`
    capacity, notes  lines for the person who started it
    setting          what answers are explained by; None: they cannot be
    """

    context_length: int
    vocab_size: int
    isa: str
    threads: int
    kv: str
    max_seqs: int
    digest: str
    weights: str
    capacity: str
    notes: tuple[str, ...]
    setting: Setting | None = None

    @classmethod
    def of(cls, parts: Assembly) -> Card:
        limits = parts.engine.scheduler.limits
        return cls(
            context_length=limits.context_length,
            vocab_size=parts.vocab_size,
            isa=parts.executor.isa,
            threads=parts.executor.threads,
            kv=str(parts.kv_format),
            max_seqs=limits.max_running,
            digest=digest(parts.source),
            weights=parts.config.weights,
            capacity=parts.capacity,
            notes=tuple(parts.notes),
            setting=parts.setting,
        )


@dataclass(frozen=True, slots=True)
class Words:
    """What text is made with, and the files it came from."""

    source: ModelSource
    tokenizer: Tokenizer
    template: ChatTemplate | None


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of the one model that is served.

    name     what clients call it
    admit    makes ready what sampling needs; takes seconds at times, raises `RequestError`
    wall     what bounds its steps on this machine, if that was measured
    digest, weights, capacity, notes, setting  as in `Card`
    """

    name: str
    created: int
    context_length: int
    vocab_size: int
    tokenizer: Tokenizer
    template: ChatTemplate | None
    isa: str
    threads: int
    kv: str
    max_seqs: int
    admit: Callable[[SamplingParams], None]
    facts: ModelFacts = field(default_factory=ModelFacts)
    wall: Wall | None = None
    digest: str = ""
    weights: str = "auto"
    capacity: str = ""
    notes: tuple[str, ...] = ()
    setting: Setting | None = None

    @classmethod
    def of(cls, parts: Assembly, name: str, wall: Wall | None = None) -> Model:
        """Of an engine in this process."""
        words = Words(parts.source, parts.tokenizer, parts.template)
        return cls.of_card(Card.of(parts), words, name, parts.runner.admit, wall)

    @classmethod
    def of_card(
        cls, card: Card, words: Words, name: str, admit: Callable[[SamplingParams], None], wall: Wall | None = None
    ) -> Model:
        return cls(
            name=name,
            created=int(time.time()),
            context_length=card.context_length,
            vocab_size=card.vocab_size,
            tokenizer=words.tokenizer,
            template=words.template,
            isa=card.isa,
            threads=card.threads,
            kv=card.kv,
            max_seqs=card.max_seqs,
            admit=admit,
            facts=facts_of(words.source),
            wall=wall,
            digest=card.digest,
            weights=card.weights,
            capacity=card.capacity,
            notes=card.notes,
            setting=card.setting,
        )
