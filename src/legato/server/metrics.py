"""`/metrics`: everything that is counted, in Prometheus' text form (version 0.0.4).

Knows: names, help, labels, the text form; vLLM's names for the same figures. Does not know: how figures come about.

Labels have few values, all of them ours: paths of the route table, classes of statuses, reasons, states. What a client
sends is never one, so the number of series does not grow with what comes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from legato import __version__
from legato.server.bridge import Snapshot
from legato.server.meters import Histogram, Meters
from legato.server.model import Model
from legato.server.service import Service

KIND = b"text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Sample:
    value: float
    labels: tuple[tuple[str, str], ...] = ()
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    help: str
    samples: tuple[Sample, ...]


def exposition(service: Service, healthy: bool) -> bytes:
    """All of it, as bytes."""
    found = list(families(service, healthy))
    if service.vllm_metrics and service.has_model:
        found += aliases(found, service.model)
    return render(found)


def families(service: Service, healthy: bool) -> Iterator[Family]:
    """Everything that is counted."""
    yield _gauge("up", "1 while requests are taken and the engine makes progress", healthy)
    yield from _of_meters(service.meters)
    yield _gauge("requests_in_flight", "Answers that the engine still has to end", service.num_in_flight)
    yield _counter("engine_restarts_total", "Engines started after the first", service.bridge.num_restarts)
    pid = service.bridge.pid
    memory = resident_bytes() + (resident_bytes(pid) if pid else 0)
    seconds = time.process_time() + (cpu_seconds(pid) if pid else 0.0)
    yield _process("resident_memory_bytes", "gauge", "Memory in use, of the engine's process too", memory)
    yield _process("cpu_seconds_total", "counter", "Processor time of all threads, the engine's too", seconds)
    snapshot = service.bridge.snapshot()
    if snapshot is None or not service.has_model:
        return
    yield from _of_engine(snapshot)
    yield from _of_model(service.model, snapshot)


def _of_meters(meters: Meters) -> Iterator[Family]:
    requests = [Sample(n, (("route", path), ("status", kind))) for (path, kind), n in sorted(meters.requests.items())]
    yield Family("legato_requests_total", "counter", "Responses, by route and class of status", tuple(requests))
    yield _labelled("answers_total", "Answers that ended, by reason", "finish_reason", meters.answers)
    text = (
        "Requests that were not admitted: no room for them or their key, too long, not in time, no engine, or not sound"
    )
    yield _labelled("refusals_total", text, "reason", meters.refusals)
    yield _counter("prompt_tokens_total", "Tokens of prompts", meters.prompt_tokens)
    yield _counter("prefix_hit_tokens_total", "Tokens of prompts that the cache had", meters.cached_tokens)
    missed = meters.prompt_tokens - meters.cached_tokens
    yield _counter("prefix_miss_tokens_total", "Tokens of prompts that were computed", missed)
    yield _labelled("prefix_misses_total", "Prompts of which the cache had not all, by cause", "cause", meters.misses)
    yield _counter("output_tokens_total", "Tokens of answers that ended", meters.output_tokens)
    yield _histogram("time_to_first_token_seconds", "From arrival to the first token", meters.ttft)
    yield _histogram("inter_token_latency_seconds", "Between two pieces of one answer", meters.itl)
    yield _histogram("time_per_output_token_seconds", "Mean of one answer, after its first token", meters.tpot)
    yield _histogram("queue_seconds", "From arrival until first scheduled", meters.queue)
    yield _histogram("prefill_seconds", "From first scheduled to the first token", meters.prefill)
    yield _histogram("decode_seconds", "From the first token to the last", meters.decode)
    yield _histogram("working_seconds", "From first scheduled to the last token", meters.working)
    yield _histogram("answer_seconds", "From arrival to the last token", meters.whole)
    yield _histogram("prompt_size_tokens", "Tokens of one prompt", meters.prompt_sizes)
    yield _histogram("answer_size_tokens", "Tokens of one answer", meters.answer_sizes)
    yield _histogram("answer_limit_tokens", "Most tokens that one answer may have", meters.allowed)
    yield _histogram("answers_asked", "Answers that one prompt asked for", meters.choices)
    yield _histogram("event_loop_lag_seconds", "How late the event loop wakes", meters.lag)
    yield _histogram("step_tokens", "Tokens that a step computes", meters.step_tokens)
    yield _histogram("step_read_bytes", "Weights, keys and values that a step reads", meters.read_bytes)
    text = "Time that reading would take at this machine's pace, of a decode step's time"
    yield _histogram("step_wall_share", text, meters.wall_share)


def _of_engine(snapshot: Snapshot) -> Iterator[Family]:
    stats = snapshot.stats
    kv, total = stats.kv, stats.total
    yield _gauge("requests_running", "Answers that advance", stats.num_running)
    yield _gauge("requests_waiting", "Answers that wait for their turn", stats.num_waiting)
    pages = {"free": kv.free, "cached": kv.cached, "in_use": kv.in_use}
    yield _labelled("kv_pages", "Pages of keys and values, by state", "state", pages, kind="gauge")
    yield _gauge("kv_usage_ratio", "Pages in use, of all", kv.in_use / kv.total)
    yield _counter("preemptions_total", "Answers that had to give way", stats.num_preemptions)
    yield _counter("expired_total", "Answers that their deadline ended", stats.num_expired)
    yield _counter("step_faults_total", "Steps that failed as a whole", stats.num_faults)
    yield _counter("page_leaks_total", "Times that pages without an owner were taken back", stats.num_leaks)
    yield _counter("steps_total", "Steps of the engine", total.num_steps)
    yield _counter("step_seconds_total", "Time in steps", total.seconds)
    yield _counter("step_predicted_seconds_total", "Time that the steps were expected to take", total.predicted)
    yield _counter("step_foreseen_seconds_total", "The same before any step: by the calibration", total.foreseen)
    yield _gauge("step_error_ratio", "|measured - predicted| / predicted of steps, of late", stats.step_error)
    yield _labelled("step_part_seconds_total", "Time in steps, by part", "part", total.laps)
    rows = {"prompt": total.prompt_tokens, "decode": total.decode_tokens, "draft": total.draft_tokens}
    yield _labelled("computed_tokens_total", "Rows computed, by kind", "kind", rows)
    yield _counter("accepted_draft_tokens_total", "Guessed tokens that were right", total.accepted_tokens)
    yield _counter("generated_tokens_total", "Tokens made, of answers in flight too", total.output_tokens)


def _of_model(model: Model, snapshot: Snapshot) -> Iterator[Family]:
    names = {"model": model.name, "version": __version__, "isa": model.isa, "kv": model.kv, "threads": model.threads}
    labels = tuple((name, str(value)) for name, value in names.items())
    yield Family("legato_model_info", "gauge", "What is served", (Sample(1, labels),))
    yield _gauge("context_tokens", "Most tokens of one conversation", model.context_length)
    if model.wall is not None:
        total, wall = snapshot.stats.total, model.wall
        nbytes = total.num_steps * wall.weight_bytes + total.kv_tokens * wall.kv_bytes_per_token
        yield _counter("read_bytes_total", "Weights, keys and values that steps had to read", nbytes)
        seconds = nbytes / (1e9 * wall.read_gb_s)
        yield _counter("wall_seconds_total", "Time that reading them takes at this machine's pace", seconds)


VLLM = (
    ("requests_running", "num_requests_running"),
    ("requests_waiting", "num_requests_waiting"),
    ("kv_usage_ratio", "kv_cache_usage_perc"),
    ("kv_usage_ratio", "gpu_cache_usage_perc"),  # the older name, which boards still ask for
    ("preemptions_total", "num_preemptions_total"),
    ("prompt_tokens_total", "prompt_tokens_total"),
    ("prompt_tokens_total", "prefix_cache_queries_total"),
    ("prefix_hit_tokens_total", "prefix_cache_hits_total"),
    ("prefix_hit_tokens_total", "prompt_tokens_cached_total"),
    ("generated_tokens_total", "generation_tokens_total"),
    ("time_to_first_token_seconds", "time_to_first_token_seconds"),
    ("inter_token_latency_seconds", "inter_token_latency_seconds"),
    ("inter_token_latency_seconds", "time_per_output_token_seconds"),  # the older name of the same
    ("time_per_output_token_seconds", "request_time_per_output_token_seconds"),
    ("answer_seconds", "e2e_request_latency_seconds"),
    ("queue_seconds", "request_queue_time_seconds"),
    ("prefill_seconds", "request_prefill_time_seconds"),
    ("decode_seconds", "request_decode_time_seconds"),
    ("working_seconds", "request_inference_time_seconds"),
    ("prompt_size_tokens", "request_prompt_tokens"),
    ("answer_size_tokens", "request_generation_tokens"),
    ("answer_limit_tokens", "request_params_max_tokens"),
    ("answer_limit_tokens", "request_max_num_generation_tokens"),
    ("answers_asked", "request_params_n"),
    ("answers_total", "request_success_total"),
    ("refusals_total", "admission_rejections_total"),
    ("step_tokens", "iteration_tokens_total"),
    ("accepted_draft_tokens_total", "spec_decode_num_accepted_tokens_total"),
)
"""Our names to those of vLLM 0.32, for dashboards and routers that look for these."""


def aliases(found: list[Family], model: Model) -> list[Family]:
    """The same figures under vLLM's names, with the labels that it gives them."""
    own = (("model_name", model.name), ("engine", "0"))
    by_name = {family.name.removeprefix("legato_"): family for family in found}
    out = []
    for ours, theirs in VLLM:
        if ours in by_name:
            family = by_name[ours]
            samples = tuple(replace(s, labels=(*own, *_renamed(s.labels))) for s in family.samples)
            out.append(Family(f"vllm:{theirs}", family.kind, family.help, samples))
    return [*out, _no_adapters(), _pages(by_name, own)] if "kv_pages" in by_name else out


def _no_adapters() -> Family:
    """Routers that choose a server by its adapters read this one, and take a server without it for one that is away."""
    names = (("max_lora", "0"), ("waiting_lora_adapters", ""), ("running_lora_adapters", ""))
    return Family("vllm:lora_requests_info", "gauge", "Adapters in use: there are none", (Sample(1, names),))


def _pages(by_name: Mapping[str, Family], own: tuple[tuple[str, str], ...]) -> Family:
    pages = int(sum(sample.value for sample in by_name["kv_pages"].samples))
    labels = (*own, ("num_gpu_blocks", str(pages)), ("num_cpu_blocks", "0"))
    return Family("vllm:cache_config_info", "gauge", "Pages of keys and values", (Sample(1, labels),))


def _renamed(labels: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple(("finished_reason" if name == "finish_reason" else name, value) for name, value in labels)


# -- the text form ----------------------------------------------------------------------------------------------------


def render(found: list[Family]) -> bytes:
    lines: list[str] = []
    for family in found:
        lines += (f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}")
        for s in family.samples:
            shown = ",".join(f'{name}="{_escaped(value)}"' for name, value in s.labels)
            lines.append(f"{family.name}{s.suffix}{{{shown}}} {_number(s.value)}" if shown else _plain(family, s))
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _plain(family: Family, sample: Sample) -> str:
    return f"{family.name}{sample.suffix} {_number(sample.value)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _gauge(name: str, text: str, value: float) -> Family:
    return Family(f"legato_{name}", "gauge", text, (Sample(value),))


def _counter(name: str, text: str, value: float) -> Family:
    return Family(f"legato_{name}", "counter", text, (Sample(value),))


def _process(name: str, kind: str, text: str, value: float) -> Family:
    """The names that every Prometheus client gives its process."""
    return Family(f"process_{name}", kind, text, (Sample(value),))


def _labelled(name: str, text: str, label: str, values: Mapping[Any, float], kind: str = "counter") -> Family:
    samples = tuple(Sample(value, ((label, str(key)),)) for key, value in values.items())
    return Family(f"legato_{name}", kind, text, samples)


def _histogram(name: str, text: str, found: Histogram) -> Family:
    samples, sum_so_far = [], 0
    for bound, count in zip((*found.bounds, None), found.counts, strict=True):
        sum_so_far += count
        shown = "+Inf" if bound is None else f"{bound:g}"
        samples.append(Sample(sum_so_far, (("le", shown),), "_bucket"))
    samples += (Sample(found.sum, (), "_sum"), Sample(sum_so_far, (), "_count"))
    return Family(f"legato_{name}", "histogram", text, tuple(samples))


def cpu_seconds(pid: int) -> float:
    """Processor time of another process; 0 where the system does not tell."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")  # user and system
    except (OSError, ValueError, IndexError):
        return 0.0


def resident_bytes(pid: int = 0) -> int:
    """Memory of this process, or of another, that is in RAM; 0 where the system does not tell of others."""
    try:
        return int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        if pid:
            return 0
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
