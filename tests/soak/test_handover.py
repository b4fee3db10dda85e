"""The soak of hand-overs, for some seconds only; `python -m tests.soak.handover` is the long one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_three_thousand_hand_overs_under_fire() -> None:
    command = [sys.executable, "-m", "tests.soak.handover", "--count", "3000", "--kill-every-s", "0.03"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert result["ok"], done.stdout + done.stderr
    assert result["hand_overs"] >= 3000
    assert sum(result["kills"].values()) > 0
