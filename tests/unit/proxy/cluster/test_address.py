from __future__ import annotations

import pytest

from proxy.cluster.address import Address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:80", "127.0.0.1", 80), ("chat.internal:0", "chat.internal", 0), ("[::1]:65535", "::1", 65535)],
)
def test_an_address_is_read_and_written_back(text: str, host: str, port: int) -> None:
    address = Address.parse(text)
    assert address == (host, port, "")
    assert str(address) == text


@pytest.mark.parametrize("text", ["unix:/run/districhat.sock", "unix:///run/districhat.sock"])
def test_a_unix_socket_is_read_in_both_forms_and_written_in_the_short_one(text: str) -> None:
    address = Address.parse(text)
    assert address == ("", 0, "/run/districhat.sock")
    assert str(address) == "unix:/run/districhat.sock"


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", ":80", "host:", "host:http", "host:65536", "host:-1", "::1:80", "host:8\u0660"),
        *("unix:", "unix:run/x", "unix://run/x", "unix:/a\0b", "unix:/" + 107 * "x"),
    ],
)
def test_anything_else_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|bracket|port|unix socket"):
        Address.parse(text)
