"""The files of an evaluation."""

import json
from pathlib import Path
from typing import Any

from detox_rl.report import page, provenance
from detox_rl.report.before_after import before_after, before_after_rows
from detox_rl.report.picture import draw
from detox_rl.report.tables import report_markdown, write_table
from detox_rl.rewards import RewardTerm

FOLDER, REPORT = "evaluation", "report.json"  # of a run, where the plain call of `evaluate` writes


def check_unlike(file: Path, arguments: dict[str, Any]) -> None:
    """Refuses to replace a report that was made with other arguments.

    Raises:
        ValueError: if there is one.
    """
    try:
        before = json.loads(file.read_text(encoding="utf-8"))["provenance"]["arguments"]
    except FileNotFoundError:
        return
    except (ValueError, LookupError, TypeError):
        before = {}
    now = json.loads(json.dumps(arguments, default=str))
    if other := [name for name in now if before.get(name) != now[name]]:
        raise ValueError(
            f"{file} was made with other arguments ({', '.join(other)}) and is not replaced: name another folder with "
            "--out, or delete it."
        )


def read_report(run: Path) -> dict[str, Any] | None:
    """What the plain call of `evaluate` found of a run; None where it has not been evaluated.

    Raises:
        ValueError: if the file is damaged.
    """
    file = run / FOLDER / REPORT
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{file} is damaged: evaluate the run again, or delete that file.") from error


def write(report: dict[str, Any], folder: Path) -> None:
    """Writes report.json, report.md and report.html, and says where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, ensure_ascii=False, allow_nan=False, indent=1, default=str)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")
    mark = f"\n<!-- report {provenance.report_id(report)} -->\n"
    (folder / "report.md").write_text(report_markdown(report) + mark, encoding="utf-8")
    page.write(report, folder / "report.html")
    print(f"Report: {folder / REPORT}   Table: {folder / 'report.md'}   Page: {folder / 'report.html'}")


def write_before_after(report: dict[str, Any], after: str, rewards: list[RewardTerm], folder: Path) -> None:
    """Writes before_after.json, .jsonl, .md and .png: baseline and one other system."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, mark = before_after_rows(report, after, rewards), provenance.report_id(report)
    result = before_after(report, rows, after) | {"report": mark}
    (folder / "before_after.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_table([row | {"report": mark} for row in rows], folder / "before_after")
    with (folder / "before_after.md").open("a", encoding="utf-8") as file:
        file.write(f"\n<!-- report {mark} -->\n")
    draw(report, folder / "before_after.png", f"report {mark}")
    print(f"Before and after: {folder / 'before_after.md'} (and before_after.json, .jsonl, .png)")
