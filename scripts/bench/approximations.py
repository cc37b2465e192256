"""What the approximations of the default cost in quality: learning curves with and without them, side by side.

    python scripts/bench/approximations.py --folder FOLDER [--seeds 0 1 2] [--jobs 2]

Trains the embedded default, the same in fp32, and the same with LoRA on the encoder too, once a seed; evaluates each on
the test split; writes curves.png and curves.json into FOLDER. A run that is finished is not done again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import bootstrap
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

SETTINGS = {
    "default (bf16, decoder)": ["--trainer.precision", "bf16-mixed"],
    "fp32": ["--trainer.precision", "32-true"],
    "LoRA everywhere": ["--trainer.precision", "bf16-mixed", "--model.lora_encoder", "true"],
}


def paired(before: list[float], after: list[float], resamples: int = 10_000) -> dict[str, float]:
    """Means, and the 95 % BCa bootstrap interval of the mean paired difference after - before."""
    difference = np.asarray(after) - np.asarray(before)
    low = high = float(difference.mean())
    if np.ptp(difference) > 0:
        found = bootstrap((difference,), np.mean, n_resamples=resamples, rng=np.random.default_rng(0))
        low, high = map(float, found.confidence_interval)
    means = {"before": float(np.mean(before)), "after": float(np.mean(after))}
    return means | {"ci_low": low, "ci_high": high, "n": len(before)}


def train(folder: Path, options: list[str], seed: int, threads: int) -> None:
    """One run and its evaluation; nothing if they are there."""
    run = folder / "lightning_logs" / "version_0"
    if (run / "before_after.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    fit = ["detox_rl.fit", "--seed_everything", str(seed), "--trainer.default_root_dir", str(folder), *options]
    with open(folder / "log", "w") as log:
        for command in (fit, ["detox_rl.evaluate", str(run)]):
            subprocess.run([sys.executable, "-m", *command], env=environment, stdout=log, stderr=log, check=True)


def curve(run: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a scalar; what the warm start had stands at step 0."""
    events = [event for part in sorted(run.glob("events*")) for event in scalars(part, name)]
    values = {event.step: event.value for event in sorted(events, key=lambda event: event.wall_time)}
    return sorted(values), [values[step] for step in sorted(values)]


def scalars(file: Path, name: str) -> list:
    """What a TensorBoard file holds of a scalar; nothing where it has none."""
    events = EventAccumulator(str(file)).Reload()
    return events.Scalars(name) if name in events.Tags()["scalars"] else []


def per_dialogue(runs: list[Path]) -> dict[str, np.ndarray]:
    """Toxicity of the rude dialogues by either judge, ROUGE-L in points of all. (seeds, dialogues) each"""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    tables = [[json.loads(line) for line in (run / "before_after.jsonl").open(encoding="utf-8")] for run in runs]
    judges = json.loads((runs[0] / "before_after.json").read_text())["judges"]
    columns = {judge: [[row[f"{judge}_after"] for row in rows if row["rude"]] for rows in tables] for judge in judges}
    columns["ROUGE-L"] = [
        [100 * scorer.score(row["reference"], row["after"])["rougeL"].fmeasure for row in rows] for rows in tables
    ]
    return {name: np.array(values) for name, values in columns.items()}


def compare(runs: dict[str, list[Path]]) -> dict:
    """Every setting against the first: mean over seeds and dialogues, and default - setting with its 95 % interval.

    The interval is that of other dialogues for these runs; what other seeds would do shows in `by_seed`.
    """
    columns = {setting: per_dialogue(paths) for setting, paths in runs.items()}
    default = next(iter(columns.values()))
    result = {}
    for setting, own in columns.items():
        # What the approximation changes is default - setting, so `paired` reads from setting to default.
        result[setting] = {
            name: paired(own[name].mean(0).tolist(), default[name].mean(0).tolist())
            | {"by_seed": (default[name] - own[name]).mean(1).tolist()}
            for name in own
        }
    return result


def draw(runs: dict[str, list[Path]], file: Path) -> None:
    """Validation curves: a thin line a seed, a thick one for their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    names = {"val/toxicity": "mean toxicity", "val/rougeL": "ROUGE-L"}
    for axes, (name, label) in zip(figure.subplots(1, 2), names.items()):
        for colour, (setting, paths) in enumerate(runs.items()):
            curves = [curve(run, name) for run in paths]
            for steps, values in curves:
                axes.plot(steps, values, color=f"C{colour}", linewidth=0.6, alpha=0.5)
            mean = np.mean([values for _, values in curves], axis=0)
            axes.plot(curves[0][0], mean, color=f"C{colour}", linewidth=2, label=setting)
        axes.set_xlabel("iteration")
        axes.set_ylabel(f"{label}, validation")
        axes.legend(frameon=False)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the runs, curves.png and curves.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument(
        "--jobs", type=int, default=2, help="runs at a time; they share the processor's cores (default: 2)"
    )
    options = parser.parse_args()
    folder = options.folder
    places = {setting: [folder / f"{number}-{seed}" for seed in options.seeds]
              for number, setting in enumerate(SETTINGS)}  # fmt: skip
    jobs = [(place, SETTINGS[setting], seed)
            for setting, folders in places.items() for place, seed in zip(folders, options.seeds)]  # fmt: skip
    with ThreadPoolExecutor(options.jobs) as pool:
        threads = max(1, (os.cpu_count() or 1) // options.jobs)
        list(tqdm(pool.map(lambda job: train(*job, threads), jobs), "Runs", len(jobs)))
    runs = {setting: [place / "lightning_logs" / "version_0" for place in own] for setting, own in places.items()}
    result = compare(runs)
    (folder / "curves.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(runs, folder / "curves.png")
    for setting, changes in result.items():
        print(setting)
        for name, change in changes.items():
            interval = f"[{change['ci_low']:+.3f}, {change['ci_high']:+.3f}], n = {change['n']}"
            seeds = ", ".join(f"{value:+.3f}" for value in change["by_seed"])
            difference = f"default - this {change['after'] - change['before']:+.3f} {interval}"
            print(f"  {name:<20}{change['before']:8.3f}   {difference}; by seed {seeds}")


if __name__ == "__main__":
    main()
