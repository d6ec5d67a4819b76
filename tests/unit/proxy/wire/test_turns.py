"""Much that a client sends at once is taken in turns with what others sent."""

from __future__ import annotations

from proxy.http2 import SLICE
from tests.support.wire import World, feed, message


def test_a_read_of_many_calls_begins_a_few_of_them_and_leaves_the_rest_to_the_next_passes():
    world = World().echoing().start()
    client = world.client()
    world.run()
    sids = [client.request(message("chat-007")) for _ in range(900)]
    bytes_of_calls = client.engine.data_to_send()
    assert len(bytes_of_calls) > 4 * SLICE
    proxy = client.transport.peer
    feed(proxy.protocol, bytes_of_calls)
    begun = len(proxy.protocol.calls)
    assert 0 < begun < len(sids) // 3
    assert not proxy.reading, "what comes next would overtake what is left"
    world.run()
    assert proxy.reading
    assert all(client.exchanges[sid].status == 0 for sid in sids)
    world.assert_clean()


def test_a_read_of_one_large_message_is_taken_without_a_pause():
    world = World().echoing().start()
    client = world.client()
    world.run()
    sid = client.request(message("chat-007", "x" * 150_000))
    bytes_of_a_message = client.engine.data_to_send()
    proxy = client.transport.peer
    feed(proxy.protocol, bytes_of_a_message)
    assert proxy.reading
    world.run()
    assert client.exchanges[sid].status == 0
