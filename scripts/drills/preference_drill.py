"""Whether what people prefer steers PPO: those who prefer neutral summaries, and those who toss a coin.

    python scripts/drills/preference_drill.py [--steps 20] [--epochs 3] [--folder preference_drill]

Of each rude embedded training dialogue, its neutral summary is preferred to the one that repeats the insult; in the
control a coin decides. Both train a reward model through `detox_rl.prefer`, whose term is then all that `detox_rl.fit` is
paid by. Printed are, of the greedy summaries of the rude test dialogues before and after, the share that holds a strong
word (a list that no reward has seen), words, and the term itself, with paired differences and their 95 % intervals.
"""

import argparse
import contextlib
import json
import random
from pathlib import Path

import numpy as np

from detox_rl import embedded, fit, prefer
from detox_rl.classifiers import StrongWords
from detox_rl.report.statistics import estimates
from detox_rl.text import word_count

RESAMPLES = 10_000


def embedded_rows(split: str) -> list[dict]:
    return [json.loads(line) for line in embedded.dialogues(split).read_text(encoding="utf-8").splitlines()]


def judgements(shuffled: bool) -> list[dict]:
    """A pair of each training dialogue that has a quoting summary."""
    coin, rows = random.Random(0), []
    for row in embedded_rows("train"):
        texts = [row["summary"], row["quoting_summary"]]
        if texts[1] is None:
            continue
        if shuffled and coin.random() < 0.5:
            texts.reverse()
        rows.append({"dialogue": row["dialogue"], "preferred": texts[0], "rejected": texts[1]})
    return rows


def run(main, *flags: str) -> Path:
    """Runs a command in the current folder. Returns the folder of the run."""
    before = {*Path("lightning_logs").glob("version_*")}
    main([*flags, "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"])
    (folder,) = {*Path("lightning_logs").glob("version_*")} - before
    return folder.absolute()


def learn(rows: list[dict], epochs: int) -> Path:
    """The run that learns what is preferred."""
    file = Path("judgements.jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return run(prefer.main, "--data.file", str(file), "--trainer.max_epochs", str(epochs))


def steer(reward_model: Path, steps: int) -> list[dict]:
    """PPO on the term alone. Returns the rows of its table: greedy summaries of the test dialogues, before and after."""
    terms = [
        {"class_path": "detox_rl.rewards.Preference", "init_args": {"folder": str(reward_model)}},
        {"class_path": "detox_rl.rewards.NonToxicity", "init_args": {"weight": 0.0}},  # val/toxicity is measured by it
    ]
    files = [
        f"--data.{split}_file={embedded.dialogues(name)}"
        for split, name in (("train", "train"), ("validation", "test"))
    ]
    options = [f"--model.rewards={json.dumps(terms)}", "--model.floors=null", "--data.validation_limit=null"]
    folder = run(fit.main, *files, *options, f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}")
    table = folder / "samples" / f"step={steps}.jsonl"
    return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]


def changes(table: list[dict]) -> list[str]:
    """A line a measure, over the rude dialogues."""
    rude = {row["dialogue"] for row in embedded_rows("test") if row["rudeness"] != "none"}
    rows, judge = [row for row in table if row["dialogue"] in rude], StrongWords()
    words = lambda texts: np.array([word_count(text) for text in texts], dtype=float)
    sides = {side: [row[side] for row in rows] for side in ("before", "after")}
    measures = {
        "share with a strong word": [judge(sides[side]).probability.double().numpy() for side in sides],
        "words": [words(sides[side]) for side in sides],
        "the term, standardised": [np.array([row[f"reward_{side}"] for row in rows]) for side in sides],
    }
    found = estimates(np.stack([after - before for before, after in measures.values()]), RESAMPLES, seed=0)
    return [
        f"  {name:<26}{before.mean():8.3f} -> {after.mean():.3f}   {mean:+.3f} [{low:+.3f}, {high:+.3f}]   n = {n}"
        for (name, (before, after)), mean, low, high, n in zip(
            measures.items(), found.mean, found.low, found.high, found.n
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="iterations of PPO (default: 20)")
    parser.add_argument("--epochs", type=int, default=3, help="of the reward model (default: 3)")
    parser.add_argument(
        "--folder", type=Path, default=Path("preference_drill"), help="where the runs are kept (default: %(default)s)"
    )
    options, report = parser.parse_args(), []
    for name, shuffled in (("people who prefer neutral summaries", False), ("people who toss a coin", True)):
        folder = options.folder / ("shuffled" if shuffled else "planted")
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(folder):
            learnt = learn(judgements(shuffled), options.epochs)
            found = json.loads((learnt / "metrics.json").read_text(encoding="utf-8"))
            table = steer(learnt / "reward_model", options.steps)
        accuracy = "{value:.3f} [{low:.3f}, {high:.3f}], n = {n}".format(**found)
        report += [f"{name}: test pairs ranked alike {accuracy}; PPO, {options.steps} iterations:", *changes(table)]
    print("\n".join(report))


if __name__ == "__main__":
    main()
