"""A run as those see it who watch from outside: Prometheus, a collector of spans, and whoever reads its logs."""

from __future__ import annotations

import json
import logging
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from engine.debates.cluster import few_processes
from engine.live.metric_catalogue import METRICS
from engine.live.progress import Progress
from engine.run import start
from tests.actors.test_traces import collected, collecting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

INTERVAL_S = 1  # between two reports of Ray's processes
RECIPE = """
name: seen
seed: 3
tasks: {source: arithmetic, level: mixed30, train: 12, test: 0}
models:
  fast: {backend: scripted, latency_s: 0.01}
  flaky: {backend: scripted, faults: {refused: 0.2, transient: 0.2}, limits: {backoff_s: 0.01}}
agents: {ada: {model: fast}, bo: {model: flaky}}
protocol: {name: society, rounds: 2}
cast: {generator: [ada, bo]}
run: {traces: true}
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """One run, its outcome, its folder, what Ray's endpoint says after it, and the spans that came in."""
    import ray

    folder = tmp_path_factory.mktemp("seen")
    (folder / "r.yaml").write_text(RECIPE)
    ours = logging.getLogger("moot")
    with collecting() as (address, bodies), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        with few_processes():  # as moot starts it
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                _system_config={"metrics_report_interval_ms": 1000 * INTERVAL_S},
            )
        try:
            outcome = start(
                "run", folder / "r.yaml", (), run_dir=folder / "r1", limit=None, progress=Progress(live=False)
            )
            yield {
                "outcome": outcome,
                "folder": folder / "r1",
                "metrics": scraped(ray.nodes()[0]),
                "spans": [span for body in bodies for span in collected(body)],
            }
        finally:
            ray.shutdown()
            for handler in list(ours.handlers):
                ours.removeHandler(handler)
                handler.close()
            ours.setLevel(logging.NOTSET)


def scraped(node: dict[str, Any]) -> list[str]:
    """What Prometheus reads from a node, once it is as it was in the end."""
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 60
    before: list[str] = []
    while time.monotonic() < deadline:
        with urllib.request.urlopen(url, timeout=10) as page:
            lines = [line for line in page.read().decode().splitlines() if line.startswith("ray_moot_")]
        if lines and lines == before and value(lines, "ray_moot_debates_closed") == 12:
            return lines
        before = lines
        time.sleep(2 * INTERVAL_S)
    raise AssertionError(f"{url}: {before}")


def value(lines: list[str], name: str, **labels: str) -> float:
    """The sum over the series that have these labels."""
    wanted = [f'{label}="{text}"' for label, text in labels.items()]
    found = [line for line in lines if line.startswith(name + "{") and all(item in line for item in wanted)]
    assert found, f"{name} {labels} is not there"
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def test_prometheus_reads_what_the_run_did(seen: dict[str, Any]) -> None:
    lines, outcome = seen["metrics"], seen["outcome"]
    assert value(lines, "ray_moot_debates", run="r1") == value(lines, "ray_moot_debates_closed", run="r1") == 12
    assert value(lines, "ray_moot_debates_open", run="r1") == value(lines, "ray_moot_asks_queued", run="r1") == 0
    did = outcome["hosts"]
    for model in ("fast", "flaky"):
        assert value(lines, "ray_moot_replies_total", run="r1", model=model) == did[model]["replies"]
    assert value(lines, "ray_moot_retries_total", model="flaky") == did["flaky"]["retries"] > 0
    assert value(lines, "ray_moot_failures_total", model="flaky", kind="refused") == did["flaky"]["failures"]["refused"]
    tokens = value(lines, "ray_moot_prompt_tokens_total") + value(lines, "ray_moot_completion_tokens_total")
    assert tokens == sum(sum(did[model]["usage"].values()) for model in did) > 0
    assert value(lines, "ray_moot_reply_seconds_bucket", agent="ada", le="+Inf") == did["fast"]["replies"]
    assert value(lines, "ray_moot_dispatch_seconds_count", run="r1") > 0
    assert value(lines, "ray_moot_journal_entries_total") > did["fast"]["replies"]
    assert value(lines, "ray_moot_journal_bytes") > 10_000


def test_all_names_are_those_of_the_catalogue(seen: dict[str, Any]) -> None:
    known = {name for item in METRICS for name in item.exported}
    told = {re.split(r"[ {]", line)[0] for line in seen["metrics"]}
    assert told <= known
    elsewhere = {"training", "gate", "budget", "kv", "prefix", "cache", "hedges", "cost", "cached", "late"}
    missing = {name for name in known - told if not elsewhere & set(name.split("_"))}
    assert missing == set(), "a run of this kind has a figure for these"


def test_every_debate_and_every_ask_is_one_span(seen: dict[str, Any]) -> None:
    spans: list[Span] = seen["spans"]
    debates = {span.span_id: span for span in spans if span.name == "invoke_workflow society"}
    asks = [span for span in spans if span.name.startswith("chat")]
    did = seen["outcome"]["hosts"]
    assert len(debates) == 12 and len({span.trace_id for span in debates.values()}) == 12
    assert len(asks) == sum(host["replies"] + sum(host["failures"].values()) for host in did.values())
    assert all(debates[ask.parent_span_id].trace_id == ask.trace_id for ask in asks)
    assert all(debates[ask.parent_span_id].start_time_unix_nano <= ask.end_time_unix_nano for ask in asks)


def test_the_logs_name_the_run_the_process_the_debate_and_the_agent(seen: dict[str, Any]) -> None:
    files = {path.name: path for path in (seen["folder"] / "logs").iterdir()}
    assert {"driver.jsonl", "host%20flaky.jsonl"} <= files.keys()
    told = [json.loads(line) for line in files["host%20flaky.jsonl"].read_text().splitlines()]
    failed = [line for line in told if " failed (" in line["message"]]
    assert len(failed) == sum(seen["outcome"]["hosts"]["flaky"]["failures"].values())
    assert Counter((line["run"], line["host"], line["agent"]) for line in failed) == {
        ("r1", "flaky", "bo"): len(failed)
    }
    assert all(line["debate"].startswith("debate/") for line in failed)
    driver = [json.loads(line)["message"] for line in files["driver.jsonl"].read_text().splitlines()]
    assert "debate: 12 debates" in driver
