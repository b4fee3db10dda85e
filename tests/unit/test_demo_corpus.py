"""Finding and reading files: what counts as one, what is left out, what changes in between."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest

from loom.edges.demo import corpus
from loom.edges.demo.corpus import FileKind, find, printable, read_files
from loom.errors import InputError


def may_read_everything() -> bool:
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0)
        return os.access(file.name, os.R_OK)


needs_permissions = pytest.mark.skipif(may_read_everything(), reason="root may read everything")


def texts(chunk: corpus.FileChunk) -> list[bytes]:
    pairs = zip(chunk.offsets[:-1], chunk.offsets[1:], strict=True)
    return [chunk.data[start:stop].tobytes() for start, stop in pairs]


def test_paths_are_relative_posix_and_sorted_as_strings(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a.txt", "a/b/c.txt", "B.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("word")
    found = find(tmp_path)
    assert found.paths == ("B.txt", "a.txt", "a/b/c.txt", "a/z.txt", "b.txt")
    assert found.sizes == (4,) * 5
    assert found.folder == str(tmp_path)
    assert found.left_out == ()


def test_patterns_are_globs_on_the_file_name(tmp_path: Path) -> None:
    for name in ("a.py", "b.PY", "c.txt", "d.md", "x.py/e.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("word")
    assert find(tmp_path, ["*.py"]).paths == ("a.py",)
    assert find(tmp_path, ["*.py", "[cd].*"]).paths == ("a.py", "c.txt", "d.md")
    assert find(tmp_path, ["?.md"]).paths == ("d.md", "x.py/e.md")


def test_a_relative_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("word")
    monkeypatch.chdir(tmp_path)
    assert find("sub").folder == str(tmp_path / "sub")
    assert find(".").paths == ("sub/a",)


def test_links_to_files_count_and_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "outside.txt").write_text("word")
    (inside / "file").symlink_to(tmp_path / "outside.txt")
    (inside / "folder").symlink_to(tmp_path)
    (inside / "loop").symlink_to(inside)
    (inside / "self").symlink_to("self")
    (inside / "nowhere").symlink_to("gone")
    found = find(inside)
    assert found.paths == ("file",)
    assert [path for path, _ in found.left_out] == ["nowhere", "self"]
    assert "leads nowhere" in found.left_out[0][1]


def test_pipes_sockets_and_devices_are_not_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("word")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    monkeypatch.chdir(tmp_path)  # a socket's path has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        found = find(tmp_path)
    assert found.paths == ("a",)
    assert found.left_out == ()


def test_a_pipe_in_the_place_of_a_file_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "a")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened a pipe"))
    chunk = read_files(str(tmp_path), ["a"])
    assert chunk.kinds.tolist() == [FileKind.UNREADABLE]
    assert chunk.errors == (("a", "no longer a regular file"),)


def test_a_pipe_that_takes_the_place_of_a_file_as_it_is_opened_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("word")
    opening = os.open

    def swapping(path: str, flags: int) -> int:
        os.unlink(path)
        os.mkfifo(path)
        assert flags & os.O_NONBLOCK, "this would wait for somebody to write"
        return opening(path, flags)

    monkeypatch.setattr(os, "open", swapping)
    assert read_files(str(tmp_path), ["a"]).errors == (("a", "no longer a regular file"),)


@pytest.mark.parametrize("limit", [0, 100, 8191, 8192, 8193, 30000])
def test_the_limit_itself_is_not_too_large(tmp_path: Path, limit: int) -> None:
    (tmp_path / "fits").write_bytes(b"x" * limit)
    (tmp_path / "huge").write_bytes(b"x" * (limit + 1))
    chunk = read_files(str(tmp_path), ["fits", "huge"], max_bytes=limit)
    assert chunk.kinds.tolist() == [FileKind.TEXT, FileKind.HUGE]
    assert texts(chunk) == [b"x" * limit, b""]
    assert find(tmp_path, max_bytes=limit).paths == ("fits",)


def test_huge_files_are_left_out_with_both_numbers(tmp_path: Path) -> None:
    (tmp_path / "fits").write_bytes(b"x" * 5000)
    (tmp_path / "huge").write_bytes(b"x" * 5001)
    found = find(tmp_path, max_bytes=5000)
    assert found.paths == ("fits",)
    assert found.left_out == (("huge", "5,001 bytes, the limit is 5,000"),)


@needs_permissions
def test_files_and_folders_without_permission_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("word")
    (tmp_path / "secret").write_text("word")
    (tmp_path / "secret").chmod(0)
    (tmp_path / "closed").mkdir(mode=0)
    found = find(tmp_path)
    assert found.paths == ("a",)
    assert found.left_out == (("closed/", "Permission denied"), ("secret", "Permission denied"))
    assert read_files(str(tmp_path), ["secret"]).errors == (("secret", "Permission denied"),)


def test_a_folder_that_cannot_be_listed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("word")
    (tmp_path / "sub").mkdir()
    listing = os.scandir

    def refusing(path: str) -> object:
        if path.endswith("sub/"):
            raise PermissionError(13, "Permission denied", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert find(tmp_path).left_out == (("sub/", "Permission denied"),)


def test_a_tree_deeper_than_the_stack_is_walked(tmp_path: Path) -> None:
    # As deep as one path may be long: the rest is left out with the system's reason, not with a traceback.
    (tmp_path / "top").write_text("word")

    here = os.open(tmp_path, os.O_RDONLY)

    def step(name: str) -> None:
        nonlocal here
        there = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there

    for _ in range(2500):
        os.mkdir("d", dir_fd=here)
        step("d")
    try:
        found = find(tmp_path)
    finally:
        for _ in range(2500):
            step("..")
            os.rmdir("d", dir_fd=here)
        os.close(here)
    assert found.paths == ("top",)
    assert [reason for _, reason in found.left_out] == ["File name too long"]


def test_names_that_are_no_utf8_survive_and_print(tmp_path: Path) -> None:
    name = b"na\xefve\n.txt"
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("word")
    found = find(tmp_path)
    assert [os.fsencode(path) for path in found.paths] == [name]
    assert texts(read_files(found.folder, found.paths)) == [b"word"]
    assert printable(found.paths[0]) == "na\\xefve\\n.txt"
    assert printable(found.paths[0]).encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain/päth \N{SNOWMAN}.txt", "plain/päth \N{SNOWMAN}.txt"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("tab\t", "tab\\t"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}txt.exe", "\\u202etxt.exe"),
        ("\udc80", "\\x80"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_printable_escapes_what_a_terminal_would_not_show(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", FileKind.TEXT),
        (b"\r\n", FileKind.TEXT),
        ("naïve".encode("latin-1"), FileKind.TEXT),
        ("word".encode("utf-16"), FileKind.BINARY),
        (b"\0", FileKind.BINARY),
        (b"x" * 8191 + b"\0", FileKind.BINARY),
        (b"x" * 8192 + b"\0", FileKind.TEXT),
        (b"x" * 20000, FileKind.TEXT),
    ],
)
def test_text_has_no_nul_in_its_first_8192_bytes(tmp_path: Path, content: bytes, kind: FileKind) -> None:
    (tmp_path / "a").write_bytes(content)
    chunk = read_files(str(tmp_path), ["a"])
    assert chunk.kinds.tolist() == [kind]
    assert texts(chunk) == [content if kind == FileKind.TEXT else b""]
    assert chunk.errors == ()


def test_a_chunk_holds_its_files_end_to_end(tmp_path: Path) -> None:
    for name, content in {"a": b"one", "b": b"", "c": b"\0binary", "d": b"two"}.items():
        (tmp_path / name).write_bytes(content)
    chunk = read_files(str(tmp_path), ["a", "b", "c", "missing", "d"])
    assert chunk.data.tobytes() == b"onetwo"
    assert chunk.data.dtype == np.uint8
    assert chunk.offsets.tolist() == [0, 3, 3, 3, 3, 6]
    assert chunk.offsets.dtype == np.int64
    assert chunk.kinds.tolist() == [FileKind.TEXT, FileKind.TEXT, FileKind.BINARY, FileKind.UNREADABLE, FileKind.TEXT]
    assert chunk.errors == (("missing", "No such file or directory"),)


def test_an_empty_chunk(tmp_path: Path) -> None:
    chunk = read_files(str(tmp_path), [])
    assert chunk.data.size == chunk.kinds.size == 0
    assert chunk.offsets.tolist() == [0]


def test_a_file_that_grew_or_vanished_since_it_was_found(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"word")
    found = find(tmp_path, max_bytes=20000)
    (tmp_path / "a").write_bytes(b"longer word" * 1000)
    (tmp_path / "b").write_bytes(b"x" * 20001)
    (tmp_path / "c").unlink()
    chunk = read_files(found.folder, found.paths, max_bytes=20000)
    assert texts(chunk) == [b"longer word" * 1000, b"", b""]
    assert chunk.kinds.tolist() == [FileKind.TEXT, FileKind.HUGE, FileKind.UNREADABLE]
    assert chunk.errors == (("b", "20,001 bytes, the limit is 20,000"), ("c", "No such file or directory"))


@pytest.mark.parametrize("grown", [9000, 50000])
def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grown: int) -> None:
    (tmp_path / "a").write_bytes(b"x" * 8500)
    reading = os.read
    reads: list[int] = []

    def growing(descriptor: int, size: int) -> bytes:
        reads.append(size)
        if len(reads) == 2:
            (tmp_path / "a").write_bytes(b"x" * grown)
        return reading(descriptor, size)

    monkeypatch.setattr(os, "read", growing)
    chunk = read_files(str(tmp_path), ["a"], max_bytes=10000)
    assert chunk.data.size == (9000 if grown == 9000 else 0)
    assert chunk.kinds.tolist() == [FileKind.TEXT if grown == 9000 else FileKind.HUGE]


def test_short_reads_are_not_the_end_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_bytes(bytes(range(1, 256)) * 100)
    (tmp_path / "binary").write_bytes(b"x" * 8191 + b"\0")
    reading = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: reading(descriptor, min(size, 1000)))
    chunk = read_files(str(tmp_path), ["text", "binary"])
    assert chunk.data.tobytes() == bytes(range(1, 256)) * 100
    assert chunk.kinds.tolist() == [FileKind.TEXT, FileKind.BINARY]


def test_reading_closes_every_file(tmp_path: Path) -> None:
    for name, content in {"a": b"word", "b": b"\0", "c": b"x" * 9000}.items():
        (tmp_path / name).write_bytes(content)
    before = os.listdir("/proc/self/fd")
    read_files(str(tmp_path), ["a", "b", "c", "missing"], max_bytes=8500)
    assert os.listdir("/proc/self/fd") == before


def test_the_default_folder_is_the_standard_library_without_what_was_installed_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Path(corpus.default_folder(), "asyncio", "base_events.py").is_file()
    for name in ("os.py", "site-packages/x.py", "sub/dist-packages/y.py", "sub/z.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("word")
    monkeypatch.setattr(corpus, "default_folder", lambda: str(tmp_path))
    assert find().paths == ("os.py", "sub/z.py")
    assert len(find(tmp_path).paths) == 4


@pytest.mark.parametrize(
    ("folder", "patterns", "text"),
    [
        ("missing", (), "no folder '{}/missing'"),
        ("a.txt", (), "'{}/a.txt' is not a folder"),
        ("a.txt/b", (), "'{}/a.txt/b' is not a folder"),
        ("bad\nname\udcff", (), "no folder '{}/bad\\nname\\xff'"),
        ("bad\0name", (), "expected a folder, got '{}/bad\\x00name'"),
        ("empty", (), "no text file below '{}/empty': there are no files at all"),
        (".", ("*.py",), "no text file named '*.py' below '{}': 2 files there have other names"),
        (
            ".",
            ("*.b", "*.c"),
            "no text file named '*.b' or '*.c' below '{}': 1 match, all of them binary or unreadable",
        ),
        (".", ("sub/*",), "pattern 'sub/*' has a '/'"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_clear_line(
    tmp_path: Path, folder: str, patterns: tuple[str, ...], text: str
) -> None:
    (tmp_path / "a.txt").write_text("word")
    (tmp_path / "a.b").write_bytes(b"\0")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        find(os.path.join(tmp_path, folder), patterns)
    assert text.format(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("L1009 ")


def test_only_binary_files_and_only_huge_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x\0")
    with pytest.raises(InputError, match="1 are there, all of them binary"):
        find(tmp_path)
    (tmp_path / "a").write_bytes(b"x" * 10)
    with pytest.raises(InputError, match="1 left out, the first is 'a': 10 bytes"):
        find(tmp_path, max_bytes=9)


def test_an_empty_name_is_no_folder() -> None:
    with pytest.raises(InputError, match="expected a folder, got ''"):
        find("")


@needs_permissions
def test_an_unreadable_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(InputError, match=r"cannot list the folder .*: Permission denied"):
        find(tmp_path / "closed")
