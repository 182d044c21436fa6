"""Time to the first token by length of the prompt.

Knows: operations of a prompt in closed form, steps' seconds. Does not know: terminals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median, stdev

from legato.bench.beside import Beside
from legato.bench.drive import Requests, drive
from legato.errors import UsageError
from legato.llm import LLM
from legato.measure import cost
from legato.weights.hub import Report


@dataclass(frozen=True, slots=True)
class PrefillRow:
    """One length of prompt, alone on the engine, nothing of it cached.

    ttft_ms          the median run, from its first step to its first token; ttft_std_ms: the runs' standard deviation
    prompt_tok_s     prompt tokens over that time
    linear_flops     operations of matrix products; attention_flops: of looking back
    attention_share  of all operations
    wall_ms          reading weights once, or the products at their best rate, whichever is longer (see `Beside`)
    """

    prompt: int
    runs: int
    ttft_ms: float
    ttft_std_ms: float
    prompt_tok_s: float
    linear_flops: int
    attention_flops: int
    attention_share: float
    read_gb_s: float
    product_tops: float | None
    wall_ms: float
    share_of_wall: float


def check_prompts(prompts: Sequence[int], context_length: int) -> None:
    """Raises `UsageError` for a length that leaves no room for a first token."""
    for prompt in prompts:
        if prompt + 1 > context_length:
            raise UsageError(
                f"a prompt of {prompt} tokens and one new one are more than the context of {context_length} tokens; "
                "lower --prompts"
            )


def bench_prefill(llm: LLM, prompts: Sequence[int], runs: int, report: Report) -> Iterator[PrefillRow]:
    """A row a length. Prompts are random tokens that share nothing."""
    check_prompts(prompts, llm.context_length)
    requests, engine = Requests(llm.parts.vocab_size), llm.parts.engine
    warm = min(64, llm.context_length - 2, llm.parts.kv_plan.num_tokens - 1)
    drive(engine, [requests.make(requests.tokens(warm), 2)])
    with Beside(llm) as beside:
        for prompt in prompts:
            beside.measure(afresh=True)
            seconds: list[float] = []
            report.start(runs * prompt, f"prompt of {prompt} tokens")
            try:
                for _ in range(runs):
                    request = requests.make(requests.tokens(prompt), 1)
                    done = drive(engine, [request], lambda step: report.advance(step.num_tokens))
                    seconds.append(done.steps[-1].started + done.steps[-1].seconds - done.steps[0].started)
            finally:
                report.done()
            beside.measure()
            yield _row(llm, prompt, seconds, beside)


def _row(llm: LLM, prompt: int, seconds: list[float], beside: Beside) -> PrefillRow:
    spec = llm.parts.spec
    linear, attention = cost.linear_flops(spec, prompt, 1), cost.attention_flops(spec, 0, prompt)
    ttft, wall = median(seconds), beside.step_s(prompt, 1, (prompt,))
    return PrefillRow(
        prompt=prompt,
        runs=len(seconds),
        ttft_ms=1e3 * ttft,
        ttft_std_ms=1e3 * stdev(seconds) if len(seconds) > 1 else 0.0,
        prompt_tok_s=prompt / ttft,
        linear_flops=linear,
        attention_flops=attention,
        attention_share=attention / (linear + attention),
        read_gb_s=beside.read_gb_s,
        product_tops=beside.tops,
        wall_ms=1e3 * wall,
        share_of_wall=wall / ttft,
    )
