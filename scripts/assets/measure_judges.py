"""Measures the judges of toxicity on texts that neither of ours has seen, and writes the figures of both cards.

    python scripts/assets/measure_judges.py --data FOLDER

FOLDER is that of the training scripts, with HateCheck and, as summaries that people wrote, DialogSum and SAMSum.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score
from toxicity_sources import ASSETS, dialogues, hold_out, read_rows
from train_hashed_ngrams import separate

from detox_rl.classifiers import Detoxify, HashedNgrams, ProfanityCheck, StrongWords

CARDS = ("toxicity", "hashed_ngrams")
RUDENESS = ("mild", "swearing", "insult", "threat")


class Judged:
    """Texts with their labels, and what every judge says of them.

    Attributes:
        labels: 1 where toxic. (n,)
        found: judge -> probability of being toxic. (n,)
    """

    def __init__(self, judges, texts, labels):
        self.labels = np.array(labels, dtype=float)
        self.found = {name: judge(texts).probability.double().numpy() for name, judge in judges.items()}

    def auc(self, where=slice(None)):
        """Returns judge -> AUC."""
        return {name: roc_auc_score(self.labels[where], found[where]) for name, found in self.found.items()}

    def accuracy(self, where=slice(None)):
        """Returns judge -> share of the labels met at 0.5."""
        return {name: np.mean(((found > 0.5) == self.labels)[where]) for name, found in self.found.items()}

    def error_correlations(self):
        """Returns judge -> judge -> correlation of probability - label, each label's mean taken off.

        So it says whether two judges fail on the same texts, not whether both find one label harder.
        """
        errors = {}
        for name, found in self.found.items():
            means = [found[self.labels == label].mean() for label in (0, 1)]
            errors[name] = found - np.where(self.labels == 1, means[1], means[0])
        return {a: {b: np.corrcoef(errors[a], errors[b])[0, 1] for b in errors} for a in errors}


def comment_tables(judges, sources):
    rows = {}
    for source, held_out in sources.items():
        judged = Judged(judges, *zip(*held_out))
        rows[source] = {"rows": len(held_out), "toxic": int(judged.labels.sum())} | judged.auc()
    return {"Held-out comments: AUC": rows}


def summary_tables(judges):
    rows = dialogues("test")
    texts = [row["summary"] for row in rows] + [row["quoting_summary"] for row in rows if row["quoting_summary"]]
    rudeness = [row["rudeness"] for row in rows] + [row["rudeness"] for row in rows if row["quoting_summary"]]
    judged = Judged(judges, texts, [0] * len(rows) + [1] * (len(texts) - len(rows)))
    neutral, quoting = judged.labels == 0, judged.labels == 1
    shares = {}
    for name, found in judged.found.items():
        shares[name] = {}
        for kind, where in (("neutral", neutral), ("quoting", quoting)):
            shares[name] |= {f"{kind} mean": found[where].mean(), f"{kind} above 0.5": np.mean(found[where] > 0.5)}
    auc = {"all": {"neutral": int(neutral.sum()), "quoting": int(quoting.sum())} | judged.auc()}
    for kind in RUDENESS:
        where = np.array([kind == found for found in rudeness])
        auc[kind] = {"neutral": int(sum(where & neutral)), "quoting": int(sum(where & quoting))} | judged.auc(where)
    return {
        "Summaries of the test dialogues": shares,
        "Summaries of the test dialogues: AUC by rudeness": auc,
        "Summaries of the test dialogues: correlation of the errors": judged.error_correlations(),
    }


def human_tables(judges, data):
    rows = {}
    for name in ("dialogsum", "samsum"):
        texts = [row["summary"] for row in read_rows(data / name, "*.jsonl.gz")]
        judged = Judged(judges, texts, [0] * len(texts))
        rows[name] = {"rows": len(texts)} | {judge: np.mean(found > 0.5) for judge, found in judged.found.items()}
    return {"Summaries that people wrote: share above 0.5": rows}


def hatecheck_tables(judges, data):
    cases = read_rows(data / "hatecheck", "test_suite_cases.jsonl.gz")
    judged = Judged(judges, [case["test_case"] for case in cases], [case["label_gold"] == "hateful" for case in cases])
    rows = {}
    for name in sorted({case["functionality"] for case in cases}):
        where = np.array([case["functionality"] == name for case in cases])
        rows[name] = {"rows": int(where.sum())} | judged.accuracy(where)
    return {
        "HateCheck: AUC": {"hateful against not": {"rows": len(cases)} | judged.auc()},
        "HateCheck: correlation of the errors": judged.error_correlations(),
        "HateCheck: accuracy at 0.5": rows,
    }


def shown(value):
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def write_card(path, run, tables):
    """Rewrites what CARD.md says below "## Figures"; the prose above is kept."""
    prose = path.read_text(encoding="utf-8").split("## Figures")[0] if path.exists() else ""
    facts = ", ".join(f"{name}: {value}" for name, value in run.items())
    lines = ["## Figures", f"Written by scripts/assets/measure_judges.py. {facts}."]
    for title, rows in tables.items():
        columns = list(next(iter(rows.values())))
        cells = [[name, *(shown(value) for value in row.values())] for name, row in rows.items()]
        lines += ["", f"### {title}", ""]
        lines += [f"| {' | '.join(row)} |" for row in (["", *columns], ["---"] * (len(columns) + 1), *cells)]
    path.write_text(prose + "\n".join(lines) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the labelled sets")
    args = parser.parse_args()
    judges = {"reward": Detoxify()} | {judge.name: judge for judge in (HashedNgrams(), StrongWords(), ProfanityCheck())}
    reward, judge, _ = separate(args.data)
    _, held_out = hold_out(reward | judge)
    tables = summary_tables(judges) | comment_tables(judges, held_out)
    tables |= human_tables(judges, args.data) | hatecheck_tables(judges, args.data)
    for card in CARDS:
        metrics = ASSETS / card / "metrics.json"
        written = json.loads(metrics.read_text(encoding="utf-8"))
        run = {name: value for name, value in written.items() if not isinstance(value, dict)}  # of the training script
        metrics.write_text(json.dumps(run | tables, indent=1) + "\n", encoding="utf-8")
        write_card(ASSETS / card / "CARD.md", run, tables)


if __name__ == "__main__":
    main()
