"""`districhat ring`: what the ring of a configuration says, without a proxy running."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from proxy.balancing.hashing import vnodes_for_weight
from proxy.balancing.ring import RingNode, RingSnapshot
from proxy.commands import config
from proxy.commands.output import console, print_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from proxy.settings import Settings


def ring_of(settings: Settings) -> RingSnapshot:
    """The ring a proxy with these settings routes by, as long as its members stay the configured ones."""
    per_weight = settings.ring.virtual_nodes
    nodes = [RingNode(e.id, vnodes_for_weight(e.weight, per_weight), e.address) for e in settings.endpoints]
    return RingSnapshot.build(nodes, settings.ring.hash)


def candidates(ring: RingSnapshot, chat_id: str) -> list[RingNode]:
    """The owner of a chat, then who takes over from whom, to the last server."""
    return [ring.nodes[index] for index in ring.walk(ring.hash_key(chat_id.encode()))]


def locate(config_file: Path | None, chat_ids: Sequence[str], *, as_json: bool) -> int:
    """Print the owner and the fallbacks of each chat. Raises ConfigError."""
    ring = ring_of(config.load(config_file))
    walks = {chat_id: candidates(ring, chat_id) for chat_id in chat_ids}
    if as_json:
        chats = [
            {"chat_id": chat_id, "owner": _named(walk[:1])[0], "fallbacks": _named(walk[1:])}
            for chat_id, walk in walks.items()
        ]
        print(json.dumps({"fingerprint": ring.fingerprint, "chats": chats}, indent=2))
        return 0
    rows = [
        (chat_id, walk[0].id, walk[0].address, ", ".join(node.id for node in walk[1:]) or "none")
        for chat_id, walk in walks.items()
    ]
    print_table(console(), ("chat", "owner", "address", "then"), rows)
    return 0


def share(config_file: Path | None, *, as_json: bool) -> int:
    """Print the share of the key space of each server, and peak/mean. Raises ConfigError.

    Peak/mean is the load of the server that has most for its weight, relative to a perfectly even ring: with equal
    weights simply the largest share divided by the mean.
    """
    settings = config.load(config_file)
    ring = ring_of(settings)
    shares = ring.shares()
    weights = {endpoint.id: endpoint.weight for endpoint in settings.endpoints}
    fair = {id_: weight / sum(weights.values()) for id_, weight in weights.items()}
    peak = max(fair, key=lambda id_: shares[id_] / fair[id_])
    peak_to_mean = shares[peak] / fair[peak]
    if as_json:
        servers = [
            {
                "id": node.id,
                "address": node.address,
                "weight": weights[node.id],
                "virtual_nodes": node.vnodes,
                "share": shares[node.id],
                "fair_share": fair[node.id],
            }
            for node in ring.nodes
        ]
        print(json.dumps({"fingerprint": ring.fingerprint, "peak_to_mean": peak_to_mean, "servers": servers}, indent=2))
        return 0
    out = console()
    rows = [
        (node.id, f"{weights[node.id]:g}", str(node.vnodes), f"{shares[node.id]:.2%}", f"{fair[node.id]:.2%}")
        for node in ring.nodes
    ]
    columns = ("server", "weight", "virtual nodes", "share", "by weight")
    print_table(out, columns, rows, numeric=columns[1:])
    out.print(f"peak/mean {peak_to_mean:.3f} ({peak})")
    out.print(f"{ring.layout} ring {ring.fingerprint}: proxies with the same fingerprint agree on every owner")
    return 0


def _named(nodes: Iterable[RingNode]) -> list[dict[str, str]]:
    return [{"id": node.id, "address": node.address} for node in nodes]
