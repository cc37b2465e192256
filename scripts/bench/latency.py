"""What a summary costs in each form in which trained weights can be used.

    python scripts/bench/latency.py --json latency.json > latency.md

Greedy, from text to text, on the embedded test dialogues, one at a time and in batches. Each side is a process of its
own, with no more loaded than its form needs; they take turns, who begins changes, and the first turn only warms up.
Summaries have their own lengths, and those of the bare base are no summaries: compare its tokens a second. Run it on a
machine that does nothing else.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import ROOT, Worker

from detox_rl.data.prompts import Prompt
from detox_rl.model.recipe import SLOT

FORMS = {  # side -> form and dtype that detox_rl.export writes
    "base": ("adapter", "float32"),
    "base and adapter": ("adapter", "float32"),
    "merged": ("merged", "float32"),
    "merged bf16": ("merged", "bfloat16"),
    "CTranslate2 fp32": ("ctranslate2", "float32"),
    "CTranslate2 int8": ("ctranslate2", "int8"),
    "ours": ("adapter", "float32"),
}


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


def summary(answers: list[dict]) -> dict[str, float]:
    """Of the answers of one side to requests of one size; the last one knows the most memory."""
    seconds = [answer["seconds"] for answer in answers]
    return {
        "median": statistics.median(seconds),
        "p95": percentile(seconds, 0.95),
        "tokens_per_second": sum(answer["tokens"] for answer in answers) / sum(seconds),
        "memory_mb": answers[-1]["memory_mb"],
    }


def take_turns(sides: dict, pool: list[str], batches: list[int], repetitions: int) -> dict[str, dict[str, dict]]:
    """Side -> size of the batch -> its figures. Every side is given the same dialogues.

    Small batches come first: a process's peak of memory never falls.
    """
    found: dict = {name: {} for name in sides}
    for batch in sorted(batches):
        heard: dict = {name: [] for name in sides}
        for turn in range(repetitions + 1):
            dialogues = [pool[(turn * batch + row) % len(pool)] for row in range(batch)]
            for name in sorted(sides, reverse=bool(turn % 2)):
                heard[name].append(sides[name].ask(dialogues=dialogues))
            print(f"batch {batch}, turn {turn} of {repetitions}", file=sys.stderr, flush=True)
        for name, answers in heard.items():
            found[name][str(batch)] = summary(answers[1:])
    return found


def markdown(results: dict[str, dict[str, dict]]) -> str:
    """One table, a line a side."""
    batches = list(next(iter(results.values())))
    titles = [f"batch {batch}, {what}" for batch in batches for what in ("s", "p95", "tokens/s")]
    lines = ["| | " + " | ".join([*titles, "peak MB"]) + " |", "|" + "---|" * (len(titles) + 2)]
    for name, found in results.items():
        cells = [f"{one['median']:.3f} | {one['p95']:.3f} | {one['tokens_per_second']:.0f}" for one in found.values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {max(one['memory_mb'] for one in found.values()):.0f} |")
    return "\n".join(lines)


def run(*arguments: str) -> str:
    """What a module of this project prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout


def export(source: str, form: str, dtype: str, folder: Path) -> str:
    """Writes a form, unless it is there. Returns its folder."""
    out = folder / f"{form} {dtype}"
    if not out.exists():
        print(run("detox_rl.export", source, "--to", form, "--dtype", dtype, "--out", str(out)), file=sys.stderr)
    return str(out)


def measure(args: argparse.Namespace, folder: Path) -> dict:
    """Exports all forms, starts all sides, and lets them take turns."""
    models = {name: export(args.source, *FORMS[name], folder) for name in args.sides}
    recipe = json.loads((Path(next(iter(models.values()))) / "recipe.json").read_text(encoding="utf-8"))
    if recipe["base_model"] == "embedded":
        recipe["base_model"] = run("detox_rl.embedded").strip()
    lines = (ROOT / "detox_rl" / "assets" / "dialogues" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    # Where the prompt has marks, they are made here, for all sides; ours makes them once more, as part of what it costs.
    prompt = Prompt(recipe["prompt_template"])
    recipe["prompt_template"] = prompt.template.replace(prompt.slot, SLOT)
    sides: dict = {}
    try:
        for name, model in models.items():
            config = {"side": name, "model": model, "recipe": recipe}
            sides[name] = Worker(sys.executable, "latency_worker.py", config, args.threads)
        dialogues = prompt.read([json.loads(line)["dialogue"] for line in lines])
        return take_turns(sides, dialogues, args.batch, args.repetitions)
    finally:
        for side in sides.values():
            side.close()


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option(
        "--source",
        default=str(ROOT / "lightning_logs" / "reference"),
        help="the run that is exported (default: the reference run)",
    )
    option("--sides", nargs="+", choices=tuple(FORMS), default=list(FORMS), help="(default: all)")
    option("--batch", nargs="+", type=int, default=[1, 16], help="dialogues at a time (default: 1 16)")
    option("--repetitions", type=int, default=20, help="turns that are timed (default: 20)")
    option("--threads", type=int, default=os.cpu_count(), help="of each side (default: all cores)")
    option("--json", type=Path, metavar="FILE", help="where to write the result")
    args = parser.parse_args(argv)
    if min(*args.batch, args.repetitions, args.threads) < 1:
        parser.error("--batch, --repetitions and --threads must be at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"Something else runs here (load average {load:.1f}): the figures will mean little.", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args, Path(folder))
    print(markdown(results))
    if args.json:
        settings = {name: value for name, value in vars(args).items() if not isinstance(value, Path)}
        settings["source"] = Path(args.source).name  # where it lies is nobody's business
        content = {"arguments": settings, "load_average_before": load, "sides": results}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
