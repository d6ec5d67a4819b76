"""What is counted, seen through `/metrics` as Prometheus reads it."""

from __future__ import annotations

import json
import marshal
from http import HTTPStatus
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from proxy.admin import metrics
from proxy.cluster.endpoint import Cause
from proxy.forwarding.stats import CALL_BOUNDS, StatsSnapshot
from proxy.http2 import PassClock
from tests.support.loop import counted_passes
from tests.support.messages import framed, message
from tests.support.peers import echo
from tests.support.world import World

DOCS = Path(__file__).parents[4] / "docs"


async def scrape(client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample: (name, labels in order of their names) to value."""
    response = await client.get("/metrics")
    assert response.status == HTTPStatus.OK, await response.text()
    assert response.headers["Content-Type"] == metrics.CONTENT_TYPE
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(await response.text())
        for sample in family.samples
    }


def labelled(found, name: str, **wanted: str) -> float:
    """The sum of the samples of `name` that have these labels."""
    return sum(
        value for (each, labels), value in found.items() if each == name and wanted.items() <= dict(labels).items()
    )


async def test_calls_are_counted_by_route_server_and_status(world, connect):
    client = await connect(world)
    owner = world.owner("chat-001")
    caller = world.client()
    for _ in range(3):
        caller.request(message("chat-001"))
        world.run()
    world.at(owner).on_request = lambda server, sid, _: server.respond(sid, status=5)
    caller.request(message("chat-001"))
    caller.request(message("chat-001"), path=b"/other.Service/Method", extra=[(b"x-chat-id", b"chat-001")])
    world.run()
    found = await scrape(client)
    calls = "districhat_calls_total"
    post = "/chat.ChatService/PostMessage"
    assert labelled(found, calls, route=post, endpoint=owner, status="OK") == 3
    assert labelled(found, calls, route=post, endpoint=owner, status="NOT_FOUND") == 1
    assert labelled(found, calls, route="*", endpoint=owner, status="NOT_FOUND") == 1
    assert labelled(found, calls) == 5


async def test_what_a_server_sends_as_a_status_cannot_make_labels(world, connect):
    client = await connect(world)

    def answer(server, sid, _):
        server.begin(sid)
        server.engine.send_trailers(sid, [(b"grpc-status", b"777-%d" % sid)])

    for name in "ABC":
        world.at(name).on_request = answer
    caller = world.client()
    for _ in range(5):
        caller.request(message("chat-001"))
        world.run()
    found = await scrape(client)
    assert labelled(found, "districhat_calls_total", status="UNKNOWN") == labelled(found, "districhat_calls_total") == 5


async def test_ends_that_no_server_gave_are_counted_too(world, connect):
    client = await connect(world)
    caller = world.client()
    silent = world.at(world.owner("chat-001"))
    silent.on_request = None
    cancelled = caller.request(message("chat-001"))
    caller.request(message("chat-001"), extra=[(b"grpc-timeout", b"1S")])
    world.run()
    caller.engine.reset_stream(cancelled, 8)
    world.advance(1.5)
    for name in "ABC":
        world.proxy.cluster.snapshot.by_id[name].block(Cause.OPERATOR, "drained")
    caller.request(message("chat-002"))
    world.run()
    found = await scrape(client)
    owner = world.owner("chat-001")
    assert labelled(found, "districhat_calls_total", endpoint=owner, status="CANCELLED") == 1
    assert labelled(found, "districhat_calls_total", endpoint=owner, status="DEADLINE_EXCEEDED") == 1
    assert labelled(found, "districhat_calls_total", endpoint="", status="UNAVAILABLE") == 1


async def test_the_time_of_calls_is_the_time_that_passed(world, connect):
    client = await connect(world)
    owner = world.owner("chat-001")
    server = world.at(owner)
    server.on_request = None
    caller = world.client()
    caller.request(message("chat-001"))
    world.run()
    world.advance(0.2)
    echo(server, 1, server.exchanges[1])
    world.run()
    caller.request(message("chat-001"), extra=[(b"grpc-timeout", b"7S")])
    world.advance(8.0)
    found = await scrape(client)
    assert labelled(found, "districhat_call_seconds_sum", endpoint=owner) == pytest.approx(7.2, abs=0.1)
    assert labelled(found, "districhat_call_seconds_count", endpoint=owner) == 2
    assert labelled(found, "districhat_call_seconds_bucket", endpoint=owner, le="0.1") == 0
    assert labelled(found, "districhat_call_seconds_bucket", endpoint=owner, le="0.25") == 1
    assert labelled(found, "districhat_call_seconds_bucket", endpoint=owner, le="10.0") == 2


async def test_retries_failovers_and_moved_chats_say_why(world, connect):
    client = await connect(world)
    home, other, _ = world.order("chat-001")
    world.at(home).on_request = lambda server, sid, _: server.engine.reset_stream(sid, 2)
    caller = world.client()
    caller.request(message("chat-001"))
    world.run()
    found = await scrape(client)
    assert labelled(found, "districhat_attempt_failures_total", endpoint=home, outcome="reset") == 1
    assert labelled(found, "districhat_retries_total", reason="reset") == 1
    assert labelled(found, "districhat_failovers_total") == 1
    assert labelled(found, "districhat_calls_off_owner_total", reason="reset") == 1
    assert labelled(found, "districhat_chats_moved_total", reason="reset") == 1
    assert labelled(found, "districhat_displaced_chats") == 1
    assert labelled(found, "districhat_calls_total", endpoint=other, status="OK") == 1

    caller.request(message("chat-001"))
    world.run()
    found = await scrape(client)
    assert labelled(found, "districhat_calls_off_owner_total", reason="displaced") == 1
    assert labelled(found, "districhat_chats_moved_total") == 1, "a call more, but the chat has not moved again"

    echo_again = world.at(home)
    echo_again.on_request = echo
    world.advance(60.0)
    caller.request(message("chat-001"))
    world.run()
    assert labelled(await scrape(client), "districhat_chats_returned_total") == 1


@pytest.mark.parametrize(
    ("cause", "reason"), [(Cause.HEALTH, "health"), (Cause.EJECTED, "ejected"), (Cause.OPERATOR, "operator")]
)
async def test_a_chat_that_moves_because_its_owner_is_out_says_by_whose_word(world, connect, cause, reason):
    client = await connect(world)
    world.proxy.cluster.snapshot.by_id[world.owner("chat-001")].block(cause, "some reason")
    caller = world.client()
    for _ in range(2):
        caller.request(message("chat-001"))
        world.run()
    found = await scrape(client)
    assert labelled(found, "districhat_chats_moved_total", reason=reason) == 1
    assert labelled(found, "districhat_retries_total") == 0, "nobody was tried in vain"
    assert labelled(found, "districhat_endpoint_blocked", endpoint=world.owner("chat-001"), cause=reason) == 1
    assert labelled(found, "districhat_endpoint_blocks_total", endpoint=world.owner("chat-001"), cause=reason) == 1


async def test_what_is_held_now_is_told(world, connect):
    client = await connect(world)
    owner = world.owner("chat-001")
    world.at(owner).on_request = None
    world.client().request(message("chat-001"), end=False)
    world.client()
    world.run()
    found = await scrape(client)
    assert labelled(found, "districhat_active_calls") == 1
    assert labelled(found, "districhat_endpoint_active_calls", endpoint=owner) == 1
    assert labelled(found, "districhat_downstream_connections") == 2
    assert labelled(found, "districhat_downstream_connections_total") == 2
    assert labelled(found, "districhat_downstream_streams") == 1
    assert labelled(found, "districhat_upstream_streams", endpoint=owner) == 1
    assert labelled(found, "districhat_upstream_connections", endpoint=owner) == 1
    assert labelled(found, "districhat_memo_entries", memo="owner") == 1
    assert labelled(found, "districhat_memo_misses_total", memo="owner") == 1
    assert labelled(found, "districhat_memo_misses_total", memo="headers") == 1


async def test_bytes_that_a_client_does_not_read_are_told(world, connect):
    client = await connect(world)
    caller = world.client({4: 10})  # INITIAL_WINDOW_SIZE
    caller.hold = True
    body = message("chat-001", "x" * 100)
    caller.request(body, end=True)
    world.run()
    found = await scrape(client)
    waiting = labelled(found, "districhat_buffered_bytes", where="downstream")
    assert waiting == len(body) - 10


async def test_switched_off_nothing_is_counted_and_states_are_told(connect):
    world = World(metrics={"enabled": False}).echoing().start()
    client = await connect(world)
    world.client().request(message("chat-001"))
    world.run()
    found = await scrape(client)
    assert labelled(found, "districhat_calls_total") == 0
    assert labelled(found, "districhat_pass_seconds_count") == 0
    assert labelled(found, "districhat_endpoint_available") == 3


async def test_every_metric_of_the_table_is_told_by_a_proxy_that_has_seen_everything(world, connect):
    client = await connect(world)
    caller = world.client()
    caller.request(message("chat-001"))
    caller.request(framed(b""), path=b"/any.Service/Method")
    world.run()
    world.at(world.owner("chat-001")).on_request = lambda server, sid, _: server.engine.reset_stream(sid, 2)
    caller.request(message("chat-001"))
    world.run()
    world.proxy.cluster.snapshot.by_id["A"].block(Cause.EJECTED, "x")
    text = await (await client.get("/metrics")).text()
    told = {family.name for family in text_string_to_metric_families(text) if family.samples}
    by_name = {row.name.removesuffix("_total") if row.kind == "counter" else row.name for row in metrics.TABLE}
    # Checks are the control plane's, which does not run here, nor is there TLS: the integration tests see those.
    assert by_name - told == {"districhat_health_checks", "districhat_certificate_expiration_timestamp_seconds"}
    assert told <= by_name


async def test_a_number_without_a_row_is_a_mistake_of_ours():
    told = StatsSnapshot()
    told.add("districhat_unheard_of", 1)
    with pytest.raises(KeyError, match="districhat_unheard_of"):
        await metrics.render(told)


async def test_labels_are_escaped():
    told = StatsSnapshot()
    told.add("districhat_endpoint_available", 1, 'a"b\\c\nd')
    families = text_string_to_metric_families((await metrics.render(told)).decode())
    [family] = [each for each in families if each.samples]
    assert family.samples[0].labels == {"endpoint": 'a"b\\c\nd'}


async def test_a_thousand_servers_are_rendered_in_slices():
    told = StatsSnapshot()
    for index in range(1000):
        told.observe("districhat_call_seconds", [1.0] * (len(CALL_BOUNDS) + 1), 1.0, f"server-{index}")
    with counted_passes() as passes:
        text = await metrics.render(told)
    assert text.count(b"# TYPE districhat_call_seconds") == 1
    assert text.count(b"_count{") == 1000
    assert passes.count > 20


NUMBERS = st.dictionaries(
    st.sampled_from(["a", "b"]), st.dictionaries(st.tuples(st.sampled_from("xyz")), st.integers(0, 9), max_size=3)
)
BUCKETS = st.dictionaries(
    st.sampled_from(["c"]),
    st.dictionaries(st.tuples(st.sampled_from("xy")), st.lists(st.integers(0, 9), min_size=3, max_size=3), max_size=2),
)


@given(st.lists(st.builds(StatsSnapshot, NUMBERS, BUCKETS), max_size=4))
def test_numbers_of_processes_add_up_whatever_way_they_came(snapshots):
    total = StatsSnapshot()
    for each in snapshots:
        values, histograms = marshal.loads(marshal.dumps((each.values, each.histograms)))
        total.merge(StatsSnapshot(values, histograms))
    for name in "ab":
        for label in "xyz":
            expected = sum(each.values.get(name, {}).get((label,), 0) for each in snapshots)
            assert total.values.get(name, {}).get((label,), 0) == expected
    for label in "xy":
        columns = [each.histograms["c"][label,] for each in snapshots if (label,) in each.histograms.get("c", {})]
        expected_buckets = [sum(column) for column in zip(*columns, strict=True)]
        assert total.histograms.get("c", {}).get((label,), []) == expected_buckets


def test_a_pass_is_timed_from_its_first_bytes_to_its_last_write(world, monkeypatch):
    caller = world.client()
    clock = world.proxy.stats.clock
    times = iter([10.0, 10.0004, *[11.0] * 100])
    monkeypatch.setattr(clock, "read", lambda: next(times))
    world.proxy.outbox.time_next()
    caller.request(message("chat-001"))
    world.run()
    assert (clock.buckets[3], clock.seconds) == (1, pytest.approx(0.0004)), "the way there; the way back is not timed"


def test_a_pass_that_no_bytes_began_is_not_timed(world):
    clock = world.proxy.stats.clock
    world.proxy.outbox.time_next()
    [connection] = world.proxy.pools[world.proxy.cluster.snapshot.by_id["A"]].connections
    connection.engine.ping()
    connection.mark_dirty()
    world.run()
    assert sum(clock.buckets) == 0


def test_bytes_that_had_nothing_to_say_do_not_date_the_call_after_them(world):
    caller = world.client()
    caller.transport.write(b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x03\xe8")  # WINDOW_UPDATE
    world.run()
    world.advance(100.0)
    caller.request(message("chat-001"))
    world.run()
    [tally] = world.proxy.stats.of_route("/chat.ChatService/PostMessage").values()
    assert tally.seconds == 0.0


def test_a_clock_that_is_off_stands_still():
    clock = PassClock(None)
    clock.tick()
    assert clock.time == 0.0


def test_the_documentation_has_the_table():
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert metrics.markdown() in text, "run: make docs"


def test_no_label_can_grow_without_bound():
    """Every label is one of those that the configuration or a fixed list bounds."""
    bounded = {
        "route",
        "endpoint",
        "status",
        "reason",
        "outcome",
        "cause",
        "result",
        "where",
        "memo",
        "limit",
        "certificate",
    }
    constant = {"fingerprint", "hash", "version"}
    assert {label for row in metrics.TABLE for label in row.labels} <= bounded | constant
    assert json.dumps([row.name for row in metrics.TABLE]).count("districhat_") == len(metrics.TABLE)
