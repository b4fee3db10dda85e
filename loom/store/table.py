"""Table: rows of one type under text keys, as MessagePack, in order of their keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from loom.errors import StoreError, UsageError
from loom.store.environment import KEY_MAX_BYTES, Store, Transaction

Row = TypeVar("Row")
_Result = TypeVar("_Result")


class Table(Generic[Row]):
    """One table of a store. `row` is what its rows are: a msgspec.Struct, or any type that msgspec knows.

    Every method takes part in the transaction `txn` when it is given one, else it makes one of its own.
    Raises, from all of them: StoreError (L3004); UsageError (L1008) for a key that is empty or too long.
    """

    def __init__(self, store: Store, name: str, row: type[Row]) -> None:
        self.store = store
        self.name = name
        self._decoder = msgspec.msgpack.Decoder(row)
        self._encoder = msgspec.msgpack.Encoder()

    def get(self, key: str, txn: Transaction | None = None) -> Row | None:
        """The row, None when there is none."""
        raw = _key(key)

        def body(txn: Transaction, table: Any) -> Row | None:
            data = txn.handle.get(raw, db=table)
            return None if data is None else self._decode(key, data)

        return self._run(body, txn, write=False)

    def put(self, key: str, row: Row, txn: Transaction | None = None) -> None:
        """Write a row, over the one that was there."""
        raw, data = _key(key), self._encoder.encode(row)
        self._run(lambda txn, table: txn.handle.put(raw, data, db=table), txn, write=True)

    def delete(self, key: str, txn: Transaction | None = None) -> bool:
        """Delete a row; False when there was none. Works on rows that cannot be read, too."""
        raw = _key(key)
        return bool(self._run(lambda txn, table: txn.handle.delete(raw, db=table), txn, write=True))

    def keys(self, txn: Transaction | None = None) -> list[str]:
        """All keys in order."""

        def body(txn: Transaction, table: Any) -> list[str]:
            with txn.handle.cursor(db=table) as cursor:
                return [bytes(raw).decode(errors="backslashreplace") for raw in cursor.iternext(values=False)]

        return self._run(body, txn, write=False)

    def items(self, txn: Transaction | None = None) -> list[tuple[str, Row]]:
        """All keys and rows in order."""

        def body(txn: Transaction, table: Any) -> list[tuple[str, Row]]:
            with txn.handle.cursor(db=table) as cursor:
                pairs = [(bytes(raw).decode(errors="backslashreplace"), data) for raw, data in cursor]
                return [(key, self._decode(key, data)) for key, data in pairs]

        return self._run(body, txn, write=False)

    def _run(self, body: Callable[[Transaction, Any], _Result], txn: Transaction | None, *, write: bool) -> _Result:
        table = self.store.table(self.name, txn)
        if txn is not None:
            return body(txn, table)
        run = self.store.write if write else self.store.read
        return run(lambda txn: body(txn, table))

    def _decode(self, key: str, data: bytes) -> Row:
        try:
            return self._decoder.decode(data)
        except msgspec.DecodeError as error:
            text = f"{self.store.path}: the row {key!r} of {self.name!r} cannot be read: {error}: delete that row"
            raise StoreError(text) from None


def _key(key: str) -> bytes:
    raw = key.encode()
    if not 0 < len(raw) <= KEY_MAX_BYTES:
        raise UsageError(f"a key of a table: expected 1 to {KEY_MAX_BYTES} bytes, got {len(raw)}")
    return raw
