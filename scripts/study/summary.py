"""What the reports of several runs say together: a table of means and spreads over seeds, and the frontier."""

import statistics
from pathlib import Path

import matplotlib.pyplot as plt

JUDGES = ("hashed-ngrams", "strong-words", "profanity-check")  # those that no reward asks
# Measure, stratum, heading, factor and decimals.
COLUMNS = [
    *((f"toxicity/{judge}", "rude", judge, 1.0, 3) for judge in JUDGES),
    ("reports", "rude", "reports %", 100.0, 0),
    ("right_speaker", "rude", "right speaker %", 100.0, 0),
    ("quotes", "rude", "quotes %", 100.0, 0),
    ("omits", "rude", "omits %", 100.0, 0),
    ("invents", "all", "invents %", 100.0, 0),
    ("joint", "rude", "joint %", 100.0, 0),
    ("rougeL", "all", "ROUGE-L", 1.0, 1),
    ("recallL", "all", "recall", 1.0, 1),
    ("length_ratio", "all", "length", 1.0, 2),
]


def mean_of(report: dict, system: str, measure: str, stratum: str) -> float | None:
    """The mean of a system in a report; None where it was not measured."""
    key = system, measure, stratum
    return next(
        (row["mean"] for row in report["means"] if (row["system"], row["measure"], row["stratum"]) == key), None
    )


def systems(reports: list[dict]) -> list[str]:
    """Names of all systems of some reports, in their order."""
    return list(dict.fromkeys(system["name"] for report in reports for system in report["systems"]))


def spread(values: list[float], factor: float, decimals: int) -> str:
    """Mean and, from two values on, standard deviation."""
    values = [factor * value for value in values]
    mean = f"{statistics.fmean(values):.{decimals}f}"
    return mean if len({*values}) == 1 else f"{mean} ± {statistics.stdev(values):.{decimals}f}"


def table(reports: dict[str, list[dict]]) -> str:
    """A Markdown table: a line a system of each arm, a column a measure.

    Args:
        reports: arm -> report.json of each seed.
    """
    headings = ["arm", "system", "seeds", *(heading for _, _, heading, _, _ in COLUMNS)]
    lines = [headings, ["---"] * len(headings)]
    for arm, found in reports.items():
        for system in systems(found):
            cells = []
            for measure, stratum, _, factor, decimals in COLUMNS:
                means = [mean_of(report, system, measure, stratum) for report in found]
                known = [mean for mean in means if mean is not None]
                cells.append(spread(known, factor, decimals) if known else "–")
            lines.append([arm, system, str(len(found)), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def frontier(reports: dict[str, list[dict]], path: Path) -> None:
    """Draws toxicity by the judges that no reward asks against what is reported: low and right is good.

    Args:
        reports: arm -> report.json of each seed.
        path: of the picture.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    for axis, (measure, title) in zip(
        axes, (("reports", "reports the conflict, share"), ("recallL", "ROUGE-L recall"))
    ):
        for number, (arm, found) in enumerate(reports.items()):
            for system in systems(found):
                points = [(mean_of(report, system, measure, "rude"), _toxicity(report, system)) for report in found]
                points = [point for point in points if None not in point]
                if not points:
                    continue
                marker = {"warm start": "o", "trained": "s", "references": "*"}.get(system, "x")
                label = f"{arm}: {system}"
                axis.scatter(*zip(*points), marker=marker, color=f"C{number}", label=label, alpha=0.8)
        axis.set_xlabel(f"{title} (rude dialogues)")
    axes[0].set_ylabel("toxicity, mean of the judges that no reward asks")
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def _toxicity(report: dict, system: str) -> float | None:
    means = [mean_of(report, system, f"toxicity/{judge}", "rude") for judge in JUDGES]
    known = [mean for mean in means if mean is not None]
    return statistics.fmean(known) if known else None
