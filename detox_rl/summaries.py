"""What reward terms are given: summaries to score, and the training split to learn from."""

from typing import NamedTuple


class Summaries(NamedTuple):
    """A batch of summaries as text, and what they are of.

    Attributes:
        texts: the summaries; each list has `batch` items.
        dialogues: what they summarise.
        references: human summaries of the same dialogues.
        ended: whether the end-of-sequence token was reached before the length limit.
    """

    texts: list[str]
    dialogues: list[str]
    references: list[str]
    ended: list[bool]

    def require_references(self) -> None:
        """Refuses dialogues without a human summary.

        Raises:
            ValueError: if there is one.
        """
        if not all(reference.strip() for reference in self.references):
            raise ValueError("a dialogue has no human summary to compare with; leave out this term, or those rows.")


class Examples(NamedTuple):
    """The training split, for terms that learn from it; each list has an item a dialogue.

    Attributes:
        dialogues: rude and polite ones.
        references: their human summaries.
    """

    dialogues: list[str]
    references: list[str]
