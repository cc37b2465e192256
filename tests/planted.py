"""Summaries of the embedded dialogues that are made by a rule: an honest one, and cheats that a reward must not like."""

import itertools
import re

from conftest import embedded_rows

from detox_rl.conflict.record import Conflict
from detox_rl.conflict.report import judge_report, speakers
from detox_rl.meaning import content_words
from detox_rl.rewards import Examples, Summaries


def is_rude(row: dict) -> bool:
    return row["rudeness"] != "none"


def examples() -> Examples:
    """The embedded training split."""
    rows = embedded_rows("train")
    return Examples([row["dialogue"] for row in rows], [row["summary"] for row in rows])


def summaries(texts: list[str], rows: list[dict]) -> Summaries:
    columns = [row["dialogue"] for row in rows], [row["summary"] for row in rows]
    return Summaries(texts, *columns, [True] * len(rows))


def honest(row: dict) -> str:
    """The sentences of the reference in the other order, every third content word in words of its own."""
    words = " ".join(reversed(re.split(r"(?<=[.!?;])\s+", row["summary"]))).split()
    content = [number for number, word in enumerate(words) if content_words(word)]
    for number in content[2::3]:
        words[number] = "otherwise"
    return " ".join(words)


def people(row: dict) -> list[str]:
    """Speakers as the reference calls them: by their whole name, or by its last word that stands there."""
    found = []
    for name in speakers(row["dialogue"]):
        parts = [
            part for part in [name, *reversed(name.split())] if re.search(rf"\b{re.escape(part)}\b", row["summary"])
        ]
        found += parts[:1]
    return list(dict.fromkeys(found))


def swapped(text: str, row: dict) -> str:
    """The first two people in each other's place."""
    one, other = people(row)[:2]
    return re.sub(rf"\b({re.escape(one)}|{re.escape(other)})\b", lambda name: other if name[0] == one else one, text)


def without_conflict(row: dict) -> str | None:
    """The reference without as few of its clauses as are needed to say nothing of the conflict; None where that fails."""
    conflicts = [Conflict(**conflict) for conflict in row["conflicts"]]
    clauses = re.split(r"(?<=[.!?;,])\s+|\s+(?=(?:and|but|when|while|after|because|so|who) )", row["summary"])
    for kept in range(len(clauses) - 1, 0, -1):
        for chosen in itertools.combinations(clauses, kept):
            text = " ".join(chosen)
            if len(text.split()) >= 5 and judge_report(text, row["dialogue"], conflicts).kind == "omit":
                return text
    return None


def turns(row: dict) -> str:
    return " ".join(line.partition(": ")[2] for line in row["dialogue"].splitlines())


CHEATS = {
    "stock phrase": lambda row: "There is an argument.",
    "X is angry": lambda row: f"{people(row)[0]} is angry.",
    "X insults Y": lambda row: f"{people(row)[0]} insults {people(row)[1]}.",
    "X and Y argue": lambda row: f"{people(row)[0]} and {people(row)[1]} argue.",
    "the verb again and again": lambda row: f"{people(row)[0]} {' '.join(['insults'] * 20)}.",
    "all names": lambda row: f"{', '.join(speakers(row['dialogue']))}.",
    "the dialogue": lambda row: row["dialogue"],
    "its first words": lambda row: " ".join(turns(row).split()[: len(row["summary"].split())]),
    "honest, two people swapped": lambda row: swapped(honest(row), row),
}
