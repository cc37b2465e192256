"""Questions that arrive together share one call of a model."""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

MOST = 32  # questions in a call
PAUSE = 0.005  # seconds that the first of them waits for others
ROOM = 1024  # questions that may wait

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Together(Generic[Question, Answer]):
    """Answers single questions by calls of a function of many, which take whatever waits.

    Args:
        function: questions to answers, in the same order.
        thread: where it runs; one thread for all functions that must not run at once.
    """

    def __init__(self, function: Callable[[list[Question]], Iterable[Answer]], thread: Executor) -> None:
        self.function, self.thread = function, thread
        self.waiting: asyncio.Queue[tuple[Question, asyncio.Future]] = asyncio.Queue(ROOM)

    async def __call__(self, question: Question) -> Answer:
        """The answer to one question.

        Raises:
            asyncio.QueueFull: if too many wait already.
            Exception: whatever the function raises, asked this question alone.
        """
        answer = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((question, answer))
        return await answer

    async def work(self) -> None:
        """Answers until it is cancelled."""
        while True:
            asked = [await self.waiting.get()]
            await asyncio.sleep(PAUSE)
            while len(asked) < MOST and not self.waiting.empty():
                asked.append(self.waiting.get_nowait())
            questions = [question for question, _ in asked]
            found = await asyncio.get_running_loop().run_in_executor(self.thread, self._answers, questions)
            for (_, answer), said in zip(asked, found):
                if answer.done():  # whoever asked has gone
                    continue
                if isinstance(said, Exception):
                    answer.set_exception(said)
                else:
                    answer.set_result(said)

    def _answers(self, questions: list[Question]) -> list[Any]:
        """Answers or errors. Where the call fails, each question is asked alone, so that only the bad one fails."""
        try:
            return list(self.function(questions))
        except Exception as error:
            if len(questions) == 1:
                return [error]
            return [said for question in questions for said in self._answers([question])]
