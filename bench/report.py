"""The table, as text and as Markdown, and the JSON file."""

from __future__ import annotations

from typing import Any

import msgspec

from bench.figures import RATES, Figures, Ratio, Result

HEAD = ("question", "Loom", "p99", "rival", "its median", "p99", "Loom / rival", "goal")

LEGEND = (
    "Loom / rival: median of one ratio a round (least-greatest). Below 1 Loom is quicker or smaller; for rates (k/s) "
    "it does more when above 1. p99: 99 % of the samples are no worse."
)


class Missing(msgspec.Struct, frozen=True):
    """A question that could not be put, or was skipped, and why."""

    question: str
    error: str


class Document(msgspec.Struct, frozen=True):
    """What is written as JSON."""

    environment: dict[str, Any]
    quick: bool
    rounds: int
    results: list[Result]
    missing: list[Missing]
    skipped: list[Missing]
    """For want of room or of a package on this machine: no failure."""


def to_json(document: Document) -> bytes:
    """The document, indented, with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def to_text(document: Document) -> str:
    """The table for a terminal."""
    rows = [HEAD, *_rows(document)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, "", *_missing(document), LEGEND, _about(document)])


def to_markdown(document: Document) -> str:
    """The table for a README."""
    rows = [HEAD, ("---",) * len(HEAD), *_rows(document)]
    return "\n".join(
        [*(f"| {' | '.join(row)} |" for row in rows), "", *_missing(document), LEGEND, "", _about(document), ""]
    )


def _rows(document: Document) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for result in document.results:
        own = (result.title, _told(result.loom), _number(result.loom.p99))
        for name, rival in result.rivals.items():
            theirs = (name, _told(rival), _number(rival.p99), _ratio(rival.ratio))
            rows.append((*own, *theirs, result.goal if own[0] else ""))
            own = ("", "", "")
    return rows


def _missing(document: Document) -> list[str]:
    return [
        f"{what}: {one.question}: {one.error}\n"
        for what, ones in (("Not taken", document.missing), ("Skipped", document.skipped))
        for one in ones
    ]


def _about(document: Document) -> str:
    environment = document.environment
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    return (
        f"{environment['date']}, {document.rounds} rounds{' (quick)' if document.quick else ''}, "
        f"{environment['cores']} cores of {environment['cpu']}, load {environment['load']:g} before, "
        f"{environment['kernel']}, {environment['python']}, {versions}."
    )


def _told(figures: Figures) -> str:
    return f"{_number(figures.median)} {figures.unit}"


def _number(value: float) -> str:
    """Three significant digits or so, thousands apart."""
    for least, digits in ((99.95, 0), (9.995, 1), (0.9995, 2)):
        if value >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}"


def _ratio(ratio: Ratio) -> str:
    return f"{_number(ratio.median)} ({_number(ratio.min)}-{_number(ratio.max)})"


assert RATES == ("k/s",), "LEGEND names the units of which more is better"
