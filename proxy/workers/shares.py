"""Limits that hold for all workers together, without asking one another for every call.

Each worker may have what it has, and its part of the room that is left: with a limit of 100, two workers, 30 calls here
and 50 there, 10 more here and 10 more there. So all together never have more than the limit, but for two things: a part
is rounded up, as a limit of 1 must let somebody have it; and for an exchange's time a worker may go by figures that are
older than its neighbour's. A busy worker may have to turn calls away while another has room, until the next exchange.
"""

from __future__ import annotations


def share(limit: int, here: int, elsewhere: int, workers: int) -> int:
    """Calls that this worker may have, of `limit` for all `workers`, with so many under way `here` and `elsewhere`."""
    room = max(0, limit - here - elsewhere)
    return here + -(-room // workers)
