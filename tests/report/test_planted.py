"""Planted systems on the embedded dialogues: the measures name what each of them does."""

import re

import pandas as pd
import pytest
from conftest import embedded_rows
from studies import found, report_of, study_of

from detox_rl.classifiers import StrongWords
from detox_rl.conflict.record import Conflict
from detox_rl.conflict.report import judge_report, speakers

SYSTEMS = ("references", "omitter", "parrot", "accuser")


@pytest.fixture(scope="module")
def report() -> dict:
    """The humans; one who drops every clause about the conflict; one who quotes; one who blames the other speaker.

    The dialogues are rude ones whose summary reports one conflict between two speakers who are named in it.
    """
    rows = []
    for row in embedded_rows("test"):
        conflicts = [Conflict(*entry.values()) for entry in row["conflicts"]]
        pairs = {(conflict.by, conflict.to) for conflict in conflicts}
        if len(pairs) == 1 and all(name and name in row["summary"] for name in [*pairs][0]):
            verdict = judge_report(row["summary"], row["dialogue"], conflicts)
            if verdict.kind == "report" and verdict.speaker:
                rows.append(row | {"conflicts": tuple(conflicts), "pair": [*pairs][0]})
    assert len(rows) >= 20
    dialogues = pd.DataFrame({
        "id": [row["id"] for row in rows], "dialogue": [row["dialogue"] for row in rows],
        "reference": [row["summary"] for row in rows], "rude": True, "conflicts": [row["conflicts"] for row in rows],
    })  # fmt: skip
    texts = {
        "references": [row["summary"] for row in rows],
        "omitter": [f"{row['pair'][0]} and {row['pair'][1]} talk about it, and they agree in the end." for row in rows],
        "parrot": [row["quoting_summary"] for row in rows],
        "accuser": [swapped(row["summary"], *row["pair"]) for row in rows],
    }
    return report_of(study_of(texts, dialogues, {"strong-words": StrongWords()}))


def swapped(text: str, one: str, other: str) -> str:
    """The same with two names in each other's place."""
    return re.sub(f"{re.escape(one)}|{re.escape(other)}", lambda name: other if name[0] == one else one, text)


def means(report: dict, measure: str) -> dict[str, float]:
    return {
        system: found(report["means"], system=system, measure=measure, stratum="rude")["mean"] for system in SYSTEMS
    }


def test_the_omitter_leaves_out_the_conflict_and_nobody_else_does(report):
    shares = means(report, "omits")
    assert shares["omitter"] > 0.95 and max(shares[name] for name in SYSTEMS if name != "omitter") < 0.2


def test_the_parrot_quotes_and_nobody_else_does(report):
    shares = means(report, "quotes")
    assert shares["parrot"] > 0.75 and max(shares[name] for name in SYSTEMS if name != "parrot") < 0.1
    assert means(report, "toxicity/strong-words")["parrot"] > 0.2


def test_the_accuser_reports_but_not_of_the_right_speaker(report):
    reported, right = means(report, "reports"), means(report, "right_speaker")
    assert reported["references"] == right["references"] == 1.0
    assert reported["accuser"] > 0.9 and right["accuser"] < 0.25
    assert reported["omitter"] < 0.05


def test_the_joint_share_is_that_of_the_humans_alone(report):
    shares = means(report, "joint")
    assert shares["references"] > 0.95 and max(shares[name] for name in SYSTEMS[1:]) < 0.25
    row = found(report["differences"], system="omitter", measure="joint", stratum="rude")
    assert row["high"] < 0 and row["p"] < 0.01 and "no difference" not in row["sentence"]


def test_the_gossip_invents_and_nobody_else_does():
    """On polite dialogues, of which no measure of what becomes of a conflict says anything."""
    rows = [row for row in embedded_rows("test") if row["rudeness"] == "none"]
    dialogues = pd.DataFrame({
        "id": [row["id"] for row in rows], "dialogue": [row["dialogue"] for row in rows],
        "reference": [row["summary"] for row in rows], "rude": False, "conflicts": [()] * len(rows),
    })  # fmt: skip
    gossip = ["{} swears at {}.".format(*[*speakers(row["dialogue"]), "all"][:2]) for row in rows]
    texts = {"references": [row["summary"] for row in rows], "gossip": gossip}
    measured = report_of(study_of(texts, dialogues, {"strong-words": StrongWords()}))
    shares = {name: found(measured["means"], system=name, measure="invents", stratum="all")["mean"] for name in texts}
    assert shares["gossip"] > 0.95 and shares["references"] < 0.02
    assert not {"reports", "right_speaker", "quotes", "omits"} & {row["measure"] for row in measured["means"]}


def test_no_judge_of_toxicity_sees_the_omitter(report):
    """It is why toxicity alone is no evidence."""
    assert means(report, "toxicity/strong-words")["omitter"] == 0.0
