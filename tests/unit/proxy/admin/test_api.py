"""What is asked of the admin API, and what it answers: bodies by their schema, mistakes as problem+json."""

from __future__ import annotations

import json
from http import HTTPStatus
from itertools import pairwise

import pytest
from aiohttp import ClientConnectionResetError, web

from proxy.admin import schema
from proxy.balancing.hashing import RING_SIZE
from proxy.cluster.endpoint import Cause
from tests.support.loop import counted_passes
from tests.support.messages import message
from tests.support.world import World


async def body(response, model):
    assert response.status == HTTPStatus.OK, await response.text()
    assert response.content_type == "application/json"
    return model.model_validate_json(await response.read())


async def refused(response, status):
    assert response.status == status, await response.text()
    assert response.content_type == "application/problem+json"
    found = schema.Problem.model_validate_json(await response.read())
    assert found.status == status
    return found


# Probes.


async def test_a_living_proxy_says_so(world, connect):
    client = await connect(world)
    assert (await body(await client.get("/livez"), schema.Health)).status == "ok"
    assert (await body(await client.get("/readyz"), schema.Health)).status == "ok"


async def test_without_any_server_it_lives_but_is_not_ready(world, connect):
    client = await connect(world)
    for endpoint in world.proxy.cluster.snapshot:
        endpoint.block(Cause.HEALTH, "gone")
    assert (await client.get("/livez")).status == HTTPStatus.OK
    response = await client.get("/readyz")
    assert response.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert schema.Health.model_validate_json(await response.read()).reason == "no server is available"


async def test_from_the_first_moment_of_its_drain_it_is_not_ready(world, connect):
    client = await connect(world)
    world.proxy.own_health.drain()
    response = await client.get("/readyz")
    assert schema.Health.model_validate_json(await response.read()).reason == "the proxy is draining"


# Endpoints.


async def test_endpoints_come_with_their_state_and_their_share(world, connect):
    client = await connect(world)
    snapshot = world.proxy.cluster.snapshot
    snapshot.by_id["B"].block(Cause.EJECTED, "ejected for 30 s after 5 failures in a row")
    told = await body(await client.get("/api/endpoints"), schema.Endpoints)
    assert told.snapshot == schema.Snapshot(version=1, fingerprint=snapshot.ring.fingerprint)
    assert {each.id: each.status for each in told.endpoints} == {"A": "available", "B": "ejected", "C": "available"}
    assert {each.id: each.share for each in told.endpoints} == snapshot.ring.shares()
    assert [each.connections for each in told.endpoints] == [1, 1, 1]
    [block] = told.endpoints[1].blocks
    assert (block.cause, block.reason) == ("ejected", "ejected for 30 s after 5 failures in a row")
    assert block.since is not None
    assert block.since <= told.at


async def test_a_block_is_as_old_as_its_cause_whatever_is_said_later(world, connect):
    client = await connect(world)
    endpoint = world.proxy.cluster.snapshot.by_id["B"]
    endpoint.block(Cause.HEALTH, "timed out")
    first = (await body(await client.get("/api/endpoints"), schema.Endpoints)).endpoints[1].blocks[0]
    endpoint.block(Cause.HEALTH, "connection refused")
    second = (await body(await client.get("/api/endpoints"), schema.Endpoints)).endpoints[1].blocks[0]
    assert (second.reason, second.since) == ("connection refused", first.since)


# The ring.


async def test_the_ring_is_all_arcs_of_all_servers_without_a_gap(world, connect):
    client = await connect(world)
    ring = await body(await client.get("/api/ring"), schema.Ring)
    owned = sorted((end, start, member.id) for member in ring.members for start, end in member.arcs)
    assert all(before[0] == after[1] for before, after in pairwise(owned))
    assert owned[0][1] == owned[-1][0], "the first arc passes through zero"
    assert all(before[2] != after[2] for before, after in pairwise(owned)), "neighbours are joined"
    snapshot = world.proxy.cluster.snapshot
    for end, _, owner in owned:
        assert snapshot.ring.nodes[snapshot.ring.owner_index(end)].id == owner
    assert ring.ring_size == RING_SIZE


async def test_the_ring_is_not_sent_again_to_who_has_it(world, connect):
    client = await connect(world)
    first = await client.get("/api/ring")
    again = await client.get("/api/ring", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, await again.read()) == (HTTPStatus.NOT_MODIFIED, b"")


async def test_a_large_ring_is_made_in_slices_that_leave_the_loop_its_turns(connect):
    endpoints = [{"id": f"server-{index}", "address": f"10.0.0.1:{index + 1}"} for index in range(1000)]
    world = World(endpoints=endpoints)
    client = await connect(world)
    with counted_passes() as passes:
        ring = await body(await client.get("/api/ring"), schema.Ring)
    assert len(ring.members) == 1000
    assert passes.count > 60, "100,000 vnodes take 60 ms at least; a slice takes half a millisecond"


# Explanations.


async def test_a_key_is_explained_as_calls_are_routed(world, connect):
    client = await connect(world)
    caller = world.client()
    for chat in ("chat-000", "chat-001", "chat-007", "chat-013"):
        caller.request(message(chat))
        world.run()
        told = await body(await client.get("/api/explain", params={"key": chat}), schema.Explanation)
        assert told.verdict == "owner"
        assert told.chosen == told.owner == world.owner(chat)
        assert [each.id for each in told.candidates] == world.order(chat)
        assert told.summary == f"{told.owner} owns the key and takes it"


async def test_who_is_passed_over_is_told_with_reason_and_since(world, connect):
    client = await connect(world)
    first, second, third = world.order("chat-001")
    by_id = world.proxy.cluster.snapshot.by_id
    by_id[first].block(Cause.EJECTED, "ejected for 30 s")
    by_id[second].block(Cause.OPERATOR, "drained by the operator")
    told = await body(await client.get("/api/explain?key=chat-001"), schema.Explanation)
    assert (told.owner, told.chosen, told.verdict) == (first, third, "passed_over")
    assert [(each.status, each.passed_over) for each in told.candidates] == [
        ("ejected", "ejected for 30 s"),
        ("draining", "drained by the operator"),
        ("available", ""),
    ]
    assert told.candidates[0].blocks[0].since is not None


async def test_a_displaced_chat_is_explained_without_counting_as_used(world, connect):
    client = await connect(world)
    home, other, _ = world.order("chat-001")
    owner = world.proxy.cluster.snapshot.by_id[home]
    owner.block(Cause.HEALTH, "gone")
    world.client().request(message("chat-001"))
    world.run()
    owner.unblock(Cause.HEALTH)
    world.advance(59.0)
    told = await body(await client.get("/api/explain?key=chat-001"), schema.Explanation)
    assert (told.verdict, told.chosen, told.displaced) == (
        "displaced",
        other,
        schema.Displaced(endpoint=other, idle=59.0),
    )
    world.advance(1.0)
    told = await body(await client.get("/api/explain?key=chat-001"), schema.Explanation)
    assert (told.verdict, told.chosen) == ("owner", home), "asking has not kept it there"


async def test_with_nobody_available_panic_is_explained(world, connect):
    client = await connect(world)
    for endpoint in world.proxy.cluster.snapshot:
        endpoint.block(Cause.HEALTH, "timed out")
    told = await body(await client.get("/api/explain?key=chat-001"), schema.Explanation)
    assert (told.verdict, told.chosen) == ("panic", world.owner("chat-001"))


async def test_nobody_is_a_verdict_too(world, connect):
    client = await connect(world)
    for endpoint in world.proxy.cluster.snapshot:
        endpoint.block(Cause.OPERATOR, "drained")
    told = await body(await client.get("/api/explain?key=chat-001"), schema.Explanation)
    assert (told.verdict, told.chosen) == ("nobody", None)


async def test_a_quarantined_key_is_refused_for_so_long(world, connect):
    client = await connect(world)
    detector = world.whole.control.detector
    first, second, _ = world.order("chat-001")
    by_id = world.proxy.cluster.snapshot.by_id
    for name in (first, second):
        detector.lost(by_id[name], b"chat-001", world.now())
    told = await body(await client.get("/api/explain?key=chat-001"), schema.Explanation)
    assert (told.verdict, told.chosen, told.quarantined_for) == ("quarantined", None, 30.0)


async def test_a_server_over_its_bound_refuses_and_the_chat_does_not_move(connect):
    world = World(limits={"max_calls_per_endpoint": 1}).echoing().start()
    client = await connect(world)
    world.proxy.cluster.snapshot.by_id[world.owner("chat-001")].active = 1
    told = await body(await client.get("/api/explain?key=chat-001"), schema.Explanation)
    assert (told.verdict, told.chosen) == ("over_bound", None)
    assert told.candidates[0].passed_over == "over its bound: 1 calls under way of 1"


@pytest.mark.parametrize(
    "query", ["", "?key=", "?key_hex=xyz", "?key=a&candidates=0", "?key=a&candidates=101", "?key=a&candidates=many"]
)
async def test_a_bad_question_is_400(world, connect, query):
    client = await connect(world)
    await refused(await client.get(f"/api/explain{query}"), HTTPStatus.BAD_REQUEST)


async def test_a_key_may_be_any_bytes(world, connect):
    client = await connect(world)
    told = await body(await client.get("/api/explain?key_hex=00ff"), schema.Explanation)
    assert (told.key, told.owner) == ("\x00\\xff", world.proxy.cluster.snapshot.owner(b"\x00\xff").id)


# Drain.


async def test_drain_moves_new_calls_of_that_server_alone_and_undrain_brings_them_back(world, connect):
    client = await connect(world)
    caller = world.client()
    chats = [f"chat-{index:03d}" for index in range(30)]

    def served_by() -> dict[str, str]:
        found = {}
        for chat in chats:
            before = {name: len(world.at(name).exchanges) for name in "ABC"}
            caller.request(message(chat))
            world.run()
            [found[chat]] = [name for name in "ABC" if len(world.at(name).exchanges) > before[name]]
        return found

    at_home = served_by()
    drained = await body(await client.post("/api/endpoints/B/drain", json={"reason": "new kernel"}), schema.Drained)
    assert (drained.changed, drained.status) == (True, "draining")
    moved = served_by()
    assert "B" not in moved.values()
    assert {chat for chat in chats if moved[chat] != at_home[chat]} == {c for c in chats if at_home[c] == "B"}
    again = await body(await client.post("/api/endpoints/B/drain", json={}), schema.Drained)
    assert not again.changed
    back = await body(await client.post("/api/endpoints/B/undrain", json={}), schema.Drained)
    assert (back.changed, back.status) == (True, "available")
    world.advance(60.0)  # [failback] idle_time
    assert served_by() == at_home


async def test_the_reason_of_a_drain_is_told(world, connect):
    client = await connect(world)
    await client.post("/api/endpoints/B/drain", json={"reason": "new kernel"})
    told = await body(await client.get("/api/endpoints"), schema.Endpoints)
    assert told.endpoints[1].blocks[0].reason == "drained by the operator: new kernel"


async def test_the_last_server_is_drained_by_force_only(world, connect):
    client = await connect(world)
    for name in "AB":
        await body(await client.post(f"/api/endpoints/{name}/drain", json={}), schema.Drained)
    found = await refused(await client.post("/api/endpoints/C/drain", json={}), HTTPStatus.CONFLICT)
    assert found.detail.startswith("C is the only server that is available")
    assert world.proxy.cluster.snapshot.by_id["C"].available
    await body(await client.post("/api/endpoints/C/drain", json={"force": True}), schema.Drained)
    assert not world.proxy.cluster.snapshot.by_id["C"].available


@pytest.mark.parametrize("action", ["drain", "undrain"])
async def test_an_unknown_endpoint_is_404(world, connect, action):
    client = await connect(world)
    found = await refused(await client.post(f"/api/endpoints/X/{action}", json={}), HTTPStatus.NOT_FOUND)
    assert "'X'" in found.detail


@pytest.mark.parametrize(
    ("action", "data"),
    [
        ("drain", "{"),
        ("drain", "[]"),
        ("drain", '{"reason": 5}'),
        ("drain", '{"force": "yes"}'),
        ("drain", '{"resaon": "typo"}'),
        ("drain", json.dumps({"reason": "x" * 201})),
        ("undrain", '{"force": true}'),
    ],
)
async def test_a_bad_body_is_400_and_changes_nothing(world, connect, action, data):
    client = await connect(world)
    await refused(
        await client.post(f"/api/endpoints/B/{action}", data=data, headers={"Content-Type": "application/json"}),
        HTTPStatus.BAD_REQUEST,
    )
    assert world.proxy.cluster.snapshot.by_id["B"].available


async def test_a_body_too_large_is_413(world, connect):
    client = await connect(world)
    response = await client.post("/api/endpoints/B/drain", json={"reason": "x" * 70_000})
    await refused(response, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


async def test_a_plan_for_more_virtual_nodes_than_a_ring_may_have_is_refused(world, connect):
    client = await connect(world)
    query = "&".join(f"add=X{number}=1000" for number in range(100))
    found = await refused(await client.get(f"/api/plan?{query}"), HTTPStatus.BAD_REQUEST)
    assert found.detail.endswith("virtual nodes are more than 8,388,608")


async def test_unknown_paths_and_wrong_methods_are_problems_too(world, connect):
    client = await connect(world)
    found = await refused(await client.get("/api/nothing"), HTTPStatus.NOT_FOUND)
    assert found.detail.startswith("nothing is at this path: ")
    response = await client.get("/api/endpoints/B/drain")
    found = await refused(response, HTTPStatus.METHOD_NOT_ALLOWED)
    assert response.headers["Allow"] == "POST"
    assert found.detail == "this path takes POST only"


# Configuration and schema.


async def test_the_configuration_is_whole_and_hides_the_token(connect):
    world = World(admin={"token": "0123456789abcdef"})
    client = await connect(world)
    text = await (await client.get("/api/config")).text()
    assert "0123456789abcdef" not in text
    told = schema.Config.model_validate_json(text)
    assert told.settings["admin"]["token"] == "**********"
    assert told.settings["upstream"]["connect_timeout"] == 5.0, "defaults are told too"


async def test_the_schema_has_every_body(world, connect):
    client = await connect(world)
    told = await (await client.get("/api/schema")).json()
    assert {model.__name__ for model in schema.BODIES} <= told["$defs"].keys()


# Events.


async def read_event(response) -> dict[str, str]:
    fields = {}
    while line := (await response.content.readline()).decode().rstrip("\n"):
        name, _, value = line.partition(": ")
        if name:
            fields[name] = value
    return fields or await read_event(response)


async def test_events_are_told_as_they_happen(world, connect):
    client = await connect(world)
    async with client.get("/api/events") as response:
        assert response.content_type == "text/event-stream"
        assert (await response.content.readline()).startswith(b":")
        await client.post("/api/endpoints/B/drain", json={"reason": "new kernel"})
        world.proxy.cluster.snapshot.by_id["C"].block(Cause.EJECTED, "5 failures in a row")
        drained, ejected = [await read_event(response) for _ in range(2)]
        assert (drained["event"], ejected["event"]) == ("drained", "ejected")
        event = schema.Event.model_validate_json(ejected["data"])
        assert (event.endpoint, event.cause, event.detail) == ("C", "ejected", "5 failures in a row")
        assert int(ejected["id"]) == event.id == int(drained["id"]) + 1


async def test_a_client_that_was_away_gets_what_it_missed(world, connect):
    client = await connect(world)
    endpoint = world.proxy.cluster.snapshot.by_id["C"]
    endpoint.block(Cause.HEALTH, "gone")
    seen = world.whole.admin_port.events.last_id
    endpoint.unblock(Cause.HEALTH)
    async with client.get("/api/events", headers={"Last-Event-ID": str(seen)}) as response:
        assert (await read_event(response))["event"] == "healthy"


async def test_too_many_watchers_are_refused(world, connect):
    client = await connect(world, max_watchers=1)
    async with client.get("/api/events"):
        await refused(await client.get("/api/events"), HTTPStatus.SERVICE_UNAVAILABLE)


async def test_a_reader_of_events_who_goes_away_is_no_error(world, connect, caplog, monkeypatch):
    # There is a moment in which the transport is closing and nobody has been told yet; only then does a write fail.
    async def write(_response, _data):
        raise ClientConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(web.StreamResponse, "write", write)
    client = await connect(world)
    async with client.get("/api/events") as response:
        await response.read()
    assert world.whole.admin_port.events.listeners == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_streams_of_events_end_with_the_proxy(world, connect):
    client = await connect(world)
    async with client.get("/api/events") as response:
        world.whole.admin_port.events.close()
        assert (await response.read()).split(b"\n\n", 1)[1] == b""


# Plans.


async def test_a_plan_says_what_moves_where_before_it_is_done(world, connect):
    client = await connect(world)
    caller = world.client()
    chats = [f"chat-{index:03d}" for index in range(60)]
    for chat in chats:
        caller.request(message(chat))
        world.run()
    ring = world.proxy.cluster.snapshot.ring
    told = await body(await client.get("/api/plan?remove=B"), schema.Plan)
    assert told.moved_share == pytest.approx(ring.shares()["B"])
    assert {move.source for move in told.moves} == {"B"}
    assert told.recent_chats == 60
    assert told.moved_chats == sum(world.owner(chat) == "B" for chat in chats) == sum(m.chats for m in told.moves)
    assert sum(told.shares.values()) == pytest.approx(1.0)
    assert "B" not in told.shares
    # And so it comes: the drain moves these chats to these servers.
    world.proxy.cluster.snapshot.by_id["B"].block(Cause.OPERATOR, "drained")
    for move in told.moves:
        targets = [
            next(name for name in world.order(chat) if name != "B") for chat in chats if world.owner(chat) == "B"
        ]
        assert move.chats == targets.count(move.target)


async def test_a_plan_may_add_and_reweight(world, connect):
    client = await connect(world)
    told = await body(await client.get("/api/plan?add=D%3D2&reweight=A=0.5"), schema.Plan)
    assert set(told.shares) == {"A", "B", "C", "D"}
    assert {(move.target == "D") or (move.source == "A") for move in told.moves} == {True}
    assert told.fingerprint != told.snapshot.fingerprint


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?ad=D",
        "?add=A",
        "?add=D=heavy",
        "?add=D=0",
        "?add==1",
        "?remove=A&reweight=A=2",
        "?remove=A&remove=B&remove=C",
    ],
)
async def test_a_plan_that_makes_no_sense_is_400(world, connect, query):
    client = await connect(world)
    await refused(await client.get(f"/api/plan{query}"), HTTPStatus.BAD_REQUEST)


@pytest.mark.parametrize("query", ["?remove=X", "?reweight=X=2"])
async def test_a_plan_for_an_unknown_endpoint_is_404(world, connect, query):
    client = await connect(world)
    await refused(await client.get(f"/api/plan{query}"), HTTPStatus.NOT_FOUND)
