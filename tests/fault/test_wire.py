"""Servers that break off calls on the wire, at every point, by chance or by the thousand: what may be saved is saved,
and nothing runs twice.

The servers are `tests.support.bad_server`; each notes in a ledger which calls it ran.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from tests.support.bad_server import HIGHEST, OK, REFUSED_STREAM, BadCall, BadConnection, BadServer, bad_server, silence
from tests.support.fault import CHATS, config, failed, one_call
from tests.support.grpc_server import channel
from tests.support.ledger import KEYED, METHODS, ONCE, Ledger, Request
from tests.support.ledger_cluster import IDS
from tests.support.ledger_load import Absence, Load, Record, violations
from tests.support.messages import framed
from tests.support.polling import eventually
from tests.support.proxy_process import ProxyProcess, Table, proxy_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
    from pathlib import Path

    Behaviour = Callable[["Bench", BadCall], Coroutine[object, object, None]]

SEED = 20_26
EVERYWHERE = [Absence(id_, "misbehaves", 0.0, float("inf")) for id_ in IDS]
"""Explains every move of a chat."""
_KINDS = {path: kind for kind, path in METHODS.items()}


class Bench:
    """Three bad servers of one behaviour and what they did."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.chance = random.Random(SEED)
        self.behaviour = behaviour
        self.ledger = Ledger()
        self.faults: defaultdict[str, list[str]] = defaultdict(list)
        """What was done to each call, in order; `ok` for a good answer."""
        self.servers: dict[str, BadServer] = {}
        self.served = 0

    async def script(self, call: BadCall) -> None:
        await call.complete.wait()
        await self.behaviour(self, call)

    def execute(self, call: BadCall) -> Request:
        """The call runs."""
        request = Request.decode(call.message)
        kind = _KINDS[call.headers[b":path"].decode()]
        self.ledger.note(request.call, kind, call.server.id)
        if kind == "keyed":  # as servers with an idempotency key do: once
            del self.ledger.applied[request.call][1:]
        self.served += 1
        return request

    def answer(self, call: BadCall) -> None:
        """The call runs, and well."""
        request = self.execute(call)
        self.faults[request.call].append("ok")
        call.send_headers()
        for _ in range(request.responses if call.headers[b":path"] == METHODS["stream"].encode() else 1):
            call.send_data(framed(call.server.id.encode()))
        call.send_headers(OK, end=True)


@asynccontextmanager
async def bench(
    directory: Path, behaviour: Behaviour, *ids: str, **tables: Table
) -> AsyncIterator[tuple[Bench, ProxyProcess]]:
    """The servers (default: three) and a proxy before them."""
    made = Bench(behaviour)
    async with AsyncExitStack() as stack:
        for server_id in ids or IDS:
            made.servers[server_id] = await stack.enter_async_context(bad_server(server_id, made.script))
        addresses: Mapping[str, str] = {server.id: server.address for server in made.servers.values()}
        yield made, await stack.enter_async_context(proxy_process(directory, config(addresses, **tables)))


def codes(record: Record) -> str:
    (status,) = record.statuses
    return status.name


# The table, for every call.

# gRPC over HTTP/2, "Errors": from RST_STREAM's code to the status.
RESETS = {
    0: "INTERNAL",
    1: "INTERNAL",
    2: "INTERNAL",
    3: "INTERNAL",
    4: "INTERNAL",
    6: "INTERNAL",
    8: "CANCELLED",
    11: "RESOURCE_EXHAUSTED",
}
ANSWERS = {8: "RESOURCE_EXHAUSTED", 10: "ABORTED", 14: "UNAVAILABLE"}
HTTP = (502, 503, 504)
NEVER_AGAIN = {3: "INVALID_ARGUMENT", 5: "NOT_FOUND", 12: "UNIMPLEMENTED", 13: "INTERNAL", 16: "UNAUTHENTICATED"}


async def any_fault_of_a_stream(bench: Bench, call: BadCall) -> None:
    """Four in ten calls are broken, each in one way."""
    chance = bench.chance
    fault = chance.choices(("ok", "refused", "reset", "answer", "http", "final", "late"), (60, 10, 10, 7, 3, 4, 6))[0]
    name = Request.decode(call.message).call
    if fault == "ok":
        bench.answer(call)
    elif fault == "refused":
        bench.faults[name].append("refused UNAVAILABLE")
        call.reset(REFUSED_STREAM)
    elif fault == "reset":
        code, status = chance.choice(list(RESETS.items()))
        bench.execute(call)
        bench.faults[name].append(f"reset {status}")
        call.reset(code)
    elif fault in ("answer", "final"):
        number, status = chance.choice(list((ANSWERS if fault == "answer" else NEVER_AGAIN).items()))
        bench.execute(call)
        bench.faults[name].append(f"{fault} {status}")
        call.send_headers(
            [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"%d" % number)], end=True
        )
    elif fault == "http":
        bench.execute(call)
        bench.faults[name].append("http UNAVAILABLE")
        call.send_headers([(b":status", b"%d" % chance.choice(HTTP))], end=True)
    else:
        code, status = chance.choice(list(RESETS.items()))
        bench.execute(call)
        bench.faults[name].append(f"late {status}")
        call.send_headers()
        if chance.random() < 0.5:
            call.send_data(framed(call.server.id.encode())[: chance.randrange(1, 12)])
        call.reset(code)


def wrong(record: Record, faults: list[str]) -> str:
    """What is wrong with the outcome of a call by the table in `proxy.forwarding.retry`; empty: nothing."""
    if len(faults) > 3:
        return "more than three attempts"
    for position, fault in enumerate(faults):
        event, _, status = fault.partition(" ")
        moves = event == "refused" or (event in ("reset", "answer", "http") and record.kind == "keyed")
        last = position == len(faults) - 1
        if not last and not moves:
            return f"was tried again after {fault!r}"
        if last and moves and len(faults) < 3:
            return f"was not tried again after {fault!r}"
        if last:
            allowed = {each.partition(" ")[2] for each in faults} | {"UNAVAILABLE"} if moves else {status or "OK"}
            if codes(record) not in allowed:
                return f"ended with {codes(record)}, not {allowed}"
    return "" if faults else "was never seen by a server"


async def test_with_any_fault_of_a_stream_every_call_has_the_tables_outcome(tmp_path: Path) -> None:
    async with bench(tmp_path, any_fault_of_a_stream) as (servers, proxy):
        async with Load(proxy.address, CHATS, workers=12) as load:
            await load.made(1500)
            records = await load.stop()
        found = {
            f"{record.kind} {record.call}: {complaint}; {servers.faults[record.call]} {record.details}"
            for record in records
            if (complaint := wrong(record, servers.faults[record.call]))
        }
        assert found == set()
        assert violations(records, servers.ledger, proxy.walk, EVERYWHERE) == []
        assert {fault.partition(" ")[0] for faults in servers.faults.values() for fault in faults} == {
            *("ok", "refused", "reset", "answer", "http", "final", "late")
        }
        assert all(len(server.connections) == 1 for server in servers.servers.values()), (
            "streams fail, connections stand"
        )


async def test_when_one_call_in_ten_is_refused_none_fails(tmp_path: Path) -> None:
    async def refuse_some(bench: Bench, call: BadCall) -> None:
        name = Request.decode(call.message).call
        if bench.chance.random() < 0.1 and len(bench.faults[name]) < 2:  # three times in a row is the end, by the table
            bench.faults[name].append("refused")
            call.reset(REFUSED_STREAM)
        else:
            bench.answer(call)

    async with bench(tmp_path, refuse_some) as (servers, proxy):
        async with Load(proxy.address, CHATS, kinds=("once", "keyed", "stream"), workers=12) as load:
            await load.made(1000)
            records = await load.stop()
        assert [record.details for record in failed(records)] == []
        assert violations(records, servers.ledger, proxy.walk, EVERYWHERE) == []
        for record in records:
            place = len(servers.faults[record.call]) - 1
            assert record.servers[0] == proxy.walk(record.chat)[place], "each refusal is one step along the ring"


@pytest.mark.parametrize("code", [12, 13])
async def test_a_reset_that_says_the_set_up_is_wrong_is_not_tried_elsewhere(tmp_path: Path, code: int) -> None:
    """INADEQUATE_SECURITY and HTTP_1_1_REQUIRED: row 18."""

    async def complain(_bench: Bench, call: BadCall) -> None:
        call.reset(code)

    async with bench(tmp_path, complain) as (servers, proxy):
        record = await one_call(proxy.address, "chat-1", "keyed")
        assert sum(len(server.calls) for server in servers.servers.values()) == 1
        assert not record.ok
        assert proxy.owner("chat-1") in record.details


# GOAWAY


async def test_an_abrupt_goaway_after_every_few_requests_fails_no_call_and_moves_no_chat(tmp_path: Path) -> None:
    """nginx after keepalive_requests, an AWS load balancer after 10,000 requests (Envoy #36450 answered 503)."""
    limit = 50
    last = 2 * limit - 1

    async def go_away(bench: Bench, call: BadCall) -> None:
        if call.stream > last:
            return  # as promised
        await asyncio.sleep(0)  # so that several are under way
        bench.answer(call)
        if call.stream == last:
            call.connection.goaway(last)
        if sum(1 for stream in call.connection.calls if stream <= last) == limit and not open_calls(call.connection):
            call.connection.finish()

    def open_calls(connection: BadConnection) -> bool:
        return any(
            len(bench_.faults[Request.decode(each.message).call]) == 0
            for stream, each in connection.calls.items()
            if stream <= last and each.complete.is_set()
        )

    async with bench(tmp_path, go_away) as (bench_, proxy):
        async with Load(proxy.address, CHATS, kinds=("once", "keyed", "stream"), workers=24) as load:
            await load.made(1500)
            records = await load.stop()
        assert [(record.kind, record.details) for record in failed(records)] == []
        assert violations(records, bench_.ledger, proxy.walk) == []
        assert sum(len(server.connections) for server in bench_.servers.values()) > 1500 / limit


@pytest.mark.parametrize("steps", [1, 2])
async def test_goaway_at_random_points_fails_no_call(tmp_path: Path, steps: int) -> None:
    """Of any code, with any last stream id of those that may be; calls above it were not processed (RFC 9113, 6.8)."""
    going: set[BadConnection] = set()
    ends: dict[BadConnection, int] = {}

    async def serve(bench: Bench, call: BadCall) -> None:
        connection = call.connection
        if call.stream > ends.get(connection, HIGHEST):
            return
        if bench.chance.random() < 0.01 and connection not in going:
            going.add(connection)
            if steps == 2:
                connection.goaway(HIGHEST)
                await asyncio.sleep(0)
            newest = max(stream for stream, each in connection.calls.items() if ran(bench, each) or each is call)
            ends[connection] = bench.chance.randrange(newest, connection.highest + 1, 2)
            connection.goaway(ends[connection], bench.chance.choice((0, 0, 2, 11)))
        if call.stream <= ends.get(connection, HIGHEST):
            bench.answer(call)
        if connection in ends and all(
            ran(bench, each) for stream, each in connection.calls.items() if stream <= ends[connection]
        ):
            connection.finish()

    def ran(bench: Bench, call: BadCall) -> bool:
        return call.complete.is_set() and bool(bench.faults[Request.decode(call.message).call])

    async with bench(tmp_path, serve) as (servers, proxy):
        async with Load(proxy.address, CHATS, kinds=("once", "keyed", "stream"), workers=12) as load:
            await load.made(1500)
            records = await load.stop()
        assert [(record.kind, record.details) for record in failed(records)] == []
        assert violations(records, servers.ledger, proxy.walk, EVERYWHERE) == []
        assert ends


# The connection.


@pytest.mark.parametrize("how", ["abort", "close", "half a frame"])
async def test_connections_lost_at_random_frames_cost_only_calls_that_may_have_run(tmp_path: Path, how: str) -> None:
    pause = 60  # calls between two losses, so that none is hit three times in a row
    lost_at = 0
    losses = 0

    async def lose(bench: Bench, call: BadCall) -> None:
        nonlocal lost_at, losses
        chance = bench.chance
        if bench.served - lost_at < pause or chance.random() > 0.05:
            bench.answer(call)
            return
        lost_at = bench.served
        losses += 1
        request = bench.execute(call)
        bench.faults[request.call].append("lost")
        frames = chance.randrange(3)
        if frames > 0:
            call.send_headers()
        if frames > 1:
            call.send_data(framed(call.server.id.encode()))
        if how == "half a frame":
            call.connection.send(call.header_frame(OK, end=True).serialize()[:9])
            call.connection.close()
        elif how == "close":
            call.connection.close()
        else:
            call.connection.abort()

    async with bench(tmp_path, lose) as (servers, proxy):
        async with Load(proxy.address, CHATS, kinds=("once", "keyed", "stream"), workers=12) as load:
            await load.made(1500)
            records = await load.stop()
        assert losses > 5
        assert violations(records, servers.ledger, proxy.walk, EVERYWHERE) == []
        for record in failed(records):
            began = "lost" in servers.faults[record.call]
            assert record.kind != "keyed" or began, f"{record.details}: what did not begin to answer is always saved"
            assert codes(record) in ("UNAVAILABLE", "INTERNAL")
            assert "Server-" in record.details


async def test_bytes_that_are_no_http2_end_only_the_calls_of_that_connection(tmp_path: Path) -> None:
    garbage = [b"\xff" * 64, b"\x00" * 9, b"HTTP/1.1 200 OK\r\n\r\n", bytes(range(256))]

    async def blurt(bench: Bench, call: BadCall) -> None:
        if bench.served % 60 == 59 and garbage:
            bench.execute(call)
            call.connection.send(garbage.pop())
        else:
            bench.answer(call)

    async with bench(tmp_path, blurt) as (servers, proxy):
        async with Load(proxy.address, CHATS, workers=6) as load:
            await load.made(600)
            records = await load.stop()
        assert not garbage
        assert violations(records, servers.ledger, proxy.walk, EVERYWHERE) == []
        lost = failed(records)
        assert 0 < len(lost) <= 4 * 6
        assert {record.kind for record in lost} == {"once"}


# Silence.


async def before_headers(_bench: Bench, call: BadCall) -> None:
    await call.over.wait()


async def after_headers(_bench: Bench, call: BadCall) -> None:
    call.send_headers()
    await call.over.wait()


async def in_a_frame(_bench: Bench, call: BadCall) -> None:
    call.send_headers()
    call.connection.send(b"\x00\x40\x00\x00\x00" + call.stream.to_bytes(4, "big") + b"\x00\x00\x00")
    await call.over.wait()


async def in_a_message(_bench: Bench, call: BadCall) -> None:
    call.send_headers()
    call.send_data(framed(b"x" * 100)[:50])
    await call.over.wait()


async def before_trailers(_bench: Bench, call: BadCall) -> None:
    call.send_headers()
    call.send_data(framed(b"x" * 100))
    await call.over.wait()


@pytest.mark.parametrize("point", [before_headers, after_headers, in_a_frame, in_a_message, before_trailers])
@pytest.mark.parametrize("method", [ONCE, KEYED])
async def test_a_server_that_falls_silent_costs_a_call_its_deadline_and_no_more(
    tmp_path: Path, point: Behaviour, method: str
) -> None:
    async with bench(tmp_path, point, "Server-A") as (servers, proxy), channel(proxy.address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.unary_unary(method)(Request("chat", "call").encode(), timeout=0.5)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        (call,) = servers.servers["Server-A"].calls
        await eventually(lambda: call.reset_by_peer is not None, "the reset at the server")
        assert call.reset_by_peer == 8  # CANCEL


async def test_a_server_that_gives_no_credit_holds_up_its_own_calls_only(tmp_path: Path) -> None:
    async with bad_server("Server-B", silence) as miser, AsyncExitStack() as stack:
        miser.settings = {4: 0}  # INITIAL_WINDOW_SIZE
        made = Bench(answer_at_once)
        good = await stack.enter_async_context(bad_server("Server-A", made.script))
        text = config({"Server-A": good.address, "Server-B": miser.address})
        proxy = await stack.enter_async_context(proxy_process(tmp_path, text))
        client = await stack.enter_async_context(channel(proxy.address))
        body = Request(proxy.key_of("Server-B"), "x" * 1_000_000).encode()
        held = [client.unary_unary(ONCE)(body, timeout=3.0) for _ in range(20)]
        await eventually(lambda: len(miser.calls) == 20, "all calls at the miser")
        async with Load(proxy.address, [proxy.key_of("Server-A")], workers=4) as load:
            await load.made(200)
            assert failed(await load.stop()) == []
        ends = await asyncio.gather(*(call.code() for call in held))
        assert set(ends) == {grpc.StatusCode.DEADLINE_EXCEEDED}


async def answer_at_once(bench: Bench, call: BadCall) -> None:
    bench.answer(call)
