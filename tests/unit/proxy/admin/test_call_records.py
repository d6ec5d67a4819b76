"""What is told of single calls: recent decisions, explanations to the client, the logs of calls."""

from __future__ import annotations

import json
import logging
import queue
from http import HTTPStatus

import pytest

from proxy.admin import schema
from proxy.admin.call_records import ACCESS, SLOW, hashed
from proxy.admin.logs import DroppingHandler, LogSettings, logging_as
from proxy.cluster.endpoint import Cause
from proxy.errors import ConfigError
from proxy.forwarding.watched import WatchedCall
from tests.support.messages import message
from tests.support.world import World

EXPLAIN = (b"x-districhat-explain", b"1")
EVERY_CALL = {"sample": 1, "chat_ids": "plain"}


def started(**settings: object) -> World:
    return World(**settings).echoing().start()


async def decisions(client, query: str = "") -> schema.Decisions:
    response = await client.get(f"/api/decisions{query}")
    assert response.status == HTTPStatus.OK, await response.text()
    return schema.Decisions.model_validate_json(await response.read())


def told(exchange) -> dict[str, str]:
    """What the trailers explain."""
    prefix = b"x-districhat-"
    fields = [*exchange.headers, *exchange.trailers]
    return {name.removeprefix(prefix).decode(): value.decode() for name, value in fields if name.startswith(prefix)}


# Decisions.


async def test_a_decision_says_who_owned_the_call_who_got_it_and_how_it_ended(connect):
    world = started(decisions=EVERY_CALL)
    client = await connect(world)
    home, other, _ = world.order("chat-001")
    world.at(home).on_request = lambda server, sid, _: server.engine.reset_stream(sid, 2)
    world.client().request(message("chat-001"))
    world.run()
    [decision] = (await decisions(client)).decisions
    assert (decision.method, decision.route) == ("/chat.ChatService/PostMessage",) * 2
    assert (decision.chat, decision.owner, decision.endpoint, decision.status) == ("chat-001", home, other, "OK")
    assert [(each.endpoint, each.outcome) for each in decision.attempts] == [(home, "reset"), (other, "answered")]
    assert decision.reasons == f"{home}: reset the call (INTERNAL_ERROR)"


async def test_decisions_have_their_times_also_where_metrics_are_off(connect):
    world = started(decisions=EVERY_CALL, metrics={"enabled": False})
    client = await connect(world)
    owner = world.at(world.owner("chat-001"))
    owner.on_request = None
    world.client().request(message("chat-001"))
    world.advance(0.5)
    owner.respond(1)
    world.run()
    assert (await decisions(client)).decisions[0].seconds == 0.5


async def test_one_call_in_so_many_is_kept_newest_first_and_no_more_than_so_many(connect):
    world = started(decisions={"sample": 10, "kept": 3, "chat_ids": "plain"})
    client = await connect(world)
    caller = world.client()
    for index in range(100):
        caller.request(message(f"chat-{index:03d}"))
        world.run()
    found = await decisions(client)
    assert found.sample == 10
    assert [each.chat for each in found.decisions] == ["chat-099", "chat-089", "chat-079"]
    assert [each.chat for each in (await decisions(client, "?limit=1")).decisions] == ["chat-099"]
    assert [each.chat for each in (await decisions(client, "?key=chat-089")).decisions] == ["chat-089"]


async def test_chats_are_hashed_unless_a_setting_says_otherwise(connect):
    world = started(decisions={"sample": 1})
    client = await connect(world)
    world.client().request(message("chat-001"))
    world.run()
    text = await (await client.get("/api/decisions")).text()
    assert "chat-001" not in text
    assert schema.Decisions.model_validate_json(text).decisions[0].chat == hashed(b"chat-001")
    assert len((await decisions(client, "?key=chat-001")).decisions) == 1, "who knows an id finds its calls"


async def test_a_call_that_ends_before_an_answer_is_a_decision_too(connect):
    world = started(decisions=EVERY_CALL)
    client = await connect(world)
    owner = world.owner("chat-001")
    world.at(owner).on_request = None
    caller = world.client()
    sid = caller.request(message("chat-001"))
    world.run()
    caller.engine.reset_stream(sid, 8)
    world.run()
    [decision] = (await decisions(client)).decisions
    assert (decision.status, decision.endpoint) == ("CANCELLED", owner)
    assert [each.outcome for each in decision.attempts] == ["cancelled"]


async def test_nothing_is_kept_if_nothing_shall_be():
    world = started(decisions={"kept": 0})
    assert world.proxy.records.every == 0
    assert world.proxy.forwarder.unwatched < 0


@pytest.mark.parametrize("query", ["?limit=0", "?limit=1001", "?limit=x"])
async def test_a_bad_limit_is_400(world, connect, query):
    client = await connect(world)
    assert (await client.get(f"/api/decisions{query}")).status == HTTPStatus.BAD_REQUEST


# Explanations in the trailers.


def test_a_client_that_asks_is_told_in_the_trailers_where_its_call_went():
    world = started()
    caller = world.client()
    sid = caller.request(message("chat-001"), extra=[EXPLAIN])
    world.run()
    owner = world.owner("chat-001")
    snapshot = world.proxy.cluster.snapshot
    assert caller.exchanges[sid].status == 0
    assert told(caller.exchanges[sid]) == {
        "endpoint": owner,
        "owner": owner,
        "attempts": "1",
        "snapshot": f"1-{snapshot.ring.fingerprint}",
    }
    world.assert_clean()


def test_it_is_told_of_failed_attempts_and_their_reasons():
    world = started()
    home, other, _ = world.order("chat-001")
    world.at(home).on_request = lambda server, sid, _: server.engine.reset_stream(sid, 2)
    caller = world.client()
    sid = caller.request(message("chat-001"), extra=[EXPLAIN])
    world.run()
    found = told(caller.exchanges[sid])
    assert (found["endpoint"], found["owner"], found["attempts"]) == (other, home, "2")
    assert found["reasons"] == f"{home}: reset the call (INTERNAL_ERROR)"


def test_a_refusal_of_ours_and_a_trailers_only_answer_are_explained_once():
    world = started()
    caller = world.client()
    owner = world.at(world.owner("chat-001"))
    owner.on_request = lambda server, sid, _: (
        server.begun.add(sid),
        server.engine.send_response(
            sid, [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"5")], end_stream=True
        ),
    )
    answered = caller.request(message("chat-001"), extra=[EXPLAIN])
    world.run()
    assert (caller.exchanges[answered].status, told(caller.exchanges[answered])["attempts"]) == (5, "1")
    for endpoint in world.proxy.cluster.snapshot:
        endpoint.block(Cause.OPERATOR, "drained by the operator")
    refused = caller.request(message("chat-001"), extra=[EXPLAIN])
    world.run()
    found = told(caller.exchanges[refused])
    assert caller.exchanges[refused].status == 14
    assert (found["attempts"], found["owner"], "endpoint" in found) == ("0", world.owner("chat-001"), False)
    assert found["reasons"].count("drained by the operator") == 3
    names = [name for name, _ in caller.exchanges[refused].headers]
    assert len(names) == len(set(names))


def test_a_call_cut_in_the_middle_of_its_response_is_explained_too():
    world = started()
    owner = world.at(world.owner("chat-001"))
    owner.on_request = lambda server, sid, _: server.begin(sid)
    caller = world.client()
    sid = caller.request(message("chat-001"), extra=[EXPLAIN])
    world.run()
    owner.engine.reset_stream(1, 2)
    world.run()
    assert caller.exchanges[sid].status == 13
    assert told(caller.exchanges[sid])["endpoint"] == world.owner("chat-001")


def test_servers_never_see_the_question():
    world = started()
    world.client().request(message("chat-001"), extra=[EXPLAIN])
    world.run()
    names = [name for name, _ in world.at(world.owner("chat-001")).last.headers]
    assert not [name for name in names if name.startswith(b"x-districhat-")]


@pytest.mark.parametrize("extra", [[], [(b"x-districhat-explain", b"0")]])
def test_who_does_not_ask_is_told_nothing(extra):
    world = started(decisions=EVERY_CALL)  # watched all the same
    caller = world.client()
    sid = caller.request(message("chat-001"), extra=extra)
    world.run()
    assert told(caller.exchanges[sid]) == {}


def test_nobody_is_told_anything_if_that_is_switched_off():
    world = started(decisions={"trailers": False})
    caller = world.client()
    sid = caller.request(message("chat-001"), extra=[EXPLAIN])
    world.run()
    assert told(caller.exchanges[sid]) == {}


def test_ordinary_calls_are_not_of_the_kind_that_is_watched(monkeypatch):
    world = started()
    made = []
    monkeypatch.setattr(WatchedCall, "__init__", lambda *_: made.append(1))
    world.client().request(message("chat-001"))
    world.run()
    assert not made


# The logs of calls.


def lines(caplog, name: str) -> list[dict]:
    return [json.loads(record.message) for record in caplog.records if record.name == name]


def test_the_access_log_has_one_call_in_so_many_as_json(caplog):
    caplog.set_level(logging.INFO, ACCESS)
    world = started(log={"access_sample": 3}, decisions={"chat_ids": "plain"})
    caller = world.client()
    for index in range(9):
        caller.request(message(f"chat-{index:03d}"))
        world.run()
    found = lines(caplog, ACCESS)
    assert [line["chat"] for line in found] == ["chat-002", "chat-005", "chat-008"]
    first = found[0]
    assert first["method"] == "/chat.ChatService/PostMessage"
    assert first["endpoint"] == first["owner"] == world.owner("chat-002")
    assert (first["status"], first["attempts"]) == ("OK", [f"{first['endpoint']}: answered"])


def test_off_is_the_default_of_both_logs(caplog):
    caplog.set_level(logging.INFO)
    world = started()
    caller = world.client()
    for index in range(300):
        caller.request(message(f"chat-{index:03d}"))
    world.run()
    assert not lines(caplog, ACCESS)
    assert not lines(caplog, SLOW)


def test_a_call_slower_than_the_threshold_is_logged_watched_or_not(caplog):
    world = started(log={"slow_calls": 0.5}, decisions={"chat_ids": "plain"})
    caller = world.client()
    owner = world.at(world.owner("chat-001"))
    owner.on_request = None
    for sid, seconds in ((1, 0.4), (3, 0.6)):
        caller.request(message("chat-001"))
        world.advance(seconds)
        owner.respond(sid)
        world.run()
    [line] = lines(caplog, SLOW)
    assert (line["chat"], line["seconds"], line["endpoint"]) == ("chat-001", 0.6, world.owner("chat-001"))


def test_lines_of_calls_are_written_to_the_file_by_the_end_of_the_block(tmp_path):
    file = tmp_path / "access.log"
    with logging_as(LogSettings(access_file=str(file))):
        for index in range(100):
            logging.getLogger(ACCESS).info('{"n": %d}', index)
    assert [json.loads(line)["n"] for line in file.read_text().splitlines()] == list(range(100))


def test_lines_that_cannot_be_written_are_told_once_and_so_is_that_they_can_be_again(tmp_path, caplog):
    file = tmp_path / "logs" / "access.log"
    file.parent.mkdir()
    access = logging.getLogger(ACCESS)
    with logging_as(LogSettings(access_file=str(file))):
        logging.getLogger().addHandler(caplog.handler)  # which `logging_as` has removed
        file.unlink()
        file.parent.rmdir()
        for _ in range(3):
            access.info("lost")
    said = [record.getMessage() for record in caplog.records if record.name == "proxy.admin.logs"]
    assert said == ["lines of districhat.access cannot be written and are lost: no such file or directory"]


def test_a_full_disk_costs_lines_and_nothing_else(caplog):
    access = logging.getLogger(ACCESS)
    with logging_as(LogSettings(access_file="/dev/full")):
        logging.getLogger().addHandler(caplog.handler)
        for _ in range(3):
            access.info("lost")
    [said] = [record.getMessage() for record in caplog.records if record.name == "proxy.admin.logs"]
    assert said == "lines of districhat.access cannot be written and are lost: no space left on device"


def test_a_file_that_cannot_be_written_is_a_mistake_with_its_key(tmp_path):
    for name, why in ((str(tmp_path), "is a directory"), ("a\0b", "embedded null byte")):
        with (
            pytest.raises(ConfigError, match=rf"^log\.access_file: cannot write .*: {why}"),
            logging_as(LogSettings(access_file=name)),
        ):
            pass


def test_a_reader_that_does_not_read_costs_lines_and_nothing_else():
    handler = DroppingHandler(queue.Queue(2))
    for _ in range(5):
        handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "line", None, None))
    assert handler.dropped == 3
