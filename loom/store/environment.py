"""Store: one LMDB environment, as every process of a node shares it.

LMDB gives the promises: a write is there whole or not at all, whatever is killed at whichever instant; one writer at a
time, under a lock that the kernel takes back from a dead process; readers never wait. What it asks for in return is
kept here: one handle per process (a second would drop the locks of the first), none over a fork, a map that grows when
it is full and follows when somebody else grew it, and readers' slots freed that killed processes left.

Files of a store, all of its user alone: FOLDER/data.mdb and FOLDER/lock.mdb.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from loom.errors import StoreError, UsageError

MAP_BYTES = 1 << 20
"""What a new store may hold at first; it doubles whenever that is too little."""

MAX_TABLES = 32
MAX_READERS = 2048
"""Readers at one time: every actor of a node, and then some."""

ATTEMPTS = 64
"""As often as a write is tried again; by then the map is larger than any disk."""

KEY_MAX_BYTES = 511
"""LMDB's longest key."""

_Result = TypeVar("_Result")

_open: dict[Path, Store] = {}
_lock = threading.Lock()


class Transaction:
    """One consistent view of all tables; a writing one is committed whole when its body returns."""

    __slots__ = ("handle", "store")

    def __init__(self, store: Store, handle: Any) -> None:
        self.store = store
        self.handle = handle


class Store:
    """One open environment. Any thread may use it; its threads take turns."""

    def __init__(self, path: Path, durable: bool) -> None:
        """Use `Store.open`, which opens a folder once."""
        self.path = path
        self.is_durable = durable
        self._pid = os.getpid()
        self._turn = threading.RLock()
        self._users = 0
        self._is_running = False
        self._tables: dict[str, Any] = {}
        self._env: Any = None

    @classmethod
    def open(cls, folder: str | Path, *, durable: bool = True) -> Store:
        """The store in `folder`, made when there is none; opened already in this process, the same object again.

        `durable`: a write has reached the disk when it returns, so that it survives a power cut. Without, it survives
        the death of any process and of the node, and costs some 40 times less.
        Raises: StoreError (L3004) when it cannot be made, is not this user's alone, is full or corrupt.
        """
        path = Path(folder).absolute()
        with _lock:
            store = _open.get(path)
            if store is None:
                store = cls(path, durable)
                store._load()
                _open[path] = store
            store._users += 1
            return store

    def close(self) -> None:
        """Let go of it; the last of those who opened it in this process closes it."""
        with _lock:
            self._users -= 1
            if self._users > 0 or self._pid != os.getpid() or _open.get(self.path) is not self:
                return
            del _open[self.path]
        with self._turn:
            self._env.close()
            self._env = None
            self._tables.clear()

    def read(self, body: Callable[[Transaction], _Result]) -> _Result:
        """What `body` finds in one consistent view. Raises: StoreError (L3004)."""
        return self._run(body, write=False)

    def write(self, body: Callable[[Transaction], _Result]) -> _Result:
        """Run `body` and commit all that it wrote; nothing of it when it raises.

        It may be run more than once, when the map has to grow first: let it do nothing but read and write tables.
        Raises: StoreError (L3004), with the last committed state untouched.
        """
        return self._run(body, write=True)

    @property
    def size_bytes(self) -> int:
        """How large the file is, 0 when there is none yet."""
        try:
            return (self.path / "data.mdb").stat().st_size
        except OSError:
            return 0

    def table(self, name: str, txn: Transaction | None = None) -> Any:
        """LMDB's handle of a table, which is made when there is none; by `txn`, when one is under way."""
        with self._turn:
            self._check()
            if name in self._tables:
                return self._tables[name]
            if txn is not None:  # not kept: it is good only if that transaction is
                return self._env.open_db(name.encode(), txn=txn.handle)
            self._check_not_running()
            self._tables[name] = self._retried(lambda: self._env.open_db(name.encode()))
            return self._tables[name]

    # --- the environment ---

    def _load(self) -> None:
        make_folder(self.path)
        try:
            self._env = self._opened()
            self._env.reader_check()
            self._reserve()
        except (lmdb.Error, OSError, MemoryError) as error:
            raise self._failure(error) from None

    def _opened(self) -> Any:
        """The environment; one process at a time, so that a file cut short at its birth is known for what it is."""
        turn = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if 0 < self.size_bytes < 2 * mmap.PAGESIZE:  # less than LMDB's two heads: nothing was ever committed
                (self.path / "data.mdb").unlink()
            return lmdb.open(
                str(self.path),
                map_size=MAP_BYTES,
                mode=0o600,
                max_dbs=MAX_TABLES,
                max_readers=MAX_READERS,
                max_spare_txns=0,  # a reader's slot is given back at once, not kept for the next time
                sync=self.is_durable,
                metasync=self.is_durable,
            )
        finally:
            os.close(turn)

    def _reserve(self) -> None:
        """Make the file as long as its pages say: reading beyond the end of a cut-off one would be a SIGBUS."""
        data = self.path / "data.mdb"
        wanted = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        if data.stat().st_size < wanted:
            fd = os.open(data, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.posix_fallocate(fd, wanted - 1, 1)  # lengthens, and never shortens, whoever else is writing
            finally:
                os.close(fd)

    def _check(self) -> None:
        if self._pid != os.getpid():
            text = f"{self.path}: opened by process {self._pid}, inherited over a fork: open it anew, with Store.open"
            raise UsageError(text)
        if self._env is None:
            raise UsageError(f"{self.path}: the store is closed: open it anew, with Store.open")

    def _check_not_running(self) -> None:
        """LMDB would wait for itself, for ever."""
        if self._is_running:
            raise UsageError(f"{self.path}: a transaction within a transaction: hand the outer one down instead")

    def _run(self, body: Callable[[Transaction], _Result], *, write: bool) -> _Result:
        def attempt() -> _Result:
            with self._env.begin(write=write) as handle:
                return body(Transaction(self, handle))

        with self._turn:
            self._check()
            self._check_not_running()
            self._is_running = True
            try:
                return self._retried(attempt)
            finally:
                self._is_running = False

    def _retried(self, attempt: Callable[[], _Result]) -> _Result:
        """Its result; tried again where LMDB only wants something done first."""
        for _ in range(ATTEMPTS):
            try:
                return attempt()
            except lmdb.MapResizedError:
                self._map(0)  # another process made it larger: follow
            except lmdb.MapFullError:
                self._env.reader_check()  # what a killed reader looked at may be used again
                self._map(2 * self._env.info()["map_size"])
            except lmdb.ReadersFullError as error:
                if not self._env.reader_check():
                    raise self._failure(error) from None
            except lmdb.PanicError as error:  # a write that failed half-way: this handle is useless, not the file
                self._env.close()
                self._tables.clear()
                self._load()
                raise self._failure(error) from None
            except lmdb.Error as error:
                raise self._failure(error) from None
        raise StoreError(f"{self.path}: no room after the map grew {ATTEMPTS} times: write less at a time")

    def _map(self, size_bytes: int) -> None:
        try:
            self._env.set_mapsize(size_bytes)
        except (lmdb.Error, MemoryError) as error:
            raise self._failure(error, f"a map of {size_bytes:,} bytes") from None

    def _failure(self, error: Exception, what: str = "") -> StoreError:
        """What LMDB or the system said, with the numbers and what to do about it."""
        said = f"{what}: {error}" if what else str(error)
        text = f"{self.path}: {said}"
        if _is_full(error):
            about = os.statvfs(self.path)
            free = about.f_bavail * about.f_frsize
            return StoreError(
                f"{text}: no room, or a broken disk: {free:,} bytes are free there, the store has {self.size_bytes:,}; "
                "what was saved before is untouched: free some space, or set another 'state' in [node]"
            )
        if isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.PanicError)):
            return StoreError(
                f"{text}: the file is damaged: move the folder away ('mv {self.path} {self.path}.broken') to start "
                "with nothing, or put a copy of it back"
            )
        if isinstance(error, lmdb.VersionMismatchError):
            return StoreError(f"{text}: written by another version of LMDB: move the folder away to start with nothing")
        if isinstance(error, (MemoryError, lmdb.MemoryError)) or getattr(error, "errno", None) == errno.ENOMEM:
            return StoreError(f"{text}: no memory to map it: allow this process more address space")
        return StoreError(f"{text}: see that this user may read and write it")


def _is_full(error: Exception) -> bool:
    """Whether the disk has no room; LMDB names the system's errors in its text alone, and half a write is EIO to it."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    return isinstance(error, lmdb.DiskError) or any(os.strerror(code) in str(error) for code in codes)


def make_folder(path: Path) -> None:
    """Make the folder of a store. Raises: StoreError (L3004) when there can be none, or it is not this user's alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        about = path.stat()
    except OSError as error:
        text = f"{path}: cannot be made: {error.strerror}: set a 'state' in [node] that this user may write to"
        raise StoreError(text) from None
    uid = os.getuid()
    if about.st_uid != uid or about.st_mode & 0o077:
        raise StoreError(
            f"{path}: expected a folder of user {uid} with mode 0700, got one of user {about.st_uid} with mode "
            f"{stat.S_IMODE(about.st_mode):04o}: 'chmod 700' it, or set another 'state' in [node]"
        )


def _forked() -> None:
    """In the child of a fork: what the parent had open is no longer usable here."""
    global _lock
    _lock = threading.Lock()
    for store in _open.values():
        store._env.close()  # gives back descriptors and the map, nothing that the parent uses: its slots and locks have
    _open.clear()  # its pid


os.register_at_fork(after_in_child=_forked)
