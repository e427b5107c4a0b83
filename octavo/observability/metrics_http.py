"""HTTP requests, under the names of prometheus-fastapi-instrumentator, which vLLM's server uses.

Routes are known beforehand, so every counter has a cell of its own. Series appear when they have
counted something. Probes and scrapes are not counted: they come every few seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.observability.histogram import Histogram
from octavo.observability.metrics_buckets import HTTP_BUCKETS, HTTP_FINE_BUCKETS
from octavo.observability.metrics_text import Family

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from octavo.observability.board import Board, Cells
    from octavo.observability.metrics_text import Labels, Value

NO_HANDLER = ("none", "other")
"""Handler and method of requests that no route took: their paths are anybody's invention."""

_NUM_CLASSES = 5


class _Route:
    """The counters of one handler and method: statuses, durations, sizes."""

    __slots__ = ("cells", "durations", "handler", "labels")

    def __init__(self, handler: str, method: str, board: Board) -> None:
        self.handler = handler
        self.labels = (("handler", handler), ("method", method))
        self.cells = board.take(_NUM_CLASSES + 2)
        self.durations = Histogram(HTTP_BUCKETS, board.take(Histogram.num_cells(HTTP_BUCKETS)))


class HTTPMetrics:
    """Counters of answered requests.

    Args:
        board: where to count.
        routes: paths as they are declared, and their methods; all servers of a board give the same.
    """

    def __init__(self, board: Board, routes: Iterable[tuple[str, str]]) -> None:
        self._fine = Histogram(
            HTTP_FINE_BUCKETS, board.take(Histogram.num_cells(HTTP_FINE_BUCKETS))
        )
        self._routes = {
            (handler, method): _Route(handler, method, board)
            for handler, method in (*routes, NO_HANDLER)
        }

    def observe(
        self,
        handler: str | None,
        method: str,
        status: int,
        seconds: float,
        sizes: tuple[int, int] = (0, 0),
    ) -> None:
        """Count an answered request.

        Args:
            handler: the route's path; None: there is none.
            method: the request's.
            status: the answer's, 100 to 599.
            seconds: from its arrival to the answer's end.
            sizes: bytes of the request's and the answer's body, as far as they said so.
        """
        method = "GET" if method == "HEAD" else method
        route = self._routes.get((handler or "", method)) or self._routes[NO_HANDLER]
        cells: Cells = route.cells[0]
        cells[status // 100 - 1] += 1
        cells[_NUM_CLASSES] += sizes[0]
        cells[_NUM_CLASSES + 1] += sizes[1]
        route.durations.observe(seconds)
        self._fine.observe(seconds)

    def families(self) -> Iterator[Family]:
        """What a scrape tells of it."""
        used = [(r, r.durations.count) for r in self._routes.values()]
        used = [(route, count) for route, count in used if count]
        requests: list[tuple[Labels, Value]] = []
        for route, _ in used:
            for index in range(_NUM_CLASSES):
                num = int(sum(cells[index] for cells in route.cells))
                if num:
                    requests.append(((*route.labels, ("status", f"{index + 1}xx")), num))
        yield Family("http_requests", "counter", "Answered requests.", requests)
        yield Family(
            "http_request_duration_highr_seconds",
            "histogram",
            "From arrival to the answer's end, seconds, in fine steps.",
            [((), self._fine)],
        )
        yield Family(
            "http_request_duration_seconds",
            "histogram",
            "From arrival to the answer's end, seconds, by handler.",
            [(route.labels, route.durations) for route, _ in used],
        )
        for index, what in ((_NUM_CLASSES, "request"), (_NUM_CLASSES + 1, "response")):
            sizes: dict[str, tuple[int, int]] = {}
            for route, count in used:
                before = sizes.get(route.handler, (0, 0))
                total = int(sum(cells[index] for cells in route.cells))
                sizes[route.handler] = (before[0] + count, before[1] + total)
            yield Family(
                f"http_{what}_size_bytes",
                "summary",
                f"Bytes of {what}s' bodies, as far as their headers told.",
                [((("handler", handler),), both) for handler, both in sizes.items()],
            )
