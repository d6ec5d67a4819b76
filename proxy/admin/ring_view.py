"""The ring as the API tells it: arcs and shares by server, built in slices and once per ring."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from proxy.balancing.hashing import RING_SIZE
from proxy.balancing.ring import RingSnapshot
from proxy.transport.slices import in_passes

_SLICE: Final = 64


@dataclass(frozen=True, slots=True)
class RingView:
    """Arcs and shares of one ring, by index of its nodes."""

    ring: RingSnapshot
    _arcs: tuple[array[int], ...]
    """Start, end, start, end, ... of each node. Plain numbers: 100,000 pairs would keep the garbage collector busy for
    5 ms at a time."""
    shares: tuple[float, ...]

    @classmethod
    def building(cls, ring: RingSnapshot) -> Generator[None, None, RingView]:
        """In slices (`proxy.slices`): 100,000 vnodes take 40 ms in all."""
        arcs = [array("I") for _ in ring.nodes]
        lengths = [0] * len(ring.nodes)
        for number, (node, start, end) in enumerate(ring.arcs()):
            arcs[node].append(start)
            arcs[node].append(end)
            # A node alone has one arc from its point to itself: the whole ring.
            lengths[node] += (end - start) % RING_SIZE or RING_SIZE
            if number % _SLICE == 0:
                yield
        return cls(ring, tuple(arcs), tuple(length / RING_SIZE for length in lengths))

    def arcs(self, node: int) -> tuple[tuple[int, int], ...]:
        """(start, end) of each arc of a node, see `RingSnapshot.arcs`."""
        numbers = self._arcs[node]
        return tuple(zip(numbers[::2], numbers[1::2], strict=True))


class RingViews:
    """The view of the latest ring that was asked for."""

    def __init__(self) -> None:
        self._view: RingView | None = None
        self._building = asyncio.Lock()

    async def of(self, ring: RingSnapshot) -> RingView:
        """The view of `ring`; built only when it is another ring than the last time."""
        async with self._building:
            if self._view is None or self._view.ring is not ring:
                self._view = await in_passes(RingView.building(ring))
            return self._view
