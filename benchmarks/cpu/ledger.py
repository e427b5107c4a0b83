"""What a ledger costs: `put`, the writer's records per second, bytes per record, reports, pruning.

    python benchmarks/cpu/ledger.py --records 10000000 --folder /tmp/ledger

Records are synthetic: 60 days, features, tenants, models and sessions of uneven sizes. They come in
past the writer (SQL makes them, 0.1 million a second), are rolled up and pruned by the code that
servers run, and what the reports say is compared with the sums of the raw rows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from random import Random
from statistics import median, quantiles
from time import perf_counter

from octavo.ledger.database import Connection, Database
from octavo.ledger.record import HOUR_NS, Outcome, UsageRecord
from octavo.ledger.rollup import roll_up
from octavo.ledger.store import open_ledger
from octavo.ledger.writer import LedgerWriter
from octavo.ledger.writes import insert_outcomes, insert_usage

FIRST_HOUR = 490_000
NUM_DAYS = 60
FEATURES = [f"feature-{i}" for i in range(12)]
TENANTS = [f"tenant-{i}" for i in range(50)]
MODELS = ["smollm2", "gemma3-270m", "qwen3-4b"]


def record(random: Random, number: int, time_ns: int) -> UsageRecord:
    return UsageRecord(
        request_id=f"{random.getrandbits(128):032x}",
        time_ns=time_ns,
        feature=FEATURES[int(random.paretovariate(1.0)) % len(FEATURES)],
        tenant=TENANTS[int(random.paretovariate(0.6)) % len(TENANTS)],
        key="default",
        session_id=f"session-{number // 5:09d}" if number % 2 else "",
        tags={"team": f"team-{number % 7}"},
        route="/v1/chat/completions",
        backend="octavo",
        model=random.choice(MODELS),
        prefill_ns=random.randrange(10**6, 10**8),
        decode_ns=random.randrange(10**7, 10**9),
        waste_ns=random.randrange(10**6),
        num_input_tokens=random.randrange(10, 4000),
        num_cached_tokens=random.randrange(10),
        num_output_tokens=random.randrange(1, 500),
        ttft_ns=random.randrange(10**7, 10**9),
        e2e_ns=random.randrange(10**8, 10**10),
        finish_reason=random.choice(["stop", "stop", "stop", "length", "abort"]),
        hourly_rate_nano=2_500_000_000,
    )


def time_puts(url: str, num: int) -> dict[str, float]:
    """Microseconds of `put` at 2,000 a second, and records per second of a burst."""
    random = Random(1)
    records = [record(random, i, FIRST_HOUR * HOUR_NS + i) for i in range(num)]
    writer = LedgerWriter(url, max_queue_len=num)
    writer.start()
    times = []
    for one in records[:4000]:
        begin = perf_counter()
        writer.put(one)
        times.append((perf_counter() - begin) * 1e6)
        time.sleep(0.0005)
    begin = perf_counter()
    for one in records[4000:]:
        writer.put(one)
    burst_put_s = perf_counter() - begin
    writer.wait_durable(600)
    burst_s = perf_counter() - begin
    writer.close()
    assert (writer.num_written, writer.num_spilled, writer.num_lost) == (num, 0, 0)
    cuts = quantiles(times, n=100)
    return {
        "put_us_median": round(median(times), 2),
        "put_us_p99": round(cuts[98], 2),
        "burst_put_us": round(burst_put_s / (num - 4000) * 1e6, 2),
        "writer_records_per_s": round((num - 4000) / burst_s),
    }


def fill(connection: Connection, num: int, base: int) -> None:
    """`num` records over `NUM_DAYS`, in order of time, out of `base` that Python makes.

    The rest are copies with other ids, sessions and times, made by SQLite itself.
    """
    random = Random(2)
    span_ns = NUM_DAYS * 24 * HOUR_NS
    first_ns = FIRST_HOUR * HOUR_NS
    insert_rows = [record(random, i, first_ns + i * span_ns // num) for i in range(base)]
    with connection.transaction():
        insert_usage(connection, insert_rows)
    names = [row[1] for row in connection.rows("PRAGMA table_info(usage)") if row[1] != "seq"]
    copied = {
        "request_id": "lower(hex(randomblob(16)))",
        "session_id": "CASE session_id WHEN '' THEN '' ELSE 'session-' || "
        "printf('%09d', substr(session_id, 9) + ? / 5) END",
        "time_ns": "time_ns + ?",
    }
    columns = ", ".join(f'"{name}"' for name in names)
    values = ", ".join(copied.get(name, f'"{name}"') for name in names)
    copy = f"INSERT INTO usage ({columns}) SELECT {values} FROM usage WHERE seq <= ?"
    for done in range(base, num, base):
        shift = done * span_ns // num
        # The marks stand in the order of the columns: the time first, then the session.
        with connection.transaction():
            connection.execute(copy, (shift, done, min(base, num - done)))


def add_outcomes(connection: Connection, num: int, num_records: int) -> None:
    """Outcomes of every so many sessions."""
    step = max(1, num_records // 5 // num)
    with connection.transaction():
        insert_outcomes(
            connection,
            [
                Outcome(
                    id=f"outcome-{i}", time_ns=FIRST_HOUR * HOUR_NS, name="resolved",
                    session_id=f"session-{i * step:09d}", success=i % 3 > 0,
                )
                for i in range(num)
            ],
        )  # fmt: skip


def timed(call: object, *args: object, repeats: int = 3, **kwargs: object) -> tuple[float, list]:
    """The median of some seconds, and the answer."""
    times = []
    for _ in range(repeats):
        begin = perf_counter()
        answer = call(*args, **kwargs)  # type: ignore[operator]
        times.append(perf_counter() - begin)
    return round(median(times), 3), answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--outcomes", type=int, default=100_000)
    parser.add_argument("--puts", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/octavo-ledger-bench"))
    parser.add_argument("--prune-records", type=int, default=100_000)
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    try:
        run(args)
    finally:
        shutil.rmtree(args.folder)


def run(args: argparse.Namespace) -> None:
    def say(**figures: object) -> None:
        print(json.dumps(figures), flush=True)

    small = args.folder / "puts.db"
    open_ledger(str(small)).close()
    say(**time_puts(str(small), args.puts))

    path = args.folder / "ledger.db"
    ledger = open_ledger(str(path))
    connection = Database(str(path)).connect()
    connection.execute("PRAGMA synchronous=OFF")  # for filling alone
    begin = perf_counter()
    fill(connection, args.records, min(50_000, args.records))
    add_outcomes(connection, args.outcomes, args.records)
    connection.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("PRAGMA synchronous=FULL")
    say(fill_s=round(perf_counter() - begin), bytes_per_record=path.stat().st_size // args.records)

    begin, pieces = perf_counter(), []
    while True:
        start = perf_counter()
        if not roll_up(connection):
            break
        pieces.append(perf_counter() - start)
    say(
        roll_up_records_per_s=round(args.records / (perf_counter() - begin)),
        roll_up_piece_s_median=round(median(pieces), 3),
        roll_up_piece_s_max=round(max(pieces), 3),
        hourly_rows=connection.rows("SELECT count(*) FROM usage_hourly")[0][0],
    )

    by = ["feature", "day"]
    seconds, lines = timed(ledger.totals, by)
    (raw,) = connection.rows("SELECT count(*), sum(cost_nano), sum(prefill_ns) FROM usage")
    sums = [
        sum(getattr(line, name) for line in lines)
        for name in ("num_requests", "cost_nano", "prefill_ns")
    ]
    assert sums == list(raw), (sums, raw)
    say(report_feature_day_s=seconds, lines=len(lines))
    week = ((FIRST_HOUR + 24 * 30) * HOUR_NS + 7, (FIRST_HOUR + 24 * 37) * HOUR_NS + 7)
    say(
        report_all_dimensions_s=timed(
            ledger.totals, ["feature", "tenant", "model", "day"], repeats=1
        )[0],
        report_a_week_with_parts_of_hours_s=timed(ledger.totals, by, *week)[0],
        report_a_week_by_tag_s=timed(ledger.totals, ["tag:team", "day"], *week, repeats=1)[0],
        report_outcomes_by_feature_s=timed(ledger.outcome_totals, ["feature"], repeats=1)[0],
        report_outcomes_of_a_week_s=timed(ledger.outcome_totals, ["feature"], *week, repeats=1)[0],
    )
    before = ledger.outcome_totals(["feature"])
    size = path.stat().st_size
    cut_ns = (FIRST_HOUR + NUM_DAYS * 24 * args.prune_records // args.records) * HOUR_NS
    begin = perf_counter()
    num = ledger.prune(cut_ns)
    seconds = perf_counter() - begin
    assert ledger.totals(by) == lines
    assert ledger.outcome_totals(["feature"]) == before
    # As many new records as were pruned find the room of the old ones.
    with connection.transaction():
        random = Random(3)
        end_ns = (FIRST_HOUR + NUM_DAYS * 24) * HOUR_NS
        insert_usage(connection, [record(random, i, end_ns + i) for i in range(num)])
    connection.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    say(
        prune_records_per_s=round(num / seconds),
        pruned=num,
        growth_after_as_many_new=round(path.stat().st_size / size - 1, 4),
    )
    ledger.close()
    connection.close()


if __name__ == "__main__":
    main()
