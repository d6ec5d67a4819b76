"""The ring as the data path sees it: an immutable snapshot, built once per change of members or weights.

A node stands at one point per vnode; a key belongs to the first point at or after its hash, and past the last point
the ring wraps to the first. Where two nodes have the same point, the node with the smaller id (in the order of UTF-8
bytes) stands before the other, so the order in which nodes were added never shows, and taking one away leaves the
place to the other. A snapshot depends on nothing but members, vnode counts and layout: every proxy that has the same
three has the same owners, which `fingerprint` makes checkable.

Why arrays and a prefix table: with 100,000 points a plain `bisect` costs 560 ns, most of it cache misses on int
objects. A table over the leading bits of the hash gives the place to start, on average less than one step before the
owner's point, and 4-byte arrays keep all of it near the core: 150 ns with 1,000 nodes, 130 ns with three, and 200 and
180 ns with hashing the key and naming the owner.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate, islice, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.balancing.errors import DuplicateNodeError, EmptyRingError
from proxy.balancing.hashing import HASH_BITS, RING_SIZE, HashLayout, hash_function, vnode_points
from proxy.slices import at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from typing import Self


_SLICE: Final = 1024
"""Points per slice of a build: a fraction of a millisecond."""


class RingNode(NamedTuple):
    """A member of the ring. Only `id` and `vnodes` decide what it owns; `address` is carried for the caller."""

    id: str
    vnodes: int
    address: str = ""


@dataclass(frozen=True, slots=True)
class RingSnapshot:
    """An immutable ring. Snapshots are equal when their nodes (addresses included) and layout are.

    Build one with `RingSnapshot.build` or `HashRing.snapshot`. An empty ring is allowed: it has no owners, and `walk`
    yields nothing.
    """

    nodes: tuple[RingNode, ...]
    """The members in the order of their ids (UTF-8 bytes). `owner_index` and `walk` give indexes into this."""

    layout: HashLayout
    """Which hash places vnodes and keys."""

    fingerprint: str
    """16 hex digits over ids, vnode counts and layout, the same in every process. Addresses do not count."""

    hash_key: Callable[[bytes], int] = field(compare=False, repr=False)
    """The layout's hash: what `owner_index` and `walk` expect of a key."""

    _ids: tuple[str, ...] = field(compare=False, repr=False)
    """The ids of `nodes`: an attribute of a named tuple takes 35 ns more than an item of a plain one."""

    _points: array[int] = field(compare=False, repr=False)
    """The points in ascending order, then 2**32 - 1 once more, standing for the wrap to the first."""

    _owners: array[int] = field(compare=False, repr=False)
    """For each of `_points` the index of its node."""

    _start: array[int] = field(compare=False, repr=False)
    """For each value of a hash's leading bits the index of the first point that has these or higher leading bits."""

    _shift: int = field(compare=False, repr=False)
    """How far to shift a hash to the right to have its leading bits only."""

    @classmethod
    def build(
        cls,
        nodes: Iterable[RingNode],
        layout: HashLayout = "murmur3",
        points_of: Callable[[RingNode], Sequence[int]] | None = None,
    ) -> Self:
        """Build the ring of these nodes, in any order; costs O(N log N) of all vnodes (85 ms for 1,000 x 100).

        `points_of` saves hashing when the points of a node are known already; it must return what `vnode_points` would.
        Raises `DuplicateNodeError` when two nodes have the same id.
        """
        return at_once(cls.building(nodes, layout, points_of))

    @classmethod
    def building(
        cls,
        nodes: Iterable[RingNode],
        layout: HashLayout = "murmur3",
        points_of: Callable[[RingNode], Sequence[int]] | None = None,
    ) -> Generator[None, None, Self]:
        """`build` in slices: yields after each fraction of a millisecond of work, and returns the ring. For event
        loops, which have other things to do meanwhile.
        """
        hash_key = hash_function(layout)
        # Comparing str compares code points, which is the order of UTF-8 bytes.
        members = tuple(sorted(nodes))
        for before, after in pairwise(members):
            if before.id == after.id:
                raise DuplicateNodeError(after.id)
        # One int per point, place above rank: sorts three times as fast as tuples, and ties go to the smaller id.
        rank_bits = len(members).bit_length()
        rank_mask = (1 << rank_bits) - 1
        # Sorted by their first bits already when they are put away, so that no slice has to sort all.
        sectors: list[list[int]] = [[] for _ in range(max(1, len(members)))]
        for rank, node in enumerate(members):
            places = points_of(node) if points_of is not None else vnode_points(node.id, node.vnodes, hash_key)
            for at in range(0, len(places), _SLICE):
                for place in places[at : at + _SLICE]:
                    sectors[place * len(sectors) >> HASH_BITS].append(place << rank_bits | rank)
                yield
        points = array("I")
        owners = array("I")
        for sector in sectors:
            sector.sort()
            points.extend([entry >> rank_bits for entry in sector])
            owners.extend([entry & rank_mask for entry in sector])
            yield
        # About one bucket per point, for hashes spread evenly; more buckets cost more cache than they save steps.
        shift = HASH_BITS - max(1, len(points).bit_length())
        start = yield from _prefix_table(points, shift)
        points.append(RING_SIZE - 1)
        owners.extend(owners[:1])
        ids = tuple(node.id for node in members)
        return cls(members, layout, _fingerprint(members, layout), hash_key, ids, points, owners, start, shift)

    def owner_index(self, key_hash: int) -> int:
        """The index into `nodes` of the node that owns a hash (0 .. 2**32 - 1).

        Raises `EmptyRingError` on an empty ring. The result for numbers out of range is undefined.
        """
        try:
            index = self._start[key_hash >> self._shift]
            points = self._points
            while points[index] < key_hash:
                index += 1
            return self._owners[index]
        except IndexError:
            if self.nodes:
                raise
            raise EmptyRingError from None

    def owner(self, key: bytes) -> str:
        """The id of the node that owns a key. Raises `EmptyRingError` on an empty ring."""
        # `owner_index` written out: its frame would be a fifth of the lookup.
        key_hash = self.hash_key(key)
        try:
            index = self._start[key_hash >> self._shift]
            points = self._points
            while points[index] < key_hash:
                index += 1
            return self._ids[self._owners[index]]
        except IndexError:
            if self.nodes:
                raise
            raise EmptyRingError from None

    def walk(self, key_hash: int) -> Iterator[int]:
        """The indexes of all nodes, each once, in the order in which they take over from one another.

        The first is the owner; each further one is who would own the hash if all before it left the ring. Yields
        nothing on an empty ring. Lazy: what is not asked for costs nothing.
        """
        remaining = len(self.nodes)
        if not remaining:
            return
        points = self._points
        owners = self._owners
        index = self._start[key_hash >> self._shift]
        while points[index] < key_hash:
            index += 1
        last = len(points) - 1
        seen = bytearray(remaining)
        while True:
            node = owners[index]
            if not seen[node]:
                seen[node] = 1
                yield node
                remaining -= 1
                if not remaining:
                    return
            index += 1
            if index >= last:
                index = 0

    def points(self) -> Iterator[int]:
        """The point of every vnode, in ascending order."""
        return islice(self._points, len(self._points) - 1)

    def arcs(self) -> Iterator[Arc]:
        """The whole ring as the longest arcs of one owner each, clockwise. Nothing for an empty ring.

        Lazy: 100,000 points take 20 ms, which a caller on an event loop should spread.
        """
        points = self._points
        owners = self._owners
        if not self.nodes:
            return
        first = node = owners[0]
        first_end: int | None = None  # of the arc that passes through zero: where it began is known last
        start = end = points[0]
        for index in range(1, len(points) - 1):
            point = points[index]
            if point == end:
                continue  # of equal points only the first owns anything
            owner = owners[index]
            if owner != node:
                if first_end is None:
                    first_end = end
                else:
                    yield Arc(node, start, end)
                start, node = end, owner
            end = point
        if first_end is None:
            yield Arc(node, end, end)
        elif node == first:
            yield Arc(node, start, first_end)
        else:
            yield Arc(node, start, end)
            yield Arc(first, end, first_end)

    def shares(self) -> dict[str, float]:
        """The exact share of the key space each node owns, by id. They sum to 1.0; empty for an empty ring."""
        lengths = [0] * len(self.nodes)
        points = self._points
        before = points[-2] - RING_SIZE if self.nodes else 0
        for point, node in zip(points[:-1], self._owners, strict=False):
            lengths[node] += point - before
            before = point
        return {node.id: length / RING_SIZE for node, length in zip(self.nodes, lengths, strict=True)}


class Arc(NamedTuple):
    """A stretch of the ring that one node owns: the hashes after `start` up to and with `end`. Where `start` is not
    less than `end`, it passes through zero; a node alone on the ring has one arc, with `start` equal to `end`.
    """

    node: int
    """Index into `RingSnapshot.nodes`."""
    start: int
    end: int


def _prefix_table(points: Sequence[int], shift: int) -> Generator[None, None, array[int]]:
    """For each prefix (a hash without its lowest `shift` bits) the index of the first point with it or a higher one."""
    counts = [0] * (RING_SIZE >> shift)
    for at in range(0, len(points), _SLICE):
        for point in points[at : at + _SLICE]:
            counts[point >> shift] += 1
        yield
    table = array("I")
    before = 0
    for at in range(0, len(counts), _SLICE):
        *starts, before = accumulate(counts[at : at + _SLICE], initial=before)
        table.extend(starts)
        yield
    return table


def _fingerprint(nodes: Iterable[RingNode], layout: HashLayout) -> str:
    digest = blake2b(layout.encode(), digest_size=8)
    for node in nodes:
        name = node.id.encode()
        # With its length in front no id can imitate a neighbour.
        digest.update(b"\n%d %b %d" % (len(name), name, node.vnodes))
    return digest.hexdigest()
