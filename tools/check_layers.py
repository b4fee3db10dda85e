#!/usr/bin/env python3
"""Check that imports in loom/ point down only, and name every one that climbs.

LAYERS is the one ordered list, lowest first. A module may import its own package and those of any line above its own;
two names on one line are siblings and do not import one another. Imports count wherever they stand: in a function,
under TYPE_CHECKING, relative, or as a literal in importlib.import_module("loom...").

Three more rules:
- `import loom` itself (its __init__ only re-exports) is for edges, cli and testing; loom/__init__.py is exempt;
- edges is imported by none but cli;
- a package or module of loom/ that LAYERS does not have is an error: give it a place.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("clock",),
    ("telemetry",),
    ("_native",),
    ("arena",),
    ("store",),
    ("wire",),
    ("actor",),
    ("supervise",),
    ("node",),
    ("bus", "plan"),
    ("compute",),
    ("tools",),
    ("agent",),
    ("edges",),
    ("cli",),
    ("testing",),
)
ALIASES = {"__main__": "cli"}
MAY_IMPORT_LOOM = ("edges", "cli", "testing")
MAY_IMPORT_EDGES = ("edges", "cli")

RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


class Climb(NamedTuple):
    """One thing to mend: where, which layer, what it imports ("" for a file that has no place), and why not."""

    file: str
    line: int
    layer: str
    target: str
    why: str

    def __str__(self) -> str:
        imports = f"{self.layer} imports {self.target}: " if self.target else ""
        return f"{self.file}:{self.line}: {imports}{self.why}"


class Report(NamedTuple):
    files: int
    imports: int
    climbs: list[Climb]


def check(root: Path) -> Report:
    """Every climb below `root`/loom, in the order of files and lines.

    Raises: FileNotFoundError when there is no such folder, or no Python file in it.
    """
    package = root / "loom"
    paths = sorted(package.rglob("*.py"))
    if not paths:
        raise FileNotFoundError(f"{package} has no Python files: pass the repository's root with --root")
    climbs: list[Climb] = []
    imports = 0
    for path in paths:
        inside = path.relative_to(package)
        file = path.relative_to(root).as_posix()
        if inside == Path("__init__.py"):
            continue
        name = inside.parts[0].removesuffix(".py")
        layer = ALIASES.get(name, name)
        if layer not in RANK:
            climbs.append(
                Climb(file, 1, layer, "", f"{layer!r} has no place: add it to LAYERS in tools/check_layers.py")
            )
            continue
        try:
            tree = ast.parse(path.read_bytes(), filename=file)
        except (SyntaxError, ValueError) as error:
            climbs.append(Climb(file, getattr(error, "lineno", None) or 1, layer, "", f"cannot be parsed: {error}"))
            continue
        for line, target in sorted(targets(tree, package, inside)):
            imports += 1
            why = reason(layer, target)
            if why:
                climbs.append(Climb(file, line, layer, target, why))
    return Report(len(paths), imports, climbs)


def reason(layer: str, target: str) -> str:
    """Why `layer` may not import the module `target` ("loom.wire.codec", "loom"); empty when it may."""
    if target == "loom":
        return "" if layer in MAY_IMPORT_LOOM else "only edges, cli and testing do: import the module that has the name"
    if not target.startswith("loom."):
        return "the import leaves the package: write it absolute"
    name = target.split(".")[1]
    other = ALIASES.get(name, name)
    if other == layer:
        return ""
    if other not in RANK:
        return f"{other!r} has no place: add it to LAYERS in tools/check_layers.py"
    if other == "edges" and layer not in MAY_IMPORT_EDGES:
        return "edges is imported by none but cli"
    if RANK[other] > RANK[layer]:
        return f"{other} is above {layer}: move the code down, or pass the object in"
    if RANK[other] == RANK[layer]:
        return f"{other} and {layer} are siblings: move what they share down"
    return ""


def targets(tree: ast.AST, package: Path, inside: Path) -> Iterator[tuple[int, str]]:
    """Each import of loom in a file: its line, and the module it names.

    `inside` is the file's path in the folder `package`. An import that leaves the package has dots for a name.
    """
    home = ("loom", *inside.parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "loom":
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(home):
                yield node.lineno, "." * node.level + (node.module or "")
                continue
            base = home[: len(home) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            if module == "loom":
                for alias in node.names:  # `from loom import wire` is a module, `from loom import Actor` a re-export
                    yield node.lineno, f"loom.{alias.name}" if _is_module(package, alias.name) else "loom"
            elif module.startswith("loom."):
                yield node.lineno, module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            literal = node.args[0].value if called in ("import_module", "__import__") else None
            if isinstance(literal, str) and literal.split(".")[0] == "loom":
                yield node.lineno, literal


def _is_module(package: Path, name: str) -> bool:
    return name in RANK or name in ALIASES or (package / name).is_dir() or (package / f"{name}.py").is_file()


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when nothing climbs, 1 when something does, 2 when there is nothing to check."""
    parser = argparse.ArgumentParser(
        description="Check that imports in loom/ point down only; name every one that climbs.",
        epilog="example: python tools/check_layers.py --json",
    )
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the repository's root")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        report = check(options.root)
    except OSError as error:
        print(f"check_layers: {error}", file=sys.stderr)
        return 2
    if options.json:
        climbs = [climb._asdict() for climb in report.climbs]
        print(json.dumps({"ok": not climbs, "files": report.files, "imports": report.imports, "climbs": climbs}))
    elif report.climbs:
        print("\n".join(map(str, report.climbs)))
    else:
        print(f"OK: {report.files} files, {report.imports} imports of loom, none climbs")
    return 1 if report.climbs else 0


if __name__ == "__main__":
    sys.exit(main())
