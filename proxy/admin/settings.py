"""`[admin]`: the operator's port."""

from __future__ import annotations

import ipaddress
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from proxy.cluster.address import Address

MIN_TOKEN = 16
"""Characters of the shortest token accepted: 16 of base64 are 96 bits."""


class AdminSettings(BaseModel):
    """`[admin]`: where operators, dashboards and Prometheus ask, and who may."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = "127.0.0.1:9901"
    """`host:port`; port 0 takes a free one, which the log names. Empty or false: no admin server. If the default is
    taken, the proxy runs without and goes on trying; an address that was given must be free."""
    token: SecretStr = SecretStr("")
    """What clients send as `Authorization: Bearer TOKEN`, 16 characters at least. Empty: nobody needs one, which is
    only accepted on a loopback address. `/livez` and `/readyz` never ask for it."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names that a browser may reach the port by (the Host header, without port), where no token is set. The
    address itself and localhost always are; all others are refused, as that is how a web page would reach it by DNS
    rebinding."""
    cache_stats: bool = True
    """Ask the servers for their cache statistics (`chat.ChatService/GetCacheStats`, which reference servers have) while
    somebody looks at them. Others are asked once a minute at most, and say that they do not know it."""
    max_watchers: int = Field(default=64, ge=1, le=10_000)
    """Streams of events open at the same time; more are refused."""

    @field_validator("address", mode="before")
    @classmethod
    def _false_is_empty(cls, value: object) -> object:
        return "" if value is False else value

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value and Address.parse(value).path:
            raise ValueError(f"the admin server has no unix sockets: expected host:port, got {value!r}")
        return value

    @field_validator("token")
    @classmethod
    def _is_long_enough(cls, value: SecretStr) -> SecretStr:
        token = value.get_secret_value()
        if token and len(token) < MIN_TOKEN:
            raise ValueError(f"a token needs {MIN_TOKEN} characters at least")
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise ValueError("a token is printable ASCII without spaces")
        return value

    @model_validator(mode="after")
    def _is_private_or_guarded(self) -> Self:
        if self.address and not self.token.get_secret_value() and not is_loopback(Address.parse(self.address).host):
            raise ValueError(f"address = {self.address!r} can be reached from other machines: set a token")
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`. A name other than localhost may resolve to anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
