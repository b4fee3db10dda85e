"""What may be said about a full arena, in a config file and to loom.Node, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import loom
from loom.arena import FullPolicy
from loom.errors import ConfigError
from loom.node import config
from loom.node.room import check_spill, full_policy

HERE = Path("/etc")


def test_nothing_said_is_waiting_for_a_second() -> None:
    assert full_policy(None, None, None, HERE) == FullPolicy("wait", 1.0, "")


@pytest.mark.parametrize(
    ("said", "policy"),
    [
        (("wait", 2.5, None), FullPolicy("wait", 2.5, "")),
        ((None, 0, None), FullPolicy("wait", 0.0, "")),
        (("raise", None, None), FullPolicy("raise", 1.0, "")),
        (("spill", None, "/var/tmp"), FullPolicy("spill", 1.0, "/var/tmp")),
        (("spill", 3, "here/../there"), FullPolicy("spill", 3.0, "/etc/there")),
        (("spill", None, Path("there")), FullPolicy("spill", 1.0, "/etc/there")),
    ],
)
def test_what_may_be_said(said: tuple[object, object, object], policy: FullPolicy) -> None:
    assert full_policy(*said, HERE) == policy


@pytest.mark.parametrize(
    ("full", "wait_s", "spill", "text"),
    [
        ("wiat", None, None, "arena_full: expected 'wait', 'raise' or 'spill', got 'wiat': did you mean 'wait'?"),
        (True, None, None, "arena_full: expected 'wait', 'raise' or 'spill', got True (bool)"),
        (["wait"], None, None, "arena_full: expected 'wait', 'raise' or 'spill'"),
        ("raise", 1.0, None, "arena_wait_s: expected nothing, got 1.0 (float): leave it out"),
        (None, None, "/tmp", "arena_spill: expected nothing, with arena_full = 'wait', got '/tmp': add arena_full"),
        ("raise", None, "/tmp", "arena_spill: expected nothing, with arena_full = 'raise'"),
        ("spill", None, None, "arena_full: expected 'spill' together with a folder, got no folder: name one in arena"),
        (None, -0.1, None, "arena_wait_s: expected a number of seconds from 0 to 86400, got -0.1"),
        (None, float("nan"), None, "arena_wait_s: expected a number of seconds"),
        (None, float("inf"), None, "arena_wait_s: expected a number of seconds"),
        (None, "1", None, "arena_wait_s: expected a number of seconds from 0 to 86400, got '1'"),
        (None, True, None, "arena_wait_s: expected a number of seconds"),
        ("spill", None, "", "arena_spill: expected a folder, got ''"),
        ("spill", None, 7, "arena_spill: expected a folder, got 7 (int)"),
        ("spill", None, "a\0b", "arena_spill: expected a folder"),
        ("spill", None, "/" + "d" * 900, "arena_spill: expected a path of at most 900 bytes, got 901 bytes"),
    ],
)
def test_what_may_not(full: object, wait_s: object, spill: object, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        full_policy(full, wait_s, spill, HERE)
    assert str(caught.value).startswith(f"L1001 Node.{text}")


def test_a_config_file_says_the_same(tmp_path: Path) -> None:
    text = "[node]\narena_full = 'spill'\narena_wait_s = 2\narena_spill = 'big'"
    made = config.parse(text, "index.toml", tmp_path)
    assert made.arena_policy == FullPolicy("spill", 2.0, str(tmp_path / "big"))
    described = config.describe(made)
    assert (described["arena_full"], described["arena_wait_s"]) == ("spill", 2.0)
    assert described["arena_spill"] == str(tmp_path / "big")
    with pytest.raises(ConfigError, match=r"index\.toml: \$\.node\.arena_spill: .* which is not there: create it"):
        config.check_folders(made)
    (tmp_path / "big").mkdir()
    config.check_folders(made)
    with pytest.raises(ConfigError, match=r"index\.toml: \$\.node\.arena_full: expected 'wait', 'raise' or 'spill'"):
        config.parse("[node]\narena_full = 1", "index.toml")


def test_a_node_says_the_same(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Node\.arena_full: expected 'spill' together with a folder"):
        loom.Node(arena_full="spill")
    with pytest.raises(ConfigError, match=r"Node\.arena_spill: .*which is not there"):
        loom.Node(arena_full="spill", arena_spill=tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="which is a file"):
        loom.Node(arena_full="spill", arena_spill=str(tmp_path / "file"))


def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="permission denied"):
        check_spill(str(tmp_path))
    tmp_path.chmod(0o700)
