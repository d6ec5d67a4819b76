"""A new configuration while calls are under way: none of them notices, and the next one goes by the new rules."""

from __future__ import annotations

import pytest

from proxy.cluster.cluster import Succession
from proxy.cluster.endpoint import Cause
from proxy.http2 import ErrorCode
from proxy.slices import at_once
from proxy.transport.gauges import gathered
from tests.support.messages import message
from tests.support.peers import Exchange, Peer, Server
from tests.support.world import World, endpoints

CHAT = b"/chat.ChatService/Chat"
MAX_CONCURRENT_STREAMS = 3  # RFC 9113, 6.5.2


def running_call(world: World, name: str) -> tuple[Exchange, Server, int]:
    """A call that the server `name` has and does not answer yet."""
    world.at(name).on_request = None
    client = world.client()
    exchange = client.exchanges[client.request(message(world.chats_of(name, 1)[0]), path=CHAT)]
    world.run()
    server = next(each for each in world.at(name).connections if each.order)
    assert not exchange.ended
    return exchange, server, server.order[-1]


def call(world: World, chat: str, **kinds: object) -> Exchange:
    client = world.client()
    sid = client.request(message(chat), path=CHAT, **kinds)  # type: ignore[arg-type]
    world.run()
    return client.exchanges[sid]


def test_a_removed_servers_chats_go_elsewhere_and_its_running_calls_finish() -> None:
    world = World().echoing().start()
    chat = world.chats_of("B", 1)[0]
    exchange, server, sid = running_call(world, "B")
    removed = world.proxy.cluster.snapshot.by_id["B"]
    world.reload(endpoints=endpoints("A", "C"))
    assert call(world, chat).status == 0
    assert world.owner(chat) in "AC"
    assert len(server.exchanges) == 1, "a new call went to a removed server"
    assert server.goaways, "it was not told that no more calls come"
    server.respond(sid, b"late")
    world.advance(5.0)
    assert (exchange.status, exchange.body) == (0, b"late")
    assert removed not in world.proxy.pools
    assert not server.connected
    world.assert_clean()


def test_only_the_chats_of_a_removed_server_move_and_its_return_brings_back_exactly_those() -> None:
    world = World().echoing().start()
    chats = [f"chat-{number:03}" for number in range(300)]
    before = {chat: world.owner(chat) for chat in chats}
    world.reload(endpoints=endpoints("A", "C"))
    assert {chat for chat in chats if world.owner(chat) != before[chat]} == {c for c in chats if before[c] == "B"}
    world.reload()
    assert {chat: world.owner(chat) for chat in chats} == before
    chat = world.chats_of("B", 1)[0]
    served = len(world.calls_at("B"))
    assert call(world, chat).status == 0
    assert len(world.calls_at("B")) == served + 1


def test_a_server_that_returns_while_its_calls_finish_is_given_new_ones_on_a_connection_of_its_own() -> None:
    world = World().echoing().start()
    exchange, server, sid = running_call(world, "B")
    world.reload(endpoints=endpoints("A", "C"))
    world.reload()
    world.echo_everywhere()
    assert call(world, world.chats_of("B", 1)[0]).status == 0
    server.respond(sid, b"late")
    world.advance(5.0)
    assert exchange.status == 0
    assert len([each for each in world.proxy.pools if each.id == "B"]) == 1
    world.assert_clean()


def test_a_server_under_a_new_address_keeps_its_chats() -> None:
    world = World().echoing().start()
    chat = world.chats_of("B", 1)[0]
    world.server("D").on_request = world.at("B").on_request
    world.reload(endpoints=[*endpoints("A", "C"), {"id": "B", "address": endpoints("D")[0]["address"]}])
    assert world.owner(chat) == "B"
    assert call(world, chat).status == 0
    assert len(world.calls_at("D")) == 1
    world.assert_clean()


def test_a_server_under_a_new_address_keeps_its_counters_when_the_old_one_has_gone() -> None:
    """A counter that falls is a restart to Prometheus: all that is left of it would count as new."""
    world = World().echoing().start()
    first, second = world.chats_of("B", 2)
    assert call(world, first).status == 0
    exchange, server, sid = running_call(world, "B")

    def reset(peer: Peer, sid: int, _exchange: Exchange) -> None:
        peer.engine.reset_stream(sid, ErrorCode.INTERNAL_ERROR)

    server.on_request = reset
    call(world, first)
    new = world.server("D")
    world.reload(endpoints=[*endpoints("A", "C"), {"id": "B", "address": endpoints("D")[0]["address"]}])
    new.on_request = reset
    call(world, second)
    new.on_request = world.at("A").on_request
    assert call(world, second).status == 0

    def counted() -> tuple[float, float, float]:
        told = at_once(gathered(world.proxy.forwarder, world.proxy.listener, world.proxy.pools))
        assert told.values["districhat_upstream_connections_total"]["B",] == 2
        failures = told.values["districhat_attempt_failures_total"]["B", "reset"]
        calls = sum(n for labels, n in told.values["districhat_calls_total"].items() if labels[1] == "B")
        return failures, calls, sum(told.histograms["districhat_call_seconds"]["B",][:-1])

    before = counted()
    assert before == (2, 2, 2)
    server.respond(sid, b"late")
    world.advance(5.0)
    assert exchange.status == 0
    assert len([each for each in world.proxy.pools if each.id == "B"]) == 1, "the old one is still there"
    assert counted() == (2, 3, 3)
    world.reload(endpoints=endpoints("A", "C"))
    world.advance(5.0)
    told = at_once(gathered(world.proxy.forwarder, world.proxy.listener, world.proxy.pools))
    assert not any("B" in labels for family in (*told.values.values(), *told.histograms.values()) for labels in family)


def test_a_call_keeps_its_snapshot_and_passes_over_whoever_was_removed() -> None:
    """Its owner fails after the reload: the walk goes on along the ring that the call began with."""
    world = World(outlier={"quarantine_time": 0.0}).echoing().start()
    exchange, server, _sid = running_call(world, "B")
    second, third = world.order(world.chats_of("B", 1)[0])[1:]
    world.reload(endpoints=endpoints("B", third), outlier={"quarantine_time": 0.0})
    server.refuse(server.order[-1])
    world.run()
    assert exchange.status == 0
    assert (len(world.calls_at(second)), len(world.calls_at(third))) == (0, 1)
    world.assert_clean()


def test_a_call_refused_at_the_stream_limit_of_a_removed_server_does_not_wait_there_for_ever() -> None:
    world = World(upstream={"max_connections": 1}).echoing("A", "C")
    server = world.server("B", {MAX_CONCURRENT_STREAMS: 1})
    client = world.start().client()
    chat = world.chats_of("B", 1)[0]
    client.request(message(chat))
    world.run()
    second = client.exchanges[client.request(message(chat))]  # waits, so that the server counts as full for a second
    world.run()
    server.respond(1)
    world.run()
    world.reload(endpoints=endpoints("A", "C"))
    server.refuse(3)
    world.run()
    assert second.status == 0
    world.assert_clean()


def test_a_call_that_waits_for_a_connection_to_a_removed_server_goes_elsewhere() -> None:
    world = World().echoing("A", "C")
    world.servers[endpoints("B")[0]["address"]] = None  # does not answer
    world.start()
    chat = world.chats_of("B", 1)[0]
    exchange = call(world, chat)
    assert not exchange.ended
    world.reload(endpoints=endpoints("A", "C"))
    assert exchange.status == 0
    world.assert_clean()


def test_who_was_sick_before_is_sick_after() -> None:
    world = World().echoing().start()
    before = world.proxy.cluster.snapshot.by_id["B"]
    before.block(Cause.HEALTH, "timed out")
    world.reload(endpoints=[*endpoints("A", "B"), {**endpoints("C")[0], "weight": 3.0}])
    after = world.proxy.cluster.snapshot.by_id["B"]
    assert after is before
    assert after.reason == "timed out"


def test_a_weight_changes_shares_and_connections_stay() -> None:
    world = World().echoing().start()
    chats = [f"chat-{number:03}" for number in range(500)]
    connections = {each.id: pool.connections for each, pool in world.proxy.pools.items()}
    of_b = {chat for chat in chats if world.owner(chat) == "B"}
    world.reload(endpoints=[*endpoints("A", "C"), {**endpoints("B")[0], "weight": 3.0}])
    assert of_b < {chat for chat in chats if world.owner(chat) == "B"}
    assert {each.id: pool.connections for each, pool in world.proxy.pools.items()} == connections
    assert world.proxy.cluster.snapshot.by_id["B"].weight == 3.0


def test_the_snapshot_has_a_new_number_only_if_the_ring_is_another() -> None:
    world = World().echoing().start()
    first = world.proxy.cluster.snapshot
    assert first.version == 1
    world.reload(limits={"max_calls": 7})
    assert world.proxy.cluster.snapshot is first
    world.reload(endpoints=endpoints("A", "B"))
    assert world.proxy.cluster.snapshot.version == 2
    world.reload(endpoints=endpoints("A", "B"), ring={"virtual_nodes": 50})
    assert world.proxy.cluster.snapshot.version == 3


def test_a_build_that_is_not_published_changes_nothing() -> None:
    world = World().echoing().start()
    cluster = world.proxy.cluster
    before = cluster.snapshot
    succession = at_once(cluster.succession(world.settings.endpoints[:1], world.settings.ring))
    assert isinstance(succession, Succession)
    assert cluster.snapshot is before
    assert all(endpoint.available for endpoint in before)


def test_a_route_holds_for_the_next_call_and_not_for_a_running_one() -> None:
    world = World().echoing().start()
    exchange, server, sid = running_call(world, "B")
    reject = {"method": "*", "key": {"metadata": "x-other"}, "missing_key": "reject"}
    world.reload(routes=[reject])
    assert call(world, "chat-001").status == 3
    server.respond(sid, b"as begun")
    world.run()
    assert exchange.status == 0
    world.reload()
    assert call(world, "chat-001").status != 3


def test_limits_hold_from_the_next_call_on() -> None:
    world = World().echoing().start()
    exchange, server, sid = running_call(world, "B")
    world.reload(limits={"max_calls": 1})
    assert call(world, "chat-001").status == 14
    world.reload(limits={"max_calls_per_endpoint": 1})
    assert call(world, world.chats_of("B", 2)[1]).status == 8
    world.reload()
    assert call(world, world.chats_of("A", 1)[0]).status == 0
    server.respond(sid)
    world.run()
    assert exchange.status == 0
    world.assert_clean()


def test_a_limit_per_chat_may_come_and_go_while_calls_run() -> None:
    world = World().echoing().start()
    exchange, server, sid = running_call(world, "B")
    chat = world.chats_of("B", 1)[0]
    world.reload(limits={"max_calls_per_chat": 1})
    counted = world.client()
    late = counted.request(message(chat), path=CHAT)
    world.run()
    assert call(world, chat).status == 8
    server.respond(sid)
    world.run()
    assert exchange.status == 0
    for each in (each for each in world.at("B").connections if each is server):
        for stream in each.order[1:]:
            each.respond(stream)
    world.run()
    assert counted.exchanges[late].status == 0
    assert world.proxy.forwarder.calls_by_chat == {}
    world.reload()
    assert world.proxy.forwarder.calls_by_chat is None
    world.assert_clean()


def test_displaced_chats_go_home_when_failback_becomes_immediate() -> None:
    world = World(failback={"mode": "never"}).echoing().start()
    chat = world.chats_of("B", 1)[0]
    home = world.proxy.cluster.snapshot.by_id["B"]
    home.block(Cause.HEALTH, "timed out")
    call(world, chat)
    home.unblock(Cause.HEALTH)
    call(world, chat)
    assert len(world.calls_at("B")) == 0
    world.reload(failback={"mode": "immediate"})
    call(world, chat)
    assert len(world.calls_at("B")) == 1


def test_ejection_goes_by_the_new_numbers_and_counts_what_came_before() -> None:
    world = World(failback={"mode": "immediate"}).echoing().start()
    b = world.proxy.cluster.snapshot.by_id["B"]
    chats = world.chats_of("B", 2)
    world.proxy.detector.failed(b, chats[0].encode(), world.now())
    world.reload(outlier={"consecutive_failures": 2})
    assert b.available
    world.proxy.detector.failed(b, chats[1].encode(), world.now())
    assert not b.available


@pytest.mark.parametrize("report", ["succeeded", "failed", "lost"])
def test_how_a_removed_servers_last_calls_end_is_nobodys_business(report: str) -> None:
    world = World().echoing().start()
    removed = world.proxy.cluster.snapshot.by_id["B"]
    world.proxy.detector.failed(removed, b"chat-1", world.now())
    world.reload(endpoints=endpoints("A", "C"))
    arguments = (removed, b"chat-1") if report == "succeeded" else (removed, b"chat-1", world.now())
    getattr(world.proxy.detector, report)(*arguments)
    assert not world.proxy.detector.quarantined


def test_a_new_connection_has_the_new_limits() -> None:
    world = World().echoing().start()
    old = world.client()
    world.reload(listener={"max_concurrent_streams": 7})
    new = world.client()
    for client in (old, new):
        client.request(message(), path=CHAT)
    world.run()
    limits = [each.engine.remote_settings[MAX_CONCURRENT_STREAMS] for each in (old, new)]
    assert limits == [1000, 7]


def test_health_of_the_proxy_itself_follows_its_members() -> None:
    world = World(endpoints=endpoints("A")).echoing("A", "B").start()
    world.proxy.cluster.snapshot.by_id["A"].block(Cause.HEALTH, "timed out")
    assert not world.proxy.own_health.serving
    world.reload(endpoints=endpoints("A", "B"))
    assert world.proxy.own_health.serving
