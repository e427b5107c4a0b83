"""kill -9 while records come in: what was acknowledged is there, once.

`LEDGER_KILLS=20 pytest tests/ledger/test_kill.py` for more than the two kills of every day.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from octavo.ledger.database import Database
from octavo.ledger.store import open_ledger
from octavo.ledger.writer import LedgerWriter

NUM_KILLS = int(os.environ.get("LEDGER_KILLS", "2"))
ROOT = Path(__file__).parents[2]


def test_no_acknowledged_record_is_lost_or_doubled(ledger_url: str, tmp_path: Path) -> None:
    chance = random.Random()
    told: list[str] = []
    for number in range(NUM_KILLS):
        # Two processes at a time, as API servers are; both are killed, at different moments.
        children = [start(ledger_url, f"{number}{name}", tmp_path) for name in "ab"]
        for child in children:
            assert child.stdout is not None
            told.append(child.stdout.readline().strip())  # it is at work
        for child in children:
            time.sleep(chance.uniform(0.0, 0.4))
            child.kill()
        for child in children:
            said, _ = child.communicate()
            lines = said.split("\n")
            told += lines[:-1]  # the last one may be cut
    last = LedgerWriter(ledger_url, spill_folder=tmp_path)
    last.start()
    end = time.monotonic() + 30
    while list(tmp_path.glob("*.spill")):
        assert time.monotonic() < end
        time.sleep(0.02)
    last.close()
    assert last.num_lost == 0
    connection = Database(ledger_url).connect()
    ids = [row[0] for row in connection.rows("SELECT request_id FROM usage")]
    (rolled,) = connection.rows("SELECT sum(num_requests) FROM usage_hourly")[0]
    connection.close()
    assert len(told) == len(set(told)) > 50 * NUM_KILLS
    assert len(ids) == len(set(ids))
    assert set(told) <= set(ids)
    assert rolled > 0  # roll-ups were killed too
    with open_ledger(ledger_url) as ledger:
        (total,) = ledger.totals()
        assert total.num_requests == len(ids)
        ledger.roll_up()
        assert ledger.totals() == [total]
    print(f"{NUM_KILLS} kills, {len(told)} acknowledged, {len(ids)} found")


def start(url: str, prefix: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.ledger.serve_and_die", url, prefix, str(folder)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
