from __future__ import annotations

import pytest

from bench.faults.analysis import SLACK, analyse, longest_run, well
from bench.faults.ledger import FINISH, START, Execution, line, read
from bench.faults.outcome import OK, Outcome
from bench.faults.scenarios import Fault

FAULT = Fault("a", 10.0, 20.0)
SPAN = (0.0, 30.0)


class Story:
    """Calls one by one: who ran each, and what its client saw."""

    def __init__(self):
        self.outcomes = []
        self.ledger = {}

    def call(self, at, chat="chat", server="", *, kind="plain", status=OK, took=0.02, ran=None, finished=True):
        """`ran`: the servers that ran it, by default the one that answered; `finished`: they also finished it."""
        name = f"call-{len(self.outcomes)}"
        self.outcomes.append(Outcome(name, kind, chat, at, at + took, status, server if status == OK else ""))
        for one in (server,) * bool(server) if ran is None else ran:
            self.ledger.setdefault(name, []).append(Execution(one, at, at + took if finished else None))
        return self

    def numbers(self, *faults):
        return analyse(self.outcomes, self.ledger, faults or (FAULT,), SPAN)


def two_chats():
    return Story().call(1, "of a", "a").call(1, "of b", "b")


def entries(*parts):
    return [line(event, time, server, "call-1", "chat-1").decode() for event, time, server in parts]


def test_the_ledger_tells_who_ran_a_call_and_whether_it_finished():
    lines = entries((START, 1.0, "a"), (START, 2.0, "b"), (FINISH, 2.5, "b"))
    assert read(lines) == {"call-1": [Execution("a", 1.0, None), Execution("b", 2.0, 2.5)]}


def test_a_server_may_run_a_call_again():
    lines = entries((START, 1.0, "a"), (FINISH, 1.5, "a"), (START, 2.0, "a"), (FINISH, 2.5, "a"))
    assert read(lines) == {"call-1": [Execution("a", 1.0, 1.5), Execution("a", 2.0, 2.5)]}


def test_a_torn_last_line_is_passed_over():
    assert read([*entries((START, 1.0, "a")), "F 1.0"]) == {"call-1": [Execution("a", 1.0, None)]}


@pytest.mark.parametrize("text", ["X 1.0 a call-1 chat-1\n", "F 1.0 a call-1 chat-1\n", "hello\n"])
def test_what_is_no_ledger_is_an_error(text):
    with pytest.raises(ValueError, match=r"\S"):
        read([text])


@pytest.mark.parametrize(
    ("server", "since", "until", "expected"),
    [
        ("a", 9.0, 9.9, True),
        ("a", 9.9, 10.1, False),
        ("a", 15.0, 15.0, False),
        ("a", 20.0 + SLACK, 21.5, False),
        ("a", 20.1 + SLACK, 21.5, True),
        ("b", 15.0, 15.0, True),
    ],
)
def test_a_server_is_well_unless_a_fault_of_its_own_touches_the_time(server, since, until, expected):
    assert well(server, since, until, [FAULT]) is expected


def test_calls_are_counted_by_kind_and_failures_by_status():
    story = two_chats().call(11, "of a", status="UNAVAILABLE").call(12, "of a", status="DEADLINE_EXCEEDED")
    story.call(13, "of a", status="UNAVAILABLE").call(13, "of a", kind="stream", status="INTERNAL")
    kinds = story.numbers().kinds
    assert (kinds["plain"].calls, kinds["plain"].failed) == (5, 3)
    assert kinds["plain"].statuses == {"UNAVAILABLE": 2, "DEADLINE_EXCEEDED": 1}
    assert kinds["stream"].statuses == {"INTERNAL": 1}
    assert kinds["repeatable"].failed == 0


def test_a_call_begun_twice_ran_twice_even_if_only_one_finished():
    story = two_chats().call(11, "of a", "b", ran=("a", "b")).call(12, "of a", "b", kind="repeatable", ran=("a", "b"))
    story.ledger["call-2"][0] = Execution("a", 11.0, None)
    kinds = story.numbers().kinds
    assert kinds["plain"].ran_twice == 1
    assert kinds["repeatable"].ran_twice == 1


def test_a_failed_call_that_a_server_finished_ran_but_failed():
    story = two_chats().call(11, "of a", status="UNAVAILABLE", ran=("a",))
    story.call(12, "of a", status="UNAVAILABLE", ran=("a",), finished=False).call(13, "of a", status="UNAVAILABLE")
    assert story.numbers().kinds["plain"].ran_but_failed == 1


def test_an_answer_without_a_finished_run_is_noticed():
    story = two_chats().call(11, "of a", "b", ran=()).call(12, "of a", "b", finished=False)
    assert story.numbers().kinds["plain"].lost == 2


def test_failures_of_chats_whose_home_was_well_are_told_apart():
    story = two_chats().call(11, "of a", status="UNAVAILABLE").call(12, "of b", status="UNAVAILABLE")
    assert story.numbers().kinds["plain"].bystanders == 1


def test_recovery_counts_from_the_fault_and_only_calls_of_its_chats_that_began_after_it():
    story = two_chats().call(9.99, "of a", status="UNAVAILABLE", took=4).call(10.5, "of a", status="UNAVAILABLE")
    story.call(10.9, "of b", status="UNAVAILABLE").call(11, "of a", "b", took=0.5).call(12, "of a", "b")
    plain = story.numbers().kinds["plain"]
    assert plain.failing_for == pytest.approx(0.5)
    assert plain.first_answer == pytest.approx(1.5)
    assert plain.slowest == pytest.approx(0.5)


def test_of_several_faults_the_worst_counts():
    faults = (Fault("a", 10.0, 12.0), Fault("b", 20.0, 22.0))
    story = two_chats().call(10.1, "of a", "b").call(20.2, "of b", status="UNAVAILABLE").call(20.7, "of b", "a")
    plain = story.numbers(*faults).kinds["plain"]
    assert plain.first_answer == pytest.approx(0.72)
    assert plain.failing_for == pytest.approx(0.2)


def test_no_answer_at_all_is_not_a_quick_one():
    plain = two_chats().call(11, "of a", status="UNAVAILABLE").numbers().kinds["plain"]
    assert plain.first_answer is None
    assert plain.failing_for == pytest.approx(1.0)


def test_a_chat_may_leave_a_server_that_is_away_and_go_home_again():
    chats = two_chats().call(11, "of a", "b").call(15, "of a", "b").call(25, "of a", "a").numbers().chats
    assert (chats.count, chats.displaced, chats.moved_needlessly, chats.away_at_end) == (2, 1, 0, 0)
    assert chats.home_after == pytest.approx(5.02)


def test_a_chat_that_stays_away_did_not_move_needlessly():
    chats = two_chats().call(11, "of a", "b").call(29, "of a", "b").numbers().chats
    assert (chats.moved_needlessly, chats.away_at_end, chats.home_after) == (0, 1, None)


def test_a_chat_that_leaves_a_server_that_is_well_moved_needlessly():
    assert two_chats().call(11, "of b", "c").call(12, "of b", "b").numbers().chats.moved_needlessly == 1


def test_a_chat_that_leaves_its_stand_in_for_another_moved_needlessly():
    assert two_chats().call(11, "of a", "b").call(13, "of a", "c").numbers().chats.moved_needlessly == 1


def test_a_call_that_waited_through_the_fault_does_not_make_a_move():
    story = two_chats().call(9.9, "of a", "a", took=10.5).call(12, "of a", "b").call(19, "of a", "b")
    assert story.numbers().chats.moved_needlessly == 0


def test_rates_are_of_answered_unary_calls():
    story = two_chats().call(2, "of a", kind="stream", server="a").call(11, "of a", "b").call(12, status="UNAVAILABLE")
    story.call(25, "of a", "a").call(26, "of a", "a")
    rates = story.numbers().rates
    assert (rates.before, rates.during, rates.after) == pytest.approx((0.2, 0.1, 0.2))


def test_a_long_run_of_a_server_that_was_well_shows_a_machine_without_time():
    ledger = {
        "p-1": [Execution("b", 11.0, 11.7), Execution("b", 12.0, None)],
        "p-2": [Execution("a", 11.0, 19.0)],  # it was away
        "p-3": [Execution("b", 1.0, 9.0)],  # before anything counted
        "s-4": [Execution("b", 12.0, 14.0)],  # a stream: takes 2 s by itself
    }
    assert longest_run(ledger, [FAULT], since=5.0) == pytest.approx(0.7)
    assert longest_run({}, [FAULT], since=5.0) == 0
