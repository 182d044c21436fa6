"""`Traces`: one OpenTelemetry span for each answered request, for whoever installed `legato[otel]` and asked for it.

Knows: the attributes that the conventions for generative models name. Does not know: where spans go: that is said by
OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_SERVICE_NAME.

A span tells times and counts, never what was said. It is made when the request has ended, so a token costs nothing.
"""

from __future__ import annotations

import time
from typing import Any

from legato import __version__
from legato.errors import UsageError
from legato.server.exchange import Exchange
from legato.server.routes import Route
from legato.server.service import Service

OPERATIONS = {"/v1/completions": "text_completion", "/api/generate": "text_completion"}


class Traces:
    """Spans of one server. `provider` is one that is set up already; None: OpenTelemetry's own, sending over HTTP."""

    def __init__(self, service: Service, provider: Any = None) -> None:
        self._service = service
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            provider = _exporting() if provider is None else provider
        except ImportError:
            raise UsageError("otel needs OpenTelemetry; pip install 'legato[otel]', or leave --otel out") from None
        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("legato", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def tell(self, exchange: Exchange, route: Route | None) -> None:
        """Called when a request has ended."""
        result = exchange.result
        if result is None or route is None:
            return
        ended = time.time()
        begun = ended - exchange.line.seconds
        sent = exchange.header(b"traceparent")
        parent = self._propagator.extract({"traceparent": sent.decode("latin-1")}) if sent is not None else None
        model = self._service.model.name
        operation = OPERATIONS.get(route.path, "chat")
        span = self._tracer.start_span(
            f"{operation} {model}",
            context=parent,
            kind=self._trace.SpanKind.SERVER,
            start_time=_ns(begun),
            attributes=self._attributes(exchange, route, operation, model),
        )
        timings = result.timings
        span.add_event("scheduled", timestamp=_ns(begun + timings.queue_ms / 1e3))
        if result.completion_tokens:
            span.add_event("first token", timestamp=_ns(begun + timings.ttft_ms / 1e3))
        if exchange.line.status >= 500 or result.error is not None:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(end_time=_ns(ended))

    def close(self) -> None:
        """Sends what has not been sent yet."""
        self._provider.shutdown()

    def _attributes(self, exchange: Exchange, route: Route, operation: str, model: str) -> dict[str, Any]:
        result, line = exchange.result, exchange.line
        assert result is not None
        timings, params = result.timings, result.completions[0].params
        reasons = [str(o.finish_reason) for _, o in result.choices if o.finish_reason is not None]
        found: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "legato",
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "gen_ai.response.finish_reasons": reasons,
            "gen_ai.response.time_to_first_chunk": timings.ttft_ms / 1e3,
            "gen_ai.usage.input_tokens": result.prompt_tokens,
            "gen_ai.usage.output_tokens": result.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": timings.cached_tokens,
            "http.request.method": route.method,
            "http.route": route.path,
            "http.response.status_code": line.status,
            "legato.request_id": exchange.request_id,
            "legato.queue_ms": timings.queue_ms,
            "legato.prefill_ms": timings.prefill_ms,
            "legato.decode_ms": timings.decode_ms,
            "legato.decode_tok_s": timings.decode_tok_s,
        }
        if params is not None:
            found["gen_ai.request.temperature"] = params.temperature
            found["gen_ai.request.top_p"] = params.top_p
            found["gen_ai.request.choice.count"] = params.n
            if params.max_tokens is not None:
                found["gen_ai.request.max_tokens"] = params.max_tokens
        if line.status >= 400:
            found["error.type"] = str(line.status)
        return found


def _exporting() -> Any:
    """Spans are gathered and sent from a thread of their own."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "legato", "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _ns(seconds: float) -> int:
    return int(1e9 * seconds)
