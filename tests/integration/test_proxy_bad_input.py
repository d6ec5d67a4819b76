"""What is no good gRPC call is answered clearly, reaches no server, and harms nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.frames import PREFACE
from tests.support.grpc_server import EchoServer, channel, echo_servers
from tests.support.messages import field, framed, keyed
from tests.support.polling import eventually
from tests.support.proxy_process import ProxyProcess, addresses, proxy_process, toml
from tests.support.raw_http2 import raw_client, talk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ANY = "/any.Service/Unary"
KEYED = "/keyed.Service/PutUnary"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
GOAWAY = 7

TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(197)

INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = b"3", b"8", b"12", b"13"


@pytest.fixture
async def server() -> AsyncIterator[EchoServer]:
    async with echo_servers("Server-A") as (only,):
        yield only


@pytest.fixture
async def proxy(server: EchoServer, tmp_path: Path) -> AsyncIterator[ProxyProcess]:
    config = toml(
        addresses(server),
        routes=[
            'method = "/keyed.Service/*"\nkey = { field = "1" }',
            'method = "/deep.Service/*"\nkey = { field = "3.1" }',
        ],
        listener={"max_first_message": 1 << 20},
    )
    async with proxy_process(tmp_path, config) as running:
        yield running
        # Whatever a test did: the proxy serves on.
        async with channel(running.address) as client:
            assert await client.unary_unary(KEYED)(keyed("afterwards")) == keyed("afterwards")


def _frames(data: bytes) -> list[tuple[int, bytes]]:
    """(type, payload) of the HTTP/2 frames in `data`."""
    frames = []
    while len(data) >= 9:
        length = int.from_bytes(data[:3], "big")
        frames.append((data[3], data[9 : 9 + length]))
        data = data[9 + length :]
    return frames


# Not HTTP/2.


@pytest.mark.parametrize(
    "request_line", [b"GET / HTTP/1.1", b"POST /chat.ChatService/PostMessage HTTP/1.1", b"OPTIONS * HTTP/1.0"]
)
async def test_an_http_1_request_is_answered_and_closed(proxy: ProxyProcess, request_line: bytes) -> None:
    answer = await talk(proxy.port, request_line + b"\r\nHost: localhost\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 505 ")
    assert b"content-length: %d" % len(body) in head.lower()
    assert b"HTTP/2" in body


async def test_an_upgrade_to_http2_is_not_done(proxy: ProxyProcess) -> None:
    answer = await talk(
        proxy.port,
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 505 ")


@pytest.mark.parametrize(
    "data",
    [TLS_HELLO, b"\x00" * 64, b"\xff" * 64, b"\r\n" * 40, PREFACE[:-1] + b"x" + SETTINGS, PREFACE + b"\x00" * 9 * 3],
    ids=["tls", "zeros", "ones", "newlines", "wrong preface", "no settings"],
)
async def test_garbage_is_closed(proxy: ProxyProcess, server: EchoServer, data: bytes) -> None:
    await talk(proxy.port, data)
    assert not server.calls


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x00\x00\x05\x06\x00\x00\x00\x00\x00hello", 6),  # PING of 5 bytes: FRAME_SIZE_ERROR
        (b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", 6),  # a frame longer than allowed
        (b"\x00\x00\x01\x00\x00\x00\x00\x00\x01x", 1),  # DATA on a stream that nobody opened: PROTOCOL_ERROR
        (b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00", 1),  # WINDOW_UPDATE by 0
        (b"\x00\x00\x05\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff\xff", 9),  # HPACK that does not decode
    ],
    ids=["ping size", "frame size", "idle stream", "empty update", "hpack"],
)
async def test_a_broken_frame_ends_the_connection_with_a_goaway(proxy: ProxyProcess, frame: bytes, code: int) -> None:
    answer = await talk(proxy.port, PREFACE + SETTINGS + frame)
    goaways = [payload for kind, payload in _frames(answer) if kind == GOAWAY]
    assert goaways, "GOAWAY before the connection is closed"
    assert int.from_bytes(goaways[-1][4:8], "big") in (code, 1)


# HTTP/2, but not gRPC.


@pytest.mark.parametrize("content_type", [None, b"", b"text/plain", b"application/json", b"application/grpcx"])
async def test_a_request_that_is_not_grpc_gets_415(
    proxy: ProxyProcess, server: EchoServer, content_type: bytes | None
) -> None:
    async with raw_client(proxy.port) as client:
        stream = client.request("/any.Service/Unary", content_type=content_type, end=True)
        state = await client.over(stream)
        assert state.headers[b":status"] == b"415"
        assert state.ended
    assert not server.calls


@pytest.mark.parametrize("content_type", [b"application/grpc+proto", b"application/grpc;charset=x"])
async def test_every_form_of_grpcs_content_type_passes(
    proxy: ProxyProcess, server: EchoServer, content_type: bytes
) -> None:
    async with raw_client(proxy.port) as client:
        stream = client.request("/any.Service/Unary", content_type=content_type)
        client.send(stream, framed(b""), end=True)
        state = await client.over(stream)
        assert state.headers[b":status"] == b"200"


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"HEAD", b"DELETE"])
async def test_another_method_than_post_gets_405(proxy: ProxyProcess, server: EchoServer, method: bytes) -> None:
    async with raw_client(proxy.port) as client:
        state = await client.over(client.request("/any.Service/Unary", method=method, end=True))
        assert state.headers[b":status"] == b"405"
    assert not server.calls


async def test_refused_requests_that_still_send_give_their_credit_back(server: EchoServer, tmp_path: Path) -> None:
    # The connection's window is that of one stream: 64 KiB.
    config = toml(addresses(server), listener={"stream_window": 65_536, "max_concurrent_streams": 1})
    async with proxy_process(tmp_path, config) as proxy, raw_client(proxy.port) as client:
        await client.pinged()
        for _ in range(50):
            await client.until(lambda: client.h2.outbound_flow_control_window > 40_000, "the connection's credit")
            stream = client.request("/any.Service/Unary", content_type=b"text/plain")
            client.send(stream, bytes(40_000))
            state = await client.over(stream)
            assert state.headers[b":status"] == b"415"
            await client.until(lambda state=state: state.reset == 0, "being told to stop")
    assert not server.calls


@pytest.mark.parametrize(
    ("path", "replaced", "extra"),
    [
        (None, {}, ()),
        ("", {}, ()),
        (ANY, {"scheme": None}, ()),
        (ANY, {"method": None}, ()),
        (ANY, {}, ((b"connection", b"close"),)),
        (ANY, {}, ((b"transfer-encoding", b"chunked"),)),
        (ANY, {"te": b"gzip"}, ()),
        (ANY, {}, ((b"Upper", b"case"),)),
        (ANY, {}, ((b"new", b"li\r\nne"),)),
        (ANY, {}, ((b":path", b"/again"),)),
    ],
)
async def test_a_malformed_request_is_a_stream_error_and_reaches_no_server(
    proxy: ProxyProcess,
    server: EchoServer,
    path: str | None,
    replaced: dict[str, bytes | None],
    extra: tuple[tuple[bytes, bytes], ...],
) -> None:
    async with raw_client(proxy.port) as client:
        stream = client.request(path, *extra, **replaced)
        client.send(stream, framed(b""), end=True)
        state = await client.over(stream)
        assert state.reset == 1, "PROTOCOL_ERROR (RFC 9113, 8.1.1)"
        assert not client.goaways
    assert not server.calls


async def test_a_body_that_is_not_as_long_as_declared_is_a_stream_error_and_cancels_the_call(
    proxy: ProxyProcess, server: EchoServer
) -> None:
    async with raw_client(proxy.port) as client:
        for declared in (b"4", b"6"):
            stream = client.request("/any.Service/ClientStream", (b"content-length", declared))
            client.send(stream, framed(b""), end=True)
            assert (await client.over(stream)).reset == 1
    await eventually(lambda: server.active == 0, "the end at the server")
    assert all(call.cancelled for call in server.calls)


async def test_a_path_without_its_slash_is_refused(proxy: ProxyProcess, server: EchoServer) -> None:
    async with raw_client(proxy.port) as client:
        stream = client.request("keyed.Service/PutUnary", end=True)
        state = await client.over(stream)
        assert state.status == UNIMPLEMENTED or state.reset
    assert not server.calls


# gRPC whose first message is no good.


@pytest.mark.parametrize(
    ("path", "message", "status"),
    [
        (KEYED, field(1, 5), INVALID_ARGUMENT),
        (KEYED, b"\x0d" + bytes(4), INVALID_ARGUMENT),
        (KEYED, field(2, b"x" * 1000) + field(1, 5), INVALID_ARGUMENT),
        ("/deep.Service/PutUnary", field(3, 5), INVALID_ARGUMENT),
        ("/deep.Service/PutUnary", field(3, field(1, 5)), INVALID_ARGUMENT),
        (KEYED, field(1, b"k" * 4097), INVALID_ARGUMENT),
        (KEYED, b"\x0a\x10short", INVALID_ARGUMENT),
        (KEYED, b"\xff" * 20, INVALID_ARGUMENT),
        (KEYED, b"\x0f\x00", INVALID_ARGUMENT),
    ],
    ids=[
        "varint",
        "fixed32",
        "varint last",
        "nested varint",
        "inner varint",
        "4097 bytes",
        "beyond",
        "tag",
        "wire type 7",
    ],
)
async def test_a_message_without_a_usable_key_is_refused_and_reaches_no_server(
    proxy: ProxyProcess, server: EchoServer, path: str, message: bytes, status: bytes
) -> None:
    async with raw_client(proxy.port) as client:
        stream = client.request(path)
        client.send(stream, framed(message), end=True)
        state = await client.over(stream)
        assert state.status == status
        assert state.message
    assert not server.calls


@pytest.mark.parametrize("kept", [1, 4, 5, 6, 10, -1])
async def test_a_truncated_first_message_is_an_internal_error_and_reaches_no_server(
    proxy: ProxyProcess, server: EchoServer, kept: int
) -> None:
    async with raw_client(proxy.port) as client:
        stream = client.request(KEYED)
        client.send(stream, framed(field(2, b"payload before it") + field(1, "chat"))[:kept], end=True)
        state = await client.over(stream)
        assert state.status == INTERNAL
        assert "truncated" in state.message
    assert not server.calls


@pytest.mark.parametrize(
    ("data", "encoding", "status"),
    [
        (framed(keyed("chat"), flag=2), None, INTERNAL),
        (framed(keyed("chat"), flag=255), None, INTERNAL),
        (framed(keyed("chat"), flag=1), None, INTERNAL),
        (framed(b"not gzip at all", flag=1), b"gzip", INTERNAL),
        (framed(b"anything", flag=1), b"snappy", UNIMPLEMENTED),
        (b"\x00\xff\xff\xff\xff", None, RESOURCE_EXHAUSTED),
    ],
    ids=["flag 2", "flag 255", "no encoding", "not gzip", "snappy", "4 GiB"],
)
async def test_a_broken_message_prefix_is_refused_and_reaches_no_server(
    proxy: ProxyProcess, server: EchoServer, data: bytes, encoding: bytes | None, status: bytes
) -> None:
    async with raw_client(proxy.port) as client:
        stream = client.request(KEYED, *(((b"grpc-encoding", encoding),) if encoding else ()))
        client.send(stream, data)
        assert (await client.over(stream)).status == status
    assert not server.calls


async def test_a_key_that_does_not_come_within_the_limit_is_refused_and_reaches_no_server(
    proxy: ProxyProcess, server: EchoServer
) -> None:
    async with raw_client(proxy.port) as client:
        data = framed(field(2, bytes(2 << 20)) + field(1, "too late"))
        stream = client.request(KEYED)
        state = client.streams[stream]
        for start in range(0, len(data), 10_000):
            await client.until(
                lambda: state.ended or state.reset is not None or client.h2.local_flow_control_window(stream) >= 10_000,
                "credit while the key is looked for",
            )
            if state.ended or state.reset is not None:
                break
            client.send(stream, data[start : start + 10_000])
        assert (await client.over(stream)).status == RESOURCE_EXHAUSTED
    assert not server.calls


async def test_headers_beyond_the_limit_cost_that_call_only(proxy: ProxyProcess, server: EchoServer) -> None:
    async with raw_client(proxy.port) as client:
        for extra in ([(b"long", b"v" * 10_000), (b"longer", b"v" * 10_000)], [(b"n%d" % n, b"") for n in range(120)]):
            stream = client.request("/any.Service/Unary", *extra, end=True)
            assert (await client.over(stream)).status == RESOURCE_EXHAUSTED
        stream = client.request(KEYED)
        client.send(stream, framed(keyed("chat")), end=True)
        assert (await client.over(stream)).status == b"0"
    assert len(server.calls) == 1


async def test_headers_far_beyond_the_limit_end_the_connection_of_that_client_only(
    proxy: ProxyProcess, server: EchoServer
) -> None:
    async with raw_client(proxy.port) as good:
        waiting = good.request(KEYED)
        for extra in ([(b"long%d" % n, b"v" * 15_000) for n in range(3)], [(b"n%d" % n, b"") for n in range(250)]):
            async with raw_client(proxy.port) as client:
                client.request("/any.Service/Unary", *extra, end=True)
                await client.until(lambda client=client: client.goaways or client.closed.is_set(), "the end")
        good.send(waiting, framed(keyed("chat")), end=True)
        assert (await good.over(waiting)).status == b"0"
    assert len(server.calls) == 1
