"""Where to listen or connect."""

from __future__ import annotations

import ipaddress
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
        if not separator or not host or "/" in host:
            raise ValueError(f"expected host:port or unix:/path, got {text!r}")
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65_535):
            raise ValueError(f"the port must be a number from 0 to 65535, got {text!r}")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            if not _is_ipv6(host):
                raise ValueError(f"brackets are for an IPv6 host, got {text!r}")
        elif _is_ipv6(host):
            raise ValueError(f"an IPv6 host needs brackets: [{host}]:{port}, got {text!r}")
        else:
            check_host(host)
        return cls(host, int(port))

    def __str__(self) -> str:
        if self.path:
            return UNIX + self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def check_host(name: str) -> str:
    """The name itself, if it may be that of a host, or an IP address. Raises ValueError, saying what is wrong, for what
    could never be resolved. `*` stands for all addresses of this machine.
    """
    if name == "*" or _is_ipv6(name):
        return name
    try:
        name.encode("idna")  # what a look-up makes of it; knows the lengths of RFC 1035, 2.3.4, too
    except UnicodeError as error:
        raise ValueError(f"{name!r} is no name of a host: {error.__cause__ or error}") from error
    if len(name) > 253 or not all(letter.isalnum() or letter in "-._" for letter in name):
        raise ValueError(f"{name!r} is no name of a host: at most 253 letters, digits, '-', '.' and '_'")
    return name


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _path(text: str) -> str:
    path = text.removeprefix("//") if text.startswith("///") else text
    if not path.startswith("/") or path.startswith("//"):
        raise ValueError(f"a unix socket needs its whole path, unix:/path, got {UNIX + text!r}")
    if "\0" in path or len(path.encode(errors="surrogateescape")) > MAX_PATH:
        raise ValueError(f"the path of a unix socket has at most {MAX_PATH} bytes, none of them 0, got {path!r}")
    return path
