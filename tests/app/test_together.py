"""Questions that wait share a call; each gets its own answer, or its own error."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from detox_rl.app import together
from detox_rl.app.together import MOST, ROOM, Together


class Doubler:
    """Waits in its first call until it is let go; refuses -1. Remembers the sizes of its calls."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.running, self.free = Event(), Event()

    def __call__(self, numbers: list[int]):
        self.calls.append(len(numbers))
        self.running.set()
        assert self.free.wait(30)
        if -1 in numbers:
            raise ValueError(f"-1 is not doubled, asked among {len(numbers)}")
        return (2 * number for number in numbers)


def answers(doubler: Doubler, numbers: list, leave: int | None = None) -> list:
    """Of questions that all arrive during the call for a 0 before them; the one numbered `leave` gives up meanwhile."""

    async def ask() -> list:
        with ThreadPoolExecutor(1) as thread:
            ask = Together(doubler, thread)
            worker = asyncio.create_task(ask.work())
            tasks = [asyncio.create_task(ask(0))]
            await asyncio.to_thread(doubler.running.wait, 30)
            tasks += [asyncio.create_task(ask(number)) for number in numbers]
            await asyncio.sleep(0)  # all have asked
            if leave is not None:
                tasks[1 + leave].cancel()
            doubler.free.set()
            found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
            worker.cancel()
            return found[1:]

    return asyncio.run(ask())


def test_questions_that_wait_share_a_call():
    doubler = Doubler()
    assert answers(doubler, list(range(16))) == list(range(0, 32, 2))
    assert doubler.calls == [1, 16]


def test_a_call_takes_no_more_than_it_may():
    doubler = Doubler()
    assert answers(doubler, list(range(2 * MOST + 5))) == list(range(0, 4 * MOST + 10, 2))
    assert doubler.calls == [1, MOST, MOST, 5]


def test_a_bad_question_fails_alone():
    found = answers(Doubler(), [1, -1, 3])
    assert found[::2] == [2, 6]
    assert isinstance(found[1], ValueError) and str(found[1]) == "-1 is not doubled, asked among 1"


def test_who_leaves_takes_nobody_along():
    found = answers(Doubler(), [1, 2, 3], leave=1)
    assert found[::2] == [2, 6] and isinstance(found[1], asyncio.CancelledError)


def test_too_many_are_turned_away_and_the_others_answered():
    found = answers(Doubler(), list(range(ROOM + 2)))
    assert found[:ROOM] == list(range(0, 2 * ROOM, 2))
    assert [type(answer) for answer in found[ROOM:]] == 2 * [asyncio.QueueFull]


def test_the_first_of_them_waits_for_others(monkeypatch):
    """Asked one after the other, with the thread idle; without a pause there were two calls."""
    monkeypatch.setattr(together, "PAUSE", 0.5)
    doubler = Doubler()
    doubler.free.set()

    async def ask() -> list:
        with ThreadPoolExecutor(1) as thread:
            ask = Together(doubler, thread)
            worker = asyncio.create_task(ask.work())
            first = asyncio.create_task(ask(1))
            await asyncio.sleep(0.05)
            found = [await ask(2), await first]
            worker.cancel()
            return found

    assert asyncio.run(ask()) == [4, 2]
    assert doubler.calls == [2]


def test_a_failure_is_not_the_end():
    doubler = Doubler()
    doubler.free.set()

    async def ask() -> int:
        with ThreadPoolExecutor(1) as thread:
            ask = Together(doubler, thread)
            worker = asyncio.create_task(ask.work())
            with pytest.raises(ValueError):
                await ask(-1)
            found = await ask(4)
            worker.cancel()
            return found

    assert asyncio.run(ask()) == 8
