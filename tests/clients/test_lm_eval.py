"""lm-evaluation-harness over HTTP: its log-likelihoods are those of the model's own logits, its texts the model's own.

The task is made up: two questions to choose from, two to complete. Tokens come from the server's tokenizer routes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from installed import Client, Served

from legato import LLM, SamplingParams

pytestmark = pytest.mark.slow

QUESTIONS = [
    {"question": "The capital of France is", "choices": ["Paris", "a small grey bird", "seven"], "answer": 0},
    {"question": "Ice is made of frozen", "choices": ["granite and sand", "water"], "answer": 1},
]
TOKENS = 12
CHOOSE = """
task: made_up_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
COMPLETE = """
task: made_up_texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: {tokens}, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="session")
def lm_eval(find: Callable[[str], Client]) -> Client:
    return find("lm-eval[api]")


@pytest.fixture(scope="module")
def llm(builtin_native: Path) -> Iterator[LLM]:
    with LLM(str(builtin_native)) as model:
        yield model


def likelihood(llm: LLM, text: str, choice: str) -> tuple[float, bool]:
    """log p(" " + choice | text) from raw logits, and whether each of its tokens is the likeliest."""
    given, whole = llm.tokenizer.encode(text), llm.tokenizer.encode(f"{text} {choice}")
    assert whole[: len(given)] == given
    total, greedy = 0.0, True
    for row, token in zip(llm.logits(whole)[len(given) - 1 :], whole[len(given) :], strict=False):
        wide = row.astype(np.float64)
        total += wide[token] - wide.max() - np.log(np.exp(wide - wide.max()).sum())
        greedy &= bool(wide[token] == wide.max())
    return total, greedy


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    """What the harness wrote of each question, in their order."""
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(found, key=lambda sample: int(sample["doc_id"]))


@pytest.mark.parametrize("more", ["", ",num_concurrent=3", ",tokenized_requests=False"], ids=["plain", "many", "texts"])
def test_lm_eval(lm_eval: Client, keyed: Served, llm: LLM, tmp_path: Path, more: str) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS), encoding="utf-8")
    for name, form in (("choices", CHOOSE), ("texts", COMPLETE)):
        said = form.format(data=tasks / "questions.jsonl", tokens=TOKENS)
        (tasks / f"{name}.yaml").write_text(said, encoding="utf-8")
    model = f"model={keyed.model},base_url={keyed.v1}/completions,auth_token={keyed.key},max_retries=1{more}"
    asked = ["--model", "local-completions", "--model_args", model, "--tasks", "made_up_choices,made_up_texts"]
    where = ["--include_path", str(tasks), "--output_path", str(tmp_path / "out"), "--log_samples"]
    lm_eval.command(tmp_path, "lm_eval", "run", *asked, *where, OPENAI_API_KEY=keyed.key)
    _choices_agree(samples(tmp_path / "out", "made_up_choices"), llm)
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, stop=("\n",))
    for question, sample in zip(QUESTIONS, samples(tmp_path / "out", "made_up_texts"), strict=True):
        (own,) = llm.generate([str(question["question"])], greedy)
        assert sample["resps"] == [[own.text]]


def _choices_agree(found: list[dict[str, Any]], llm: LLM) -> None:
    for question, sample in zip(QUESTIONS, found, strict=True):
        own = [likelihood(llm, str(question["question"]), choice) for choice in question["choices"]]  # type: ignore[attr-defined]
        theirs = [(float(value), said in (True, "True")) for ((value, said),) in sample["resps"]]
        assert [value for value, _ in theirs] == pytest.approx([value for value, _ in own], abs=1e-3)
        assert [greedy for _, greedy in theirs] == [greedy for _, greedy in own]
        assert sample["acc"] == float(np.argmax([value for value, _ in own]) == question["answer"])
