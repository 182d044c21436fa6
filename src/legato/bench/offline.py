"""Throughput of many requests at once.

Knows: requests of random tokens, seconds by what a step carried. Does not know: terminals.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from legato.bench.drive import Requests, drive
from legato.errors import UsageError
from legato.llm import LLM
from legato.weights.hub import Report


@dataclass(frozen=True, slots=True)
class OfflineResult:
    """`requests` prompts handed over at once.

    prompt         tokens of its own that each prompt has; shared_prefix: those before, equal for all and in the cache
    decode         new tokens of each; with `vary` their mean: answers have from 1 to twice as many
    static         the batch ran to its end before anybody joined (the baseline without continuous batching)
    prefill_s      steps that carried any prompt rows; decode_s: all others; seconds: from first to last
    cached_tokens  prompt tokens found in the cache, of all requests
    """

    requests: int
    prompt: int
    decode: int
    shared_prefix: int
    static: bool
    vary: bool
    out_tok_s: float
    seconds: float
    prefill_s: float
    decode_s: float
    cached_tokens: int


def bench_offline(
    llm: LLM,
    count: int,
    prompt: int,
    decode: int,
    shared_prefix: int,
    report: Report,
    static: bool = False,
    vary: bool = False,
) -> OfflineResult:
    """`count` random prompts of shared_prefix + prompt tokens, `decode` tokens each, all at once.

    static  batches of max_seqs, each run to its end before the next begins
    vary    answers of other lengths, the same ones in every run: where all are alike, nobody waits for the longest
    """
    longest = 2 * decode - 1 if vary else decode
    if shared_prefix + prompt + longest > llm.context_length:
        raise UsageError(
            f"{shared_prefix + prompt} prompt tokens + {longest} to decode are more than the context of "
            f"{llm.context_length} tokens; lower --prompt, --decode or --shared-prefix"
        )
    requests, engine = Requests(llm.parts.vocab_size), llm.parts.engine
    engine.scheduler.continuous = not static
    prefix = requests.tokens(shared_prefix)
    drive(engine, [requests.make(prefix or requests.tokens(8), 2, salt="shared")])
    lengths = varied(count, decode) if vary else [decode] * count
    asked = [requests.make(prefix + requests.tokens(prompt), length, salt="shared") for length in lengths]
    report.start(count * (prompt + decode), f"{count} requests")
    try:
        done = drive(engine, asked, lambda step: report.advance(step.num_tokens))
    finally:
        report.done()
    prefill_s = sum(step.seconds for step in done.steps if step.prompt_tokens)
    decode_s = sum(step.seconds for step in done.steps if not step.prompt_tokens)
    return OfflineResult(
        requests=count,
        prompt=prompt,
        decode=decode,
        shared_prefix=shared_prefix,
        static=static,
        vary=vary,
        out_tok_s=count * decode / done.seconds,
        seconds=done.seconds,
        prefill_s=prefill_s,
        decode_s=decode_s,
        cached_tokens=done.cached_tokens,
    )


def varied(count: int, mean: int, seed: int = 1) -> list[int]:
    """`count` whole numbers from 1 to 2 x mean - 1 whose mean is exactly `mean`, in an order drawn from `seed`."""
    chance = random.Random(seed)
    low = [chance.randint(1, mean) for _ in range(count // 2)]
    lengths = [*low, *(2 * mean - x for x in low), *[mean] * (count % 2)]
    chance.shuffle(lengths)
    return lengths
