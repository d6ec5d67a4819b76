"""`[[endpoints]]`: the servers behind the proxy."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from proxy.cluster.address import Address, check_host


class EndpointSettings(BaseModel):
    """One server. Its `id`, not its address, decides its place on the ring: it may move without moving its chats."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=256)
    """Unique, stable name, without control characters."""
    address: str
    """`host:port`, an IPv6 host in brackets; or `unix:/path`."""
    weight: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)
    """Share of the ring relative to the others; `ring.virtual_nodes` x weight points."""
    check_address: str | None = None
    """`host:port` or `unix:/path` that is asked about its health. None: the address itself."""
    tls: bool = True
    """Whether connections to it are secured, if `[upstream.tls]` is there."""
    check_tls: bool | None = None
    """Whether its health checks are. None: as `tls` says."""
    server_name: str | None = Field(default=None, min_length=1, max_length=253)
    """The name that its certificate must have, and that it is told (SNI). None: `upstream.tls.server_name`, else the
    host of its address."""

    @field_validator("id")
    @classmethod
    def _can_be_printed(cls, value: str) -> str:
        # It stands in logs, on terminals and in metadata.
        if not value.isprintable():
            raise ValueError(f"a name has no line breaks or other control characters, got {value!r}")
        return value

    @field_validator("server_name")
    @classmethod
    def _is_a_host(cls, value: str | None) -> str | None:
        return value if value is None else check_host(value)

    @field_validator("address", "check_address")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None:
            address = Address.parse(value)
            if not address.path and address.port == 0:
                raise ValueError(f"a server needs its real port, got {value!r}")
        return value
