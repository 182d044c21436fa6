"""Whose time a step was: divided among its members, and told to each of them as it felt it.

Knows: a step's record, its slices, the six fitted costs. Does not know: how anything is done, what was answered.

The rule. A step's seconds are
    host      all that was not the device's own call
    kv        of the device's time, attention: each sequence its own, in proportion to what its keys and values, and
              the positions that its rows look at, cost by the fitted costs
    weights, compute   the rest of the device's time, in proportion to the fitted costs of a step, and of its rows and
              logits. Compute is each sequence's own, by its rows (those past DENSE are spread over all rows) and logits
Where the device does not tell attention from the rest, all three are divided by the fitted costs at once.

A member's *share* is its own kv and compute, weights by its part of the rows (they are read once for all of them), and
an equal part of host. The shares of a step's members add up to the step.

What a member *feels* is the whole step: weights and host in full, for alone it would have taken them too; its own kv
and compute; and those of the others, as waiting on others' prefill where the other's rows were a prompt's (or were
computed again after preemption), as waiting on other streams where not. While it has no rows, steps are waiting,
divided by the shares of those who had. What was computed before a preemption and is computed again is lost to
preemption, as is the time until the first step after one. What lies between two steps is `between`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from legato.core.account import Account
from legato.core.plan import Plan, Slice, SliceResult
from legato.measure.ledger import StepRecord
from legato.measure.step_time import DENSE


@dataclass(slots=True)
class Division:
    """A step's seconds by the rule above; `kv` and `compute` have a figure for each slice."""

    host: float
    weights: float
    kv: list[float]
    compute: list[float]

    def share(self, i: int, rows: int, all_rows: int) -> float:
        """The share of slice `i`, which has `rows` of the step's rows."""
        return self.kv[i] + self.compute[i] + self.weights * rows / all_rows + self.host / len(self.kv)


def divided(record: StepRecord, slices: Sequence[Slice], costs: Sequence[float]) -> Division:
    """`costs`: seconds, each more than 0, in the order of `StepCost`."""
    step, row, dense_row, kv_token, visit, logit_row = costs
    rows = record.num_tokens
    if rows > DENSE:
        row += dense_row * (rows - DENSE) / rows
    kv, compute = [], []
    for piece in slices:
        start, length = piece.start, piece.length
        kv.append(kv_token * (start + length) + visit * 0.5 * length * (2 * start + length + 1))
        compute.append(row * length + logit_row * piece.num_logits)
    device = record.device or record.laps.get("run", record.seconds)
    host = max(0.0, record.seconds - device)
    device = record.seconds - host
    weights = max(0.5 * step, step - host)  # the fitted cost of a step has the host's in it
    all_kv, rest = sum(kv), weights + sum(compute)
    if 0.0 < record.attention < device:
        of_kv, of_rest = record.attention / all_kv, (device - record.attention) / rest
    else:
        of_kv = of_rest = device / (all_kv + rest)
    return Division(host, weights * of_rest, [of_kv * x for x in kv], [of_rest * x for x in compute])


class Shares:
    """The steps of one engine, told to the accounts of its sequences. Constant memory; one step at a time."""

    __slots__ = ("_prompts_s", "_steps_s")

    def __init__(self) -> None:
        self._steps_s = self._prompts_s = 0.0  # of all steps so far: their time, and what of it was prompts' share

    def tell(self, record: StepRecord, plan: Plan, results: Sequence[SliceResult], costs: tuple[float, ...]) -> None:
        """A step has ended; `results` aligned with `plan.slices`. A step that carried nothing is nobody's."""
        slices = plan.slices
        if not slices:
            return
        division, all_rows = divided(record, slices, costs), record.num_tokens
        prompts = streams = prompts_share = 0.0
        of_prompt = []
        for i, piece in enumerate(slices):
            own = division.kv[i] + division.compute[i]
            streams_on = piece.num_logits == piece.length and piece.start >= len(piece.seq.request.prompt_ids)
            of_prompt.append(not streams_on)
            if streams_on:
                streams += own
            else:
                prompts += own
                prompts_share += division.share(i, piece.length, all_rows)
        for i, piece in enumerate(slices):
            account = piece.seq.account
            self._catch_up(account, record.started, piece.seq.num_preemptions)
            account.costs = costs
            account.share += division.share(i, piece.length, all_rows)
            own = division.kv[i] + division.compute[i]
            if of_prompt[i]:
                others, other_streams = prompts - own, streams
            else:
                others, other_streams = prompts, streams - own
            _feel(account, piece, division, i, others, other_streams)
            account.last = record.started + record.seconds
            account.num_tokens += len(results[i].token_ids)
            waited = account.prefill.waited + account.decode.waited
            account.trace.add(account.last, piece.start + piece.length, account.num_tokens, waited)
        self._steps_s += record.seconds
        self._prompts_s += prompts_share
        for piece in slices:
            piece.seq.account.steps_s, piece.seq.account.prompts_s = self._steps_s, self._prompts_s

    def _catch_up(self, account: Account, started: float, num_preemptions: int) -> None:
        """The time since the account's last step, now that another one begins."""
        felt = account.decode if account.num_tokens else account.prefill
        if not account.num_steps:
            account.begun = started
        elif num_preemptions != account.num_preemptions:
            felt.preempted += started - account.last
            account.preempted.append((account.last, started))
            account.redo_until = max(account.redo_until, account.computed)
        else:
            steps, prompts = self._steps_s - account.steps_s, self._prompts_s - account.prompts_s
            felt.others_prefill += prompts
            felt.others_streams += steps - prompts
            felt.between += started - account.last - steps
        account.num_steps += 1
        account.num_preemptions = num_preemptions


def _feel(account: Account, piece: Slice, division: Division, i: int, prompts: float, streams: float) -> None:
    """The step as slice `i` felt it; `prompts` and `streams`: the others' own kv and compute."""
    felt = account.decode if account.num_tokens else account.prefill
    felt.others_prefill += prompts
    felt.others_streams += streams
    start, end, kept = piece.start, piece.start + piece.length, 1.0
    if start < account.redo_until:
        kept -= (min(end, account.redo_until) - start) / piece.length
        whole = division.weights + division.host + division.kv[i] + division.compute[i]
        felt.again += (1.0 - kept) * whole
        if end >= account.redo_until:
            account.redo_until = 0
    felt.weights += kept * division.weights
    felt.host += kept * division.host
    felt.kv += kept * division.kv[i]
    felt.compute += kept * division.compute[i]
    account.computed = end
