"""The dashboard of what requests cost."""

from __future__ import annotations

from scripts.grafana.panels import DEVICES_TIME, OWN, Panel, Row, rate, selected

FEATURE = 'feature=~"$feature"'

COST = [
    Row(
        "Spending",
        [
            Panel(
                "Per hour, now",
                {f"{rate('octavo:cost_total', 'currency')} * 3600": "{{currency}}"},
                unit="short",
                kind="stat",
                width=6,
            ),
            Panel(
                "In the last 24 hours",
                {
                    f"sum by (currency) (increase(octavo:cost_total{OWN}[1d]))": "{{currency}}",
                    "octavo:objective_cost_per_day": "budget",
                },
                unit="short",
                kind="stat",
                width=6,
            ),
            Panel(
                "Devices' time that requests used",
                {
                    rate("octavo:gpu_seconds_total", extra='bucket="requests"')
                    + f" / {rate('octavo:device_wall_seconds_total')}": "share"
                },
                unit="percentunit",
                kind="stat",
                width=6,
                text="The rest is idle time, start-up, and what the host needs between steps.",
            ),
            Panel(
                "Wasted",
                {
                    f"{rate('octavo:waste_seconds_total')} / "
                    f"clamp_min({rate('octavo:feature_gpu_seconds_total')}, 1e-9)": "share"
                },
                unit="percentunit",
                kind="stat",
                width=6,
                limits={0.05: "orange", 0.2: "red"},
                text="Of requests' device time: computed again after preemption.",
            ),
        ],
    ),
    Row(
        "By feature",
        [
            Panel(
                "Cost per hour",
                {f"{rate('octavo:feature_cost_total', 'feature', FEATURE)} * 3600": "{{feature}}"},
                unit="short",
                stacks=True,
                width=12,
            ),
            Panel(
                "Cost, in the time shown",
                {
                    "sort_desc(sum by (feature) (increase(octavo:feature_cost_total"
                    f"{selected(FEATURE)}[$__range])))": "{{feature}}"
                },
                unit="short",
                kind="bargauge",
                width=12,
            ),
            Panel(
                "Cost per request",
                {
                    f"{rate('octavo:feature_cost_total', 'feature', FEATURE)} / "
                    f"{rate('octavo:feature_requests_total', 'feature', FEATURE)}": "{{feature}}"
                },
                unit="short",
            ),
            Panel(
                "Cost per million output tokens",
                {
                    f"1e6 * {rate('octavo:feature_cost_total', 'feature', FEATURE)} / "
                    + rate(
                        "octavo:feature_tokens_total", "feature", f'{FEATURE},kind="output"'
                    ): "{{feature}}"
                },
                unit="short",
                text="All cost over output tokens: what prompts cost is in it.",
            ),
            Panel(
                "Requests per second",
                {rate("octavo:feature_requests_total", "feature", FEATURE): "{{feature}}"},
                stacks=True,
            ),
            Panel(
                "Devices' time: prefill and decode",
                {
                    rate("octavo:feature_gpu_seconds_total", "feature, phase", FEATURE): (
                        "{{feature}} {{phase}}"
                    )
                },
                unit="percentunit",
                stacks=True,
            ),
            Panel(
                "Input that the prefix cache had",
                {
                    rate("octavo:feature_tokens_total", "feature", f'{FEATURE},kind="cached"')
                    + " / "
                    + rate(
                        "octavo:feature_tokens_total", "feature", f'{FEATURE},kind="input"'
                    ): "{{feature}}"
                },
                unit="percentunit",
            ),
            Panel(
                "Wasted device time",
                {rate("octavo:feature_waste_seconds_total", "feature", FEATURE): "{{feature}}"},
                unit="percentunit",
                stacks=True,
            ),
        ],
    ),
    Row(
        "Devices and records",
        [
            DEVICES_TIME,
            Panel(
                "Devices",
                {f"sum(octavo:num_devices{OWN})": "devices"},
            ),
            Panel(
                "Usage records per second",
                {
                    rate("octavo:ledger_records_written_total"): "written",
                    rate("octavo:ledger_records_spilled_total"): "spilled",
                    rate("octavo:ledger_records_lost_total"): "lost",
                },
            ),
        ],
    ),
]
