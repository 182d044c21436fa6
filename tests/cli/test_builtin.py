"""The built-in model through the front, where it is in the cache; skipped aloud where it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from legato import LLM, SamplingParams

TEXT = """The lighthouse keeper climbed the stairs every evening at six, carrying a can of oil and a clean cloth. He
wiped the salt from the glass, filled the lamp, and waited for the sun to touch the water. In forty years he had missed
only one night, when the storm took the boat and he had to swim back to the rocks."""


@pytest.fixture(scope="module")
def native(builtin_native: Path) -> Iterator[LLM]:
    with LLM(str(builtin_native), backend="native") as llm:
        yield llm


def test_it_knows_the_capital_of_france(native: LLM) -> None:
    [done] = native.generate("The capital of France is", SamplingParams(max_tokens=4))
    assert done.text.startswith(" Paris")
    assert done.receipt.kv == "int8" and done.receipt.isa != "numpy"


def test_a_second_turn_finds_the_first_in_the_cache(native: LLM) -> None:
    messages = [{"role": "user", "content": TEXT + " What did he carry?"}]
    first = native.chat(messages, SamplingParams(max_tokens=16))
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "Why?"}]
    second = native.chat(messages, SamplingParams(max_tokens=4))
    assert second.timings.cached_tokens >= len(first.prompt_ids) // 16 * 16


def test_streams_and_batches_write_the_same(native: LLM) -> None:
    params = SamplingParams(max_tokens=12)
    alone = [native.generate(p, params)[0].token_ids for p in (TEXT, "Once upon a time")]
    together = native.generate([TEXT, "Once upon a time", "The sea"], params)
    assert [c.token_ids for c in together[:2]] == alone
    assert [t for d in native.stream(TEXT, params) for t in d.token_ids] == alone[0]


@pytest.mark.slow
def test_both_backends_are_surprised_alike(native: LLM, builtin_path: Path) -> None:
    ids = native.tokenizer.encode(TEXT)
    fast = native.perplexity(ids).perplexity
    with LLM(str(builtin_path), backend="reference") as llm:
        slow = llm.perplexity(ids).perplexity
    assert fast == pytest.approx(slow, rel=0.01)


def test_a_warm_start_is_small(native: LLM, environ: dict[str, str], builtin_path: Path) -> None:
    script = f"""
from legato.cli import main
main(["generate", "Hello", "-m", {str(builtin_path)!r}, "--max-tokens", "4", "--json", "--backend", "native"])
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])"""
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    answer, kilobytes = done.stdout.splitlines()
    assert len(json.loads(answer)["token_ids"]) == 4
    assert int(kilobytes) < 350 * 1024
