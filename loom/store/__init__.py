"""Tables that outlive processes: LMDB, opened once per process and never carried over a fork.

    store = Store.open(folder)                   # the same object for everybody in this process
    ages = Table(store, "ages", int)
    ages.put("ann", 41)                          # on disk when this returns
    store.write(lambda txn: [ages.put(name, age + 1, txn) for name, age in ages.items(txn)])

Any number of processes read and write one store at a time. `environment` is the files, `table` the typed rows.
"""

from loom.store.environment import Store, Transaction, make_folder
from loom.store.table import Table

__all__ = ["Store", "Table", "Transaction", "make_folder"]
