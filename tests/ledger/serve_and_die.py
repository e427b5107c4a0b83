"""Writes records to a ledger as fast as it can and says which are durable; for tests that kill it.

    python serve_and_die.py URL PREFIX SPILL_FOLDER

Prints `ID` in a line of its own when a record is durable. The queue is so short that some records
are spilled, and are read in again; roll-ups go on beside.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.ledger import writer
from octavo.ledger.writer import LedgerWriter
from tests.ledger.records import usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.ledger.record import Entry


def tell(entries: Sequence[Entry]) -> None:
    os.write(1, "".join(f"{entry.request_id}\n" for entry in entries).encode())  # type: ignore[union-attr]


if __name__ == "__main__":
    url, prefix, folder = sys.argv[1:]
    writer._ROLL_UP_S = 0.05
    one = LedgerWriter(
        url, max_queue_len=60, batch_size=20, batch_s=0.002, on_durable=tell,
        spill_folder=Path(folder),
    )  # fmt: skip
    one.start()
    number = 0
    while True:
        for _ in range(100 if number % 1000 == 0 else 5):
            one.put(usage(f"{prefix}-{number}", time_ns=10**18 + number * 10**9))
            number += 1
        time.sleep(0.002)
