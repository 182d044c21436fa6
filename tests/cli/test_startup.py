"""Starting costs nothing that was not asked for."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

HEAVY = ("numpy", "tokenizers", "jinja2", "msgspec", "rich", "legato.llm", "legato.engine")


def processor_seconds(command: Sequence[str], environ: dict[str, str]) -> float:
    """The least of five runs: what the program costs, not what the neighbours do."""
    best = float("inf")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=environ, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


def test_import_and_help_are_quick(environ: dict[str, str]) -> None:
    assert processor_seconds([sys.executable, "-c", "import legato"], environ) < 0.1
    assert processor_seconds([sys.executable, "-m", "legato", "--help"], environ) < 0.3
    assert processor_seconds([sys.executable, "-m", "legato", "generate", "--help"], environ) < 0.3


@pytest.mark.parametrize("code", ["import legato", "from legato import SamplingParams", "legato --help", "generate -h"])
def test_nothing_heavy_is_imported_before_it_is_needed(environ: dict[str, str], code: str) -> None:
    if not code.startswith(("import", "from")):
        code = f"from legato.cli import main; main({code.removeprefix('legato ').split()!r})"
    script = f"import sys\n{code}\nprint([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_a_refusal_needs_no_model_and_no_engine(environ: dict[str, str]) -> None:
    script = f"""
import sys
from legato.cli import main
code = main(["generate", "hi", "--temperature", "-1"])
print(code, [m for m in {HEAVY!r} if m in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []"


def test_public_names(run: Callable[..., object]) -> None:
    import legato

    assert {"LLM", "SamplingParams", "Completion"} <= set(dir(legato))
    for name in legato.__all__:
        assert getattr(legato, name) is not None
    with pytest.raises(AttributeError):
        _ = legato.nothing
