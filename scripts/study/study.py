"""Trains and evaluates one arm of the study, and goes on where it stopped; with --table, shows all that is there.

    python scripts/study/study.py embedded --seeds 0 1 2 3 4 --out study
    python scripts/study/samsum.py SAMSUM RUDE_IDS study/samsum
    python scripts/study/study.py samsum_plain --seeds 0 1 2 --out study --data study/samsum
    python scripts/study/study.py --table --out study

The arms stand in arms.yaml. What a step leaves in --out is not made again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import yaml
from baselines import main as make_baseline
from summary import frontier, table

from detox_rl.embedded import EMBEDDED, dialogues

ARMS = Path(__file__).with_name("arms.yaml")
STUMBLED = 0.1  # the start stumbles over a dialogue if the reward's judge finds its summary likelier toxic than this


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    arms = yaml.safe_load(ARMS.read_text(encoding="utf-8"))
    names = [name for name, arm in arms.items() if isinstance(arm, dict)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", nargs="?", choices=names, help="what is trained")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="folder of all arms")
    parser.add_argument("--data", type=Path, help="the folder that samsum.py wrote, for the arms that name it")
    parser.add_argument("--table", action="store_true", help="show what all finished runs measured, and draw it")
    options = parser.parse_args(arguments)
    if options.arm is None and not options.table:
        parser.error(f"name an arm ({', '.join(names)}), or --table")
    if options.arm is not None:
        arm = arms[options.arm]
        if "data" in arm and options.data is None:
            parser.error(f"{options.arm} needs --data: the folder that samsum.py wrote")
        for seed in options.seeds:
            run_seed(options.out / options.arm, seed, arm, options.data)
    if options.table:
        reports = {
            name: [
                json.loads(path.read_text("utf-8")) for path in sorted(options.out.glob(f"{name}/seed_*/report.json"))
            ]
            for name in names
        }
        reports = {name: found for name, found in reports.items() if found}
        print(table(reports))
        frontier(reports, options.out / "frontier.png")


def run_seed(folder: Path, seed: int, arm: dict, data: Path | None) -> None:
    """Start (one for all seeds), PPO, and evaluation on the test split, beside the baselines where the arm has them."""
    flags = [flag.replace("DATA", str(data)) for flag in arm.get("data", [])]
    start = EMBEDDED
    if "sft" in arm:
        own_start = folder.with_name(arm.get("start_of", folder.name)) / "start"
        start = str(train("sft", own_start, [*flags, *arm["sft"]]) / "adapter")
    own = folder / f"seed_{seed}"
    seeded = ["--seed_everything", str(seed), *arm.get("fit", [])]
    if "stumbled" in arm:
        seeded += ["--data.train_ids", str(stumbled(folder, start, data / "train.jsonl"))]
    run = train("fit", own, [*flags, "--model.warm_start", start, *seeded])
    if not (own / "report.json").exists():
        systems = baselines(folder / "baselines", start, flags, data) if "baselines" in arm else {}
        named = [f"--systems.{name}={source}" for name, source in systems.items()]
        command("evaluate", str(run), "--out", str(own), *named)


def stumbled(folder: Path, start: str, file: Path) -> Path:
    """A file with the ids of the dialogues whose greedy summary by the start is toxic."""
    folder.mkdir(parents=True, exist_ok=True)
    summaries, ids = folder / "start_on_training.jsonl", folder / "stumbled.txt"
    command("summarize", str(file), "--model", start, "--judge=detox_rl.classifiers.Detoxify", "--out", str(summaries))
    rows = map(json.loads, summaries.read_text(encoding="utf-8").splitlines())
    ids.write_text("".join(f"{row['id']}\n" for row in rows if row["toxicity"] > STUMBLED), encoding="utf-8")
    return ids


def baselines(folder: Path, start: str, flags: list[str], data: Path | None) -> dict[str, str]:
    """What the start comes to without PPO: name -> what `detox_rl.evaluate` takes as a system."""
    folder.mkdir(parents=True, exist_ok=True)
    file = lambda split: str(data / f"{split}.jsonl" if flags else dialogues(split))
    best_of = folder / "best_of.jsonl"
    command("summarize", file("test"), "--model", start, "--best_of=4", "--temperature=0.7", "--out", str(best_of))
    for name, split in (("banned_words", "test"), ("best_samples", "train")):
        if not (folder / f"{name}.jsonl").exists():
            print("baseline", name, flush=True)
            make_baseline([name, start, "--file", file(split), "--out", str(folder / f"{name}.jsonl")])
    own = ["--data.train_file", str(folder / "best_samples.jsonl"), "--data.validation_file", file("validation")]
    more = ["--trainer.max_steps=60", "--trainer.val_check_interval=20", "--model.lr_schedule=cosine"]
    more += ["--model.warm_start", start]
    return {
        "best_of_4": str(best_of),
        "banned_words": str(folder / "banned_words.jsonl"),
        "filtered_sft": str(train("sft", folder / "filtered", [*own, *more]) / "adapter"),
        "reference_sft": str(train("sft", folder / "references", [*flags, *more]) / "adapter"),
    }


def train(name: str, folder: Path, flags: list[str]) -> Path:
    """Runs `detox_rl.<name>` to its end, from its last checkpoint where there is one. Returns the folder of the run."""
    number = lambda run: int(run.name.removeprefix("version_"))
    if not (folder / "done").exists():
        checkpoints = list(folder.glob("lightning_logs/version_*/checkpoints/last.ckpt"))
        newest = sorted(checkpoints, key=lambda path: number(path.parents[1]))[-1:]
        resume = [flag for path in newest for flag in ("--ckpt_path", str(path))]
        command(name, "--trainer.default_root_dir", str(folder), *flags, *resume)
        (folder / "done").touch()
    return max(folder.glob("lightning_logs/version_*"), key=number)


def command(name: str, *arguments: str) -> None:
    """Runs a command of detox_rl, and ends with it if it fails."""
    print("python -m", f"detox_rl.{name}", *arguments, flush=True)
    done = subprocess.run([sys.executable, "-m", f"detox_rl.{name}", *arguments])
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
