"""`[health]`: how the servers are checked while no call tells."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from proxy.durations import LONGEST, SHORTEST, SecondsOrZero

Kind = Literal["auto", "grpc", "grpc_watch", "chat", "tcp", "off"]


class HealthSettings(BaseModel):
    """Active health checks of every endpoint.

    A server that hangs is passed over after at most `unhealthy_threshold` x (`interval` + `timeout`), 9 s by default;
    one that says NOT_SERVING at once where it can be watched, else with the next check.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "auto"
    """What a check is.

    - `grpc`: `grpc.health.v1.Health/Check` answers SERVING.
    - `grpc_watch`: the same, and `Watch` for instant news between the checks, where the server has it.
    - `chat`: `chat.ChatService/HealthCheck` answers `healthy`.
    - `tcp`: the port accepts a connection; the kernel does that also for a server that hangs.
    - `auto`: `grpc_watch`; where the server does not have that (or demands credentials for it) `chat`; else `tcp`.
      What worked is kept until a check fails.
    - `off`: no checks.
    """
    service: str = Field(default="", max_length=256)
    """The service that `grpc.health.v1` is asked about; empty: the server as a whole."""
    interval: float = Field(default=2.0, ge=0.01, le=LONGEST, allow_inf_nan=False)
    """Seconds between two checks of an endpoint. Each costs the proxy some 0.5 ms of CPU time."""
    unhealthy_interval: float = Field(default=1.0, ge=0.01, le=LONGEST, allow_inf_nan=False)
    """Seconds instead, while the endpoint is unhealthy or its last check failed."""
    interval_jitter_percent: float = Field(default=20.0, ge=0, le=50)
    """Each interval is shorter by up to this, by chance, so that the endpoints are not checked in step."""
    timeout: float = Field(default=1.0, ge=SHORTEST, le=3600, allow_inf_nan=False)
    """Seconds a check may take, connecting included."""
    unhealthy_threshold: int = Field(default=3, ge=1, le=1000)
    """Failed checks in a row that make an endpoint unhealthy. One is enough if no check has passed yet, or if the
    server itself says that it does not serve."""
    healthy_threshold: int = Field(default=2, ge=1, le=1000)
    """Passed checks in a row that make it healthy again. One is enough if none has passed before, or if the server had
    only said that it does not serve."""
    startup_timeout: SecondsOrZero = 2.0
    """Seconds the listener waits at most until every endpoint was checked once. Usually some milliseconds. Twice the
    timeout, so that a server that hangs has been found out; what is still unchecked then is taken for healthy."""
    max_concurrent_checks: int = Field(default=64, ge=1, le=10_000)
    """Checks under way at the same time, of all endpoints; more wait."""

    @model_validator(mode="after")
    def _looks_closer_at_the_unhealthy(self) -> Self:
        if self.unhealthy_interval > self.interval:
            # A hang would take longer to be noticed than the formula above says.
            raise ValueError(f"unhealthy_interval must be at most interval ({self.interval:g})")
        return self
