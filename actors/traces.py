"""OpenTelemetry spans: one a debate, and below it one an ask, named as the GenAI semantic conventions name them.

A debate's trace id and the id of its span are made from the run's name and the debate's: whoever has an ask knows
below which span it belongs, so that nothing travels with it, and after a crash the asks of a resumed debate still stand
below the one span. Spans are made when what they tell of is over. Where they go is said by the ``OTEL_*`` variables of
each process's environment. What was asked and said is in none, unless
``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` is ``true``.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import msgspec

from protocols.errors import ConfigError
from protocols.graph import Debate
from protocols.message import Ask, Message, Outcome, Reply, TextPart

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
PROVIDERS = {  # by the end of a service's host name; the conventions' own names
    "api.openai.com": "openai",
    "openai.azure.com": "azure.ai.openai",
    "anthropic.com": "anthropic",
    "googleapis.com": "gcp.gemini",
    "deepseek.com": "deepseek",
    "groq.com": "groq",
    "mistral.ai": "mistral_ai",
    "perplexity.ai": "perplexity",
    "x.ai": "x_ai",
}
NS = 1_000_000_000


def check_traces() -> None:
    """Raises: ConfigError: what sends spans is not installed."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401
    except ImportError as err:
        raise ConfigError("run.traces=true needs OpenTelemetry: install moot[otel], or leave run.traces out") from err


def provider_name(backend: str, address: str = "") -> str:
    """Whose a model is, in the conventions' words where they have one."""
    host = address.partition(":")[0]
    return next((name for end, name in PROVIDERS.items() if f".{host}".endswith(f".{end}")), backend)


class Traces:
    """One process's spans of a run.

    Args:
        run: its name; the same one in all processes.
        provider: of the model whose asks are told; see ``provider_name``.
        model: as it is requested; default: as each reply names it.
        exporter: in place of the one that the environment names.
    """

    def __init__(self, run: str, *, provider: str = "", model: str = "", exporter: Any = None) -> None:
        self._run, self._provider, self._model = run, provider, model
        self._content = os.environ.get(CONTENT, "").lower() in ("true", "span_only", "span_and_event")
        self._ids = _ids()
        self._provider_of_spans = _make_provider(run, self._ids, exporter)
        self._tracer = self._provider_of_spans.get_tracer("moot")

    def debate(self, debate: Debate, began_s: float, ended_s: float, set_aside: str = "") -> None:
        """A debate is over; times are seconds since 1970. ``set_aside``: why it came to nothing."""
        from opentelemetry.context import Context
        from opentelemetry.trace import Status, StatusCode

        self._ids.next = _trace_id(self._run, debate.id), _span_id(self._run, debate.id)
        verdict = debate.verdict
        told: dict[str, Any] = {
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.workflow.name": debate.protocol,
            "gen_ai.conversation.id": debate.id,
            "moot.task": debate.task.id,
            "moot.utterances": len(debate.utterances),
        }
        if verdict is not None:
            told |= {"moot.stop_reason": verdict.stop_reason}
            if verdict.correct is not None:
                told["moot.correct"] = verdict.correct
        span = self._tracer.start_span(
            f"invoke_workflow {debate.protocol}", Context(), start_time=int(began_s * NS), attributes=told
        )
        if set_aside:
            span.set_status(Status(StatusCode.ERROR, set_aside))
        span.end(int(ended_s * NS))

    def ask(self, ask: Ask, outcome: Outcome, began_ns: int, ended_ns: int) -> None:
        """An ask is over, with all its tries; times are nanoseconds since 1970."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        model = self._model or getattr(outcome, "model", "")
        span = self._tracer.start_span(
            f"chat {model}".rstrip(),
            self._below(ask.debate_id),
            kind=SpanKind.CLIENT,
            start_time=began_ns,
            attributes=self._asked(ask, model) | _answered(outcome),
        )
        if span.is_recording():
            for attempt in outcome.attempts:
                span.add_event(
                    "try failed", {"error.type": attempt.kind, "moot.latency_s": attempt.latency_s}, ended_ns
                )
            if not isinstance(outcome, Reply):
                span.set_status(Status(StatusCode.ERROR, outcome.reason))
            if self._content:
                span.set_attributes(_content(ask, outcome))
        span.end(ended_ns)

    def _asked(self, ask: Ask, model: str) -> dict[str, Any]:
        sampling = ask.sampling
        told: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": self._provider,
            "gen_ai.request.model": model,
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.agent.name": ask.agent,
            "gen_ai.conversation.id": ask.debate_id,
            "gen_ai.output.type": "json" if ask.schema else "text",
            "moot.ask": ask.id,
            "moot.role": ask.role,
        }
        if sampling.stop:
            told["gen_ai.request.stop_sequences"] = sampling.stop
        if sampling.seed is not None:
            told["gen_ai.request.seed"] = sampling.seed
        return told

    def _below(self, debate_id: str) -> Any:
        """The context of a debate's span, sampled or not as that one will be."""
        from opentelemetry.sdk.trace.sampling import Decision
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

        trace_id = _trace_id(self._run, debate_id)
        decided = self._provider_of_spans.sampler.should_sample(None, trace_id, "").decision
        sampled = decided == Decision.RECORD_AND_SAMPLE
        flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
        return set_span_in_context(
            NonRecordingSpan(SpanContext(trace_id, _span_id(self._run, debate_id), is_remote=True, trace_flags=flags))
        )

    def close(self) -> None:
        """Send what is left; blocks for as long as the exporter's time limit."""
        self._provider_of_spans.shutdown()


def _answered(outcome: Outcome) -> dict[str, Any]:
    if not isinstance(outcome, Reply):
        return {"error.type": outcome.kind, "moot.tries": outcome.tries}
    told: dict[str, Any] = {
        "gen_ai.response.model": outcome.model,
        "gen_ai.response.finish_reasons": (outcome.finish_reason,),
        "gen_ai.usage.input_tokens": outcome.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": outcome.usage.completion_tokens,
        "moot.latency_s": outcome.latency_s,
        "moot.tries": outcome.tries,
    }
    extra = {
        "gen_ai.usage.cache_read.input_tokens": outcome.usage.cached_tokens,
        "gen_ai.usage.reasoning.output_tokens": outcome.usage.reasoning_tokens,
        "moot.adapter": outcome.adapter,
        "moot.cost_usd": outcome.cost_usd,
        "moot.cached": outcome.cached,
    }
    return told | {name: value for name, value in extra.items() if value}


def _content(ask: Ask, outcome: Outcome) -> dict[str, str]:
    told = {"gen_ai.input.messages": [_message(message) for message in ask.messages]}
    if isinstance(outcome, Reply):
        said = {"role": "assistant", "parts": [_text(outcome.text)], "finish_reason": outcome.finish_reason}
        told["gen_ai.output.messages"] = [said]
    return {name: msgspec.json.encode(messages).decode() for name, messages in told.items()}


def _message(message: Message) -> dict[str, Any]:
    parts = [
        _text(part.text)
        if isinstance(part, TextPart)
        else {"type": "uri", "modality": "image", "mime_type": part.media_type, "uri": f"sha256:{part.sha256}"}
        for part in message.parts
    ]
    return {"role": message.role, "parts": parts}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "content": text}


def _trace_id(run: str, debate_id: str) -> int:
    return _hash(run, debate_id, 16)


def _span_id(run: str, debate_id: str) -> int:
    return _hash(run, debate_id, 8)


def _hash(run: str, debate_id: str, size: int) -> int:
    text = f"{run}\x1f{debate_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=size).digest(), "big") or 1  # 0 is no id


def _ids() -> Any:
    """Random ids, but for a root span's, whose two are set just before."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        next: tuple[int, int] | None = None  # trace and span

        def generate_trace_id(self) -> int:
            return self.next[0] if self.next else super().generate_trace_id()

        def generate_span_id(self) -> int:
            given, self.next = self.next, None
            return given[1] if given else super().generate_span_id()

    return Ids()


def _make_provider(run: str, ids: Any, exporter: Any) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create(
        {"moot.run": run} | ({} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "moot"})
    )
    provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter or _exporter()))
    return provider


def _exporter() -> Any:
    """As the standard variables say: where to, with which headers, and how."""
    how = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if how == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

        return OverGrpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
