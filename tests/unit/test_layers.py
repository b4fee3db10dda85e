"""tools/check_layers.py: each way to climb is named with file and line; this repository does not climb."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "check_layers.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_layers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layers = load_script()


def climbs(root: Path, file: str, code: str) -> list[str]:
    path = root / "loom" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    return [str(climb) for climb in layers.check(root).climbs]


def test_this_repository_does_not_climb() -> None:
    assert [str(climb) for climb in layers.check(ROOT).climbs] == []


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("wire/codec.py", "from loom.errors import ConfigError"),
        ("wire/codec.py", "from loom.wire import frames"),
        ("wire/codec.py", "from . import frames"),
        ("wire/codec.py", "from .frames import Frame"),
        ("wire/codec.py", "from .. import errors"),
        ("wire/codec.py", "from ..errors import ConfigError"),
        ("wire/codec.py", "import loom.clock as clock"),
        ("wire/codec.py", "import loomery, os.path, numpy.loom"),
        ("wire/__init__.py", "from .codec import encode"),
        ("wire/__init__.py", "from ..clock import wall"),
        ("telemetry.py", "from loom import clock"),
        ("telemetry.py", "from . import clock"),
        ("store/table.py", "from loom import arena"),
        ("plan/graph.py", "import loom.node.client"),
        ("edges/demo/index.py", "import loom"),
        ("edges/demo/index.py", "from loom import Actor"),
        ("edges/bridge.py", "from loom.edges import ray"),
        ("cli/main.py", "import loom\nimport loom.edges.bridge"),
        ("__main__.py", "from loom.cli import main"),
        ("cli/main.py", "import loom.__main__"),
        ("testing/clock.py", "import loom\nfrom loom.cli import main"),
        ("__init__.py", "from loom.agent import Agent"),
    ],
)
def test_imports_that_point_down(tmp_path: Path, file: str, code: str) -> None:
    assert climbs(tmp_path, file, code) == []


@pytest.mark.parametrize(
    ("file", "code", "line", "target"),
    [
        ("wire/codec.py", "import loom.node.registry", 1, "loom.node.registry"),
        ("wire/codec.py", "import os\n\nfrom loom.actor import Actor", 3, "loom.actor"),
        ("wire/codec.py", "from loom import node", 1, "loom.node"),
        ("wire/codec.py", "from .. import node", 1, "loom.node"),
        ("wire/codec.py", "from ..node import registry", 1, "loom.node"),
        ("wire/deep/codec.py", "from ...node.client import x", 1, "loom.node.client"),
        ("wire/__init__.py", "from ..node import registry", 1, "loom.node"),
        ("errors.py", "from . import clock", 1, "loom.clock"),
        ("clock.py", "from .telemetry import emit", 1, "loom.telemetry"),
        ("wire/codec.py", "def f():\n    from loom.node import config", 2, "loom.node"),
        ("wire/codec.py", "if TYPE_CHECKING:\n    import loom.actor", 2, "loom.actor"),
        ("wire/codec.py", "x = importlib.import_module('loom.node')", 1, "loom.node"),
        ("wire/codec.py", "x = __import__('loom.node')", 1, "loom.node"),
        ("bus/topic.py", "from loom.plan import graph", 1, "loom.plan"),
        ("plan/graph.py", "from loom.bus import topic", 1, "loom.bus"),
        ("agent/agent.py", "import loom", 1, "loom"),
        ("agent/agent.py", "from loom import Actor", 1, "loom"),
        ("agent/agent.py", "from .. import Actor", 1, "loom"),
        ("agent/agent.py", "from loom import *", 1, "loom"),
        ("agent/agent.py", "import loom.edges.bridge", 1, "loom.edges.bridge"),
        ("testing/kit.py", "import loom.edges.bridge", 1, "loom.edges.bridge"),
        ("cli/main.py", "import loom.testing", 1, "loom.testing"),
        ("edges/bridge.py", "import loom.cli", 1, "loom.cli"),
        ("node/node.py", "import loom.__main__", 1, "loom.__main__"),
        ("node/node.py", "import loom.utils", 1, "loom.utils"),
        ("wire/codec.py", "from .... import x", 1, "...."),
    ],
)
def test_imports_that_climb(tmp_path: Path, file: str, code: str, line: int, target: str) -> None:
    (found,) = climbs(tmp_path, file, code)
    assert found.startswith(f"loom/{file}:{line}: {file.split('/')[0].removesuffix('.py')} imports {target}: ")


def test_each_import_of_a_line_counts(tmp_path: Path) -> None:
    assert len(climbs(tmp_path, "wire/codec.py", "import loom.node, loom.errors, loom.cli")) == 2
    assert len(climbs(tmp_path, "wire/codec.py", "from loom import node, errors, cli")) == 2


def test_package_without_a_place(tmp_path: Path) -> None:
    (found,) = climbs(tmp_path, "utils/text.py", "import os")
    assert found == "loom/utils/text.py:1: 'utils' has no place: add it to LAYERS in tools/check_layers.py"


def test_file_that_cannot_be_parsed(tmp_path: Path) -> None:
    (found,) = climbs(tmp_path, "wire/codec.py", "x = 1\ndef f(:\n")
    assert found.startswith("loom/wire/codec.py:2: cannot be parsed: ")


def test_every_layer_of_the_design_is_in_order() -> None:
    flat = [name for names in layers.LAYERS for name in names]
    order = (
        "errors clock telemetry arena store wire actor supervise node bus plan compute tools agent edges cli testing"
    )
    assert [name for name in flat if name != "_native"] == order.split()


# --- The command -------------------------------------------------------------------------------------------------


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_command_says_ok_with_counts(tmp_path: Path) -> None:
    climbs(tmp_path, "clock.py", "import loom.errors\nimport time")
    done = run("--root", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "OK: 1 files, 1 imports of loom, none climbs\n")


def test_command_names_each_climb(tmp_path: Path) -> None:
    climbs(tmp_path, "clock.py", "import loom.wire\nimport loom.node")
    done = run("--root", str(tmp_path))
    assert done.returncode == 1
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == ["loom/clock.py:1", "loom/clock.py:2"]


def test_command_in_json(tmp_path: Path) -> None:
    climbs(tmp_path, "clock.py", "import loom.wire")
    done = run("--root", str(tmp_path), "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    why = "wire is above clock: move the code down, or pass the object in"
    climb = {"file": "loom/clock.py", "line": 1, "layer": "clock", "target": "loom.wire", "why": why}
    assert report == {"ok": False, "files": 1, "imports": 1, "climbs": [climb]}


def test_command_without_a_package(tmp_path: Path) -> None:
    done = run("--root", str(tmp_path))
    assert done.returncode == 2
    assert "--root" in done.stderr


def test_command_has_help_with_an_example() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "example: python tools/check_layers.py" in done.stdout
