"""The proxies that are compared. To add one: a `Peer` whose command heeds `Setup.resilience`, and its line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.peers import districhat, envoy, haproxy, nginx

if TYPE_CHECKING:
    from bench.peers.base import Peer

PEERS: dict[str, Peer] = {
    peer.name: peer for peer in (districhat.PEER, envoy.PEER, envoy.EAGER, haproxy.PEER, nginx.PEER)
}
"""By name, in the order of the tables."""
