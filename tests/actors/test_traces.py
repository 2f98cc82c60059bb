"""Spans: what a debate and its asks look like to whoever collects them, across processes and restarts."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from actors.traces import CONTENT, Traces, provider_name
from protocols.graph import Debate, Verdict
from protocols.message import Ask, Attempt, Failure, Reply, Sampling, Usage, user
from protocols.task import Task

ASK = Ask(
    id="debate/t1#0.open.ada",
    debate_id="debate/t1",
    agent="ada",
    role="generator",
    messages=(user("What is 2 + 3?"),),
    sampling=Sampling(temperature=0.5, max_tokens=64, stop=("END",), seed=7),
)
REPLY = Reply(
    ask_id=ASK.id,
    text="It is 5.",
    model="gpt-x-2026",
    usage=Usage(11, 4, 8, 0, 2),
    latency_s=0.5,
    tries=2,
    attempts=(Attempt("transient", "status 500", 0.1),),
    cost_usd=0.25,
)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG", "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME", CONTENT):
        monkeypatch.delenv(name, raising=False)


def debate(*, closed: bool = True) -> Debate:
    task = Task(id="t1", question="What is 2 + 3?", gold=("5",))
    held = Debate(id="debate/t1", task=task, protocol="society", seed=0, cast={})
    if closed:
        held.close(Verdict(answer="5", stop_reason="rounds", aggregator="majority_vote", correct=True))
    return held


def spans(*, run: str = "r1", outcome: Any = REPLY, set_aside: str = "") -> list[ReadableSpan]:
    """Those of one ask at a host and of its debate at an arena, each in a process of its own."""
    told = InMemorySpanExporter()
    host = Traces(run, provider="openai", model="gpt-x", exporter=told)
    host.ask(ASK, outcome, 1_000, 2_000)
    host.close()
    of_host = told.get_finished_spans()
    told = InMemorySpanExporter()
    arena = Traces(run, exporter=told)
    arena.debate(debate(closed=not set_aside), 1.0, 3.0, set_aside)
    arena.close()
    return [*of_host, *told.get_finished_spans()]


def test_an_ask_is_a_child_of_its_debate_though_nothing_travels_between_them() -> None:
    ask, whole = spans()
    assert ask.context is not None and whole.context is not None and ask.parent is not None
    assert whole.parent is None
    assert (ask.parent.trace_id, ask.parent.span_id) == (whole.context.trace_id, whole.context.span_id)
    assert ask.context.trace_id == whole.context.trace_id and ask.context.span_id != whole.context.span_id
    assert (ask.start_time, ask.end_time) == (1_000, 2_000)
    assert (whole.start_time, whole.end_time) == (1_000_000_000, 3_000_000_000)


def test_a_resumed_debate_goes_on_below_the_same_span_and_another_run_has_its_own() -> None:
    (_, first), (again, _), (_, other) = spans(), spans(), spans(run="r2")
    assert first.context is not None and again.parent is not None and other.context is not None
    assert first.context.span_id == again.parent.span_id
    assert first.context.trace_id != other.context.trace_id


def test_spans_are_named_as_the_genai_conventions_say() -> None:
    ask, whole = spans()
    assert (ask.name, ask.kind, whole.name) == ("chat gpt-x", SpanKind.CLIENT, "invoke_workflow society")
    assert ask.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-x",
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.stop_sequences": ("END",),
        "gen_ai.request.seed": 7,
        "gen_ai.output.type": "text",
        "gen_ai.agent.name": "ada",
        "gen_ai.conversation.id": "debate/t1",
        "gen_ai.response.model": "gpt-x-2026",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 8,
        "gen_ai.usage.reasoning.output_tokens": 2,
        "moot.ask": ASK.id,
        "moot.role": "generator",
        "moot.latency_s": 0.5,
        "moot.tries": 2,
        "moot.cost_usd": 0.25,
    }
    assert [(event.name, (event.attributes or {})["error.type"]) for event in ask.events] == [
        ("try failed", "transient")
    ]
    told = dict(whole.attributes or {})
    assert (told["gen_ai.workflow.name"], told["moot.stop_reason"], told["moot.correct"]) == ("society", "rounds", True)
    assert whole.resource.attributes["service.name"] == "moot" and whole.resource.attributes["moot.run"] == "r1"


def test_what_failed_is_an_error() -> None:
    ask, whole = spans(
        outcome=Failure(ask_id=ASK.id, kind="timeout", reason="no reply within 3 s"), set_aside="no agent replied"
    )
    assert (ask.status.status_code, ask.status.description) == (StatusCode.ERROR, "no reply within 3 s")
    assert (ask.attributes or {})["error.type"] == "timeout"
    assert (whole.status.status_code, whole.status.description) == (StatusCode.ERROR, "no agent replied")


def test_what_was_said_is_told_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "2 + 3" not in "".join(span.to_json() for span in spans())
    monkeypatch.setenv(CONTENT, "true")
    ask, _ = spans()
    told = ask.attributes or {}
    assert told["gen_ai.input.messages"] == ('[{"role":"user","parts":[{"type":"text","content":"What is 2 + 3?"}]}]')
    assert told["gen_ai.output.messages"] == (
        '[{"role":"assistant","parts":[{"type":"text","content":"It is 5."}],"finish_reason":"stop"}]'
    )


@pytest.mark.parametrize("sampler", ["traceidratio", "parentbased_traceidratio"])
def test_a_debate_is_sampled_with_all_its_asks_or_not_at_all(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    numbers = [len(spans(run=f"r{number}")) for number in range(20)]
    assert set(numbers) == {0, 2}


@pytest.mark.parametrize(
    ("backend", "address", "name"),
    [
        ("openai", "api.openai.com", "openai"),
        ("azure", "mine.openai.azure.com:443", "azure.ai.openai"),
        ("openai", "generativelanguage.googleapis.com", "gcp.gemini"),
        ("anthropic", "api.anthropic.com", "anthropic"),
        ("openai", "127.0.0.1:8000", "openai"),
        ("vllm", "", "vllm"),
        ("openai", "max.ai", "openai"),
    ],
)
def test_a_provider_has_the_conventions_name(backend: str, address: str, name: str) -> None:
    assert provider_name(backend, address) == name


class _Collector(BaseHTTPRequestHandler):
    seen: list[bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def collecting() -> Iterator[tuple[str, list[bytes]]]:
    """A collector that speaks OTLP over HTTP: its address, and the bodies that came in."""
    seen: list[bytes] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Collector", (_Collector,), {"seen": seen}))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def collected(body: bytes) -> list[Span]:
    told = ExportTraceServiceRequest.FromString(body)
    return [span for resource in told.resource_spans for scope in resource.scope_spans for span in scope.spans]


def test_spans_go_where_the_standard_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as (address, bodies):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        traces = Traces("r1", provider="openai")
        traces.ask(ASK, REPLY, 1_000, 2_000)
        traces.close()
    (body,) = bodies
    assert [span.name for span in collected(body)] == ["chat gpt-x-2026"]
