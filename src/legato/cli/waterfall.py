"""An explanation as text: a waterfall, a plot of tokens' latencies, advice.

Knows: explanations, columns. Does not know: how they came about, where text goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from legato.measure.explain import LABELS, Explanation, Part
from legato.measure.line import Line

BAR = 32  # columns that stand for the whole time
LEAST_MS = 0.005  # less is not shown, unless it is named below
ALWAYS = ("prefill_cached", "unexplained")
SURE = 32  # points; through fewer, chance alone lays a steep line that looks certain
PLOT_WIDTH, PLOT_HEIGHT = 64, 10


def told(explanation: Explanation) -> Iterator[str]:
    """Lines without their ends."""
    e = explanation
    yield (
        f"{e.output_tokens} tokens after {e.prompt_tokens} of prompt in {_seconds(e.total_ms)}, the first after "
        f"{_seconds(e.ttft_ms)}; {e.kv} keys and values{', no cache (--naive)' * e.naive}, {e.threads} threads"
    )
    yield ""
    yield from _waterfall(e)
    if e.machine is None:
        yield f"no share of walls is told: {e.note}"
    if e.miss is not None and e.cached_tokens < e.prompt_tokens - 1:
        yield f"not found in the cache: {e.miss}"
    yield ""
    yield from _latencies(e)
    yield from _advice(e)


def _waterfall(e: Explanation) -> Iterator[str]:
    walls = any(part.wall_ms is not None for part in e.parts)
    yield f"{'where the time went':<29} {'ms':>9}  {'share':>6}" + (
        f"  {'its wall':>9}  {'reached':>7}" if walls else ""
    )
    at = 0.0
    for part in e.parts:
        if part.ms >= LEAST_MS or part.name in ALWAYS:
            yield _line(part, at, e.total_ms, walls)
        at += part.ms


def _line(part: Part, at: float, total_ms: float, walls: bool) -> str:
    label = LABELS[part.name]
    if "tokens" in part.figures:
        label += f", {part.figures['tokens']} tokens"
    if part.figures.get("saved_ms"):
        label += f" (some {_seconds(part.figures['saved_ms'])} saved)"
    text = f"{label:<29} {part.ms:>9.2f}  {100 * part.share:>4.1f} %"
    if walls:
        wall = "" if part.wall_ms is None else f"{part.wall_ms:.2f}"
        reached = "" if part.share_of_wall is None else f"{100 * part.share_of_wall:.0f} %"
        text += f"  {wall:>9}  {reached:>7}"
    first, last = round(BAR * at / total_ms), round(BAR * (at + part.ms) / total_ms)
    return (text + "  " + " " * first + ("█" * (last - first) or "▏")).rstrip()


def _latencies(e: Explanation) -> Iterator[str]:
    steps = [step for step in e.steps if step.tokens > 0][1:]
    if len(steps) < 2:
        return
    points = [(float(step.context), step.ms / step.tokens) for step in steps]
    yield from plot(points, None if e.line is None else (e.line.c0, e.line.c1), "ms a token", "tokens before it")
    if e.line is not None:
        slope, error = 1e3 * e.line.c1, 1e3 * e.line.error
        yield (
            f"a token takes {e.line.c0:.2f} ms {slope:+.2f} us x tokens before it "
            f"(+- {error:.2f} us; half of them within {e.line.off:.2f} ms of that), without what others took"
        )
        if doubt := _doubt(e.line):
            clock = "" if e.naive else f"; by attention's own clock it is {1e3 * e.context_ms:+.2f} us"
            yield doubt + clock
    yield ""


def _doubt(line: Line) -> str:
    """Why the slope is not to be taken for a fact; "" where it is one."""
    if line.c1 < 0:
        return "more context cannot make a token cheaper: that slope is noise of this machine"
    if line.points < SURE:
        return f"{line.points} tokens are too few to tell that slope from noise of this machine"
    if line.c1 < 2 * line.error:
        return "the answer is too short, or the machine too unsteady, to tell that slope from none"
    return ""


def plot(
    points: Sequence[tuple[float, float]], line: tuple[float, float] | None, y_label: str, x_label: str
) -> Iterator[str]:
    """Points as dots, the line as dashes; both axes have their ends written on them, y begins at 0."""
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    top = max(y for _, y in points) * 1.05 or 1.0
    cells = [[" "] * PLOT_WIDTH for _ in range(PLOT_HEIGHT)]

    def put(x: float, y: float, mark: str) -> None:
        column = round((x - low) / ((high - low) or 1.0) * (PLOT_WIDTH - 1))
        row = PLOT_HEIGHT - 1 - int(max(0.0, y) / top * PLOT_HEIGHT)
        if 0 <= row < PLOT_HEIGHT:
            cells[row][column] = mark

    if line is not None:
        for column in range(PLOT_WIDTH):
            x = low + (high - low) * column / (PLOT_WIDTH - 1)
            put(x, line[0] + line[1] * x, "-")
    for x, y in points:
        put(x, y, "•")
    yield f"{y_label}"
    for i, row in enumerate(cells):
        axis = f"{top:>8.2f} |" if i == 0 else f"{0:>8} |" if i == PLOT_HEIGHT - 1 else f"{'':>8} |"
        yield (axis + "".join(row)).rstrip()
    left, right = f"{low:.0f}", f"{high:.0f} {x_label}"
    yield f"{'':>10}{left}{right:>{PLOT_WIDTH - len(left)}}"


def _advice(e: Explanation) -> Iterator[str]:
    if not e.advice:
        yield "nothing that was looked at would save as much as 1 % of it"
        return
    yield "what would save most"
    for a in e.advice:
        whose = "" if a.of == "latency" else " of the machine's time"
        yield f"  {a.saves_ms:>9.1f} ms{whose} ({100 * a.share:.0f} %): {a.do}"
        if a.assumed:
            yield f"{'':>15}if {a.assumed}"


def _seconds(ms: float) -> str:
    return f"{ms / 1e3:.2f} s" if ms >= 1e3 else f"{ms:.1f} ms"
