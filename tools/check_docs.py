#!/usr/bin/env python3
"""Documents name files that exist: every relative link, and every path of this tree in a Markdown file's code spans.

Knows: Markdown's links and code spans. Does not know: what documents say.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)")
SPAN = re.compile(r"`([\w./-]+/[\w./-]+)`")
OURS = ("src/", "native/", "tests/", "docs/", "tools/", "benchmarks/", ".ci/")


def missing(document: Path) -> list[str]:
    text = document.read_text(encoding="utf-8")
    links = [target for target in LINK.findall(text) if "://" not in target and not target.startswith("mailto:")]
    lost = [target for target in links if not (document.parent / target).exists()]
    return lost + [path for path in SPAN.findall(text) if path.startswith(OURS) and not (ROOT / path).exists()]


def main() -> int:
    documents = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    found = [
        f"{document.relative_to(ROOT)}: {path} does not exist" for document in documents for path in missing(document)
    ]
    print("\n".join(found) or f"{len(documents)} documents: every file they name exists")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
