"""Where to listen or connect."""

from __future__ import annotations

from typing import Final, NamedTuple

UNIX: Final = "unix:"
MAX_PATH: Final = 107
"""Bytes of the longest path of a unix socket (Linux, unix(7): sun_path)."""


class Address(NamedTuple):
    """A TCP address; or a unix socket, which has a `path` and neither host nor port."""

    host: str
    port: int
    path: str = ""
    """Of the unix socket; empty: it is TCP."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `host:port`, `[v6]:port`, or `unix:/path` (also as gRPC writes it, `unix:///path`). Raises ValueError,
        saying what is wrong, for anything else.
        """
        if text.startswith(UNIX):
            return cls("", 0, _path(text.removeprefix(UNIX)))
        host, separator, port = text.rpartition(":")
        if not separator or not host:
            raise ValueError(f"expected host:port or unix:/path, got {text!r}")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"an IPv6 host needs brackets: [{host}]:{port}")
        if not (port.isascii() and port.isdigit() and int(port) <= 65_535):
            raise ValueError(f"the port must be a number from 0 to 65535, got {port!r}")
        return cls(host, int(port))

    def __str__(self) -> str:
        if self.path:
            return UNIX + self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _path(text: str) -> str:
    path = text.removeprefix("//") if text.startswith("///") else text
    if not path.startswith("/") or path.startswith("//"):
        raise ValueError(f"a unix socket needs its whole path, unix:/path, got {UNIX + text!r}")
    if "\0" in path or len(path.encode(errors="surrogateescape")) > MAX_PATH:
        raise ValueError(f"the path of a unix socket has at most {MAX_PATH} bytes, none of them 0, got {path!r}")
    return path
