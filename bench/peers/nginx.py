"""nginx: `grpc_pass` to an upstream with a consistent hash on the header `x-chat-id`.

One worker, no access log, connections to the servers kept, and no limit of requests or time on a connection: by
default nginx ends each after 1,000 requests with a GOAWAY that cuts off calls.

With `Resilience`: the free nginx has no active checks, so a server is out after `max_fails` failed calls within
`fail_timeout`, and for that long; the two are the threshold and the time (threshold x interval) of the others' checks.
`grpc_next_upstream error timeout ...` passes a call on only if it was not sent yet, because gRPC calls are POSTs and
so "non-idempotent"; the repeatable method adds `non_idempotent` and a read timeout, of which only the timeout has an
effect: `grpc_pass` never buffers requests, and nginx passes on no unbuffered request that was sent. Errors nginx makes
itself reach the client as gRPC statuses (`error_page`), as its vendor's guide to gRPC has it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bench.peers.base import Peer
from bench.peers.programs import first_line, installed

if TYPE_CHECKING:
    from bench.peers.base import Resilience, Setup

_CONDITIONS = "error timeout invalid_header http_502 http_503 http_504"
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def _program() -> str:
    return installed("nginx", "nginx-light")


def _command(setup: Setup) -> list[str]:
    program = _program()
    config = setup.directory / "nginx.conf"
    config.write_text(configuration(setup), encoding="utf-8")
    return [program, "-p", str(setup.directory), "-e", "stderr", "-c", str(config)]


def configuration(setup: Setup) -> str:
    """The file."""
    wanted = setup.resilience
    down = f" max_fails={wanted.unhealthy_threshold} fail_timeout={_out_for(wanted)}s" if wanted else " max_fails=0"
    servers = "\n".join(f"    server {address}{down};" for address in setup.backends)
    temporary = "\n".join(f"  {name}_temp_path {setup.directory}/{name};" for name in _TEMPORARY)
    return f"""\
daemon off;
pid {setup.directory}/nginx.pid;
worker_processes 1;
{"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 16384; }}
http {{
  access_log off;
  tcp_nodelay on;
{temporary}
  upstream chats {{
    zone chats 256k;
    hash $http_x_chat_id consistent;
{servers}
    keepalive 256;
    keepalive_requests 1000000000;
    keepalive_time 1d;
    keepalive_timeout 1h;
  }}
  server {{
    listen 127.0.0.1:{setup.port} http2{_tls(setup)};
    http2_max_concurrent_streams 1000;
    keepalive_requests 1000000000;
    keepalive_time 1d;
    keepalive_timeout 1h;
    client_max_body_size 0;
    client_body_timeout 1h;
    grpc_read_timeout 1h;
    grpc_send_timeout 1h;
    grpc_connect_timeout {wanted.connect_timeout if wanted else 1.0:g}s;
    location / {{
      grpc_pass grpc://chats;{_retries(wanted)}
    }}{_repeatable(wanted)}
    error_page 502 503 504 = /unavailable;
    location = /unavailable {{
      internal;
      default_type application/grpc;
      add_header grpc-status 14;
      add_header grpc-message "no server";
      return 204;
    }}
  }}
}}
"""


def _tls(setup: Setup) -> str:
    if setup.tls is None:
        return ""
    return f" ssl;\n    ssl_certificate {setup.tls.certificate};\n    ssl_certificate_key {setup.tls.key}"


def _out_for(wanted: Resilience) -> int:
    return round(wanted.unhealthy_threshold * wanted.interval)


def _retries(wanted: Resilience | None) -> str:
    if wanted is None:
        return ""
    return f"\n      grpc_next_upstream {_CONDITIONS};\n      grpc_next_upstream_tries {wanted.attempts};"


def _repeatable(wanted: Resilience | None) -> str:
    if wanted is None:
        return ""
    return f"""
    location = {wanted.repeatable} {{
      grpc_pass grpc://chats;
      grpc_next_upstream {_CONDITIONS} non_idempotent;
      grpc_next_upstream_tries {wanted.attempts};
      grpc_read_timeout {wanted.per_try_timeout:g}s;
    }}"""


def _version() -> str:
    return first_line([_program(), "-v"]).removeprefix("nginx version: ")


PEER = Peer(
    name="nginx",
    about="nginx: consistent hash on a header, max_fails, grpc_next_upstream (Debian: nginx-light)",
    command=_command,
    calls=20_000,
    routing_header="x-chat-id",
    version=_version,
    settings=(
        "`hash $http_x_chat_id consistent`; no active checks in the free edition, so `max_fails=3 fail_timeout=6s`;"
        f" `grpc_next_upstream {_CONDITIONS}`, on the repeatable method also `non_idempotent` (without effect, as"
        " grpc_pass never buffers) and `grpc_read_timeout`;"
        " no request limit on connections"
    ),
)
