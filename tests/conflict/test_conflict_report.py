"""The verdict, on closed cases and on planted summaries of the embedded dialogues."""

import json

import pytest

from detox_rl import embedded
from detox_rl.conflict.record import Conflict
from detox_rl.conflict.report import Report, judge_report, likely_conflicts, speakers

DIALOGUE = """Ann: Where is my key?
Bob: You lost it, you lazy cow.
Ann: Hm."""
BOB = (Conflict("Bob", "Ann", "insult"),)


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ("Bob insults Ann over a lost key.", Report("report", True)),
        ("Ann is insulted over a lost key.", Report("report", True)),
        ("Ann insults Bob over a lost key.", Report("report", False)),
        ("Ann insults Ann over a lost key.", Report("report", False)),
        ("Ann lost a key.", Report("omit", None)),
        ("", Report("omit", None)),
        ('Bob calls Ann a "lazy cow".', Report("quote", True)),
        ('Ann calls Bob a "lazy cow".', Report("quote", False)),
        ("Ann, a lazy cow, lost a key.", Report("quote", None)),
        ("Bob insults Ann, a lazy cow.", Report("quote", True)),  # who quotes does not report
        # stock phrases: they report, but blame the wrong one, or nobody
        ("They are rude to each other.", Report("report", False)),
        ("They insult each other and swear.", Report("report", False)),
        ("Both are rude.", Report("report", False)),
        ("Somebody is rude to somebody.", Report("omit", None)),
        ("There is swearing.", Report("omit", None)),
        ("Ann is angry.", Report("omit", None)),
        ("Rude insults threats swearing abuse.", Report("omit", None)),
        ("He is rude to her.", Report("omit", None)),  # nobody was named
    ],
)
def test_closed_cases(summary, expected):
    assert judge_report(summary, DIALOGUE, BOB) == expected


def test_without_a_conflict_nothing_is_right():
    assert judge_report("Ann sends Bob the key.", DIALOGUE, ()) == Report("omit", None)
    assert judge_report("Ann insults Bob.", DIALOGUE, ()) == Report("report", False)


def test_both_were_rude_but_each_in_another_way():
    conflicts = (Conflict("Bob", "Ann", "insult"), Conflict("Ann", "Bob", "mild"))
    assert judge_report("Bob insults Ann.", DIALOGUE, conflicts).speaker is True
    assert judge_report("Ann insults Bob.", DIALOGUE, conflicts).speaker is False
    assert judge_report("Ann is rude to Bob.", DIALOGUE, conflicts).speaker is True
    assert judge_report("They are rude to each other.", DIALOGUE, conflicts).speaker is True


@pytest.mark.parametrize("to", [None, "the driver"])
def test_aimed_at_nobody_here(to):
    conflicts = (Conflict("Bob", to, "swearing"),)
    assert judge_report("Bob swears about the driver.", DIALOGUE, conflicts).speaker is True
    assert judge_report("Ann swears about the driver.", DIALOGUE, conflicts).speaker is False
    assert judge_report("Bob swears at Ann.", DIALOGUE, conflicts).speaker is (to is None)


def test_speakers_in_order():
    assert speakers("Bob: a: b\nAnn: c\nno turn\nBob: d") == ["Bob", "Ann"]


# Planted summaries of the embedded dialogues


# The dialogues that the rules were made on, or beside, come first in each split; the others were written later.
FIRST = {"train": 500, "validation": 80, "test": 200}
VARIED = 1230  # and the last of the training split are plain


def rude_rows(later):
    texts = {split: embedded.dialogues(split).read_text(encoding="utf-8").splitlines() for split in embedded.SPLITS}
    parts = [lines[FIRST[split] : VARIED] if later else lines[: FIRST[split]] for split, lines in texts.items()]
    rows = [json.loads(line) for lines in parts for line in lines]
    return [row | {"conflicts": [Conflict(**entry) for entry in row["conflicts"]]} for row in rows if row["conflicts"]]


def judged(row, summary):
    return judge_report(summary, row["dialogue"], row["conflicts"])


ROWS, LATER = rude_rows(later=False), rude_rows(later=True)
PAIRS = [row for row in ROWS if len(speakers(row["dialogue"])) == 2 and len(row["conflicts"]) == 1]


def share(verdicts):
    verdicts = list(verdicts)
    return sum(verdicts) / len(verdicts)


def test_references_report_and_quoting_ones_quote():
    assert share(judged(row, row["summary"]).kind == "report" for row in ROWS) > 0.95
    assert share(judged(row, row["summary"]).speaker is True for row in ROWS) > 0.9
    assert share(judged(row, row["quoting_summary"]).kind == "quote" for row in ROWS) > 0.95
    assert share(judged(row, row["quoting_summary"]).speaker is False for row in ROWS) < 0.1


def test_so_they_do_where_they_were_written_after_the_rules():
    """In more varied words; measured 0.923, 0.865 and 0.997."""
    assert len(LATER) == 600
    assert share(judged(row, row["summary"]).kind == "report" for row in LATER) == pytest.approx(0.923, abs=0.01)
    assert share(judged(row, row["summary"]).speaker is True for row in LATER) == pytest.approx(0.865, abs=0.01)
    assert share(judged(row, row["quoting_summary"]).kind == "quote" for row in LATER) > 0.95


def test_the_omitter_omits():
    """It says who talks, and that they are angry."""
    for row in ROWS:
        assert judged(row, f"{' and '.join(speakers(row['dialogue']))} talk and are angry.") == Report("omit", None)


def test_the_parrot_quotes():
    """It repeats the rudest turn by the lists, as the narrator's own; rudeness without such words is not seen."""
    parrots = []
    for row in ROWS:
        turns = [turn.partition(": ") for turn in row["dialogue"].splitlines()]
        rude = {conflict.by for conflict in row["conflicts"] if conflict.act != "mild"}
        said = [f"{name} says: {text}" for name, _, text in turns if name in rude]
        parrots += [judged(row, " ".join(said)).kind == "quote"] if said else []
    assert share(parrots) > 0.93


@pytest.mark.parametrize(
    "phrase", ["{} insults {}.", "{1} is sworn at by {0}.", "{} is rude to {}.", "{}'s threats upset {}."]
)
def test_the_accuser_blames_the_wrong_one(phrase):
    for row in PAIRS:
        (conflict,) = row["conflicts"]
        (other,) = set(speakers(row["dialogue"])) - {conflict.by}
        if conflict.to in (None, other):
            assert judged(row, phrase.format(conflict.by, other)) == Report("report", True)
        assert judged(row, phrase.format(other, conflict.by)) == Report("report", False)


def test_one_phrase_for_all_is_wrong():
    """Where one speaker alone was rude, a phrase that blames all is wrong."""
    for row in PAIRS:
        assert judged(row, "They are rude to each other.") == Report("report", False)
        assert judged(row, "He is rude to her.").speaker is None


def test_renaming_the_speakers_changes_nothing():
    """Where names, and not he or she, say who it was."""
    for row in PAIRS:
        summary = "{0} asks for help and {1} insults {0}, so {0} leaves."
        names = speakers(row["dialogue"])
        renamed = dict(zip(names, ("Qix", "Zorp")))
        turns = (turn.partition(": ") for turn in row["dialogue"].splitlines())
        dialogue = "\n".join(f"{renamed[name]}: {text}" for name, _, text in turns)
        conflicts = [Conflict(renamed[by], renamed.get(to, to), act) for by, to, act in row["conflicts"]]
        new = judge_report(summary.format("Qix", "Zorp"), dialogue, conflicts)
        assert new == judged(row, summary.format(*names))


# Data without annotations


def test_likely_conflicts_of_a_chat_of_two():
    dialogue = "Ann: hi you\nBob: shut up, you idiot\nAnn: I'll kill you\nBob: fuck that bus"
    assert likely_conflicts(dialogue) == (
        Conflict("Bob", "Ann", "insult"),
        Conflict("Ann", "Bob", "threat"),
        Conflict("Bob", "Ann", "swearing"),
    )
    assert likely_conflicts("Ann: hi\nBob: hello, you\nno turn") == ()


def test_likely_conflicts_need_a_name_among_three():
    dialogue = "Ann: hi\nCy Smith: hi\nBob: you lazy thing\nBob: Smith, you lazy thing"
    assert likely_conflicts(dialogue) == (Conflict("Bob", None, "insult"), Conflict("Bob", "Cy Smith", "insult"))


def test_likely_conflicts_find_most_of_the_annotated():
    """Who was rude: nearly always where the words are strong; polite dialogues seldom hold any."""
    found = [{conflict.by for conflict in likely_conflicts(row["dialogue"])} for row in ROWS]
    rude = [{conflict.by for conflict in row["conflicts"] if conflict.act != "mild"} for row in ROWS]
    assert share(expected <= names for expected, names in zip(rude, found)) > 0.9
    polite = [json.loads(line) for line in embedded.dialogues("train").read_text(encoding="utf-8").splitlines()]
    assert share(bool(likely_conflicts(row["dialogue"])) for row in polite if not row["conflicts"]) < 0.1
