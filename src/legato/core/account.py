"""Where the time of one sequence went, in seconds, and the latency of each of its tokens.

Knows: numbers, and how they are kept few. Does not know: how a step's time is divided (`measure.shares`), clocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_STEPS = 2048  # points of a trace; beyond, every other one of the old ones is dropped


@dataclass(slots=True)
class Felt:
    """Seconds of a sequence's life by what they were spent on; the rule is that of `measure.shares`.

    weights         reading weights, which its rows needed
    kv              looking back at its own keys and values
    compute         arithmetic of its own rows
    host            scheduling, packing, choosing tokens
    others_prefill  waiting on other sequences' prompt rows in the same steps, or while it got no rows
    others_streams  waiting on other streams in the same way
    preempted       waiting to come back after it had given its pages away
    again           computing once more what had been computed before that
    between         from the end of one step to the begin of the next: text is made and handed on
    """

    weights: float = 0.0
    kv: float = 0.0
    compute: float = 0.0
    host: float = 0.0
    others_prefill: float = 0.0
    others_streams: float = 0.0
    preempted: float = 0.0
    again: float = 0.0
    between: float = 0.0

    @property
    def own(self) -> float:
        """The steps' part that it would have taken alone, too."""
        return self.weights + self.kv + self.compute + self.host

    @property
    def waited(self) -> float:
        """The part that others or preemption took."""
        return self.others_prefill + self.others_streams + self.preempted + self.again

    @property
    def seconds(self) -> float:
        return self.own + self.waited + self.between


@dataclass(slots=True)
class Trace:
    """A point a step, in sums since the sequence's begin, so that dropping points loses resolution and nothing else.

    at       clock reading at the step's end
    context  tokens that had keys and values then
    tokens   answer tokens so far
    waited   seconds taken by others or by preemption so far
    prompt   the first so many points are the prompt's: no token had come before their steps
    """

    at: list[float] = field(default_factory=list)
    context: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    prompt: int = 0

    def add(self, at: float, context: int, tokens: int, waited: float) -> None:
        """`tokens`: answer tokens with this step's own. At most MOST_STEPS points are kept."""
        if not self.tokens or not self.tokens[-1]:
            self.prompt += 1
        self.at.append(at)
        self.context.append(context)
        self.tokens.append(tokens)
        self.waited.append(waited)
        if len(self.at) >= MOST_STEPS:
            self._thin()

    def gaps(self) -> list[float]:
        """Seconds between one token and the next, where a step's tokens came together as the step's time over them.

        Points that were dropped leave the mean of the tokens between their neighbours.
        """
        gaps, before, tokens = [], 0.0, 0
        for at, count in zip(self.at, self.tokens, strict=True):
            if count == tokens:
                continue
            if tokens:
                gaps.append((at - before) / (count - tokens))
            before, tokens = at, count
        return gaps

    def _thin(self) -> None:
        """Drops every other point of the prompt or of the answer, whichever has more; the last of each stays."""
        prompt, size = self.prompt, len(self.at)
        low, high = (0, prompt) if prompt > size - prompt else (prompt, size)
        doomed = slice(low + (high - low) % 2, high, 2)
        for column in (self.at, self.context, self.tokens, self.waited):
            del column[doomed]
        if low < prompt:
            self.prompt -= size - len(self.at)


@dataclass(slots=True)
class Account:
    """One sequence's time.

    begun        clock reading at the begin of its first step; 0: it never had one
    last         clock reading up to which everything is told
    prefill      from `begun` until its first token
    decode       after that
    share        of the time of all its steps, what was its own by the rule; shares of a step's members add up to it
    num_steps    steps that carried it
    preempted    (left, came back) clock readings, of as many preemptions as the scheduler allows one sequence
    costs        the six costs that time was divided by in its last step (`measure.step_time.StepCost`, in order)
    """

    begun: float = 0.0
    last: float = 0.0
    prefill: Felt = field(default_factory=Felt)
    decode: Felt = field(default_factory=Felt)
    share: float = 0.0
    num_steps: int = 0
    preempted: list[tuple[float, float]] = field(default_factory=list)
    costs: tuple[float, ...] = ()
    trace: Trace = field(default_factory=Trace)
    num_preemptions: int = 0  # that were told; what follows is the rule's own
    num_tokens: int = 0
    computed: int = 0
    redo_until: int = 0
    steps_s: float = 0.0
    prompts_s: float = 0.0
