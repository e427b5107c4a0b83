"""The slowest requests of the last minutes, of all API servers.

Each keeps the slowest of every minute, and puts the slowest of all onto the board for the others.
No text of a prompt or an answer is in it.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from octavo.protocol.dashboard import SlowRequest

if TYPE_CHECKING:
    from octavo.ledger.record import UsageRecord
    from octavo.observability.board_text import BoardText

NUM_MINUTES = 10
NUM_SHOWN = 20

_MINUTE_NS = 60 * 10**9

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[SlowRequest]).decode


class SlowRequests:
    """See the module. Bounded: `NUM_MINUTES` times `NUM_SHOWN` records.

    Args:
        text: where the other servers read.
    """

    def __init__(self, text: BoardText) -> None:
        self._text = text
        self._minutes: deque[tuple[int, list[tuple[int, int, UsageRecord]]]] = deque(
            maxlen=NUM_MINUTES
        )
        self._num_added = 0
        self._is_new = False

    def add(self, record: UsageRecord) -> None:
        """Take note of a request that has ended."""
        minute = record.time_ns // _MINUTE_NS
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append((minute, []))
        kept = self._minutes[-1][1]
        self._num_added += 1
        entry = (record.e2e_ns, self._num_added, record)  # the number decides between equals
        if len(kept) < NUM_SHOWN:
            heapq.heappush(kept, entry)
        elif entry > kept[0]:
            heapq.heapreplace(kept, entry)
        else:
            return
        self._is_new = True

    def publish(self, now_ns: int) -> None:
        """Let the other servers know."""
        if not self._text.has_readers or not self._is_new:
            return
        self._is_new = False
        own = self._own(now_ns)
        while len(text := _encode(own)) > self._text.max_bytes:
            own.pop()
        self._text.write(text)

    def newest(self, now_ns: int) -> list[SlowRequest]:
        """The slowest of all servers' requests, the slowest first."""
        since = _since(now_ns) / 1e9
        found = self._own(now_ns)
        for text in self._text.others():
            if text:
                found += [request for request in _decode(text) if request.ended_at >= since]
        return sorted(found, key=lambda request: -request.e2e)[:NUM_SHOWN]

    def _own(self, now_ns: int) -> list[SlowRequest]:
        since = _since(now_ns)
        entries = (entry for _, kept in self._minutes for entry in kept)
        return [
            _shown(record)
            for _, _, record in heapq.nlargest(
                NUM_SHOWN, (entry for entry in entries if entry[2].time_ns >= since)
            )
        ]


def _since(now_ns: int) -> int:
    return now_ns - NUM_MINUTES * _MINUTE_NS


def _shown(record: UsageRecord) -> SlowRequest:
    return SlowRequest(
        ended_at=record.time_ns / 1e9,
        request_id=record.request_id,
        route=record.route,
        feature=record.feature,
        model=record.model,
        ttft=None if record.ttft_ns is None else record.ttft_ns / 1e9,
        e2e=record.e2e_ns / 1e9,
        num_input_tokens=record.num_input_tokens,
        num_cached_tokens=record.num_cached_tokens,
        num_output_tokens=record.num_output_tokens,
        finish_reason=record.finish_reason,
        gpu_seconds=record.total_ns / 1e9,
        cost=record.cost_nano / 1e9 if record.hourly_rate_nano else None,
        currency=record.currency,
    )
