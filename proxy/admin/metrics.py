"""The metrics: what each means, and how the numbers of `StatsSnapshot` become the text that Prometheus reads.

`TABLE` is the one list: it renders `/metrics`, and `docs/metrics.md` is generated from it. Labels are bounded by the
configuration: a route is its pattern, never a method's name; a status one of gRPC's seventeen; a chat never appears.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, islice
from typing import Final, Literal, NamedTuple

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from proxy.admin.slices import sliced
from proxy.forwarding.stats import CALL_BOUNDS, StatsSnapshot
from proxy.http2 import PASS_BOUNDS
from proxy.transport.loop_lag import LAG_BOUNDS

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
SAMPLES_A_SLICE: Final = 32
"""Label sets that are rendered at once."""


class Row(NamedTuple):
    """One metric."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    bounds: tuple[float, ...] = ()
    """Of a histogram's buckets, without the infinite one."""


TABLE: Final = (
    # Calls.
    Row(
        "districhat_calls_total",
        "counter",
        ("route", "endpoint", "status"),
        "Calls that ended, by the pattern of their route, the server that had them in the end (empty: none) and gRPC "
        "status. CANCELLED: the client went away.",
    ),
    Row(
        "districhat_call_seconds",
        "histogram",
        ("endpoint",),
        "Time from a call's first byte to its last, by server: the proxy's own time, the network's and the server's. "
        "Streams count with their whole length.",
        CALL_BOUNDS,
    ),
    Row(
        "districhat_pass_seconds",
        "histogram",
        (),
        "The proxy's own time: from the first bytes that a pass of the event loop reads to the last that it writes, "
        "counted once for each connection written to, in ten passes a second. A call has two, there and back.",
        PASS_BOUNDS,
    ),
    Row("districhat_active_calls", "gauge", (), "Calls under way."),
    Row(
        "districhat_calls_without_key_total",
        "counter",
        (),
        "Calls without a key, which go to the least loaded server.",
    ),
    Row(
        "districhat_calls_off_owner_total",
        "counter",
        ("reason",),
        "Calls with a key that another server than its owner took, by what kept them from it: what speaks against the "
        "owner (connect, health, ejected, operator), how its attempt failed (lost, reset, ...), or displaced (the "
        "owner is back, the session is elsewhere). The affinity rate is 1 - these / (all calls - those without a key).",
    ),
    # Attempts.
    Row(
        "districhat_attempt_failures_total",
        "counter",
        ("endpoint", "outcome"),
        "Attempts that failed before a response had begun. Attempts that did not fail are in districhat_calls_total.",
    ),
    Row(
        "districhat_retries_total",
        "counter",
        ("reason",),
        "Calls given to a further server, by how the attempt before failed.",
    ),
    Row("districhat_failovers_total", "counter", (), "Calls that a further server answered after a failed attempt."),
    Row("districhat_active_repeats", "gauge", (), "Repeats under way that take from the retry budget."),
    Row(
        "districhat_retry_tokens", "gauge", (), "Tokens in the retry budget's bucket; below half, nothing is repeated."
    ),
    # Chats.
    Row(
        "districhat_chats_moved_total",
        "counter",
        ("reason",),
        "Chats that another server than before began to serve, by reason as above. With failback immediate, each call.",
    ),
    Row("districhat_chats_returned_total", "counter", (), "Chats that went back to their owner."),
    Row("districhat_displaced_chats", "gauge", (), "Chats that are remembered to be elsewhere than at their owner."),
    Row("districhat_quarantines_total", "counter", (), "Chats quarantined since the start."),
    Row("districhat_quarantined_chats", "gauge", (), "Chats that are refused now, as they failed on two servers."),
    Row(
        "districhat_limits_exceeded_total",
        "counter",
        ("limit",),
        "How often somebody went beyond a limit, by its name; the log says who, at most once a second.",
    ),
    # Servers.
    Row("districhat_endpoint_available", "gauge", ("endpoint",), "1: the server is given calls."),
    Row(
        "districhat_endpoint_blocked",
        "gauge",
        ("endpoint", "cause"),
        "1: this cause speaks against the server (connect, health, ejected, operator).",
    ),
    Row(
        "districhat_endpoint_blocks_total",
        "counter",
        ("endpoint", "cause"),
        "How often a cause began to speak against the server; with cause ejected: its ejections.",
    ),
    Row(
        "districhat_health_checks_total",
        "counter",
        ("endpoint", "result"),
        "Active health checks: passed, refused (the server says that it does not serve), failed (it did not answer).",
    ),
    Row("districhat_endpoint_weight", "gauge", ("endpoint",), "The server's weight."),
    Row("districhat_endpoint_share", "gauge", ("endpoint",), "The server's share of the key space, 0 to 1."),
    Row("districhat_endpoint_active_calls", "gauge", ("endpoint",), "Calls that the server has been given."),
    Row(
        "districhat_endpoint_waiting_calls",
        "gauge",
        ("endpoint",),
        "Calls that wait for a connection to the server or for a free stream.",
    ),
    # Connections.
    Row("districhat_downstream_connections", "gauge", (), "Connections of clients."),
    Row("districhat_downstream_connections_total", "counter", (), "Connections accepted from clients."),
    Row("districhat_downstream_streams", "gauge", (), "Open streams of clients."),
    Row("districhat_upstream_connections", "gauge", ("endpoint",), "Connections to the server that take calls."),
    Row("districhat_upstream_connections_total", "counter", ("endpoint",), "Connections made to the server."),
    Row("districhat_upstream_streams", "gauge", ("endpoint",), "Open streams to the server."),
    Row(
        "districhat_buffered_bytes",
        "gauge",
        ("where",),
        "Bytes of messages that wait: downstream and upstream for the peer's window, replay in case a call must be "
        "sent again (requests of more than 4 KiB).",
    ),
    # The process.
    Row("districhat_memo_entries", "gauge", ("memo",), "Entries of a memo: owner (by key), headers (by header list)."),
    Row(
        "districhat_memo_misses_total",
        "counter",
        ("memo",),
        "Look-ups that the memo could not answer. The hit rate is 1 - misses / calls.",
    ),
    Row(
        "districhat_loop_lag_seconds",
        "histogram",
        (),
        "How late the event loop runs a timer, looked at ten times a second.",
        LAG_BOUNDS,
    ),
    Row(
        "districhat_certificate_expiration_timestamp_seconds",
        "gauge",
        ("certificate",),
        "When the certificate of listener.tls or upstream.tls ends, or the first of its chain that does, in seconds "
        "since the epoch. With workers: of the one that shows the oldest.",
    ),
    Row("districhat_ready", "gauge", (), "1: clients may be sent here (as /readyz says)."),
    Row("districhat_ring_version", "gauge", (), "Number of the snapshot of members and weights that holds."),
    Row(
        "districhat_ring_info",
        "gauge",
        ("fingerprint", "hash"),
        "1. Proxies with the same fingerprint agree on every owner.",
    ),
    Row("districhat_workers", "gauge", (), "Processes that carry calls and answer."),
    Row(
        "districhat_workers_replaced_total",
        "counter",
        (),
        "Workers that crashed, hung or could not be started, and were replaced.",
    ),
    Row(
        "districhat_worker_reports_lost_total",
        "counter",
        (),
        "Ends of calls and moves of chats that workers could not report to the parent, as it did not keep up. Outlier "
        "detection goes without them; the numbers of calls do not.",
    ),
    Row("districhat_build_info", "gauge", ("version",), "1. The version of this program."),
)

_ROWS: Final = {row.name: row for row in TABLE}


class _Families(Collector):
    """What prometheus-client takes its samples from."""

    def __init__(self, *families: Metric) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


async def render(snapshot: StatsSnapshot) -> bytes:
    """All metrics as text (exposition format 0.0.4), rendered in slices. A number without a row is a KeyError."""
    unknown = (snapshot.values.keys() | snapshot.histograms.keys()) - _ROWS.keys()
    if unknown:
        raise KeyError(f"no row for {sorted(unknown)}")
    return b"".join([piece async for piece in sliced(_pieces(snapshot), check_every=1)])


def _pieces(snapshot: StatsSnapshot) -> Iterator[bytes]:
    for row in TABLE:
        families = _histograms(row, snapshot) if row.kind == "histogram" else _values(row, snapshot)
        for number, family in enumerate(families):
            text = generate_latest(_Families(family))
            # The comments stand once, before the first sample.
            yield text if number == 0 else text[text.index(b"\n", text.index(b"\n") + 1) + 1 :]


def _values(row: Row, snapshot: StatsSnapshot) -> Iterator[Metric]:
    make = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    items = iter(snapshot.values.get(row.name, {}).items())
    while part := list(islice(items, SAMPLES_A_SLICE)):
        family = make(row.name, row.help, labels=row.labels)
        for labels, value in part:
            family.add_metric(labels, value)
        yield family


def _histograms(row: Row, snapshot: StatsSnapshot) -> Iterator[Metric]:
    bounds = [*map(floatToGoString, row.bounds), "+Inf"]
    for labels, numbers in snapshot.histograms.get(row.name, {}).items():
        family = HistogramMetricFamily(row.name, row.help, labels=row.labels)
        counts = accumulate(numbers[:-1])
        family.add_metric(labels, list(zip(bounds, counts, strict=True)), sum_value=numbers[-1])
        yield family


def markdown() -> str:
    """The table of `docs/metrics.md`."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for row in TABLE:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        bounds = f" Buckets: {', '.join(map(floatToGoString, row.bounds))}." if row.bounds else ""
        lines.append(f"| `{row.name}` | {row.kind} | {labels} | {row.help}{bounds} |")
    return "\n".join(lines) + "\n"
