"""Each attack of the catalogue at full speed from one connection, while a hundred good clients go on with their calls.

Of each: the attacker is told what the specification says; no good call fails; the proxy grows by 64 MiB at most; a byte
of the attacker costs the proxy's CPU at most ten times what a byte of a good call costs; and the good calls' 99th
percentile at most doubles, compared with the worst of the quiet windows around, or with that of a control group, whose
calls go through a proxy of the same kind that is not attacked. An attack lasts a second at least, or is repeated. The
attacker runs at a lower priority, so that it takes from the others what the proxy gives it, and not the machine.

The last is the one figure that the machine's other load can spoil. As such noise only ever adds, while an attack that
does slow the good clients down does it every time, it has three tries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.attack.arena import arena
from tests.attack.catalogue import CATALOGUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.attack.arena import Arena, Measures

MAX_GROWTH = 64 << 20
MAX_COST = 10
"""Times what a byte of a good call costs."""
FREE = 0.15
"""Seconds of CPU that any attack may cost: the process table counts in hundredths."""
CONNECTION = 0.0003
"""Seconds of CPU that a connection may cost, from its beginning to its end; they were 45 to 150 us."""
BYTES_OF_A_CALL = 200
"""What the good clients send for a call, roughly: HEADERS of indexed fields, DATA, WINDOW_UPDATE and PING."""
TRIES = 3

# Short, so that attacks on patience do not take it.
LISTENER: dict[str, str | int | float] = {
    "preface_timeout": 2.0,
    "settings_timeout": 2.0,
    "frame_timeout": 2.0,
    "first_message_timeout": 2.0,
    "stall_timeout": 4.0,
    "max_connections_per_client": 300,
}


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with arena(tmp_path_factory.mktemp("attack"), LISTENER) as ready:
        yield ready
        assert "Traceback" not in ready.log()
        assert " ERROR " not in ready.log()


@pytest.fixture(autouse=True)
def _leak_checks(field: Arena) -> None:
    """In place of the checks of other tests: the field stays from one attack to the next."""


@pytest.mark.parametrize("name", CATALOGUE)
def test_an_attack_is_stopped_and_harms_no_other_client(field: Arena, name: str) -> None:
    for remaining in reversed(range(TRIES)):
        measures = field.measure(lambda: CATALOGUE[name](field))
        print(measures)
        check(field, measures)
        if measures.p99 <= 2 * max(measures.quiet_p99, measures.control_p99):
            return
        assert remaining, f"the good clients' calls became slower each time: {measures}"


def check(field: Arena, measures: Measures) -> None:
    failed = [call for call in measures.calls if call.status != "OK"]
    assert measures.calls, "there were no good calls meanwhile"
    assert not failed, f"good calls failed: {failed[:5]}; {measures}"
    assert measures.memory <= MAX_GROWTH, measures
    allowed = FREE + CONNECTION * measures.connections
    allowed += MAX_COST * field.cost_of_a_call / BYTES_OF_A_CALL * measures.bytes
    assert measures.cpu <= allowed, f"more than {allowed:.2f} s of CPU: {measures}"
