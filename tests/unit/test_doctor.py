"""What `loom-node doctor` makes of bad machines: facts in, findings out."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import pytest

from loom.actor.board import ROWS
from loom.cli.doctor import as_json, as_text
from loom.node import config, fitness, folder, machine
from loom.node.fitness import MIB, Finding, check
from loom.node.machine import Facts, look, remove_ipc
from loom.supervise.spec import check_name


def found(name: str, **facts: Any) -> Finding:
    (finding,) = (one for one in check(Facts(**facts)) if one.name == name)
    return finding


def test_nothing_is_amiss_with_a_good_machine() -> None:
    findings = check(Facts())
    assert {one.status for one in findings} == {"ok"}
    assert not any(one.remedy for one in findings)
    assert len({one.name for one in findings}) == len(findings) == len(fitness.CHECKS)


@pytest.mark.parametrize(
    ("name", "status", "facts", "text", "remedy"),
    [
        ("python", "problem", {"python": (3, 10, 14)}, "3.10.14", "Python 3.11"),
        ("native core", "problem", {"native_error": "no such symbol"}, "no such symbol", "reinstall"),
        ("kernel", "problem", {"kernel": "5.3.18-rc1"}, "5.3.18", "5.4"),
        ("kernel", "problem", {"kernel": "4.18.0-553.el8.x86_64"}, "4.18", "upgrade"),
        ("kernel", "problem", {"kernel": ""}, "Linux", "upgrade"),
        ("system calls", "problem", {"pidfd_error": "not implemented"}, "pidfd_open: not implemented", "seccomp"),
        ("system calls", "problem", {"memfd_error": "not permitted"}, "memfd_create: not permitted", "seccomp"),
        ("system calls", "problem", {"subreaper_error": "no"}, "PR_SET_CHILD_SUBREAPER: no", "seccomp"),
        ("/dev/shm", "problem", {"shm_size_bytes": None}, "there is none", "mount -t tmpfs"),
        ("/dev/shm", "problem", {"shm_error": "permission denied"}, "permission denied", "chmod 1777"),
        ("/dev/shm", "problem", {"shm_free_bytes": 4096}, "no node can start", "remove files"),
        ("/dev/shm", "warning", {"shm_size_bytes": 64 * MIB, "shm_free_bytes": 9 * MIB}, "as containers", "--shm-size"),
        ("/dev/shm", "warning", {"shm_free_bytes": 255 * MIB}, "255 MiB", "'arena' in [node]"),
        ("spill folder", "warning", {"spill": "/x", "spill_error": "no such folder"}, "/x: no such", "arena_spill"),
        (
            "spill folder",
            "warning",
            {"spill": "/x", "spill_free_bytes": 255 * MIB},
            "/x: 255 MiB free: less than the arena's 256 MiB",
            "free space there",
        ),
        (
            "spill folder",
            "warning",
            {"spill": "/x", "spill_free_bytes": 999 * MIB, "spill_kind": "btrfs"},
            "on btrfs, where a reservation need not hold",
            "ext4",
        ),
        (
            "spill folder",
            "warning",
            {"spill": "/x", "spill_free_bytes": 999 * MIB, "spill_kind": "tmpfs"},
            "which is memory too",
            "use a disk",
        ),
        ("RemoveIPC", "warning", {"remove_ipc": True}, "those of running nodes too", "enable-linger"),
        ("open files", "warning", {"files_soft": 1024, "files_hard": 4096}, "1024 open files", "ulimit -n 4096"),
        ("open files", "warning", {"files_soft": 1024, "files_hard": None}, "any number", "ulimit -n 4096"),
        ("open files", "warning", {"files_soft": 1024, "files_hard": 1024}, "at most 1024", "limits.conf"),
        (
            "processes",
            "warning",
            {"process_limits": (("RLIMIT_NPROC", 5000), ("pids.max", 100))},
            "at most 100, by pids.max",
            "--pids-limit",
        ),
        ("stacks", "warning", {"py_spy": False}, "say less", "pip install py-spy"),
        ("stacks", "warning", {"ptrace_scope": 2}, "ptrace_scope is 2", "sysctl kernel.yama.ptrace_scope=1"),
        ("runtime folder", "problem", {"folder_error": "not ours"}, "not ours", "XDG_RUNTIME_DIR"),
        ("runtime folder", "problem", {"folder": "/" + "a" * 100}, "107 bytes", "shorter"),
        ("runtime folder", "warning", {"folder": "/" + "a" * 60}, "32 letters", "shorter"),
        ("runtime folder", "warning", {"folder": "/tmp/loom-7"}, "XDG_RUNTIME_DIR=/run/user/1000", "unset"),
        ("dead nodes", "warning", {"remains": ("folder /x", "shared memory y")}, "/x, shared memory y", "next node"),
        ("dead nodes", "warning", {"remains_error": "denied"}, "denied", "above"),
    ],
)
def test_one_bad_fact_is_one_finding_with_a_remedy(
    name: str, status: str, facts: dict[str, Any], text: str, remedy: str
) -> None:
    finding = found(name, **facts)
    assert finding.status == status
    assert text in finding.found
    assert remedy in finding.remedy
    assert "\n" not in finding.found + finding.remedy
    others = [one.status for one in check(Facts(**facts)) if one.name != name]
    assert set(others) == {"ok"}


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("kernel", {"kernel": "5.4.0-150-generic"}),
        ("kernel", {"kernel": "6.18"}),
        ("python", {"python": (4, 0, 0)}),
        ("RemoveIPC", {"remove_ipc": True, "logind": False}),
        ("RemoveIPC", {"remove_ipc": True, "uid": 0}),
        ("RemoveIPC", {"remove_ipc": True, "uid": 999}),
        ("RemoveIPC", {"remove_ipc": True, "lingers": True}),
        ("open files", {"files_soft": None, "files_hard": None}),
        ("open files", {"files_soft": 4096}),
        ("processes", {"process_limits": (("kernel.pid_max", 32768),)}),
        ("memory limits", {"cgroup_error": "no cgroup v2 is mounted"}),
        ("stacks", {"ptrace_scope": 2, "uid": 0}),
        ("runtime folder", {"folder": "/tmp/loom-7", "runtime_dir": ""}),
        ("/dev/shm", {"shm_size_bytes": 512 * MIB, "shm_free_bytes": 256 * MIB}),
    ],
)
def test_what_only_looks_bad_is_fine(name: str, facts: dict[str, Any]) -> None:
    assert found(name, **facts).status == "ok"


def test_either_way_of_limiting_memory_is_named() -> None:
    assert "control groups (cgroup v2)" in found("memory limits").found
    assert found("memory limits", cgroup_error="it is not ours").found.endswith("a second: it is not ours")


def test_text_has_a_line_for_each_check_and_a_sum() -> None:
    findings = check(Facts(kernel="4.4", remove_ipc=True, files_soft=256))
    lines = list(as_text(findings))
    assert len(lines) == len(findings) + 3
    assert lines[-1] == "1 problem, 2 warnings"
    assert any(line.startswith("problem  kernel ") and "; Loom needs Linux 5.4" in line for line in lines)


def test_json_is_not_ok_with_a_problem_and_is_with_a_warning() -> None:
    assert as_json(check(Facts(remove_ipc=True)))["ok"] is True
    assert as_json(check(Facts(kernel="4.4")))["ok"] is False


def test_numbers_are_those_of_the_modules_that_own_them() -> None:
    assert fitness.DEFAULT_ARENA_BYTES == config.DEFAULT_ARENA_BYTES
    assert fitness.SOCKET_PATH_BYTES == folder.SOCKET_PATH_BYTES
    assert fitness.ACTORS == ROWS
    check_name("Node", "name", "n" * fitness.LONGEST_NAME)
    with pytest.raises(Exception, match="L1"):
        check_name("Node", "name", "n" * (fitness.LONGEST_NAME + 1))


# Gathering the facts


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, True),
        ({"etc/systemd/logind.conf": "[Login]\n#RemoveIPC=no\n"}, True),
        ({"etc/systemd/logind.conf": "[Login]\n RemoveIPC = no\n"}, False),
        ({"etc/systemd/logind.conf": "[Login]\nRemoveIPC=maybe\n"}, True),
        ({"usr/systemd/logind.conf": "RemoveIPC=off"}, False),
        ({"etc/systemd/logind.conf": "", "usr/systemd/logind.conf": "RemoveIPC=no"}, True),
        ({"etc/systemd/logind.conf": "RemoveIPC=no", "usr/systemd/logind.conf.d/a.conf": "RemoveIPC=1"}, True),
        ({"usr/systemd/logind.conf.d/a.conf": "RemoveIPC=no", "etc/systemd/logind.conf.d/a.conf": ""}, True),
        (
            {"etc/systemd/logind.conf.d/a.conf": "RemoveIPC=yes", "usr/systemd/logind.conf.d/b.conf": "RemoveIPC=0"},
            False,
        ),
        ({"etc/systemd/logind.conf.d/a.txt": "RemoveIPC=no"}, True),
    ],
)
def test_remove_ipc_is_read_as_systemd_reads_it(tmp_path: Path, files: dict[str, str], expected: bool) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert remove_ipc([tmp_path / "etc", tmp_path / "usr"]) is expected


def test_a_look_changes_nothing_and_finds_this_machine() -> None:
    prctl = ctypes.CDLL(None).prctl
    before, after = ctypes.c_int(), ctypes.c_int()
    prctl(machine._PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    descriptors = len(os.listdir("/proc/self/fd"))
    facts = look()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    prctl(machine._PR_GET_CHILD_SUBREAPER, ctypes.byref(after), 0, 0, 0)
    assert after.value == before.value
    assert facts.native_error == facts.pidfd_error == facts.memfd_error == facts.subreaper_error == ""
    assert facts.folder == str(folder.base())
    assert facts.uid == os.getuid()


def test_remains_are_found_and_left(tmp_path: Path) -> None:
    dead = folder.base() / "dead"
    dead.mkdir()
    facts = folder.Facts("dead", 2**22, 1, folder.boot_id(), "0123456789ab", "loom-none")
    folder.Folder(dead, -1).write(facts)
    unnamed = folder.base() / "starting"
    unnamed.mkdir()
    shared = Path(f"/dev/shm/loom-{os.getuid()}-feedfacecafe.ctl")
    shared.touch()
    try:
        left = folder.remains()
        assert f"folder {dead}" in left
        assert f"shared memory {shared.with_suffix('')}.*" in left
        assert not any("starting" in line for line in left)
        assert dead.exists()
        assert shared.exists()
    finally:
        shared.unlink(missing_ok=True)
        (dead / "facts").unlink()
        dead.rmdir()
        unnamed.rmdir()


def test_a_part_that_cannot_be_imported_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("/x/_native.abi3.so: undefined symbol:\n  PyFoo")

    monkeypatch.setattr(machine, "_try_native", broken)
    finding = check(look())[1]
    assert (finding.name, finding.status) == ("native core", "problem")
    assert "undefined symbol: PyFoo" in finding.found


def test_a_spill_folder_that_will_do() -> None:
    assert found("spill folder", spill="/x", spill_free_bytes=256 * MIB, spill_kind="ext4").status == "ok"
    assert found("spill folder", spill="/x", spill_free_bytes=5 * MIB, arena_bytes=5 * MIB).status == "ok"
    assert found("spill folder").status == "ok"


def test_the_facts_of_a_spill_folder(tmp_path: Path) -> None:
    facts = look(str(tmp_path), 4 * MIB)
    assert (facts.spill, facts.spill_error, facts.arena_bytes) == (str(tmp_path), "", 4 * MIB)
    about = os.statvfs(tmp_path)
    assert 0 < facts.spill_free_bytes <= about.f_blocks * about.f_frsize
    assert list(tmp_path.iterdir()) == []
    assert look("/dev/shm").spill_kind == "tmpfs"
    assert look("/proc").spill_kind == "proc"
    assert look("/proc").spill_error != ""
    assert look(str(tmp_path / "absent")).spill_error == "No such file or directory"
