"""The proxy's own health, asked for by `grpc.health.v1`."""

from __future__ import annotations

import ngh2
import pytest

from proxy.cluster.endpoint import Cause
from tests.support.messages import framed
from tests.support.world import World

CHECK, WATCH = b"/grpc.health.v1.Health/Check", b"/grpc.health.v1.Health/Watch"
RESOURCE_EXHAUSTED = 8
SERVING, NOT_SERVING = framed(b"\x08\x01"), framed(b"\x08\x02")


def block_all(world: World) -> None:
    for endpoint in world.proxy.cluster.snapshot:
        endpoint.block(Cause.HEALTH, "gone")
    world.run()


@pytest.mark.parametrize("body", [framed(b""), framed(b"\x0a\x00")])
def test_the_proxy_answers_for_itself_by_the_servers_it_has(body: bytes) -> None:
    world = World().echoing().start()
    client = world.client()
    first = client.request(body, path=CHECK)
    world.run()
    block_all(world)
    second = client.request(body, path=CHECK)
    world.run()
    assert (client.exchanges[first].body, client.exchanges[first].status) == (SERVING, 0)
    assert (client.exchanges[second].body, client.exchanges[second].status) == (NOT_SERVING, 0)
    assert sum(len(world.calls_at(name)) for name in "ABC") == 0
    world.assert_clean()


def test_a_watcher_hears_of_every_change_once_and_of_the_drain() -> None:
    world = World().echoing().start()
    client = world.client()
    sid = client.request(framed(b""), path=WATCH)
    world.run()
    assert client.exchanges[sid].body == SERVING
    block_all(world)
    assert client.exchanges[sid].body == SERVING + NOT_SERVING
    for endpoint in world.proxy.cluster.snapshot:
        endpoint.unblock(Cause.HEALTH)
    world.run()
    assert client.exchanges[sid].body == SERVING + NOT_SERVING + SERVING
    world.proxy.own_health.drain()
    world.run()
    answer = client.exchanges[sid]
    assert answer.body == SERVING + NOT_SERVING + SERVING + NOT_SERVING
    assert answer.status == 14
    world.assert_clean()


@pytest.mark.parametrize("end", ["cancel", "gone"])
def test_a_watcher_that_leaves_is_forgotten(end: str) -> None:
    world = World().echoing().start()
    client = world.client()
    sid = client.request(framed(b""), path=WATCH)
    world.run()
    if end == "cancel":
        client.engine.reset_stream(sid)
    else:
        client.transport.abort()
    world.run()
    block_all(world)
    world.assert_clean()
    assert not world.proxy.own_health._watchers


def test_a_watcher_that_does_not_read_is_cut_off() -> None:
    world = World().echoing().start()
    client = world.client({ngh2.Setting.INITIAL_WINDOW_SIZE: 0})
    client.request(framed(b""), path=WATCH)
    world.run()
    for _ in range(200):
        block_all(world)
        for endpoint in world.proxy.cluster.snapshot:
            endpoint.unblock(Cause.HEALTH)
    assert not world.proxy.own_health._watchers
    downstream = next(iter(world.proxy.listener.connections))
    assert downstream.engine.queued_body_size() < 2048


def test_a_watcher_that_says_more_and_more_is_turned_away(caplog: pytest.LogCaptureFixture) -> None:
    world = World(limits={"max_buffered_per_connection": 65_536}).echoing().start()
    client = world.client()
    sid = client.request(framed(b""), path=WATCH, end=False)
    world.run()
    client.engine.send_data(sid, bytes(65_536))
    world.run()
    assert client.exchanges[sid].body == SERVING
    assert client.exchanges[sid].status == RESOURCE_EXHAUSTED
    assert world.exceeded("request_bytes") == 1
    assert "bug" not in caplog.text
    world.assert_clean()


def test_other_services_are_the_servers_business() -> None:
    world = World().echoing().start()
    client = world.client()
    sid = client.request(framed(b"\x0a\x04chat"), path=CHECK)
    world.run()
    assert client.exchanges[sid].body == framed(b"\x0a\x04chat")


def test_health_can_be_left_to_the_servers() -> None:
    world = World(listener={"health": "forward"}).echoing().start()
    client = world.client()
    sid = client.request(framed(b""), path=CHECK)
    world.run()
    assert client.exchanges[sid].body == framed(b"")


def test_another_method_of_the_health_service_is_unimplemented() -> None:
    world = World().echoing().start()
    client = world.client()
    sid = client.request(framed(b""), path=b"/grpc.health.v1.Health/Lie")
    world.run()
    assert client.exchanges[sid].status == 12
