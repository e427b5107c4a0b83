"""The dashboard of load, latency and errors."""

from __future__ import annotations

from scripts.grafana.panels import DEVICES_TIME, OWN, Panel, Row, heat, mean, quantiles, rate

HTTP = '{job="octavo",instance=~"$instance"}'
"""Selects among metrics that have no label for the model."""

INTERVAL = "$__rate_interval"

SERVING = [
    Row(
        "Now",
        [
            Panel(
                "Engines that answer",
                {f"sum(octavo:engine_answers{OWN})": "answer"},
                kind="stat",
                width=4,
                text="Servers whose engine takes requests and answers them.",
            ),
            Panel(
                "Running",
                {f"sum(vllm:num_requests_running{OWN})": "running"},
                kind="stat",
                width=4,
            ),
            Panel(
                "Waiting",
                {f"sum(vllm:num_requests_waiting{OWN})": "waiting"},
                kind="stat",
                width=4,
                limits={10: "orange", 100: "red"},
            ),
            Panel(
                "Output tokens per second",
                {rate("vllm:generation_tokens_total"): "tokens/s"},
                kind="stat",
                width=4,
            ),
            Panel(
                "KV cache in use",
                {f"max(vllm:kv_cache_usage_perc{OWN})": "of the fullest"},
                unit="percentunit",
                kind="stat",
                width=4,
                limits={0.7: "orange", 0.85: "red"},
            ),
            Panel(
                "Failed",
                {
                    rate("vllm:request_success_total", extra='finished_reason=~"error|timeout"')
                    + f" / {rate('vllm:request_success_total')}": "share"
                },
                unit="percentunit",
                kind="stat",
                width=4,
                limits={0.01: "orange", 0.05: "red"},
                text="Share of ended requests with an error or a timeout.",
            ),
        ],
    ),
    Row(
        "Latency",
        [
            Panel(
                "Time to first token",
                {
                    **quantiles("vllm:time_to_first_token_seconds"),
                    "octavo:objective_ttft_p95_seconds": "objective for P95",
                },
                unit="s",
                text="From a request's arrival to its first token.",
            ),
            Panel(
                "Time between tokens",
                quantiles("vllm:inter_token_latency_seconds"),
                unit="s",
            ),
            Panel(
                "Whole requests",
                {
                    **quantiles("vllm:e2e_request_latency_seconds"),
                    "octavo:objective_e2e_p95_seconds": "objective for P95",
                },
                unit="s",
            ),
            Panel(
                "Where the time goes, mean",
                {
                    mean("vllm:request_queue_time_seconds"): "queue",
                    mean("vllm:request_prefill_time_seconds"): "prefill",
                    mean("vllm:request_decode_time_seconds"): "decode",
                },
                unit="s",
                stacks=True,
            ),
            Panel(
                "Time in the queue",
                quantiles("vllm:request_queue_time_seconds"),
                unit="s",
            ),
            Panel(
                "Time per output token, of each request",
                quantiles("vllm:request_time_per_output_token_seconds"),
                unit="s",
            ),
        ],
    ),
    Row(
        "Load",
        [
            Panel(
                "Requests",
                {
                    f"sum(vllm:num_requests_running{OWN})": "running",
                    f"sum by (reason) (vllm:num_requests_waiting_by_reason{OWN})": (
                        "waiting: {{reason}}"
                    ),
                },
                stacks=True,
            ),
            Panel(
                "Tokens per second",
                {
                    rate("vllm:prompt_tokens_by_source_total", "source"): "prompt: {{source}}",
                    rate("vllm:generation_tokens_total"): "output",
                },
            ),
            Panel(
                "KV cache in use",
                {f"vllm:kv_cache_usage_perc{OWN}": "{{instance}}"},
                unit="percentunit",
                limits={0.85: "red"},
            ),
            Panel(
                "Prefix cache: hit rate",
                {
                    f"{rate('vllm:prefix_cache_hits_total')} / "
                    f"{rate('vllm:prefix_cache_queries_total')}": "of prompt tokens"
                },
                unit="percentunit",
            ),
            Panel(
                "Preemptions and refusals per second",
                {
                    rate("vllm:num_preemptions_total"): "preempted",
                    rate("vllm:admission_rejections_total", "reason"): "refused: {{reason}}",
                },
            ),
            heat("Tokens per step", "vllm:iteration_tokens_total", "Steps by what they computed."),
        ],
    ),
    Row(
        "Requests",
        [
            Panel(
                "Ends per second",
                {rate("vllm:request_success_total", "finished_reason"): "{{finished_reason}}"},
                stacks=True,
            ),
            Panel(
                "HTTP answers per second",
                {
                    f"sum by (handler, status) (rate(http_requests_total{HTTP}[{INTERVAL}]))": (
                        "{{handler}} {{status}}"
                    )
                },
                stacks=True,
            ),
            Panel(
                "HTTP P95",
                {
                    "histogram_quantile(0.95, sum by (le) (rate("
                    f"http_request_duration_highr_seconds_bucket{HTTP}[{INTERVAL}])))": "all"
                },
                unit="s",
            ),
            heat("Prompts' tokens", "vllm:request_prompt_tokens", "Lengths of prompts."),
            heat("Outputs' tokens", "vllm:request_generation_tokens", "Lengths of outputs."),
            heat("max_tokens", "vllm:request_params_max_tokens", "What was asked for at most."),
        ],
    ),
    Row(
        "Engine",
        [
            DEVICES_TIME,
            Panel(
                "Steps per second",
                {rate("octavo:steps_total"): "steps"},
            ),
            Panel(
                "Restarts",
                {
                    f"sum(octavo:engine_restarts_total{OWN})": "engines",
                    f"sum(octavo:api_server_restarts_total{OWN})": "API servers",
                },
            ),
            Panel(
                "Step time",
                {
                    f"{rate('octavo:device_seconds_total')} / {rate('octavo:steps_total')}": (
                        "device"
                    ),
                    f"{rate('octavo:scheduler_seconds_total')} / {rate('octavo:steps_total')}": (
                        "scheduler"
                    ),
                },
                unit="s",
            ),
            Panel(
                "Memory of the API server",
                {f"process_resident_memory_bytes{HTTP}": "{{instance}}"},
                unit="bytes",
                text="Of servers with one API process; several share no such number.",
            ),
            Panel(
                "Blocks of the KV cache",
                {f"vllm:cache_config_info{OWN}": "{{num_gpu_blocks}} of {{block_size}} tokens"},
            ),
        ],
    ),
]
