"""Where to listen or connect."""

from __future__ import annotations

from typing import NamedTuple


class Address(NamedTuple):
    """A TCP address."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `host:port` or `[v6]:port`. Raises ValueError, saying what is wrong, for anything else."""
        host, separator, port = text.rpartition(":")
        if not separator or not host:
            raise ValueError(f"expected host:port, got {text!r}")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"an IPv6 host needs brackets: [{host}]:{port}")
        if not (port.isascii() and port.isdigit() and int(port) <= 65_535):
            raise ValueError(f"the port must be a number from 0 to 65535, got {port!r}")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
