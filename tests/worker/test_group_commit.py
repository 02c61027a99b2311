"""Group commit without a database: which changes share a transaction, and which caller gets which error."""

from __future__ import annotations

import threading

import pytest

from bridge import errors
from bridge.worker.stores.group_commit import GroupCommit
from peer import wait_until

WAIT = 60.0


class Database:
    """A list as the connection of a GroupCommit. A transaction waits for `gate`, then fails with `error` if it is set.

    tries: the number of transactions begun.
    """

    def __init__(self):
        self.rows = []
        self.tries = 0
        self.gate = threading.Event()
        self.gate.set()
        self.error = None
        self.commits = GroupCommit(self._transact, lambda error: isinstance(error, OSError), self._failure)

    def _transact(self, apply):
        self.tries += 1
        assert self.gate.wait(WAIT)
        before = list(self.rows)
        try:
            apply(self.rows)
            if self.error is not None:
                raise self.error
        except BaseException:
            self.rows[:] = before
            raise

    def _failure(self, error):
        return errors.StoreFailed(f"failed: {error}")


@pytest.fixture
def database():
    return Database()


def run_together(database, changes):
    """Run `changes` so that all but the first share a transaction; return their results or errors."""
    results = [None] * len(changes)

    def run(index):
        try:
            results[index] = database.commits.run(changes[index])
        except errors.BridgeError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(changes))]
    database.gate.clear()
    threads[0].start()
    wait_until(lambda: database.commits.is_busy and not database.commits.waiting)
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: database.commits.waiting == len(changes) - 1)
    database.gate.set()
    for thread in threads:
        thread.join(WAIT)
    return results


def adding(row):
    def change(rows):
        rows.append(row)
        return row

    return change


def test_changes_that_arrive_meanwhile_share_the_next_transaction(database):
    """Each caller gets the result of its own change."""
    results = run_together(database, [adding(number) for number in range(64)])
    assert results == list(range(64))
    assert sorted(database.rows) == results
    assert (database.tries, database.commits.transactions) == (2, 2)
    assert not database.commits.is_busy


def test_a_refused_change_does_not_affect_others(database):
    """The other changes of the transaction are committed."""

    def refuse(rows):
        raise errors.SessionLost.of("s")

    first, refused, last = run_together(database, [adding(1), refuse, adding(3)])
    assert (first, last, database.rows) == (1, 3, [1, 3])
    assert isinstance(refused, errors.SessionLost)


def test_a_change_that_breaks_its_transaction_does_not_affect_others(database):
    """They are tried one by one."""

    def break_off(rows):
        raise ValueError("too much")

    first, broken, last = run_together(database, [adding(1), break_off, adding(3)])
    assert (first, last, database.rows) == (1, 3, [1, 3])
    assert str(broken) == "failed: too much"


def test_an_error_that_affects_all_changes_is_not_repeated(database):
    """Otherwise each change would wait for it."""
    database.error = OSError("locked")
    results = run_together(database, [adding(number) for number in range(8)])
    assert [str(each) for each in results] == ["failed: locked"] * 8
    assert (database.rows, database.tries, database.commits.transactions) == ([], 2, 0)
    database.error = None
    assert database.commits.run(adding("after")) == "after"


def test_an_interrupted_leader_hands_over(database):
    """Its change is undone, and later changes are committed."""
    database.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        database.commits.run(adding(1))
    database.error = None
    assert database.commits.run(adding(2)) == 2
    assert database.rows == [2]
