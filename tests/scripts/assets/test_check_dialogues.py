"""The shipped dialogues pass; a copy with one fault does not, and the sentence names it."""

import json
import shutil

import check_dialogues
import pytest
from check_dialogues import FOLDER, SPLITS, identity, near_duplicates, read


@pytest.fixture
def copy(tmp_path):
    """A copy of the shipped dialogues that a test may spoil."""
    for split in SPLITS:
        shutil.copy(FOLDER / f"{split}.jsonl", tmp_path)
    return tmp_path


def spoil(folder, change, split="train", rude=True):
    """Applies `change(row)` to the first rude (or polite) row of a split; the id follows unless it was changed too."""
    rows = read(folder / f"{split}.jsonl")
    row = next(row for row in rows if (row["rudeness"] != "none") == rude)
    before = row["id"]
    change(row)
    if row["id"] == before:
        row["id"] = identity(row["dialogue"])
    write(folder, split, rows)


def write(folder, split, rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def run(folder, capsys):
    """Returns the exit code and what was printed to standard error."""
    code = check_dialogues.main(["--folder", str(folder)])
    return code, capsys.readouterr().err


def test_shipped_dialogues_pass_and_are_counted(capsys):
    assert check_dialogues.main([]) == 0
    table = capsys.readouterr().out
    assert "| dialogues | 3630 | 200 | 200 | 4030 |" in table
    assert table in (FOLDER / "CARD.md").read_text(encoding="utf-8"), "the table of CARD.md is out of date"


def test_untouched_copy_passes(copy, capsys):
    assert run(copy, capsys) == (0, "")


def cut(row):
    row["dialogue"] = row["dialogue"][:150]


def stretch(row):
    row["dialogue"] += " and so on" * 100


def two_turns(row):
    row["dialogue"] = "Ann: " + "We met at the quay. " * 8 + "\nBo: " + "Nobody was late. " * 8


def nameless_turn(row):
    row["dialogue"] += "\nand nobody says this"


def foreign_id(row):
    row["id"] = "0" * 12


def unknown_rudeness(row):
    row["rudeness"] = "cruel"


def swearing_summary(row):
    row["summary"] = row["summary"][:120] + " and swears about the fucking dishes."


def lifted_word_in_summary(row):
    row["dialogue"] += "\nZed: You lazy cow."
    row["quoting_summary"] = row["quoting_summary"][:120] + ", you lazy cow."
    row["summary"] = row["summary"][:120] + ", the lazy person."


def quoting_without_rudeness(row):
    row["quoting_summary"] = row["summary"]


def quoting_missing(row):
    row["quoting_summary"] = None


def quoting_short(row):
    row["summary"] = "They talk. " * 18
    row["quoting_summary"] = row["quoting_summary"][:70]


def endless_summary(row):
    row["summary"] = "They talk. " * 30


def no_conflict(row):
    row["conflicts"] = []


def conflict_by_a_stranger(row):
    row["conflicts"][0]["by"] = "Nobody"


def conflict_with_oneself(row):
    row["conflicts"][0]["to"] = row["conflicts"][0]["by"]


def conflict_to_half_a_name(row):
    row["dialogue"] += "\nDr. Zed Zorn: Enough."
    row["conflicts"][0]["to"] = "Zorn"


def conflict_to_a_name_in_small_letters(row):
    row["dialogue"] += "\nWarden: Enough."
    row["conflicts"][0]["to"] = "the warden"


def unknown_act(row):
    row["conflicts"][0]["act"] = "cruel"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (cut, "the dialogue has 150 characters"),
        (stretch, "characters; 200 to 1000 are allowed"),
        (two_turns, "the dialogue has 2 turns"),
        (nameless_turn, "every turn must read 'Name: text'"),
        (foreign_id, "the id must be"),
        (unknown_rudeness, "rudeness must be one of"),
        (swearing_summary, "the neutral summary holds the rude word 'fucking'"),
        (lifted_word_in_summary, "the neutral summary holds the rude word 'lazy'"),
        (quoting_without_rudeness, "the quoting summary repeats no rude wording"),
        (quoting_missing, "a quoting summary must be there exactly when"),
        (quoting_short, "times as long as the neutral one"),
        (endless_summary, "the summary has 330 characters"),
        (no_conflict, "conflicts must be there exactly when rudeness is not 'none'"),
        (conflict_by_a_stranger, "a conflict is by 'Nobody', who says nothing in the dialogue"),
        (conflict_with_oneself, "and to the same"),
        (conflict_to_half_a_name, "a conflict is to 'Zorn', but the speaker's exact name is 'Dr. Zed Zorn'"),
        (conflict_to_a_name_in_small_letters, "to 'the warden', but the speaker's exact name is 'Warden'"),
        (unknown_act, "the act of a conflict must be one of mild, swearing, insult, threat, not 'cruel'"),
    ],
)
def test_fault_in_a_rude_row(copy, capsys, change, sentence):
    spoil(copy, change)
    code, errors = run(copy, capsys)
    assert code == 1
    assert sentence in errors


def quoting_though_polite(row):
    row["quoting_summary"] = row["summary"]


def conflict_though_polite(row):
    row["conflicts"] = [{"by": row["dialogue"].partition(": ")[0], "to": None, "act": "mild"}]


def rude_though_polite(row):
    row["dialogue"] += "\nZed: You idiot."


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (quoting_though_polite, "a quoting summary must be there exactly when"),
        (conflict_though_polite, "conflicts must be there exactly when rudeness is not 'none'"),
        (rude_though_polite, "rudeness is 'none', but the dialogue holds 'idiot'"),
    ],
)
def test_fault_in_a_polite_row(copy, capsys, change, sentence):
    spoil(copy, change, rude=False)
    code, errors = run(copy, capsys)
    assert code == 1
    assert sentence in errors


@pytest.mark.parametrize("plural", ["", "s"])
def test_slur_is_found_by_its_hash_and_not_printed(copy, capsys, monkeypatch, plural):
    def insult(row):
        row["dialogue"] += f"\nZed: You are BLORB{plural}."

    spoil(copy, insult)
    assert run(copy, capsys) == (0, "")
    monkeypatch.setattr(check_dialogues, "_SLURS", frozenset({identity("blorb")}))
    code, errors = run(copy, capsys)
    assert code == 1
    assert "a slur against a group begins with 'b'" in errors
    assert "blorb" not in errors.lower()


@pytest.mark.parametrize("plain", ["Black", "gay", "deaf", "Muslim", "Jewish", "woman", "Asian", "Polish", "trans"])
def test_names_of_groups_are_no_slurs(plain):
    assert identity(plain.lower()) not in check_dialogues._SLURS


@pytest.mark.parametrize("split", ["train", "test"])
def test_same_dialogue_twice(copy, capsys, split):
    rows = read(copy / "train.jsonl")
    write(copy, split, [*read(copy / f"{split}.jsonl"), rows[0]])
    code, errors = run(copy, capsys)
    assert code == 1
    assert f"train {rows[0]['id']} and {split} {rows[0]['id']}: the same id." in errors
    assert "near-duplicates (similarity 1.00)" in errors


def test_dialogue_told_again_by_others_is_a_near_duplicate(copy, capsys):
    source = read(copy / "train.jsonl")[0]["dialogue"]

    def retell(row):
        row["dialogue"] = "\n".join(f"Zed: {turn.split(': ', 1)[1]}" for turn in source.split("\n"))
        row["dialogue"] += "\nZed: One more line, you idiot."

    spoil(copy, retell, split="validation")
    code, errors = run(copy, capsys)
    assert code == 1
    assert "near-duplicates (similarity 0." in errors


def test_near_duplicates_is_the_jaccard_similarity_of_five_grams():
    # 6 words hold 2 five-grams; the texts share one of three.
    first, second = "Ann: a b c d e f", "Bo: b c d e f g"
    assert near_duplicates([first, second], threshold=0.3) == [(0, 1, pytest.approx(1 / 3))]
    assert near_duplicates([first, second], threshold=0.34) == []


def test_small_and_unbalanced_test_split(copy, capsys):
    polite = [row for row in read(copy / "test.jsonl") if row["rudeness"] == "none"]
    write(copy, "test", polite)
    code, errors = run(copy, capsys)
    assert code == 1
    assert f"the test split has {len(polite)} rows; at least 120 are needed." in errors
    assert f"half of the test split must be rude, but 0 of {len(polite)} rows are." in errors


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 3631: not JSON"),
        ("[]", "line 3631: a row must have exactly the keys"),
        ('{"id": "0"}', "line 3631: a row must have exactly the keys"),
        (
            '{"id": "0", "dialogue": 3, "summary": "", "quoting_summary": null, "rudeness": "none", "conflicts": []}',
            "line 3631: dialogue must be text, not 3.",
        ),
        (
            '{"id": "", "dialogue": "", "summary": null, "quoting_summary": null, "rudeness": "none", "conflicts": []}',
            "line 3631: summary must be text, not None.",
        ),
    ],
)
def test_unreadable_row_is_named(copy, capsys, line, sentence):
    with open(copy / "train.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")
    code, errors = run(copy, capsys)
    assert code == 1
    assert sentence in errors


@pytest.mark.parametrize("conflicts", ["none", [3], [{"by": "Ann"}], [{"by": None, "to": None, "act": "mild"}]])
def test_unreadable_conflicts_are_named(copy, capsys, conflicts):
    spoil(copy, lambda row: row.update(conflicts=conflicts))
    code, errors = run(copy, capsys)
    assert code == 1
    assert 'conflicts must be a list of {"by", "to", "act"}.' in errors


def test_missing_file_is_named(tmp_path, capsys):
    code, errors = run(tmp_path, capsys)
    assert code == 1
    assert "train.jsonl is missing" in errors
