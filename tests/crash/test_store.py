"""The store: rows, transactions, growth, forks, permissions, damaged files and full disks."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from loom.errors import StoreError, UsageError
from loom.store import Store, Table
from loom.store.environment import MAP_BYTES


class Person(msgspec.Struct):
    name: str
    age: int = 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    store = Store.open(folder, durable=False)
    yield store
    store.close()


@pytest.fixture
def people(store: Store) -> Table[Person]:
    return Table(store, "people", Person)


def in_another_process(folder: Path, code: str) -> str:
    """What another process, with `people` open there, prints."""
    head = (
        "import sys, os, msgspec\nfrom loom.store import Store, Table\n"
        "class Person(msgspec.Struct):\n    name: str\n    age: int = 0\n"
        "store = Store.open(sys.argv[1], durable=False)\npeople = Table(store, 'people', Person)\n"
    )
    done = subprocess.run([sys.executable, "-c", head + code, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rows_come_back_as_they_were_put(people: Table[Person]) -> None:
    people.put("b", Person("Bea", 40))
    people.put("a", Person("Änne", 41))
    people.put("b", Person("Bea", 42))
    assert people.get("b") == Person("Bea", 42)
    assert people.get("c") is None
    assert people.items() == [("a", Person("Änne", 41)), ("b", Person("Bea", 42))]
    assert people.keys() == ["a", "b"]
    assert (people.delete("a"), people.delete("a")) == (True, False)
    assert people.keys() == ["b"]


def test_tables_are_apart(store: Store, people: Table[Person]) -> None:
    ages = Table(store, "ages", int)
    ages.put("a", 7)
    assert people.get("a") is None
    assert ages.get("a") == 7


@pytest.mark.parametrize("key", ["", "k" * 512])
def test_a_key_that_lmdb_cannot_take_is_refused(people: Table[Person], key: str) -> None:
    with pytest.raises(UsageError, match="expected 1 to 511 bytes"):
        people.put(key, Person("X"))


def test_a_transaction_is_whole_or_not_at_all(store: Store, people: Table[Person]) -> None:
    people.put("a", Person("Anna"))

    def body(txn: object) -> None:
        people.put("a", Person("Other"), txn)  # type: ignore[arg-type]
        people.put("b", Person("Bea"), txn)  # type: ignore[arg-type]
        assert people.keys(txn) == ["a", "b"]  # type: ignore[arg-type]
        raise ValueError("changed my mind")

    with pytest.raises(ValueError, match="changed my mind"):
        store.write(body)
    assert people.items() == [("a", Person("Anna"))]


def test_a_new_table_within_a_transaction_is_good_only_if_that_is(store: Store) -> None:
    late = Table(store, "late", int)

    def body(txn: object) -> None:
        late.put("a", 1, txn)  # type: ignore[arg-type]
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        store.write(body)
    assert late.items() == []
    late.put("a", 2)
    assert late.get("a") == 2


def test_a_transaction_within_another_is_refused_and_not_waited_for(store: Store, people: Table[Person]) -> None:
    with pytest.raises(UsageError, match="hand the outer one down"):
        store.write(lambda txn: people.put("a", Person("Anna")))
    people.put("a", Person("Anna"))


def test_the_map_grows_when_it_is_full(people: Table[Person], store: Store) -> None:
    big = "x" * (3 * MAP_BYTES)
    people.put("big", Person(big))
    assert people.get("big") == Person(big)
    assert store.size_bytes > 3 * MAP_BYTES


def test_a_map_that_another_process_grew_is_followed(folder: Path, people: Table[Person]) -> None:
    in_another_process(folder, f"people.put('big', Person('x' * {5 * MAP_BYTES}))")
    found = people.get("big")
    assert found is not None
    assert len(found.name) == 5 * MAP_BYTES
    people.put("more", Person("y" * MAP_BYTES))
    assert in_another_process(folder, "print(people.keys())") == "['big', 'more']\n"


def test_a_folder_is_opened_once_in_a_process(folder: Path, store: Store) -> None:
    again = Store.open(str(folder), durable=False)
    assert again is store
    again.close()
    Table(store, "still", int).put("open", 1)


def test_a_closed_store_says_so(folder: Path) -> None:
    store = Store.open(folder, durable=False)
    table = Table(store, "t", int)
    store.close()
    with pytest.raises(UsageError, match="closed: open it anew"):
        table.get("a")
    anew = Store.open(folder, durable=False)
    assert Table(anew, "t", int).get("a") is None
    anew.close()


def test_a_handle_inherited_over_a_fork_refuses_and_a_new_one_works(folder: Path) -> None:
    text = in_another_process(
        folder,
        """
from loom.errors import UsageError
people.put("a", Person("Anna"))
pid = os.fork()
if pid == 0:
    try:
        people.get("a")
    except UsageError as error:
        print("inherited over a fork" in str(error))
    mine = Table(Store.open(sys.argv[1], durable=False), "people", Person)
    print(mine.store is not store, mine.get("a"))
    mine.put("b", Person("Bea"))
    mine.store.close()
    sys.stdout.flush()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
people.put("c", Person("Cleo"))
print(people.keys())
""",
    )
    assert text.splitlines() == ["True", "True Person(name='Anna', age=0)", "['a', 'b', 'c']"]


def test_everything_is_its_users_alone(folder: Path, store: Store) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {"store": 0o700, "data.mdb": 0o600, "lock.mdb": 0o600}


def test_a_folder_that_others_may_enter_is_refused(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o750)
    with pytest.raises(StoreError, match=r"L3004 .*mode 0700, got .* 0750: 'chmod 700' it"):
        Store.open(folder)


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be made: [A-Z][a-z ]+: set a 'state' in \[node\]"):
        Store.open(tmp_path / "file" / "store")


def test_a_row_that_cannot_be_read_is_named_and_can_be_deleted(folder: Path, store: Store) -> None:
    Table(store, "people", int).put("a", 3)
    people = Table(store, "people", Person)
    with pytest.raises(StoreError, match=r"the row 'a' of 'people' cannot be read: .*: delete that row"):
        people.get("a")
    assert people.delete("a")
    assert people.items() == []


@pytest.mark.parametrize("damage", ["garbage", "foreign"])
def test_a_file_that_is_none_of_lmdbs_is_an_error_with_a_remedy(folder: Path, damage: str) -> None:
    folder.mkdir(parents=True, mode=0o700)
    (folder / "data.mdb").write_bytes(os.urandom(65536) if damage == "garbage" else b"a config file\n" * 1000)
    with pytest.raises(StoreError, match=r"the file is damaged: move the folder away \('mv "):
        Store.open(folder)


def test_a_file_that_was_cut_off_is_an_error_and_no_bus_error(folder: Path) -> None:
    in_another_process(folder, "for n in range(200): people.put(f'{n:03}', Person('x' * 3000))")
    with (folder / "data.mdb").open("r+b") as file:
        file.truncate(64 * 1024)
    text = in_another_process(
        folder,
        """
from loom.errors import LoomError
seen = set()
for n in range(200):
    try:
        seen.add(type(people.get(f'{n:03}')).__name__)
    except LoomError as error:
        seen.add(error.code)
print(*sorted(seen))
""",
    )
    assert "L3004" in text
    assert set(text.split()) <= {"L3004", "Person"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", disk], check=False).returncode:
        pytest.skip("this user may not mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("durable", [True, False])
def test_a_full_disk_is_an_error_with_numbers_and_loses_nothing(small_disk: Path, durable: bool) -> None:
    store = Store.open(small_disk / "store", durable=durable)
    people = Table(store, "people", Person)
    people.put("kept", Person("Anna", 7))
    with pytest.raises(
        StoreError, match=r"no room, .*: [\d,]+ bytes are free there, the store has [\d,]+;.* free some"
    ) as e:
        people.put("big", Person("x" * (4 << 20)))
    assert "L3004" in str(e.value)
    assert people.items() == [("kept", Person("Anna", 7))]
    people.put("kept", Person("Anna", 8))  # the same handle goes on
    assert people.get("kept") == Person("Anna", 8)
    store.close()
    again = Store.open(small_disk / "store", durable=durable)
    assert Table(again, "people", Person).items() == [("kept", Person("Anna", 8))]
    again.close()


def test_a_file_that_may_not_grow_is_the_same(folder: Path) -> None:
    text = in_another_process(
        folder,
        """
import resource
from loom.errors import StoreError
people.put("kept", Person("Anna", 7))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
done = 0
try:
    for done in range(1000):
        people.put(f"{done}", Person("x" * 1000))
except StoreError as error:
    print("no room, or" in str(error), len(people.keys()) == done + 1, people.get("kept").age)
    people.delete("0")
    print(len(people.keys()) == done)
""",
    )
    assert text.split() == ["True", "True", "7", "True"]


def test_readers_slots_of_dead_processes_are_freed(folder: Path, store: Store, people: Table[Person]) -> None:
    """A reader killed in mid-transaction would keep every page it saw from being used again, for ever."""
    people.put("a", Person("x"))
    for _ in range(3):
        in_another_process(folder, "store.read(lambda txn: (people.keys(txn), os._exit(0)))")
    before = store.size_bytes
    people.put("grow", Person("x" * (2 * MAP_BYTES)))  # the map is full: slots are checked
    people.delete("grow")
    assert store._env.reader_check() == 0
    for _ in range(20):
        people.put("grow", Person("x" * (2 * MAP_BYTES)))
        people.delete("grow")
    assert store.size_bytes < before + 8 * MAP_BYTES
