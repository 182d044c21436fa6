"""Every small fault that can be put into `schedule/` by rule: one changed operator, number, condition or statement.

Knows: syntax trees. Does not know: what the code means, who notices.

Run as a program it judges all of them and writes those that nobody noticed:
    python tests/core/mutate.py [FILE]... [--jobs N] [--out RESULT.json]
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue

from zygote import BROKEN, KILLED, SOURCES, Zygote

SCHEDULE = SOURCES / "legato" / "schedule"
COMPARED: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COUNTED: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "insort": "bisect_left"}
FIRST = {  # which tests are likeliest to notice, by file; all others come after
    "accept": ["worlds:40", "test_scheduler"],
    "budget": ["test_slo"],
    "cache_manager": ["worlds:40", "test_prefix_cache", "test_miss"],
    "door": ["test_deadlines", "test_followers"],
    "followers": ["test_followers"],
    "forecast": ["test_deadlines"],
    "gone": ["test_miss"],
    "limits": ["test_deadlines", "test_scheduler"],
    "page_pool": ["worlds:40", "test_prefix_cache"],
    "prefix_tree": ["worlds:40", "test_miss", "test_prefix_cache"],
    "scheduler": ["worlds:60", "test_scheduler", "test_fairness", "test_deadlines"],
    "tenants": ["test_fairness"],
    "waiting": ["test_fairness", "test_deadlines"],
}
THEN = [
    "test_scheduler", "test_scheduler_pages", "test_followers", "test_prefix_cache", "test_miss", "test_deadlines",
    "test_fairness", "test_engine_loop", "test_scheduler_machine", "test_slo", "worlds:150",
]  # fmt: skip
LAST = {"scheduler": ["test_progress"]}  # the dearest


@dataclass(frozen=True)
class Fault:
    """One changed place. `name` says which, without line numbers, so that it outlives edits elsewhere in the file."""

    file: str
    line: int
    name: str
    source: str

    @property
    def module(self) -> str:
        return f"legato.schedule.{self.file}"

    @property
    def tests(self) -> list[str]:
        first = FIRST[self.file]
        return first + [name for name in THEN if name not in first] + LAST.get(self.file, [])


Change = Callable[[], None]
SKIPPED = {"annotation", "returns", "decorator_list", "bases", "keywords_of_class"}
UNTOUCHED = (ast.Import, ast.ImportFrom, ast.Assert, ast.Raise)
LOOKERS = {"check", "_check_path"}  # what the tests themselves look with


def faults(path: Path) -> list[Fault]:
    """All of one file, in the order of its lines."""
    text, found = path.read_text(), []
    right = ast.unparse(ast.parse(text)).splitlines()
    count = sum(1 for _ in _sites(ast.parse(text), ""))
    seen: dict[str, int] = {}
    for number in range(count):
        tree = ast.parse(text)
        where, line, change = list(_sites(tree, ""))[number]
        change()
        source = ast.unparse(tree)
        wrong = source.splitlines()
        if wrong == right:
            continue
        name = f"{where}: {_difference(right, wrong)}"
        seen[name] = seen.get(name, 0) + 1
        again = f" ({seen[name]})" if seen[name] > 1 else ""
        found.append(Fault(path.stem, line, name + again, source))
    return found


def _difference(right: list[str], wrong: list[str]) -> str:
    """The lines that differ, right and wrong."""
    first = next(i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b)
    last = 1
    while right[-last] == wrong[-last]:
        last += 1
    sides = (lines[first : len(lines) - last + 1] for lines in (right, wrong))
    return "  ->  ".join(" ".join(" ".join(side).split())[:160] for side in sides)


def _sites(node: ast.AST, where: str) -> Iterator[tuple[str, int, Change]]:
    """Where something can be changed: in which function, in which line, and what does it."""
    if isinstance(node, UNTOUCHED) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        if node.name in LOOKERS:
            return
        where = f"{where}.{node.name}" if where else node.name
    line = getattr(node, "lineno", 0)
    for change in _changes(node):
        yield where, line, change
    for field, value in ast.iter_fields(node):
        if field in SKIPPED:
            continue
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.stmt) and _can_go(child):
                yield where, child.lineno, lambda value=value, i=i: value.__setitem__(i, ast.Pass())
            if isinstance(child, ast.AST):
                yield from _sites(child, where)


def _can_go(statement: ast.stmt) -> bool:
    """Whether something still runs without it: it calls, stores in an object, counts or jumps."""
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)
    if isinstance(statement, ast.Assign):
        return not isinstance(statement.targets[0], (ast.Name, ast.Tuple))
    return isinstance(statement, (ast.AugAssign, ast.Continue, ast.Break, ast.Delete))


def _changes(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            yield lambda i=i, op=op: node.ops.__setitem__(i, COMPARED[type(op)]())
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in COUNTED:
        yield lambda: setattr(node, "op", COUNTED[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield lambda: setattr(node, "op", ast.And() if isinstance(node.op, ast.Or) else ast.Or())
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield lambda: setattr(node, "value", not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield lambda: setattr(node, "op", ast.UAdd())
    elif isinstance(node, ast.Name) and node.id in NAMES:
        yield lambda: setattr(node, "id", NAMES[node.id])
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield lambda: setattr(node, "value", ast.Constant(None))


def judge_all(faults: list[Fault], jobs: int) -> list[dict[str, object]]:
    """Each with its verdict; progress goes to stderr."""
    queue: Queue[Fault] = Queue()
    for fault in faults:
        queue.put(fault)
    done: list[dict[str, object]] = []

    def work() -> None:
        zygote = Zygote()
        while True:
            try:
                fault = queue.get_nowait()
            except Empty:
                break
            verdict = zygote.judge({fault.module: fault.source}, fault.tests)
            said = {KILLED: "killed", BROKEN: "broken"}.get(verdict.status, "SURVIVED")
            done.append(
                {"file": fault.file, "line": fault.line, "name": fault.name, "verdict": said, "by": verdict.by,
                 "seconds": round(verdict.seconds, 2)}
            )  # fmt: skip
            print(
                f"{len(done)}/{len(faults)} {said} {fault.file}:{fault.line} {fault.name}", file=sys.stderr, flush=True
            )
        zygote.close()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help="stems of files in schedule/; all without")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="verdicts as JSON")
    options = parser.parse_args()
    names = options.files or sorted(FIRST)
    todo = [fault for name in names for fault in faults(SCHEDULE / f"{name}.py")]
    random.Random(1).shuffle(todo)  # what is judged so far is a fair sample
    done = judge_all(todo, options.jobs)
    survived = [item for item in done if item["verdict"] == "SURVIVED"]
    if options.out is not None:
        options.out.write_text(json.dumps(done, indent=1) + "\n")
    for item in survived:
        print(f"{item['file']}:{item['line']} {item['name']}")
    print(f"{len(done)} mutants, {len(survived)} survived")


if __name__ == "__main__":
    main()
