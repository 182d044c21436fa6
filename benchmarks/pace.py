#!/usr/bin/env python3
"""Draws tokens' pace against context from a record of in_turn.py: one line an engine, and the wall that bytes set.

    python benchmarks/pace.py benchmarks/compare_MACHINE_DATE.json docs/pace.svg

Knows: SVG, records. Does not know: how anything was measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 400, 62, 150, 46, 52
COLORS = ("#0b6e4f", "#b5541b", "#4a5fa5", "#8a4f9e", "#7a7a7a")
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}.dim{fill:#666}.title{font-size:15px;font-weight:600}"
    "line.grid{stroke:#8884}path{fill:none;stroke-width:2.2}.wall{stroke:#999;stroke-dasharray:5 4;stroke-width:1.5}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.dim{fill:#999}}"
)


def draw(rows: list[dict[str, Any]], machine: str, date: str) -> str:
    """Milliseconds a token against tokens of context."""
    lines: dict[str, list[tuple[float, float]]] = {}
    wall = []
    for row in sorted((row for row in rows if "depth" in row and "decode_ms" in row), key=lambda r: r["depth"]):
        lines.setdefault(row["name"], []).append((row["depth"], row["decode_ms"]))
        if "wall_ms" in row:
            wall.append((row["depth"], row["wall_ms"]))
    most_x = max(x for points in lines.values() for x, _ in points)
    most_y = 1.08 * max(y for points in lines.values() for _, y in points)

    def at(point: tuple[float, float]) -> str:
        x = LEFT + point[0] / most_x * (WIDTH - LEFT - RIGHT)
        return f"{x:.1f} {HEIGHT - BOTTOM - point[1] / most_y * (HEIGHT - TOP - BOTTOM):.1f}"

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Milliseconds a token against tokens of context"><style>{STYLE}</style>',
        f'<text x="{LEFT}" y="22" class="title">Milliseconds a token, as the context grows</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 8}" class="dim">tokens of context &#183; SmolLM2-135M, one user &#183; '
        f"{machine} &#183; {date}</text>",
    ]
    for y in ticks(most_y):
        place = at((0, y)).split()[1]
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place}" y2="{place}"/>')
        out.append(f'<text class="dim" x="{LEFT - 8}" y="{float(place) + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in ticks(most_x):
        place = at((x, 0)).split()[0]
        out.append(f'<text class="dim" x="{place}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{x:,.0f}</text>')
    labels = []
    for (name, points), color in zip(lines.items(), COLORS, strict=False):
        out.append(f'<path stroke="{color}" d="M{" L".join(map(at, points))}"/>')
        labels.append((float(at(points[-1]).split()[1]), f"{name} {points[-1][1]:.1f}", color))
    if wall:
        out.append(f'<path class="wall" d="M{" L".join(map(at, wall))}"/>')
        labels.append((float(at(wall[-1]).split()[1]), f"the wall {wall[-1][1]:.1f}", "#888"))
    lowest = float("inf")
    for y, text, color in sorted(labels, reverse=True):
        lowest = min(y, lowest - 16)
        out.append(f'<text x="{WIDTH - RIGHT + 10}" y="{lowest + 4:.1f}" style="fill:{color}">{text}</text>')
    return "\n".join([*out, "</svg>", ""])


def ticks(most: float) -> list[float]:
    """About five round numbers from 0."""
    step = next(s * 10**e for e in range(-2, 7) for s in (1, 2, 5) if s * 10**e * 5 >= most)
    return [i * step for i in range(int(most / step) + 1)]


def main() -> None:
    record = json.loads(Path(sys.argv[1]).read_text())
    machine = f"{record['machine']['cpus']} cores of {record['machine']['cpu']}"
    Path(sys.argv[2]).write_text(draw(record["rows"], machine, record["date"][:10]))


if __name__ == "__main__":
    main()
