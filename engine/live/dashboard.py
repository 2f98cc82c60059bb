"""The Grafana dashboard, made from rows of panels: ``python -m engine.live.dashboard > docs/grafana/moot.json``.

Every query names metrics of ``engine.live.metric_catalogue``; which Prometheus and which runs are asked about is chosen
in Grafana.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec

from engine.live.metric_catalogue import METRICS

WIDTH, HEIGHT, ACROSS = 8, 8, 3
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
OF_RUN = 'run=~"$run"'
EXPORTED = {name: exported for item in METRICS for name, exported in zip(item.series, item.exported, strict=True)}


class Panel(msgspec.Struct, frozen=True):
    """``queries``: legend -> PromQL."""

    title: str
    queries: dict[str, str]
    unit: str = "short"


def quantiles(metric: str, by: str) -> dict[str, str]:
    inside = f"sum by (le, {by}) (rate({EXPORTED[metric]}{{{OF_RUN}}}[$__rate_interval]))"
    return {f"{{{{{by}}}}} p{share}": f"histogram_quantile(0.{share}, {inside})" for share in (50, 99)}


def now(metric: str, by: str = "run") -> str:
    return f"sum by ({by}) ({EXPORTED[metric]}{{{OF_RUN}}})"


def most(metric: str, by: str) -> str:
    """Of what several hosts tell of one thing that they share."""
    return f"max by ({by}) ({EXPORTED[metric]}{{{OF_RUN}}})"


def rate(metric: str, by: str = "run") -> str:
    return f"sum by ({by}) (rate({EXPORTED[metric]}{{{OF_RUN}}}[$__rate_interval]))"


def over_all(metric: str, by: str) -> str:
    return f"sum by ({by}) (increase({EXPORTED[metric]}{{{OF_RUN}}}[$__range]))"


def share(part: str, whole: str, by: str) -> str:
    return f"{rate(part, by)} / {rate(whole, by)}"


ROWS: dict[str, tuple[Panel, ...]] = {
    "Overview": (
        Panel(
            "Debates",
            {
                name: now(f"moot_debates{suffix}")
                for name, suffix in {
                    "all": "",
                    "closed": "_closed",
                    "open": "_open",
                    "not begun": "_left",
                    "set aside": "_set_aside",
                }.items()
            },
        ),
        Panel("Replies a second", {"{{model}}": rate("moot_replies", "model")}, "reqps"),
        Panel(
            "Tokens a second",
            {"said": rate("moot_completion_tokens"), "read": rate("moot_prompt_tokens")},
        ),
    ),
    "What holds things up": (
        Panel(
            "Asks queued and in the model",
            {
                "{{model}} queued": now("moot_asks_queued", "model"),
                "{{model}} running": now("moot_asks_running", "model"),
            },
        ),
        Panel(
            "Before a limit",
            {
                "{{model}} {{gate}} waiting": most("moot_gate_waiting", "model, gate"),
                "{{model}} {{gate}} limit": most("moot_gate_limit", "model, gate"),
            },
        ),
        Panel("Until a service may be asked again", {"{{model}}": most("moot_gate_paused_seconds", "model")}, "s"),
        Panel("From a reply to what it enables", quantiles("moot_dispatch_seconds_bucket", "run"), "s"),
        Panel("Failed asks", {"{{model}} {{kind}}": rate("moot_failures", "model, kind")}, "reqps"),
        Panel(
            "Further tries",
            {"{{model}} again": rate("moot_retries", "model"), "{{model}} hedged": rate("moot_hedges", "model")},
            "reqps",
        ),
    ),
    "Agents and models": (
        Panel("Time to a reply", quantiles("moot_reply_seconds_bucket", "agent"), "s"),
        Panel("Replies, by agent", {"{{agent}}": rate("moot_reply_seconds_count", "agent")}, "reqps"),
        Panel(
            "Processes",
            {
                "{{model}} up": now("moot_hosts_up", "model"),
                "{{model}} started again": now("moot_host_restarts", "model"),
            },
        ),
    ),
    "Journal": (
        Panel(
            "Time of a commit",
            {"{{arena}}": share("moot_journal_commit_seconds", "moot_journal_commits", "arena")},
            "s",
        ),
        Panel("Entries in a commit", {"{{arena}}": share("moot_journal_entries", "moot_journal_commits", "arena")}),
        Panel("On disk", {"{{arena}}": now("moot_journal_bytes", "arena")}, "bytes"),
        Panel("Debates in an arena", {"{{arena}}": now("moot_arena_debates_open", "arena")}),
        Panel("Replies that came too late", {"{{arena}}": rate("moot_late_replies", "arena")}, "reqps"),
        Panel(
            "From a reply to what it enables, counted",
            {"{{arena}}": rate("moot_dispatch_seconds_count", "arena")},
            "reqps",
        ),
    ),
    "Engines": (
        Panel("Cache in use", {"{{host}}": most("moot_kv_usage", "host")}, "percentunit"),
        Panel(
            "Prefix found in the cache",
            {"{{host}}": share("moot_prefix_hits", "moot_prefix_queries", "host")},
            "percentunit",
        ),
        Panel("Asks in the model at most", {"{{host}}": now("moot_concurrency", "host")}),
    ),
    "Money": (
        Panel(
            "Spent",
            {"{{model}}": over_all("moot_cost_usd", "model"), "budget": most("moot_budget_spent_usd", "run")},
            "currencyUSD",
        ),
        Panel("Dollars an hour", {"{{agent}}": f"3600 * {rate('moot_cost_usd', 'agent')}"}, "currencyUSD"),
        Panel(
            "Not paid again",
            {
                "replies from the cache": rate("moot_reply_cache_hits"),
                "tokens from a prefix cache": rate("moot_cached_tokens"),
            },
        ),
    ),
    "Training": (
        Panel("Steps", {"{{agent}}": now("moot_training_steps", "agent")}),
        Panel("Rows", {"{{agent}}": now("moot_training_rows", "agent")}),
        Panel("Loss", {"{{agent}}": now("moot_training_loss", "agent")}),
    ),
}


def dashboard() -> dict[str, Any]:
    """As Grafana imports it."""
    panels, top = [], 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "gridPos": _place(top, 0, 24, 1)})
        for number, panel in enumerate(row):
            place = _place(top + 1 + number // ACROSS * HEIGHT, number % ACROSS * WIDTH, WIDTH, HEIGHT)
            panels.append(_panel(panel) | {"gridPos": place})
        top += 1 + -(-len(row) // ACROSS) * HEIGHT
    return {
        "uid": "moot",
        "title": "moot",
        "tags": ["moot", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_datasource(), _runs()]},
        "panels": [panel | {"id": number} for number, panel in enumerate(panels, 1)],
    }


def _place(top: int, left: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _panel(panel: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": query, "legendFormat": legend}
        for number, (legend, query) in enumerate(panel.queries.items())
    ]
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _runs() -> dict[str, Any]:
    """The runs that there are, the newest state of each; all of them unless some are chosen."""
    query = f"label_values({EXPORTED['moot_debates']}, run)"
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "run"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
