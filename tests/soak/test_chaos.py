"""The soak of chaos, for 20 seconds only; `python -m tests.soak.chaos --minutes 10` is the long one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.soak.troupe import ACTORS


def test_twenty_seconds_of_chaos_in_a_tree_of_fifty_actors() -> None:
    assert len(ACTORS) == 50
    command = [sys.executable, "-m", "tests.soak.chaos", "--seconds", "20"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert result["ok"], done.stdout + done.stderr
    assert result["strikes"]["SIGKILL"] > 5
    assert result["strikes"]["SIGSTOP"] > 5
    assert result["ended"]["right"] > 100
    assert result["kept_numbers"] > 10
