"""`[[endpoints]]`: the servers behind the proxy."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from proxy.cluster.address import Address


class EndpointSettings(BaseModel):
    """One server. Its `id`, not its address, decides its place on the ring: it may move without moving its chats."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=256)
    """Unique, stable name."""
    address: str
    """`host:port`; an IPv6 host in brackets."""
    weight: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)
    """Share of the ring relative to the others; `ring.virtual_nodes` x weight points."""
    check_address: str | None = None
    """`host:port` that is asked about its health. None: the address itself."""

    @field_validator("address", "check_address")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and Address.parse(value).port == 0:
            raise ValueError(f"a server needs its real port, got {value!r}")
        return value
