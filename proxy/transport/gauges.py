"""What the data path of one process holds at a moment: calls, connections, streams, bytes.

Looked up when somebody asks, so it costs the calls nothing. In slices (`proxy.slices`), as there may be ten thousand
connections.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from proxy.cluster.endpoint import Endpoint
from proxy.forwarding.forwarder import Forwarder
from proxy.forwarding.stats import StatsSnapshot
from proxy.http2 import Http2Connection

if TYPE_CHECKING:
    from proxy.transport.listener import Listener
    from proxy.transport.pool import UpstreamPool

CONNECTIONS_A_SLICE: Final = 64
POOLS_A_SLICE: Final = 8


def gathered(
    forwarder: Forwarder, listener: Listener, pools: Mapping[Endpoint, UpstreamPool]
) -> Generator[None, None, StatsSnapshot]:
    """All numbers of one process: the counters of its calls, and what it holds now."""
    told = yield from forwarder.stats.gathered()
    _forwarder(told, forwarder)
    told.add("districhat_downstream_connections_total", listener.accepted)
    told.add("districhat_downstream_connections", len(listener.connections))
    streams = queued = 0
    for number, connection in enumerate(tuple(listener.connections)):
        streams += len(connection.calls)
        queued += _queued(connection)
        if number % CONNECTIONS_A_SLICE == 0:
            yield
    told.add("districhat_downstream_streams", streams)
    told.add("districhat_buffered_bytes", queued, "downstream")
    for number, (endpoint, pool) in enumerate(tuple(pools.items())):
        _pool(told, endpoint, pool)
        if number % POOLS_A_SLICE == 0:
            yield
    return told


def _forwarder(told: StatsSnapshot, forwarder: Forwarder) -> None:
    snapshot, detector, displaced = forwarder.cluster.snapshot, forwarder.detector, forwarder.displaced
    told.add("districhat_active_calls", forwarder.active)
    told.add("districhat_buffered_bytes", forwarder.kept, "replay")
    told.add("districhat_active_repeats", forwarder.budget.repeating)
    told.add("districhat_retry_tokens", forwarder.budget.tokens)
    told.add("districhat_displaced_chats", len(displaced.chats))
    told.add("districhat_chats_returned_total", displaced.returned)
    told.add("districhat_quarantined_chats", len(detector.quarantined))
    told.add("districhat_quarantines_total", detector.quarantines)
    told.add("districhat_memo_entries", len(snapshot.recent_keys), "owner")
    told.add("districhat_memo_entries", len(forwarder.heads.memo), "headers")
    told.add("districhat_memo_misses_total", snapshot.misses, "owner")
    for limit, count in forwarder.watch.counters.snapshot().items():
        told.add("districhat_limits_exceeded_total", count, limit)


def _pool(told: StatsSnapshot, endpoint: Endpoint, pool: UpstreamPool) -> None:
    name = endpoint.id
    told.add("districhat_endpoint_active_calls", endpoint.active, name)
    told.add("districhat_endpoint_waiting_calls", len(pool.waiting), name)
    told.add("districhat_upstream_connections", len(pool.connections), name)
    told.add("districhat_upstream_connections_total", pool.made, name)
    told.add("districhat_upstream_streams", sum(len(each.calls) for each in pool.connections), name)
    told.add("districhat_buffered_bytes", _all_queued(pool.connections), "upstream")


def _all_queued(connections: Iterable[Http2Connection]) -> int:
    return sum(map(_queued, connections))


def _queued(connection: Http2Connection) -> int:
    """Bytes of bodies that wait for the peer's window."""
    return 0 if connection.closed else connection.engine.queued_body_size()
