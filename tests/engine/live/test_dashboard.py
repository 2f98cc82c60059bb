"""The Grafana dashboard: as it is generated, with every metric of the catalogue in it and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from engine.live.dashboard import ROWS, dashboard, text
from engine.live.metric_catalogue import METRICS

FILE = Path(__file__).resolve().parents[3] / "docs" / "grafana" / "moot.json"
EXPORTED = {
    exported: labels for item in METRICS for exported, labels in zip(item.exported, item.series.values(), strict=True)
}


def expressions() -> list[str]:
    return [query for row in ROWS.values() for panel in row for query in panel.queries.values()]


def test_the_file_is_what_is_generated() -> None:
    assert FILE.read_text(encoding="utf-8") == text(), "run `python -m engine.live.dashboard > docs/grafana/moot.json`"


def test_the_queries_ask_for_every_metric_of_the_catalogue_and_no_other() -> None:
    asked = {name for query in expressions() for name in re.findall(r"\bray_moot_\w+", query)}
    assert asked == EXPORTED.keys()


def test_a_query_groups_by_labels_that_its_metrics_have() -> None:
    for query in expressions():
        names = re.findall(r"\bray_moot_\w+", query)
        for by in re.findall(r"by \(([^)]*)\)", query):
            for label in by.split(", "):
                assert all(label in EXPORTED[name] for name in names), query
        assert query.count("{") == query.count('run=~"$run"') == len(names), query
        assert query.count("(") == query.count(")") and query.count("{") == query.count("}"), query


def test_a_legend_shows_labels_that_its_query_keeps() -> None:
    for row in ROWS.values():
        for panel in row:
            for legend, query in panel.queries.items():
                kept = set(", ".join(re.findall(r"by \(([^)]*)\)", query)).split(", "))
                assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= kept, (panel.title, legend)


def test_it_can_be_imported_as_it_is() -> None:
    shown = json.loads(text())
    assert shown == dashboard() and "__inputs" not in shown and "id" not in shown
    assert [item["name"] for item in shown["templating"]["list"]] == ["datasource", "run"]
    panels: list[dict[str, Any]] = shown["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"} == {"${datasource}"}
    cells = [
        (place["x"] + x, place["y"] + y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < 24
