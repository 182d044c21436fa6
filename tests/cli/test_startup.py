"""Starting costs nothing that was not asked for."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from legato.cli.undisturbed import released, undisturbed
from legato.config import let_blas_sleep

HEAVY = ("numpy", "tokenizers", "jinja2", "msgspec", "rich", "legato.llm", "legato.engine")

# What a plain answer does without: each is loaded by the command, option or kind of file that needs it.
UNNEEDED = (
    *("rich", "msgspec", "asyncio", "statistics", "secrets", "numpy.random", "numpy.testing", "numpy.ma"),
    *("legato.measure.case", "legato.measure.explain", "legato.measure.advice", "legato.measure.line"),
    *("legato.measure.energy", "legato.models.check", "legato.sessions", "legato.runtime.session_file"),
    *("legato.runtime.session_folder", "legato.weights.safetensors", "legato.weights.fetch", "legato.weights.hf"),
    *("legato.server", "legato.bench", "legato.report", "legato.replay"),
)


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


def loaded_by(arguments: list[str], environ: dict[str, str]) -> set[str]:
    """The modules that a program has loaded when its command ends."""
    script = f"""
import sys
from legato.cli import main
assert main({arguments!r}) == 0
print(*sys.modules, file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def test_an_answer_loads_what_an_answer_needs(environ: dict[str, str], alphabet: Path) -> None:
    loaded = loaded_by(["generate", "-m", str(alphabet), "--max-tokens", "1", "--raw", "hi"], environ)
    assert "legato.llm" in loaded and loaded.isdisjoint({*UNNEEDED, "jinja2"}), loaded & {*UNNEEDED, "jinja2"}


def test_a_slow_backend_is_loaded_where_it_computes(environ: dict[str, str], alphabet: Path) -> None:
    from legato.kernels.cpu import load_library

    if isinstance(load_library(), str):
        pytest.skip("the native library is not built")
    asked = ["generate", "-m", str(alphabet), "--max-tokens", "1", "--raw", "hi", "--backend"]
    assert "legato.kernels.reference" not in loaded_by([*asked, "native"], environ)
    assert "legato.kernels.reference" in loaded_by([*asked, "reference"], environ)


def test_the_collector_rests_inside_and_works_afterwards() -> None:
    with released():
        assert gc.isenabled()
        with pytest.raises(ValueError, match="inside"), undisturbed():
            made: list[list[int]] = [[] for _ in range(1000)]
            with undisturbed():
                assert not gc.isenabled()
            assert not gc.isenabled()  # until the outer one ends
            raise ValueError("inside")
        assert gc.isenabled() and gc.get_freeze_count() >= len(made)
    assert gc.get_freeze_count() == 0


def test_who_has_switched_the_collector_off_finds_it_off() -> None:
    gc.disable()
    try:
        with undisturbed():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_command_leaves_the_collector_as_it_was(run: Callable[..., object], alphabet: Path) -> None:
    run("generate", "-m", alphabet, "--max-tokens", "1", "--raw", "hi")
    run("generate", "-m", "nowhere", "hi")
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_threads_of_blas_sleep_unless_told_otherwise(environ: dict[str, str]) -> None:
    chosen = {"OPENBLAS_THREAD_TIMEOUT": "26"}
    let_blas_sleep(chosen)
    assert chosen == {"OPENBLAS_THREAD_TIMEOUT": "26"}
    script = """
import os, sys
from legato.cli import main
main(["generate", "-h"])
print(os.environ["OPENBLAS_THREAD_TIMEOUT"], "numpy" in sys.modules, file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["20", "False"]


def test_a_program_of_its_own_is_not_searched_through_at_its_end(environ: dict[str, str], alphabet: Path) -> None:
    script = f"""
import gc, sys
from legato.cli import main
sys.argv[1:] = ["generate", "-m", {str(alphabet)!r}, "--max-tokens", "1", "--raw", "hi"]
main()
print(gc.isenabled(), gc.get_freeze_count() > 50_000, file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "True True"
