"""The race for a budget, and what reserving costs: 200 requests at once for a budget for 50.

    python benchmarks/cpu/gateway_budgets.py --rounds 5

For each store, in one process and in two: how many requests were granted of those that fit, how
much more than the budget was ever granted (never anything), and how much of it was left when
somebody was refused (never one request's reserve). Then, in one process: how long one reserve and
its settling take, how many of them a second 64 requests at a time get done, and the longest that
the event loop stood still meanwhile. Needs Debian's PostgreSQL and Redis; without them these are
left out.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from octavo.errors import BudgetExceededError  # noqa: E402
from octavo.gateway.budgets import BudgetBook  # noqa: E402
from octavo.gateway.budgets_redis import RedisStore  # noqa: E402
from octavo.gateway.budgets_sql import SqlStore  # noqa: E402
from octavo.gateway.budgets_store import MemoryStore, Store  # noqa: E402
from octavo.gateway.config_budgets import Budget, BudgetsSection  # noqa: E402
from octavo.gateway.model import Amount, Call  # noqa: E402
from octavo.ledger.store import open_ledger  # noqa: E402
from tests.gateway.redis_server import BINARY, RedisServer  # noqa: E402
from tests.ledger.postgres import PostgresServer, find_binaries  # noqa: E402

CENT = 10**7
NUM_FIT = 50
CALL = Call(
    request_id="r", arrived=0.0, route="chat", path="/v1/chat/completions", model="m", body={}
)


def open_store(kind: str, url: str) -> Store:
    """The store of a kind."""
    if kind == "memory":
        return MemoryStore()
    return RedisStore(url, "bench", timeout_s=60.0) if kind == "redis" else SqlStore(url)


def book_of(kind: str, url: str, name: str, cost: Decimal) -> BudgetBook:
    """One budget for all, without alerts."""
    budget = Budget(cost=cost, per=(), period="total", alerts=())
    section = BudgetsSection(rules={name: budget}, timeout_s=60.0, lease_s=3600.0)
    return BudgetBook(section, open_store(kind, url))


async def race(kind: str, url: str, name: str, num: int) -> tuple[int, int]:
    """Ask for a cent `num` times at once, and use all or half of it; what was granted and spent.

    Who is refused asks again while what others may give back could let it in.
    """
    book = book_of(kind, url, name, Decimal(NUM_FIT).scaleb(-2))
    await book.state()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    num_over = spent = 0

    async def request() -> None:
        nonlocal num_over, spent
        while True:
            try:
                reservation = await book.reserve(CALL, Amount(CENT))
            except BudgetExceededError:
                row = (await book.state())[0]
                if Decimal(str(row["cost"])) * 10**9 > (NUM_FIT - 1) * CENT:
                    return
                await asyncio.sleep(0.02)
                continue
            row = (await book.state())[0]
            taken = Decimal(str(row["cost"])) + Decimal(str(row["cost_reserved"]))
            num_over += taken * 10**9 > NUM_FIT * CENT
            used = random.choice((CENT, CENT, CENT // 2))
            await reservation.settle(Amount(used))
            spent += used
            return

    await asyncio.gather(*(request() for _ in range(num)))
    await book.close()
    await book.store.close()
    return spent, num_over


def races(kind: str, url: str, num_processes: int, rounds: int) -> None:
    """Rounds of `race`, in processes that start at once."""
    worst_left = num_over = 0
    begin = time.perf_counter()
    for number in range(rounds):
        name = f"race-{num_processes}-{number}"
        workers = [
            subprocess.Popen(
                [sys.executable, __file__, "--worker", kind, url, name, str(200 // num_processes)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for _ in range(num_processes)
        ]  # fmt: skip
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        results = [worker.communicate()[0].split() for worker in workers]
        left = NUM_FIT * CENT - sum(int(result[0]) for result in results)
        assert 0 <= left < CENT, f"{left / CENT} reserves are left"
        worst_left = max(worst_left, left)
        num_over += sum(int(result[1]) for result in results)
    assert not num_over
    seconds = (time.perf_counter() - begin) / rounds
    print(
        f"  {kind:11}{num_processes} process(es): overspent 0 of {rounds} rounds, at most "
        f"{worst_left / CENT:.1f} of a reserve left unspent, {seconds:.1f} s a round with the start"
    )


async def costs(kind: str, url: str, num: int) -> None:
    """How long reserving takes."""
    book = book_of(kind, url, "costs", Decimal(10**6))

    async def once() -> tuple[float, float]:
        begin = time.perf_counter()
        reservation = await book.reserve(CALL, Amount(CENT))
        middle = time.perf_counter()
        await reservation.settle(Amount(CENT))
        return middle - begin, time.perf_counter() - middle

    await once()
    alone = [await once() for _ in range(min(num, 500))]
    stalls: list[float] = []

    async def watch() -> None:
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(0.001)
            stalls.append(time.perf_counter() - begin - 0.001)

    watching = asyncio.create_task(watch())
    left = iter(range(num))
    begin, cpu = time.perf_counter(), time.process_time()

    async def lane() -> None:
        for _ in left:
            await once()
            await asyncio.sleep(0)  # memory waits for nothing

    await asyncio.gather(*(lane() for _ in range(64)))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    watching.cancel()
    reserves, settles = (sorted(one[index] * 1e3 for one in alone) for index in (0, 1))
    print(
        f"  {kind:11}reserve p50 {reserves[len(reserves) // 2]:.3f} ms, p99 "
        f"{reserves[len(reserves) * 99 // 100]:.3f} ms; settle p50 "
        f"{settles[len(settles) // 2]:.3f} ms; 64 at a time: {num / seconds:,.0f} requests/s, "
        f"{1e6 * cpu / num:.0f} us of CPU each; "
        f"loop stood still for {max(stalls) * 1e3:.1f} ms at most"
    )
    await book.close()
    await book.store.close()


def main() -> None:
    """Run it all, or one worker of a race."""
    logging.disable()
    if sys.argv[1:2] == ["--worker"]:
        kind, url, name, num = sys.argv[2:]
        print(*asyncio.run(race(kind, url, name, int(num))))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python "
          f"{platform.python_version()}, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        open_ledger(str(path)).close()
        urls = {"memory": "", "sqlite": f"sqlite:///{path}"}
        servers: list[PostgresServer | RedisServer] = []
        if (binaries := find_binaries()) is not None:
            postgres = PostgresServer(binaries)
            servers.append(postgres)
            urls["postgresql"] = postgres.new_ledger()
        if BINARY is not None:
            redis = RedisServer()
            servers.append(redis)
            urls["redis"] = redis.url
        try:
            for kind, url in urls.items():
                for num_processes in (1,) if kind == "memory" else (1, 2):
                    races(kind, url, num_processes, options.rounds)
            for kind, url in urls.items():
                asyncio.run(costs(kind, url, options.requests))
        finally:
            for server in servers:
                server.remove()


if __name__ == "__main__":
    main()
