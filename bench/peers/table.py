"""All peers. To add one: a module beside this one with a `PEER`, and its line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.peers import aio_passthrough, districhat, envoy, haproxy, nginx

if TYPE_CHECKING:
    from bench.peers.base import Peer

OURS = (districhat.PEER, districhat.COMPILED)
"""The numerators of the ratios: our builds, the default one first."""

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        districhat.PEER,
        districhat.WITHOUT_METRICS,
        districhat.COMPILED,
        haproxy.PEER,
        nginx.PEER,
        envoy.PEER,
        haproxy.RELAY,
        aio_passthrough.PEER,
    )
}
"""By name, in the order of the tables."""
