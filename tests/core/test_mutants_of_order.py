"""The tests of budgets, order and the door can fail: each fault below is caught at once (see `test_mutants.py`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_mutants import Mutant, judge
from zygote import Zygote

STEP, BUDGET, TENANTS, WAITING, FORECAST, DOOR, PLAN, LIMITS = (
    f"{name}.py"
    for name in (
        "measure/step_time", "schedule/budget", "schedule/tenants", "schedule/waiting", "schedule/forecast",
        "schedule/door", "schedule/scheduler", "schedule/limits",
    )
)  # fmt: skip
FAIR, LATE, SLO, TIME = "test_fairness", "test_deadlines", "test_slo", "test_step_time"
PROMPTS, PAUSE, BAND, WITHIN, BETWEEN = (
    f"{TIME}::test_{name}"
    for name in (
        "what_was_learnt_of_prompts_survives_an_hour_of_streams", "a_single_pause_teaches_next_to_nothing",
        "the_band_holds_nearly_all_steps_and_is_no_wider_than_it_must", "rows_within_a_time_are_the_most_that_fit",
        "a_pause_between_steps_is_in_the_band_but_not_in_the_costs",
    )
)  # fmt: skip
MUTANTS = [
    Mutant("kinds of steps forgotten together", STEP, "sums[kind] = [", "sums[0] = sums[1] = sums[2] = [", PROMPTS),
    Mutant("outliers taken in whole", STEP, "if seen > FEW else math.inf", "if seen < 0 else math.inf", PAUSE),
    Mutant("the machine's pace is not followed", STEP, "        self._pace *= change\n", "", TIME),
    Mutant("negative costs", STEP, "max(0.0, w[j] + slope", "(w[j] + 1.5 * slope", TIME),
    Mutant("nothing learnt", STEP, "        self._learn(load,", "        (lambda *a: None)(load,", TIME),
    Mutant("a band of the middle", STEP, "ratios.quantile(QUANTILE)", "ratios.quantile(0.5)", BAND),
    Mutant("rows counted without their attention", STEP, "+ 0.5 * visit * n * n", "", WITHIN),
    Mutant("one row too many", STEP, "<= spare:", "<= spare * 1.1 + 1e-3:", WITHIN),
    Mutant("the pause between steps not counted", STEP, "interval if interval is not None", "seconds if interval",
           BETWEEN),
    Mutant("a sequence's keys read for nothing", STEP, "- p[3] * w[3] * start", "", WITHIN),
    Mutant("prompts counted as streams", STEP, "self.prompt_rows += sign * length", "pass", PROMPTS),
    Mutant("an SLO without the band", BUDGET, "self.itl_slo_s / self.model.band(1)", "self.itl_slo_s", SLO),
    Mutant("an SLO of twice the time", BUDGET, "self.itl_slo_s / self", "2 * self.itl_slo_s / self", SLO),
    Mutant("streams slowed without end", BUDGET, "STRETCH * self._alone", "math.inf", SLO),
    Mutant("no share for prompts", BUDGET, "if self._first:", "if False:", SLO),
    Mutant("prompts alone held back", BUDGET, "if streams.rows == streams.prompt_rows:", "if False:", SLO),
    Mutant("an SLO that is no number", BUDGET, "not 0 < itl_slo_s <= MAX_ITL_SLO_S", "itl_slo_s <= 0", SLO),
    Mutant("absence saves up", TENANTS, "max(min(self._service.values(), default=0), ", "max(0, ", FAIR),
    Mutant("leaving pays off", TENANTS, "self._gone[tenant] = self._service.pop(tenant)",
           "self._service.pop(tenant)", FAIR),
    Mutant("answers cost nothing", TENANTS, "+ ANSWER_WEIGHT * answer_tokens", "", FAIR),
    Mutant("promises not kept", TENANTS, "self._promised[tenant] -= PROMPT_WEIGHT * prompt_tokens", "pass", FAIR),
    Mutant("the gone pile up", TENANTS, "len(self._gone) > MAX_GONE", "False", FAIR),
    Mutant("gone at the first end", TENANTS, "        if self._live[tenant]:\n            return\n", "", FAIR),
    Mutant("one queue for all", WAITING, "claimed(item[0]), item", "0, item", FAIR),
    Mutant("the highest priority number first", WAITING, "min(self._levels)", "max(self._levels)", FAIR),
    Mutant("everybody is ahead", WAITING, "if claimed > claim:", "if False:", FAIR),
    Mutant("a preempted one at the end", WAITING,
           "insort(queues.setdefault(seq.request.tenant, []), (seq.seq_id, seq))",
           "queues.setdefault(seq.request.tenant, []).append((seq.seq_id, seq))", FAIR),
    Mutant("prompts by arrival", PLAN, "self.tenants.service(seq.request.tenant), seq.seq_id", "0, seq.seq_id", FAIR),
    Mutant("who runs goes before who waits", PLAN, "None if seq is None else self._rank(seq))",
           "None if seq is None else (-9, 0, 0))", FAIR),
    Mutant("promises outlive their owner", PLAN, "-self._owed.pop(seq.seq_id, 0)", "0", FAIR),
    Mutant("computed again, paid again", PLAN, "if seq.num_preemptions == 0:\n            seq.num_cached_tokens",
           "if True:\n            seq.num_cached_tokens", FAIR),
    Mutant("deadlines not kept while computing", PLAN, "        self._expire(now)\n        events", "        events",
           LATE),
    Mutant("deadlines not kept before computing", PLAN, "        self._expire(now)\n        draft", "        draft",
           LATE),
    Mutant("deadlines in the wrong unit", PLAN, "request.deadline_ms / 1000", "request.deadline_ms", LATE),
    Mutant("met deadlines pile up", PLAN, "if not entry[2].finished]", "]", LATE),
    Mutant("anybody joins a static batch", PLAN, "self._seats -= not self.continuous", "pass", LATE),
    Mutant("nobody comes back into a static batch", PLAN, "self._seats += not self.continuous", "pass", LATE),
    Mutant("no deadline is too early", DOOR, "if late > 0:", "if late > 1e9:", LATE),
    Mutant("answers are always long", DOOR, "self._answer += 0.1", "self._answer += 0.0", LATE),
    Mutant("what was answered is forgotten", DOOR, "round(self._answer) - so_far", "round(self._answer)", LATE),
    Mutant("streams take no time", FORECAST, "steps * step_s + before * row_s", "before * row_s", LATE),
    Mutant("prompts ahead take no time", FORECAST, "sum(j.prompt for j in (*running, *ahead))", "0", LATE),
    Mutant("the queue in one slot", FORECAST, "ends += [0] * (slots - len(ends))", "pass", LATE),
    Mutant("all ahead at once", FORECAST, "heapq.heapreplace(ends, ends[0] + job.answer)", "pass", LATE),
]  # fmt: skip


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name.replace(" ", "-"))
def test_a_fault_is_noticed(mutant: Mutant, zygote: Zygote) -> None:
    judge(mutant, zygote)
