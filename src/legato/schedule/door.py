"""Who is let in: a request is refused when it would not be answered by its deadline.

Knows: limits, predicted times, how long answers have been of late. Does not know: pages, rows, the clock.
"""

from __future__ import annotations

from collections.abc import Collection

from legato.core.request import Request
from legato.core.sequence import FinishReason, Sequence
from legato.errors import OverloadedError
from legato.measure.step_time import StepTimeModel
from legato.schedule.budget import Budget
from legato.schedule.followers import Followers
from legato.schedule.forecast import Forecast, Job, forecast
from legato.schedule.limits import Limits
from legato.schedule.waiting import WaitingQueue

FIRST_ANSWER = 256  # tokens that an answer is expected to have until some have been seen
LEAST_RETRY_S = 0.1


class Door:
    """`check` raises `OverloadedError`, with the seconds after which trying again makes sense.

    An answer is expected to be as long as answers were of late, but no longer than it may get; one that ignores the
    model's wish to stop is expected to use all of that.
    """

    __slots__ = ("_answer", "_budget", "_limits", "_model", "num_refused")

    def __init__(self, limits: Limits, model: StepTimeModel, budget: Budget) -> None:
        self._limits, self._model, self._budget = limits, model, budget
        self._answer = float(FIRST_ANSWER)
        self.num_refused = 0

    def check(
        self,
        request: Request,
        max_length: int,
        running: Collection[Sequence],
        waiting: WaitingQueue,
        parked: Followers,
    ) -> None:
        """Lets `request` pass, or raises."""
        if request.deadline_ms is not None:
            job = Job(len(request.prompt_ids), self._expected(request, max_length - len(request.prompt_ids)))
            due = self.forecast(job, running, waiting, parked, request.priority, request.tenant)
            late = due.seconds - request.deadline_ms / 1000
            if late > 0:
                self.num_refused += 1
                problem = f"deadline_ms={request.deadline_ms:g} cannot be met: about {1000 * due.seconds:.0f} ms needed"
                if due.queue_s < LEAST_RETRY_S:
                    problem += " even without a queue: allow more, or ask for fewer tokens"
                raise OverloadedError(problem, max(LEAST_RETRY_S, min(late, due.queue_s)))

    def forecast(
        self,
        job: Job,
        running: Collection[Sequence],
        waiting: WaitingQueue,
        parked: Followers,
        priority: int,
        tenant: str,
    ) -> Forecast:
        """Of `job`, if it came now. Those parked behind one who runs come as soon as that one lets them."""
        ahead = [*map(self.job, waiting.ahead_of(priority, tenant)), *self._followers(parked, priority)]
        return self._ask(job, [self.job(seq) for seq in running], ahead, self._depth(running, job))

    def job(self, seq: Sequence) -> Job:
        """What `seq` has left to do."""
        left = max(1, seq.max_length - len(seq.token_ids))
        prompt = max(0, len(seq.token_ids) - 1 - seq.num_computed_tokens)
        return Job(prompt, self._expected(seq.request, left, seq.num_output_tokens))

    def _followers(self, parked: Followers, priority: int) -> list[Job]:
        """What those have left to do who find the first tokens of their prompts and are no less important."""
        jobs = ((self.job(seq), found) for seq, found in parked if seq.request.priority <= priority)
        return [Job(max(0, job.prompt - found), job.answer) for job, found in jobs]

    def learn(self, seq: Sequence) -> None:
        """An answer has ended; those that ended by themselves tell how long answers are."""
        if seq.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._answer += 0.1 * (seq.num_output_tokens - self._answer)

    def _expected(self, request: Request, most: int, so_far: int = 0) -> int:
        """Answer tokens to come, of at most `most`; whoever is past the usual length may end any moment."""
        if request.params.ignore_eos and request.params.max_tokens is not None:
            return most
        return max(1, min(most, round(self._answer) - so_far))

    def _depth(self, running: Collection[Sequence], job: Job | None = None) -> int:
        """Tokens that a stream has behind it, on average; of `job` alone where nobody runs."""
        depths = [len(seq.token_ids) for seq in running] or [job.prompt + job.answer // 2 if job else 0]
        return sum(depths) // len(depths)

    def _ask(self, job: Job, running: list[Job], ahead: list[Job], depth: int) -> Forecast:
        limits, pages = self._limits, self._limits.num_pages * self._limits.page_size
        slots = max(1, len(running), min(limits.max_running, pages // max(1, depth)))
        return forecast(self._model, self._budget, slots, limits.max_tokens, depth, running, ahead, job)
