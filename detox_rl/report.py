"""The before/after report: rows, tables, paired intervals, a picture."""

import html
import json
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

from detox_rl.metrics import Rouge

COLUMNS = ("dialogue", "before", "after", "reward_before", "reward_after", "difference")


def sample_rows(columns: dict[str, list]) -> list[dict]:
    """Turns columns of equal length into rows, and adds the difference of the rewards."""
    rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    return [row | {"difference": row["reward_after"] - row["reward_before"]} for row in rows]


def cell(value: object, width: int = 1000) -> str:
    """Text that stays one table cell in Markdown and HTML, whatever a dialogue holds."""
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    text = text[:width] + "…" * (len(text) > width)
    text = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
    return html.escape(text).replace("|", "&#124;").replace("\n", "<br>")


def markdown_table(rows: list[dict], count: int | None = None) -> str:
    """S2's table: dialogue, before, after, reward before, reward after, difference; largest changes first."""
    chosen = sorted(rows, key=lambda row: -abs(row["difference"]))[:count]
    lines = ["| " + " | ".join(column.replace("_", " ") for column in COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell(row[column]) for column in COLUMNS) + " |" for row in chosen]
    return "\n".join(lines) + "\n"


def write_table(rows: list[dict], stem: Path, count: int | None = None) -> str:
    """Writes every row to `stem`.jsonl and the table to `stem`.md; returns the table."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    table = markdown_table(rows, count)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    stem.with_name(stem.name + ".jsonl").write_text("".join(lines), encoding="utf-8")
    stem.with_name(stem.name + ".md").write_text(table, encoding="utf-8")
    return table


def before_after(rows: list[dict], judges: list[str], resamples: int = 10_000) -> dict:
    """The figures of `before_after.json`.

    Toxicity is measured on the rude dialogues (on all, where the data does not say which are rude), the
    rest on all dialogues.

    Args:
        rows: one a dialogue, with before, after, reference, rude and `<judge>_before`, `<judge>_after`.
        judges: names of the judges.
        resamples: of the paired bootstrap.

    Returns:
        `{"judges": {name: {"before", "after", "ci_low", "ci_high", "n"}}, "rougeL": {"before", "after"}, "length_ratio",
        ...}`: mean probabilities, the 95 % interval of the mean of after - before, ROUGE-L in points.
    """
    rude = [row for row in rows if row["rude"]] or rows
    rouge = {
        when: _rouge([row[when] for row in rows], [row["reference"] for row in rows]) for when in ("before", "after")
    }
    return {
        "judges": {judge: paired([row[f"{judge}_before"] for row in rude], [row[f"{judge}_after"] for row in rude], resamples)
                   for judge in judges},
        "rougeL": {when: scores["rougeL"] for when, scores in rouge.items()},
        "rouge1": {when: scores["rouge1"] for when, scores in rouge.items()},
        "rouge2": {when: scores["rouge2"] for when, scores in rouge.items()},
        "length_ratio": float(np.mean([_words(row["after"]) / max(_words(row["before"]), 1) for row in rows])),
        "n": len(rows),
    }  # fmt: skip


def paired(before: list[float], after: list[float], resamples: int = 10_000, seed: int = 0) -> dict:
    """Means, and the 95 % bootstrap interval of the mean paired difference after - before.

    BCa (Efron, 1987), by scipy; a difference that never varies is its own interval.
    """
    difference = np.asarray(after) - np.asarray(before)
    low = high = float(difference.mean())
    if np.ptp(difference) > 0:
        result = bootstrap((difference,), np.mean, n_resamples=resamples, rng=np.random.default_rng(seed))
        low, high = map(float, result.confidence_interval)
    return {
        "before": float(np.mean(before)),
        "after": float(np.mean(after)),
        "ci_low": low,
        "ci_high": high,
        "n": len(before),
    }


def before_after_text(result: dict) -> str:
    """The figures as a table for the terminal."""
    lines = [f"{'toxicity, by':<28}{'before':>8}{'after':>8}{'change':>9}   95 % interval of after - before   n"]
    for name, judge in result["judges"].items():
        change = f"{100 * (judge['after'] / judge['before'] - 1):+.0f} %" if judge["before"] else ""
        interval = f"[{judge['ci_low']:+.3f}, {judge['ci_high']:+.3f}]"
        lines.append(
            f"{name:<28}{judge['before']:>8.3f}{judge['after']:>8.3f}{change:>9}   {interval:<32} {judge['n']}"
        )
    for name in ("rougeL", "rouge1", "rouge2"):
        lines.append(f"{name:<28}{result[name]['before']:>8.2f}{result[name]['after']:>8.2f}{'':>44} {result['n']}")
    lines.append(f"{'length, after / before':<28}{'':>8}{result['length_ratio']:>8.2f}{'':>44} {result['n']}")
    return "\n".join(lines)


def draw(result: dict, file: Path) -> None:
    """Bars of mean toxicity before and after, by judge, with n in the title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 2.5 * len(result["judges"]), 3.5), layout="constrained")
    axes = figure.subplots()
    for index, (name, judge) in enumerate(result["judges"].items()):
        axes.bar(index - 0.18, judge["before"], 0.34, color="#b0413e", label="before" if index == 0 else None)
        change = judge["after"] - judge["before"]
        error = [[change - judge["ci_low"]], [judge["ci_high"] - change]]
        axes.bar(index + 0.18, judge["after"], 0.34, yerr=error, capsize=4, color="#3e7cb0",
                 label="after, with the 95 % interval of the paired difference" if index == 0 else None)  # fmt: skip
    axes.set_xticks(range(len(result["judges"])), result["judges"])
    axes.set_ylabel("mean toxicity of the summaries")
    first = next(iter(result["judges"].values()))
    axes.set_title(
        f"{first['n']} held-out rude dialogues; ROUGE-L {result['rougeL']['before']:.1f} → {result['rougeL']['after']:.1f}"
    )
    axes.legend(frameon=False)
    figure.savefig(file, dpi=120)


def _rouge(summaries: list[str], references: list[str]) -> dict[str, float]:
    metric = Rouge()
    metric.update(summaries, references)
    return {name: float(value) for name, value in metric.compute().items()}


def _words(text: str) -> int:
    return len(text.split())
