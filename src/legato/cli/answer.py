"""Shows one answer as it comes: text on standard output, progress and one dim line on standard error.

Knows: streams, completions, Ctrl-C. Does not know: prompts, commands.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from legato.cli.terminal import Terminal
from legato.completion import Completion
from legato.core.request import SamplingParams
from legato.core.sequence import FinishReason

if TYPE_CHECKING:
    from legato.llm import LLM, Message
    from legato.measure.energy import Bill


@dataclass(slots=True)
class Interrupt:
    """The first Ctrl-C sets `requested`, so that a step is never cut in half; a second one ends the program."""

    requested: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    interrupt = Interrupt()
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def show_answer(
    llm: LLM, prompt: str | Sequence[int] | Sequence[Message], params: SamplingParams, terminal: Terminal, quiet: bool
) -> Completion:
    """Runs one request to its end or to Ctrl-C (then the finish reason is "abort").

    quiet  nothing on standard output; the caller prints the completion
    """
    with interruptible() as interrupt, terminal.bar() as bar, llm.stream(prompt, params) as stream:
        bar.start(stream.num_prompt_tokens, "reading the prompt")
        read = 0
        while not stream.finished:
            if interrupt.requested:
                stream.close()
                break
            deltas = stream.advance()
            bar.advance(stream.num_computed_tokens - read)
            read = stream.num_computed_tokens
            if stream.started:
                bar.done()
            for delta in deltas:
                if not quiet and params.n == 1:
                    terminal.answer(delta.text)
        completion = stream.completion
    if not quiet and completion.error is None:
        _end(completion, terminal)
    return completion


def _end(completion: Completion, terminal: Terminal) -> None:
    if len(completion.outputs) == 1:
        terminal.answer("" if completion.text.endswith("\n") else "\n")
    else:
        for output in completion.outputs:
            terminal.answer(f"[{output.index + 1}] {output.text.strip()}\n")
    terminal.dim(summary(completion))


def interrupted(completion: Completion) -> bool:
    return any(output.finish_reason is FinishReason.ABORT for output in completion.outputs)


def summary(completion: Completion) -> str:
    """`128 tokens, 41.2 tok/s, first 0.18 s, prompt 312 tok at 980 tok/s (256 cached)`, and why it ended if cut."""
    t = completion.timings
    parts = [_plural(completion.num_output_tokens, "token")]
    if t.decode_tok_s:
        parts.append(f"{t.decode_tok_s:.1f} tok/s")
    parts.append(f"first {t.ttft_ms / 1e3:.2f} s")
    prompt = f"prompt {completion.prompt_tokens} tok"
    if t.prompt_tok_s:
        prompt += f" at {t.prompt_tok_s:.0f} tok/s"
    parts.append(prompt + (f" ({t.cached_tokens} cached)" if t.cached_tokens else ""))
    if completion.bill is not None:
        parts += billed(completion.bill)
    reasons = {output.finish_reason for output in completion.outputs}
    if FinishReason.LENGTH in reasons:
        parts.append("cut at the token limit")
    if FinishReason.ABORT in reasons:
        parts.append("stopped")
    return ", ".join(parts)


def billed(bill: Bill) -> list[str]:
    """`3.2 J (declared)`, `price 0.00012`: what is known of a bill."""
    energy = [] if bill.energy_j is None else [f"{bill.energy_j:.3g} J ({bill.energy_source})"]
    return energy + ([] if bill.price is None else [f"price {bill.price:.3g}"])


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
