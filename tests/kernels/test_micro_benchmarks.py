"""The kernels' micro-benchmarks can be started as documented, and compile."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_every_one_is_started_by_the_verb() -> None:
    verb = (ROOT / "Makefile").read_text().split("\nnative-bench:")[1].split("\n\n")[0]
    programs = sorted(path.stem for path in (ROOT / "native" / "bench").glob("bench_*.cpp"))
    assert programs and all(f"build/bench/{name}" in verb for name in programs)
    assert all("make native-bench" in (ROOT / name).read_text() for name in ("CONTRIBUTING.md", "docs/benchmarks.md"))


def test_the_two_numerics_compile_by_their_own_usage_line() -> None:
    compiler = shutil.which("g++")
    if compiler is None or platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("needs g++ on x86")
    source = ROOT / "benchmarks" / "semantics.cpp"
    assert "usage: g++ -O3 -march=native" in source.read_text()
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-mavx512f", "-mavx512vnni", "-mavx512bf16"]
    done = subprocess.run([compiler, *flags, str(source)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
