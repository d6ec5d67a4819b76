"""Writes the golden ring vectors beside it: `python tests/data/ring/generate.py`.

An implementation of the layout that shares no code with `proxy.balancing`: every lookup looks at every vnode. Its
output is committed; regenerate it only for a deliberate, breaking change of the layout.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import mmh3

if TYPE_CHECKING:
    from collections.abc import Callable

HASHES: dict[str, Callable[[bytes], int]] = {
    "murmur3": lambda data: mmh3.hash(data, 0, signed=False),
    "crc32": zlib.crc32,
}

CONTRACT = {"Server-A": 100, "Server-B": 150, "Server-C": 100}
CHATS = [f"chat-{number:03d}" for number in range(25)]

UNEVEN = {"10.0.0.7:50051": 1, "röt-größe": 37, "s": 400, "s#1": 2, "server-10": 100, "server-2": 100}
KEYS = ["", "a", "chat-000", "日本語のチャット", "x" * 300, *(f"user/{number * 7919}" for number in range(60))]


def order_of_failover(hash_name: str, servers: dict[str, int], key: str) -> list[str]:
    """The distinct servers in the order in which they take the key over: each time, remove the owner and look again."""
    hash_bytes = HASHES[hash_name]
    place = hash_bytes(key.encode("utf-8"))
    left = dict(servers)
    order = []
    while left:
        distances = [
            ((hash_bytes(f"{server}#{index}".encode()) - place) % 2**32, server.encode("utf-8"), server)
            for server, count in left.items()
            for index in range(count)
        ]
        owner = min(distances)[2]
        order.append(owner)
        del left[owner]
    return order


def main() -> None:
    """Write one file per hash and set of servers."""
    for hash_name, hash_bytes in HASHES.items():
        for name, servers, keys in (("contract", CONTRACT, CHATS), ("uneven", UNEVEN, KEYS)):
            vectors = {
                "hash": hash_name,
                "servers": servers,
                "points_of_first_vnodes": {s: hash_bytes(f"{s}#0".encode()) for s in servers},
                "orders": {key: order_of_failover(hash_name, servers, key) for key in keys},
            }
            path = Path(__file__).with_name(f"{name}_{hash_name}.json")
            path.write_text(json.dumps(vectors, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
