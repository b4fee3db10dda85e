"""Plain text for people: aligned columns, drawn trees, sizes. No colours, so it pipes and greps as it looks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns. A column of numbers is aligned to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    numbers = [all(cell == "-" or cell[:1].isdigit() for cell in column) for column in zip(*rows, strict=True)]
    aligns = [str.rjust if number else str.ljust for number in numbers] or [str.ljust] * len(head)
    lines = []
    for row in (head, *rows):
        cells = [align(cell, width) for align, cell, width in zip(aligns, row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def branches(label: str, below: Sequence[tuple[str, Any]]) -> Iterator[str]:
    """A tree's lines. `below`: pairs of a label and what is below that."""
    yield label
    for number, (name, further) in enumerate(below, 1):
        first, others = ("└── ", "    ") if number == len(below) else ("├── ", "│   ")
        for line in branches(name, further):
            yield first + line
            first = others


def plural(count: int, what: str) -> str:
    """ "1 actor", "2 actors"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def age(seconds: float) -> str:
    """Seconds as people read them: "0.3 s", "12 min", "3 h 20 min", "12 days"."""
    minutes = int(seconds // 60)
    if not minutes:
        return f"{seconds:.1f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 2 * 1440 else f"{minutes // 1440} days"


def size(count_bytes: int) -> str:
    """Bytes as people read them: "3.7 MiB"."""
    return f"{count_bytes / 2**20:.1f} MiB"
