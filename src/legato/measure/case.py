"""What is known of one finished request: what it ran on, its account, what happened to it outside the engine.

Knows: the nouns that `measure.explain` and `measure.advice` read, and the bytes that follow from them.
Does not know: what is made of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from legato.core.account import Account
from legato.core.events import Usage
from legato.core.spec import ArchSpec
from legato.measure import cost
from legato.measure.cost import Role
from legato.measure.machine import Machine
from legato.measure.predict import CHUNK
from legato.measure.visit import Visit


@dataclass(frozen=True, slots=True)
class Setting:
    """What a request ran on.

    bits        a weight, by what it is for, scales included
    chunk       most rows of a prompt in one step
    kv_formats  those that keys and values could be kept in here
    machine     as calibrated with just these threads; None: it was not, and `note` says how that is mended
    wider       as calibrated with the most threads
    naive       no cache: every token computes all before it again
    """

    spec: ArchSpec
    bits: dict[Role, float]
    kv: str
    threads: int
    page_size: int = 16
    chunk: int = CHUNK
    kv_formats: tuple[str, ...] = ("bf16", "int8", "int4")
    machine: Machine | None = None
    note: str = ""
    wider: Machine | None = None
    naive: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """All that is known of one finished request."""

    setting: Setting
    usage: Usage
    visit: Visit
    finish_reason: str = ""

    @property
    def account(self) -> Account:
        return self.usage.account

    @property
    def ended(self) -> float:
        """When its answer was whole; where that was found in the text, the step that was under way belongs to it."""
        return max(self.visit.ended, self.account.last)

    @property
    def total_s(self) -> float:
        return self.ended - self.visit.begun

    @property
    def computed(self) -> int:
        """Prompt tokens that were computed."""
        return self.usage.num_prompt_tokens - self.usage.num_cached_tokens

    @property
    def decoded(self) -> int:
        """Answer tokens after the first."""
        return max(0, self.usage.num_output_tokens - 1)


def weight_bytes(setting: Setting) -> int:
    """That a step of one row reads."""
    return cost.weight_read_bytes(setting.spec, setting.bits)


def decode_kv_bytes(case: Case) -> int:
    """Keys and values that the steps after the first token read."""
    prompt, kv, total = case.usage.num_prompt_tokens, case.setting.kv, 0
    for attention, layers in Counter(layer.attention for layer in case.setting.spec.layers).items():
        size = attention.num_kv_heads * cost.kv_head_bytes(kv, attention.head_dim)
        total += layers * size * cost.visible_pairs(prompt, case.decoded, attention.window)
    return total
