"""`[tracing]`: spans of calls. Apart from `tracing`, which needs the extra `otel`."""

from __future__ import annotations

import importlib.util
import re
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from proxy.durations import SHORTEST


class TracingSettings(BaseModel):
    """`[tracing]`: spans of calls, by OTLP over gRPC. Needs the extra `otel`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str = ""
    """The collector: `http://host:4317`, or `https://`. Empty: no spans. A traced call costs some 50 us more."""
    sample: int = Field(default=0, ge=0, le=1_000_000_000)
    """One call in so many that bring no `traceparent` begins a trace. 0: none. A call with a sampled `traceparent`
    always has a span; which calls those are, its client decides."""
    service_name: str = Field(default="districhat", min_length=1)
    """What the proxy is called in traces."""
    timeout: float = Field(default=5.0, ge=SHORTEST, le=60)
    """Seconds that the collector gets to take a batch."""

    @field_validator("endpoint")
    @classmethod
    def _is_a_url(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^/\s]+", value):
            raise ValueError("must be http://HOST:PORT or https://HOST:PORT")
        return value

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if self.endpoint and not _is_installed("opentelemetry.sdk"):
            raise ValueError("endpoint needs the extra otel: pip install '.[otel]' in a clone")
        return self


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # there is not even the package that it would be in
        return False
