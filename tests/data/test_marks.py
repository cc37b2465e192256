"""Marks behind the names of those who are rude."""

import pytest
from conftest import embedded_rows
from hypothesis import given
from hypothesis import strategies as st

from detox_rl.data.marks import MARK, mark_rude_turns

DIALOGUE = "Tom: You fucking idiot.\nAnn: Please close the bin: it smells.\nTom: Shut up, you stupid cow\nthe end"


def test_a_rude_turn_is_marked_behind_the_name():
    marked = "Tom (rude): You fucking idiot.\nAnn: Please close the bin: it smells.\nTom (rude): Shut up, you stupid cow\nthe end"
    assert mark_rude_turns([DIALOGUE, "Ann: Thank you."]) == [marked, "Ann: Thank you."]
    assert mark_rude_turns([marked]) == [marked]


@pytest.mark.parametrize(
    "dialogue", ["", "\n", "Tom: ", ": You fucking idiot", "You fucking idiot", "Tom:You fucking idiot"]
)
def test_what_is_no_turn_stays(dialogue):
    assert mark_rude_turns([dialogue]) == [dialogue]
    assert mark_rude_turns([]) == []


@given(st.lists(st.text(st.sampled_from("ab:\r\n (rude)you idiot"), max_size=30), max_size=4))
def test_nothing_else_changes(dialogues):
    marked = mark_rude_turns(dialogues)
    assert [text.replace(MARK, "") for text in marked] == [text.replace(MARK, "") for text in dialogues]
    assert mark_rude_turns(marked) == marked


def test_a_turn_is_judged_by_itself():
    """Whatever stands beside it, in whatever dialogue."""
    rows = [row["dialogue"] for row in embedded_rows("validation")[:30]]
    together = mark_rude_turns(rows)
    assert together == [mark_rude_turns([row])[0] for row in rows] != rows


def test_how_often_the_marks_are_right():
    """On dialogues that neither the classifier nor a summariser was trained on."""
    rows = embedded_rows("test")
    rude = [row["rudeness"] != "none" for row in rows]
    marked = [MARK in text for text in mark_rude_turns([row["dialogue"] for row in rows])]
    found = sum(a and b for a, b in zip(rude, marked)), sum(b and not a for a, b in zip(rude, marked))
    assert found[0] >= 0.8 * sum(rude) and found[1] <= 0.1 * (len(rude) - sum(rude))
