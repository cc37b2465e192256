"""The before/after report: intervals against closed forms and slow oracles, tables that nothing can break out of."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detox_rl.report import (
    COLUMNS,
    before_after,
    before_after_text,
    cell,
    draw,
    markdown_table,
    paired,
    sample_rows,
    write_table,
)

NASTY = '<script>alert("x")</script> | a\nb \x1b[31mred\x1b[0m \x00 & \u202eevil\u2028next \U0001f600' + "long " * 500


def row(number: int, rude: bool = True, **values) -> dict:
    """A dialogue whose summaries get better by 0.5."""
    usual = {
        "id": str(number), "dialogue": f"A: hello {number}", "reference": "they say hello", "rude": rude,
        "before": "they say hello you idiot", "after": "they say hello", "reward_before": 0.0, "reward_after": 1.0,
        "difference": 1.0, "judge_before": 0.75, "judge_after": 0.25,
    }  # fmt: skip
    return usual | values


# -- intervals -------------------------------------------------------------------------------------


def test_the_interval_of_a_normal_sample_is_the_closed_form():
    """mean +- 1.96 s / sqrt(n): for a large normal sample the bootstrap has nothing to correct."""
    difference = np.random.default_rng(0).normal(-0.3, 0.2, 400)
    before = np.full(400, 0.7)
    result = paired(before.tolist(), (before + difference).tolist())
    half = 1.96 * difference.std(ddof=1) / math.sqrt(400)
    assert result["ci_low"] == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert result["ci_high"] == pytest.approx(difference.mean() + half, abs=0.1 * half)
    assert result["before"] == pytest.approx(0.7) and result["after"] == pytest.approx(0.7 + difference.mean())
    assert result["n"] == 400


def slow_bca(difference: list[float], resamples: int, seed: int) -> tuple[float, float]:
    """Efron's BCa, written out: bias from the share of resampled means below the mean, acceleration from the jackknife."""
    from statistics import NormalDist

    normal, n, mean = NormalDist(), len(difference), sum(difference) / len(difference)
    rng = np.random.default_rng(seed)
    means = sorted(sum(difference[i] for i in rng.integers(0, n, n)) / n for _ in range(resamples))
    share = (sum(value < mean for value in means) + sum(value <= mean for value in means)) / (2 * resamples)
    bias = normal.inv_cdf(share)
    jackknife = [(n * mean - value) / (n - 1) for value in difference]
    centre = sum(jackknife) / n
    cubes, squares = sum((centre - value) ** 3 for value in jackknife), sum((centre - value) ** 2 for value in jackknife)
    acceleration = cubes / (6 * squares**1.5)
    ends = []
    for level in (0.025, 0.975):
        z = bias + normal.inv_cdf(level)
        adjusted = normal.cdf(bias + z / (1 - acceleration * z))
        ends.append(means[min(resamples - 1, round(adjusted * resamples))])
    return ends[0], ends[1]


def test_the_interval_of_a_skewed_sample_is_a_slow_bca():
    before = np.random.default_rng(1).beta(0.3, 1.0, 40)
    after = before * np.random.default_rng(2).beta(0.5, 2.0, 40)
    result = paired(before.tolist(), after.tolist(), resamples=5000)
    low, high = slow_bca((after - before).tolist(), resamples=5000, seed=9)
    width = high - low
    assert result["ci_low"] == pytest.approx(low, abs=0.06 * width)
    assert result["ci_high"] == pytest.approx(high, abs=0.06 * width)


def test_the_interval_covers_the_truth_in_about_95_of_100():
    """200 samples of 60: the number of hits is binomial, so 180 is more than three standard deviations low."""
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        before = rng.beta(0.5, 0.5, 60)
        after = before - rng.exponential(0.2, 60)
        result = paired(before.tolist(), after.tolist(), resamples=400, seed=trial)
        hits += result["ci_low"] <= -0.2 <= result["ci_high"]
    assert 180 <= hits < 200


def test_pairs_count_not_columns():
    """Dialogues differ far more than before and after do: only paired differences see a small change."""
    before = np.random.default_rng(4).uniform(0, 1, 50)
    result = paired(before.tolist(), (before - 0.05 - 0.01 * np.random.default_rng(5).uniform(size=50)).tolist())
    assert -0.06 < result["ci_low"] < result["ci_high"] < -0.05


@pytest.mark.parametrize("change", [0.0, -0.5])
def test_a_difference_that_never_varies_is_its_own_interval(change):
    result = paired([0.75] * 5, [0.75 + change] * 5)
    assert (result["ci_low"], result["ci_high"]) == (change, change)
    assert paired([0.75], [0.75 + change])["n"] == 1


@given(st.lists(st.tuples(st.floats(0, 1, width=16), st.floats(0, 1, width=16)), min_size=1, max_size=12))
def test_the_interval_is_ordered_finite_and_inside_the_data(pairs):
    before, after = map(list, zip(*pairs))
    differences = [b - a for a, b in pairs]
    result = paired(before, after, resamples=200)
    assert min(differences) - 1e-9 <= result["ci_low"] <= result["ci_high"] <= max(differences) + 1e-9
    assert result["after"] - result["before"] == pytest.approx(np.mean(differences))


def test_the_same_figures_every_time():
    values = np.random.default_rng(6).uniform(0, 1, (2, 30)).tolist()
    assert paired(*values, resamples=300) == paired(*values, resamples=300)


# -- figures ---------------------------------------------------------------------------------------


def test_the_schema_of_the_figures():
    result = before_after([row(0), row(1)], ["judge"])
    assert {"judges", "rougeL", "length_ratio"} <= result.keys()
    assert result["judges"] == {"judge": {"before": 0.75, "after": 0.25, "ci_low": -0.5, "ci_high": -0.5, "n": 2}}
    assert result["rougeL"].keys() == {"before", "after"}
    assert result["rougeL"]["after"] == pytest.approx(100.0)  # points: the summary is the reference
    assert result["rougeL"]["before"] == pytest.approx(100 * 2 * (3 / 5) / (3 / 5 + 1))
    assert result["length_ratio"] == pytest.approx(3 / 5)
    assert json.loads(json.dumps(result)) == result


def test_toxicity_is_that_of_the_rude_dialogues_the_rest_of_all():
    rows = [row(0), row(1, rude=False, judge_before=0.0, judge_after=0.0, before="they say hello", after="they say hello")]
    result = before_after(rows, ["judge"])
    assert result["judges"]["judge"]["n"] == 1 and result["judges"]["judge"]["before"] == 0.75
    assert result["n"] == 2
    assert result["length_ratio"] == pytest.approx((3 / 5 + 1) / 2)


def test_all_dialogues_count_where_none_is_called_rude():
    result = before_after([row(0, rude=False), row(1, rude=False)], ["judge"])
    assert result["judges"]["judge"]["n"] == 2


def test_an_empty_summary_is_no_division_by_zero():
    result = before_after([row(0, before="", after="a b")], ["judge"])
    assert result["length_ratio"] == 2.0 and result["rougeL"]["before"] == 0.0


def test_the_text_shows_interval_and_n_beside_every_change():
    result = before_after([row(number, judge_after=0.25 + 0.01 * number) for number in range(10)], ["judge"])
    line = next(line for line in before_after_text(result).splitlines() if line.startswith("judge"))
    change = 100 * (result["judges"]["judge"]["after"] / 0.75 - 1)
    assert f"{change:+.0f} %" in line and line.split()[-1] == "10"
    assert f"[{result['judges']['judge']['ci_low']:+.3f}, {result['judges']['judge']['ci_high']:+.3f}]" in line


def test_the_text_survives_a_judge_that_saw_nothing_toxic():
    assert "%" not in before_after_text(before_after([row(0, judge_before=0.0, judge_after=0.0)], ["judge"])).splitlines()[1]


# -- tables ----------------------------------------------------------------------------------------


def test_columns_become_rows():
    rows = sample_rows({"id": ["a", "b"], "reward_before": [1.0, 2.0], "reward_after": [3.0, 1.0]})
    assert [entry["difference"] for entry in rows] == [2.0, -1.0]


def test_a_table_of_nasty_texts_stays_a_table():
    table = markdown_table([row(0, dialogue=NASTY, before=NASTY, after="\r\n|||\n"), row(1)])
    lines = table.splitlines()
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(COLUMNS) + 1}
    assert "<script" not in table and "\x1b" not in table and "\x00" not in table and "\u202e" not in table
    assert max(map(len, lines)) < 4000


@given(st.text(max_size=60))
def test_no_text_opens_a_tag_a_line_or_a_column(text):
    shown = cell(text)
    tags = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.append(tag)

    Tags().feed(shown)
    assert set(tags) <= {"br"} and tags.count("br") == text.count("\n")
    assert "|" not in shown and len(shown.splitlines()) <= 1
    assert all(char.isprintable() for char in shown)


def test_a_long_text_is_cut_with_a_mark():
    shown = cell("x" * 5000)
    assert 1000 <= len(shown) <= 1010 and shown.endswith("…")
    assert cell("x" * 1000) == "x" * 1000


def test_the_largest_changes_come_first():
    rows = [row(number, dialogue=f"d{number}", difference=difference) for number, difference in enumerate((0.1, -3.0, 2.0))]
    assert re.findall(r"d\d", markdown_table(rows)) == ["d1", "d2", "d0"]
    assert re.findall(r"d\d", markdown_table(rows, count=1)) == ["d1"]


def test_every_row_is_written_as_it_was(tmp_path):
    rows = [row(0, dialogue=NASTY), row(1)]
    table = write_table(rows, tmp_path / "new" / "step=3", count=1)
    assert (tmp_path / "new" / "step=3.md").read_text(encoding="utf-8") == table
    lines = (tmp_path / "new" / "step=3.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines if line] == rows


def test_the_picture_is_a_png(tmp_path):
    result = before_after([row(number, judge_after=0.1 * number) for number in range(4)], ["judge"])
    draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "picture.png").stat().st_size > 5000
