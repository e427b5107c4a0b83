"""One gateway's worth of requests against a budget that another process takes from, too.

Run by `test_budgets`: reserves a cent for each request, and uses all or half of it. Prints what it
spent, how often more than the budget was granted at a time, and how many requests were let in.
"""

from __future__ import annotations

import asyncio
import random
import sys

from octavo.errors import BudgetExceededError
from octavo.gateway.budgets import BudgetBook
from octavo.gateway.model import Amount
from tests.gateway.budget_stores import CENT, open_store, section_of
from tests.gateway.test_limits import call_of

NUM_REQUESTS = 100
CENTS = 50


async def main(kind: str, url: str) -> None:
    store = open_store(kind, url, timeout_s=60.0)
    book = BudgetBook(section_of(cents=CENTS, timeout_s=60.0), store)
    await book.state()  # connected
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    spent = num_over = num_let_in = 0

    async def request() -> None:
        nonlocal spent, num_over, num_let_in
        # As long as one more reserve fits beside what is spent, somebody gets it.
        while True:
            try:
                reservation = await book.reserve(call_of(), Amount(CENT))
            except BudgetExceededError:
                rows = await book.state()
                if float(str(rows[0]["cost"])) > (CENTS - 1) / 100:
                    return
                await asyncio.sleep(0.05)
                continue
            num_let_in += 1
            rows = await book.state()
            num_over += rows[0]["used_part"] + rows[0]["reserved_part"] > 1.0000001  # type: ignore[operator]
            used = CENT if random.random() < 0.7 else CENT // 2
            await reservation.settle(Amount(used))
            spent += used
            return

    await asyncio.gather(*(request() for _ in range(NUM_REQUESTS)))
    await book.close()
    await store.close()
    print(spent, num_over, num_let_in)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
