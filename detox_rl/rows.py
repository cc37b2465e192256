"""What is written of each dialogue, and what becomes of a summary that is too toxic."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice, tee
from typing import NamedTuple

from detox_rl.data.reading import Dialogue
from detox_rl.summarizer import WINDOW, Summarizer, Summary


class Limit(NamedTuple):
    """What becomes of a summary that a judge finds too toxic.

    Attributes:
        toxicity: the highest that passes.
        flag_only: whether it is kept with a mark, not withheld.
    """

    toxicity: float
    flag_only: bool

    @property
    def mark(self) -> str:
        """What such a summary is called."""
        return "flagged" if self.flag_only else "withheld"

    def is_exceeded_by(self, summary: Summary) -> bool:
        """Whether a summary that has been judged is too toxic."""
        return not summary.toxicity <= self.toxicity


class Row(NamedTuple):
    """What is written of one dialogue: its number among all, from 0, what it is, and its summary."""

    number: int
    dialogue: Dialogue
    summary: Summary

    def as_text(self, limit: Limit | None) -> str:
        """The summary on one line, which is empty where it is withheld."""
        if limit is not None and limit.is_exceeded_by(self.summary):
            return ""
        return " ".join(self.summary.text.splitlines())

    def as_json(self, limit: Limit | None) -> str:
        """One line of json. A row without an id has its number."""
        name = self.number if self.dialogue.id in (None, "") else self.dialogue.id
        fields = {"id": name, "summary": self.summary.text, "parts": self.summary.parts}
        if self.summary.toxicity is not None:
            fields["toxicity"] = self.summary.toxicity
        if limit is not None:
            fields[limit.mark] = limit.is_exceeded_by(self.summary)
            if fields.get("withheld"):
                fields["summary"] = None
        return json.dumps(fields, ensure_ascii=False, default=str)


def summarized(summarizer: Summarizer, sources: list[Iterable[Dialogue]], done: int) -> Iterator[Row]:
    """All rows but those that are done.

    Whole windows are made again, so that the same dialogues share a batch as without an interruption.
    """
    start = done // WINDOW * WINDOW
    dialogues, again = tee(islice(chain.from_iterable(sources), start, None))
    summaries = summarizer.stream(said.text for said in again)
    rows = (Row(number, *pair) for number, pair in enumerate(zip(dialogues, summaries), start))
    return islice(rows, done - start, None)
