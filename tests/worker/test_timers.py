"""The clock: functions are called at their times, once, unless they are cancelled."""

from __future__ import annotations

import gc
import queue
import weakref

from bridge._histogram import now_ns
from bridge.worker.timers import Timer, Timers

WAIT = 30.0  # seconds, for what must happen
LATER = 3_600_000_000_000  # ns, an hour


def test_timers_fire_in_the_order_of_their_times():
    """In whichever order they were added; a time that has passed fires at once."""
    timers, fired = Timers(), queue.SimpleQueue()
    start = now_ns()
    for delay in (30, 10, -5, 20):
        timers.add(Timer(start + delay * 1_000_000, lambda delay=delay: fired.put(delay)))
    first = fired.get(timeout=WAIT)
    assert {first, *(fired.get(timeout=WAIT) for _ in range(3))} == {-5, 10, 20, 30}
    assert timers.stop(WAIT)


def test_an_earlier_timer_does_not_wait_for_a_later_one():
    """The clock wakes for the new first one."""
    timers, fired = Timers(), queue.SimpleQueue()
    timers.add(Timer(now_ns() + LATER, lambda: fired.put("late")))
    timers.add(Timer(now_ns() + 1_000_000, lambda: fired.put("soon")))
    assert fired.get(timeout=WAIT) == "soon"
    assert timers.stop(WAIT)
    assert fired.empty()


def test_a_cancelled_timer_does_not_fire_and_keeps_nothing_alive():
    """Although it is still in the queue of the clock."""

    class Held:
        def run(self) -> None:
            raise AssertionError("fired")

    timers, held = Timers(), Held()
    timer, reference = Timer(now_ns() + LATER, held.run), weakref.ref(held)
    timers.add(timer)
    timer.cancel()
    del held
    assert reference() is None
    timer.fire()
    assert timers.stop(WAIT)


def test_a_clock_that_never_ran_has_ended():
    """There is no thread without a timer."""
    assert Timers().stop(0.0)


def test_cancelled_timers_do_not_accumulate():
    """A worker makes one for each call that ends before its deadline, which may be a day away."""
    timers = Timers()
    keep = [Timer(now_ns() + LATER, lambda: None) for _ in range(100)]
    for timer in keep:
        timers.add(timer)
    for _ in range(10_000):
        timer = Timer(now_ns() + LATER, lambda: None)
        timers.add(timer)
        timer.cancel()
    held = sum(isinstance(each, Timer) for each in gc.get_objects())
    assert 100 <= held < 1000
    assert timers.stop(WAIT)
