"""What a scrape of /metrics costs the API server's event loop, with everything in use.

    python benchmarks/cpu/scrape.py

All routes have answered, twice as many features as have names have spent, a request has ended;
alone and with four API servers on one board; in both text formats. Processor time, the best of 50:
what a scrape takes of the event loop when nobody else wants the core.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

from octavo.observability.board import Board
from octavo.observability.metrics import Metrics
from octavo.observability.metrics_usage import NUM_FEATURES
from octavo.server.routes import ENDPOINTS
from octavo.types import Delta, EngineInfo, EngineStats, KVCacheLayout

FORMATS = {"text": "", "OpenMetrics": "application/openmetrics-text; version=1.0.0"}
INFO = EngineInfo(
    architecture="a",
    dtype="bfloat16",
    device="cpu",
    vocab_size=8,
    max_model_len=131_072,
    kv_cache=KVCacheLayout(num_blocks=1024, block_size=16, bytes_per_block=1),
    startup_s={},
)


def full(board: Board) -> Metrics:
    """A server's metrics, all of them in use."""
    metrics = Metrics("model", EngineStats, board, info=INFO)
    routes = [(e.path, m) for e in ENDPOINTS if not e.is_operational for m in e.methods]
    http = metrics.track_http(routes)
    for path, method in routes:
        for status in (200, 404):
            http.observe(path, method, status, 0.2, (10, 20))
    for number in range(2 * NUM_FEATURES):
        metrics.observe_usage(
            SimpleNamespace(
                feature=f"feature-{number}",
                prefill_ns=10**9,
                decode_ns=10**9 * (number + 1),
                waste_ns=5,
                cost_nano=10**6,
                num_input_tokens=100,
                num_cached_tokens=50,
                num_output_tokens=20,
            )
        )
    timer = metrics.start_request(max_tokens=20)
    timer.on_delta(
        Delta(token_ids=[1], finish_reason="stop", num_output_tokens=1, queue_ns=1, prefill_ns=1)
    )
    return metrics


def main() -> None:
    """Print a table."""
    print(f"{'API servers':>11}  {'format':11}  {'samples':>7}  {'bytes':>7}  {'ms':>5}")
    for num in (1, 4):
        boards = [Board.private() if num == 1 else Board.shared(num)]
        boards += [Board.attached(boards[0].fd or 0, num, i) for i in range(1, num)]
        metrics = [full(board) for board in boards]
        for name, accept in FORMATS.items():
            body, _ = metrics[0].exposition(accept)
            times = []
            for _ in range(50):
                begin = time.process_time_ns()
                metrics[0].exposition(accept)
                times.append(time.process_time_ns() - begin)
            samples = sum(not line.startswith(b"#") for line in body.splitlines())
            took = min(times) / 1e6
            print(f"{num:11}  {name:11}  {samples:7}  {len(body):7}  {took:5.2f}")


if __name__ == "__main__":
    main()
