"""`[listener]` and `[upstream]`: the two sides of the data path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from proxy.cluster.address import Address, check_host
from proxy.durations import Seconds, SecondsOrZero

TlsVersion = Literal["1.2", "1.3"]

MAX_WORKERS: Final = 128


class ListenerTlsSettings(BaseModel):
    """Clients must speak TLS, and HTTP/2 by ALPN. All files are PEM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    certificate: Path
    """The proxy's certificate and those that lead to its CA, in this order."""
    key: Path
    """Its private key, without a passphrase."""
    client_ca: Path | None = None
    """Clients must have a certificate of one of these CAs. None: they need none."""
    allowed_clients: tuple[str, ...] = ()
    """Names of which a client's certificate must have one, exactly: URIs, such as SPIFFE ids, or DNS names. Empty: any
    certificate of the CA will do."""
    min_version: TlsVersion = "1.2"
    """The oldest protocol that is spoken."""
    handshake_timeout: Seconds = 10.0
    """Seconds that a client has from its connect to the end of its handshake."""
    reload_interval: Seconds = 10.0
    """Seconds between two looks at the files. What has changed holds for new connections; none is dropped."""

    @model_validator(mode="after")
    def _names_need_a_ca(self) -> Self:
        if self.allowed_clients and self.client_ca is None:
            raise ValueError("allowed_clients needs client_ca: without it, clients show no certificate")
        return self


class UpstreamTlsSettings(BaseModel):
    """Connections to the servers are secured, and HTTP/2 by ALPN. All files are PEM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ca: Path
    """CAs of one of which each server must have a certificate."""
    certificate: Path | None = None
    """The proxy's own certificate, for servers that demand one, and those that lead to its CA, in this order."""
    key: Path | None = None
    """Its private key, without a passphrase."""
    server_name: str | None = Field(default=None, min_length=1, max_length=253)
    """The name that each server's certificate must have, and that it is told (SNI). None: the host of its address."""
    allowed_servers: tuple[str, ...] = ()
    """Names of which a server's certificate must have one, exactly: URIs, such as SPIFFE ids, or DNS names. They stand
    in for the server's own name, which is then only told (SNI). Empty: the server's name is what counts."""
    min_version: TlsVersion = "1.2"
    """The oldest protocol that is spoken."""
    reload_interval: Seconds = 10.0
    """Seconds between two looks at the files. What has changed holds for new connections; none is dropped."""

    @field_validator("server_name")
    @classmethod
    def _is_a_host(cls, value: str | None) -> str | None:
        return value if value is None else check_host(value)

    @model_validator(mode="after")
    def _a_certificate_has_a_key(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key must be given together")
        return self


class ListenerSettings(BaseModel):
    """The port clients connect to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = "127.0.0.1:50050"
    """`host:port`, where port 0 takes a free one; or `unix:/path`."""
    socket_mode: str = "0660"
    """Permissions of a unix socket, in octal: who may write to it may connect."""
    tls: ListenerTlsSettings | None = None
    """None: clients speak cleartext."""
    workers: int | Literal["auto"] = 1
    """Processes that carry calls, or "auto": one for each core. With more than one, a further process decides about the
    servers. Limits of calls hold for all together, of connections, buffers and chats for each. Linux only."""
    max_connections: int = Field(default=10_000, ge=1, le=1_000_000)
    """Client connections open at a time; further ones are turned away with GOAWAY(ENHANCE_YOUR_CALM)."""
    max_connections_per_client: int = Field(default=1_000, ge=1, le=1_000_000)
    """The same for one client address. Clients behind one gateway or on this host share an address."""
    max_concurrent_streams: int = Field(default=1000, ge=1, le=1_000_000)
    """Calls in flight per client connection; more are refused by the protocol, unharmed."""
    stream_window: int = Field(default=262_144, ge=1, le=16_777_216)
    """Bytes one call may have under way from the client that no server has taken yet."""
    max_header_list_size: int = Field(default=16_384, ge=1024, le=65_536)
    """Bytes of one call's request headers, with 32 a field; a call with more fails with RESOURCE_EXHAUSTED, one with
    twice as many ends the client's connection."""
    max_header_count: int = Field(default=100, ge=16, le=1024)
    """Fields of one call's request headers; a call with more fails with RESOURCE_EXHAUSTED, one with twice as many ends
    the client's connection."""
    max_first_message: int = Field(default=4_194_304, ge=1024, le=268_435_456)
    """Bytes of a first message that are searched for the key, compressed or not. Larger messages pass if the key
    comes earlier."""
    first_message_timeout: Seconds = 10.0
    """Seconds, or a quarter more, that the first message of a call may take where the route finds the key in it; later
    calls fail with DEADLINE_EXCEEDED."""
    max_premature_resets: int = Field(default=1_000, ge=1, le=1_000_000)
    """Streams that a connection may have reset at once before their response began and within a few seconds of their
    beginning; by the client, or by us because of the client. More ends the connection with ENHANCE_YOUR_CALM."""
    premature_resets_per_second: float = Field(default=100.0, gt=0, le=1_000_000)
    """How fast a connection earns further ones. Raise both for clients that speak for many, such as gateways."""
    max_glitches: int = Field(default=1_000, ge=1, le=1_000_000)
    """Nuisances that a connection may cause at once: frames that are unknown, empty or PRIORITY, malformed requests,
    streams beyond `max_concurrent_streams`; and, counted for themselves, changes of its SETTINGS. More ends the
    connection with ENHANCE_YOUR_CALM."""
    glitches_per_second: int = Field(default=100, ge=1, le=1_000_000)
    """How fast a connection earns further ones."""
    max_queued_acks: int = Field(default=1_000, ge=1, le=1_000_000)
    """Answers to PING and SETTINGS that may wait because the client does not read; more end its connection."""
    max_continuations: int = Field(default=8, ge=1, le=1_000)
    """CONTINUATION frames of one header block; more end the connection."""
    max_settings_entries: int = Field(default=32, ge=8, le=1_000)
    """Entries of one SETTINGS frame; more end the connection."""
    preface_timeout: Seconds = 10.0
    """Seconds from the accept until the client's HTTP/2 preface and SETTINGS are here. Like the timeouts below, it is
    noticed up to a quarter of the shortest of them late."""
    settings_timeout: Seconds = 10.0
    """Seconds a client has to acknowledge our SETTINGS; then SETTINGS_TIMEOUT."""
    frame_timeout: Seconds = 10.0
    """Seconds that a frame or a header block may take once its pieces trickle; then ENHANCE_YOUR_CALM."""
    stall_timeout: Seconds = 300.0
    """Seconds in which a client must take at least one of the bytes that wait for it, on every call; the call is reset
    otherwise on both sides. A client that reads nothing at all loses its connection. Who is slow does not stall."""
    idle_timeout: SecondsOrZero = 3600.0
    """Seconds without a call after which a client is asked to leave, by GOAWAY in two steps. 0: never."""
    max_connection_age: SecondsOrZero = 0.0
    """Seconds, 10 % more or less, after which a client is asked to connect afresh, by GOAWAY in two steps; its running
    calls finish. 0: never."""
    max_connection_age_grace: SecondsOrZero = 0.0
    """Seconds that running calls then get before they end with UNAVAILABLE. 0: as long as they take."""
    health: Literal["own", "forward"] = "own"
    """Who answers `grpc.health.v1.Health` for the empty service name: the proxy for itself, or a server."""
    drain_grace: SecondsOrZero = 30.0
    """Seconds that running calls get to finish after SIGTERM."""

    @field_validator("workers", mode="before")
    @classmethod
    def _is_a_number_or_auto(cls, value: object) -> object:
        # Before the two types are tried, as each would have something to say about every mistake.
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_WORKERS):
            return value
        raise ValueError(f'must be a whole number from 1 to {MAX_WORKERS}, or "auto"')

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        Address.parse(value)
        return value

    @field_validator("socket_mode")
    @classmethod
    def _is_octal(cls, value: str) -> str:
        if not re.fullmatch(r"0?[0-7]{3}", value):
            raise ValueError('must be permissions in octal, such as "0660"')
        return value


class UpstreamSettings(BaseModel):
    """The connections to the endpoints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tls: UpstreamTlsSettings | None = None
    """None: cleartext."""

    connect_timeout: Seconds = 5.0
    """Seconds until the server's first SETTINGS must have arrived."""
    connect_backoff: Seconds = 0.25
    """Seconds an endpoint is passed over after a failed connect; doubled each time, with jitter."""
    max_connect_backoff: Seconds = 5.0
    """Seconds at most between two tries to connect."""
    max_connections: int = Field(default=4, ge=1, le=64)
    """Connections per endpoint. A second is opened only when the first is at the server's stream limit."""
    stream_window: int = Field(default=262_144, ge=1, le=16_777_216)
    """Bytes one call may have under way from the server that the client has not taken yet."""
    max_header_list_size: int = Field(default=65_536, ge=1024, le=65_536)
    """Bytes of one response's headers or trailers, with 32 a field; more ends the connection to the server."""
    max_header_count: int = Field(default=1024, ge=16, le=65_536)
    """Fields of one response's headers or trailers; more ends the connection to the server."""
    max_waiting: int = Field(default=1024, ge=0, le=1_000_000)
    """Calls per endpoint that may wait for a connection or a free stream; more fail with RESOURCE_EXHAUSTED."""

    keepalive_interval: SecondsOrZero = 300.0
    """Seconds between two PINGs on a connection with calls under way, 0: none. gRPC servers end the connection of a
    client that pings more often than every 5 minutes while they have nothing to say, unless they are told otherwise."""
    keepalive_timeout: Seconds = 20.0
    """Seconds the server has to answer a PING."""
    tcp_user_timeout: SecondsOrZero = Field(default=20.0, le=86_400)
    """Seconds that bytes we sent may stay unacknowledged by the server's kernel before the connection counts as dead,
    0: as long as our kernel tries. Linux only."""
    max_connection_age: SecondsOrZero = 0.0
    """Seconds after which a connection is replaced, without disturbing its calls. 0: never."""

    @model_validator(mode="after")
    def _backs_off_upwards(self) -> Self:
        if self.max_connect_backoff < self.connect_backoff:
            raise ValueError(f"max_connect_backoff must be at least connect_backoff ({self.connect_backoff:g})")
        return self
