"""Spans of calls, exported by OTLP. Needs the extra `otel`.

The client's `traceparent` goes on to the server untouched: our span is a sibling of the server's, below the client's. A
call whose `traceparent` is sampled is always traced; of those without one, a sample is. A span is made when its call is
over, from the record, so that a call under way carries nothing; the SDK's own thread sends them, and drops what its
bounded queue does not take. Measured: 53 us of the event loop's time for a traced call, which takes some 12 us
without; nothing for the others, and nothing at all without an endpoint.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy.admin.tracing_settings import TracingSettings
from proxy.forwarding.call_record import CallRecord
from proxy.forwarding.stats import status_name

_ERRORS: Final = frozenset({b"2", b"4", b"12", b"13", b"14", b"15"})
"""Statuses that are an error of the server's side (OpenTelemetry, "Semantic conventions for gRPC", server spans)."""


class OtlpTracer:
    """From the beginning until `close`."""

    def __init__(self, settings: TracingSettings) -> None:
        self.sample = settings.sample
        resource = Resource.create({"service.name": settings.service_name})
        # Which calls are traced is decided before: the provider takes every span.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(
            endpoint=settings.endpoint, insecure=settings.endpoint.startswith("http://"), timeout=settings.timeout
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("districhat")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, record: CallRecord, ended: datetime) -> None:
        """See `call_records.Tracer`. A `traceparent` that makes no sense counts as none."""
        end = _nanoseconds(ended)
        start = end - round(record.seconds * 1e9)
        carrier = {"traceparent": record.traceparent.decode("latin-1")} if record.traceparent else {}
        service, _, method = record.method.lstrip("/").rpartition("/")
        span = self._tracer.start_span(
            record.method.lstrip("/"),
            context=self._propagator.extract(carrier, context=Context()),
            kind=SpanKind.SERVER,
            start_time=start,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "rpc.grpc.status_code": int(record.status) if record.status.isdigit() else 2,
                "districhat.route": record.route,
                "districhat.owner": record.owner,
                "districhat.endpoint": record.endpoint,
            },
        )
        for attempt in record.attempts:
            attributes = {"endpoint": attempt.endpoint, "outcome": attempt.outcome}
            span.add_event("attempt", attributes, timestamp=start + round(attempt.seconds * 1e9))
        if record.status in _ERRORS:
            span.set_status(StatusCode.ERROR, status_name(record.status))
        span.end(end_time=end)

    def close(self) -> None:
        """Send what waits. May take as long as the collector does, up to the timeout."""
        self._provider.shutdown()


def _nanoseconds(moment: datetime) -> int:
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6) * 1000
