"""The order of calls: each turn comes once, after the earlier ones, and nobody waits forever."""

from __future__ import annotations

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from bridge.worker.order import Order, Turn

ORDERS = 4


class Board:
    """Turns in some orders, entered and ended in any sequence, and what has started so far."""

    def __init__(self) -> None:
        self.orders = [Order() for _ in range(ORDERS)]
        self.turns: list[Turn] = []
        self.started: list[int] = []
        self.over: set[int] = set()
        self.held: list[set[int]] = []
        self.passed: list[set[int]] = []

    def enter(self, held: set[int], passed: set[int]) -> None:
        number = len(self.turns)
        self.held.append(held)
        self.passed.append(passed)
        turn = Turn(
            [self.orders[each] for each in sorted(held)],
            lambda: self.started.append(number),
            [self.orders[each] for each in sorted(passed)],
        )
        self.turns.append(turn)
        turn.enter()

    def end(self, number: int) -> None:
        self.turns[number].end()
        self.over.add(number)

    def must_have_started(self, number: int) -> bool:
        """Return whether no earlier turn that is still on, or still waits, stands in its way."""
        orders = self.held[number] | self.passed[number]
        earlier = range(number)
        return all(each in self.over or not orders & self.held[each] for each in earlier)


parts = st.sets(st.integers(0, ORDERS - 1), max_size=2)
steps = st.lists(st.one_of(st.tuples(parts, parts), st.integers(0, 30)), max_size=60)


@given(steps)
def test_turns_come_in_order_and_once(steps):
    """A turn comes when all earlier turns in its orders have ended, and not after it was ended."""
    board = Board()
    for step in steps:
        if isinstance(step, tuple):
            held, passed = step
            board.enter(held, passed - held)
        elif step < len(board.turns):
            board.end(step)
        for number, turn in enumerate(board.turns):
            active = turn.has_come and number not in board.over
            if active:
                clashing = [
                    other
                    for other in range(number)
                    if other not in board.over and board.held[other] & board.held[number]
                ]
                assert clashing == []
    assert len(board.started) == len(set(board.started))
    for number in range(len(board.turns)):
        board.end(number)
    assert all(not order.is_taken for order in board.orders)


@given(st.lists(st.tuples(parts, parts), max_size=30))
def test_every_turn_comes_when_the_earlier_ones_end(calls):
    """When turns end in order of arrival, all of them start."""
    board = Board()
    for held, passed in calls:
        board.enter(held, passed - held)
    for number in range(len(calls)):
        assert board.must_have_started(number)
        assert number in board.started
        board.end(number)
    assert sorted(board.started) == list(range(len(calls)))


def test_a_turn_that_was_ended_while_it_waited_does_not_come():
    """Its order goes on to the next one."""
    board = Board()
    for _ in range(3):
        board.enter({0}, set())
    board.end(1)
    board.end(0)
    assert board.started == [0, 2]
    assert not board.turns[1].has_come


def test_thousands_of_turns_that_end_at_once_do_not_nest():
    """Each start ends its own turn; the recursion limit is not reached."""
    order, count = Order(), []

    def start() -> None:
        count.append(1)
        order.leave()

    order.enter(lambda: None)
    for _ in range(20_000):
        order.enter(partial(start))
    order.leave()
    assert len(count) == 20_000
    assert not order.is_taken
