"""`[ring]`: how keys are spread over the endpoints."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_RING: Final = 8_388_608
"""Points of all endpoints together; Envoy's default for `maximum_ring_size`."""


class RingSettings(BaseModel):
    """Every proxy and every client that must agree on owners needs the same two values and the same endpoints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    virtual_nodes: int = Field(default=100, ge=1, le=10_000)
    """Points on the ring per unit of weight. More spread the load better and cost memory: at 8 servers 100 give a
    peak/mean of about 1.15, 512 give 1.07. All endpoints together have at most 8,388,608."""
    hash: Literal["murmur3", "crc32"] = "murmur3"
    """`crc32` places points and keys as the original Go system does."""
