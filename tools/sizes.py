"""Reports files over 500 lines and functions over 60: places to look at; files over 700 or functions over 90 fail.

Knows: line counts of tracked sources. Does not know: what is in them.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

FILE_NOTE, FILE_LIMIT = 500, 700
FUNCTION_NOTE, FUNCTION_LIMIT = 60, 90
SOURCES = (".py", ".cpp", ".h", ".js", ".css")


def functions(path: Path) -> list[tuple[str, int]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in ast.walk(tree) if isinstance(node, kinds)]


def main() -> int:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.split("\n")
    paths = [Path(name) for name in listed if name.endswith(SOURCES) and not name.startswith(("tests/", "benchmarks/"))]
    failed = False
    for path in paths:
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > FILE_NOTE:
            print(f"{path}: {lines} lines (aim: {FILE_NOTE}, limit: {FILE_LIMIT})")
            failed |= lines > FILE_LIMIT
        if path.suffix == ".py":
            for name, length in functions(path):
                if length > FUNCTION_NOTE:
                    print(f"{path}: {name} has {length} lines (aim: {FUNCTION_NOTE}, limit: {FUNCTION_LIMIT})")
                    failed |= length > FUNCTION_LIMIT
    print(f"{len(paths)} source files, {'over a limit' if failed else 'none over a limit'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
