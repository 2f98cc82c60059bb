"""A training's figures as metrics: told at each checkpoint, by the worker that trains."""

from __future__ import annotations

from collections.abc import Mapping

NAMES = {"moot_training_steps": "step", "moot_training_rows": "rows_seen", "moot_training_loss": "loss"}
"""Metric -> figure. What they mean stands in ``engine.live.metric_catalogue`` with all others."""


def tell(adapter: str, figures: Mapping[str, float]) -> None:
    """``adapter``: ``<agent>@<run>-v<version>``, as it is named."""
    from ray.util.metrics import Gauge

    agent, _, rest = adapter.partition("@")
    for name, figure in NAMES.items():
        Gauge(name, f"{figure} of a training", ("run", "agent")).set(
            figures[figure], {"run": rest.rpartition("-v")[0], "agent": agent}
        )
