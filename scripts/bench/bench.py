"""How long a PPO iteration takes: ours beside TRL 0.11.4, on the same weights, dialogues and token counts.

    python scripts/bench/bench.py --peer trl --shape small --epochs 4 --json result.json    ours against TRL
    python scripts/bench/bench.py --only sampling --json sampling.json      our decoding against transformers
    python scripts/bench/bench.py --scale --json scale.json                 how the cost of ours grows
    python scripts/bench/bench.py --plot speed.png result.json [...]        ratios as a picture

Each side is a process of its own which keeps its model and runs one iteration when it is asked to, so that the sides
alternate on one machine; its first iteration is not counted. Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from limits import SHAPES, decode_bytes, operations, parameters
from worker import MINIBATCH

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
PEER_PACKAGES = (
    "torch>=2.6,<2.14", "trl==0.11.4", "transformers==4.46.3", "peft==0.13.2",
    "accelerate==1.2.1", "datasets<4", "rich",
)  # fmt: skip
SETTINGS = {  # of ours; the peer always has LoRA r=32 on q and v everywhere, like the notebook
    "default": {"lora_rank": 16, "lora_encoder": False, "precision": "bf16-mixed", "dtype": "bfloat16"},
    "like-for-like": {"lora_rank": 32, "lora_encoder": True, "precision": "32-true", "dtype": "float32"},
}


# -- arithmetic: no torch, and tested ------------------------------------------------------------


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest of repetitions."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def work(pool: list[dict], batch: int, prompt: int, summary: int, ragged: bool, turn: int) -> dict[str, list]:
    """The batch of one repetition: the next dialogues of the pool, and how long each summary has to be.

    Equal lengths: dialogues joined and cut to `prompt` tokens; summaries of `summary` tokens without an EOS.
    Ragged: dialogues as they are; summaries as long as the human ones with their EOS, at most `summary`.
    """
    rows = [pool[(turn * batch + row) % len(pool)] for row in range(batch)]
    if ragged:
        return {"prompts": [row["prompt"] for row in rows], "lengths": [row["length"] for row in rows]}
    prompts = []
    for row in range(batch):
        ids, index = [], turn * batch + row
        while len(ids) < prompt - 1:
            ids += pool[index % len(pool)]["prompt"][:-1]
            index += 1
        prompts.append(ids[: prompt - 1] + pool[0]["prompt"][-1:])
    return {"prompts": prompts, "lengths": [summary + 1] * batch}


def count(requests: list[dict], args: argparse.Namespace) -> dict[str, float]:
    """`operations` of a whole batch, mean over the repetitions."""
    setting, total = SETTINGS[args.setting], {}
    for request in requests:
        for ids, length in zip(request["prompts"], request["lengths"]):
            one = operations(SHAPES[args.shape], len(ids), min(length, args.summary), args.epochs,
                             setting["lora_rank"], setting["lora_encoder"])  # fmt: skip
            total = {phase: total.get(phase, 0.0) + number / len(requests) for phase, number in one.items()}
    return total


# -- processes -----------------------------------------------------------------------------------


class Worker:
    """The driver's end of a process that answers JSON lines. The driver imports no torch: it stays small and quiet."""

    def __init__(self, python: str, script: str, config: dict, threads: int) -> None:
        self.log = tempfile.TemporaryFile("w+")
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        command = [python, str(FOLDER / script), json.dumps(config | {"threads": threads})]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                        text=True, env=environment)  # fmt: skip
        ready = self.read()
        self.baseline_mb = {"imported": ready["imported_mb"], "loaded": ready["memory_mb"]}

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            last_words = self.log.read()[-3000:]
            raise SystemExit(f"A benchmark process ended with code {self.process.returncode}:\n{last_words}")
        return json.loads(line)

    def ask(self, **request) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        self.process.kill()  # it has answered everything and holds nothing worth saving
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()


def once(job: str, threads: int, **config) -> dict:
    """One answer of a process that then ends."""
    worker = Worker(sys.executable, "ours.py", config | {"job": job}, threads)
    answer = worker.ask()
    worker.close()
    return answer


def peer_python(folder: Path) -> str:
    """Python of the peer's virtual environment, which is made if it is not there (about 1 GB).

    Raises:
        SystemExit: if the folder holds something else.
    """
    python, ready = folder / "bin" / "python", folder / "ready"
    if ready.exists():
        return str(python)
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise SystemExit(f"{folder} is not a virtual environment: give --peer-venv a new folder.")
    print(f"Making the peer's virtual environment in {folder}: {', '.join(PEER_PACKAGES)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (folder / ".gitignore").write_text("*\n")
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
    ready.touch()
    return str(python)


# -- the driver ----------------------------------------------------------------------------------


def compare(args: argparse.Namespace, folder: str) -> dict:
    """Ours and the peer in turns. Returns what goes into the JSON file."""
    python = peer_python(args.peer_venv) if args.peer == "trl" else None
    prepared = once("prepare", args.threads, shape=args.shape, folder=folder)
    config = {"model": prepared["model"], "batch": args.batch, "epochs": args.epochs, "summary": args.summary}
    ours = config | {"job": "ours", "setting": args.setting}
    sides = {"ours": Worker(sys.executable, "ours.py", ours, args.threads)}
    if python:
        peer = config | {"mode": args.peer_mode, "dtype": args.peer_dtype}
        sides["peer"] = Worker(python, "peer.py", peer, args.threads)
    requests = turns(args, prepared["pool"])
    result = take_turns(sides, requests)
    for name, side in sides.items():
        result[name]["memory_mb"] |= side.baseline_mb
        side.close()
    if python:
        seconds, peak = ({name: result[name][what][which] for name in sides}
                         for what, which in (("seconds", "median"), ("memory_mb", "peak")))  # fmt: skip
        result["ratio_vs_trl"] = seconds["peer"] / seconds["ours"]
        result["memory_ratio"] = peak["ours"] / peak["peer"]
    return result | limits(args, result["ours"], requests[1:])


def turns(args: argparse.Namespace, pool: list[dict]) -> list[dict]:
    """One request for the warm-up and one a repetition."""
    numbers = range(args.repetitions + 1)
    return [work(pool, args.batch, args.prompt, args.summary, args.ragged, turn) for turn in numbers]


def take_turns(sides: dict[str, Worker], requests: list[dict]) -> dict[str, dict]:
    """Every side answers every request; who begins changes each time. The first request only warms up."""
    heard = {name: [] for name in sides}
    for turn, request in enumerate(requests):
        for name in sorted(sides, reverse=bool(turn % 2)):
            heard[name].append(sides[name].ask(**request))
            label = f"turn {turn}" if turn else "warm-up"
            print(f"{label}: {name} {heard[name][-1]['seconds']:.2f} s", flush=True)
        tokens = {name: heard[name][-1]["tokens"] for name in sides}
        if len(set(tokens.values())) > 1:
            raise SystemExit(f"The sides sampled different numbers of tokens: {tokens}")
    results = {}
    for name, answers in heard.items():
        counted = answers[1:]
        seconds = spread([answer["seconds"] for answer in counted])
        phases = {phase: [answer["phases"][phase] for answer in counted] for phase in counted[0]["phases"]}
        results[name] = {
            "seconds": seconds,
            "dialogues_per_second": len(requests[0]["prompts"]) / seconds["median"],
            "phases": {phase: statistics.median(values) for phase, values in phases.items()},
            "memory_mb": {"warm": answers[0]["memory_mb"], "peak": answers[-1]["memory_mb"]},
        }
    return results


def limits(args: argparse.Namespace, ours: dict, requests: list[dict]) -> dict:
    """What the machine could do at best, and the share of it that ours reaches."""
    shape, dtype = SHAPES[args.shape], SETTINGS[args.setting]["dtype"]
    machine = once("machine", args.threads, shape=shape, tokens=MINIBATCH * args.summary)
    needed = count(requests, args)
    rate = max(machine["gflops"][dtype].values()) * 1e9
    prompts = [len(ids) for request in requests for ids in request["prompts"]]
    summaries = [min(length, args.summary) for request in requests for length in request["lengths"]]
    lengths = round(statistics.mean(prompts)), round(statistics.mean(summaries))
    read = decode_bytes(shape, args.batch, *lengths, 2 if dtype == "bfloat16" else 4)
    share = {
        "iteration_of_products": sum(needed.values()) / rate / ours["seconds"]["median"],
        "update_of_products": needed["update"] / rate / ours["phases"]["update"],
        "sample_of_bandwidth": read / (machine["bandwidth_gb_s"] * 1e9) / ours["phases"]["sample"],
    }
    return {"machine": machine, "operations": needed, "decode_bytes": read, "share": share}


def compare_sampling(args: argparse.Namespace, folder: str) -> dict:
    """Greedy decoding, encoder included: ours and `transformers.generate` of one model in one process.

    `generate` in the precisions that Lightning calls 32-true, bf16-mixed (autocast) and bf16-true (bf16 weights, and
    sums rounded to bf16); ours has the first two.
    """
    prepared = once("prepare", args.threads, shape=args.shape, folder=folder)
    config = {"job": "sampling", "model": prepared["model"], "summary": args.summary}
    worker = Worker(sys.executable, "ours.py", config, args.threads)
    sides = ["ours 32-true", "generate 32-true", "ours bf16-mixed", "generate bf16-mixed", "generate bf16-true"]
    seconds, identical = {side: [] for side in sides}, []
    for turn, request in enumerate(turns(args, prepared["pool"])):
        answers = {side: worker.ask(side=side, **request) for side in (reversed(sides) if turn % 2 else sides)}
        identical.append(answers["ours 32-true"]["tokens"] == answers["generate 32-true"]["tokens"])
        for side in sides if turn else ():
            seconds[side].append(answers[side]["seconds"])
    worker.close()
    median = {side: statistics.median(values) for side, values in seconds.items()}
    return {
        "identical_32-true": all(identical),
        "seconds": {side: spread(values) for side, values in seconds.items()},
        "ratio_32-true": median["generate 32-true"] / median["ours 32-true"],
        "ratio_bf16-mixed": median["generate bf16-mixed"] / median["ours bf16-mixed"],
        "ratio_bf16-true": median["generate bf16-true"] / median["ours bf16-mixed"],
    }


def scale(args: argparse.Namespace, folder: str) -> dict:
    """Ours alone, with one quantity changed at a time; shapes too large to run are computed and say so."""
    points = [{"batch": batch} for batch in (8, 16, 32, 64)] + [{"prompt": prompt} for prompt in (100, 400)]
    points += [{"summary": summary} for summary in (24, 96)] + [{"shape": shape} for shape in ("base", "large")]
    rows = []
    for point in points:
        result = compare(argparse.Namespace(**vars(args) | {"peer": "none"} | point), folder)
        ours, needed = result["ours"], sum(result["operations"].values())
        rows.append({**point, "how": "measured", **ours, "operations": needed})
    pace = rows[-1]["seconds"]["median"] / rows[-1]["operations"]
    request = {"prompts": [[0] * args.prompt] * args.batch, "lengths": [args.summary] * args.batch}
    needed = sum(count([request], argparse.Namespace(**vars(args) | {"shape": "xl"})).values())
    row = {"shape": "xl", "how": "computed: its operations at the pace of large", "operations": needed}
    rows.append(row | {"seconds": {"median": pace * needed}, "parameters": parameters(SHAPES["xl"])})
    return {"scale": rows}


def plot(picture: str, files: list[str]) -> None:
    """One bar a result: how many times faster than the peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = [json.loads(Path(file).read_text()) for file in files]
    label = "FLAN-T5-{shape}, batch {batch}, PPO epochs {epochs}{lengths}\n"
    label += "ours: {setting}, TRL: {peer_mode}, {peer_dtype}"
    lengths = [", real lengths" if result["arguments"]["ragged"] else "" for result in results]
    names = [label.format(**result["arguments"], lengths=said) for result, said in zip(results, lengths)]
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.5 * len(names)), layout="constrained")
    bars = axes.barh(names, [result["ratio_vs_trl"] for result in results])
    axes.bar_label(bars, fmt=" %.1fx")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("seconds an iteration of TRL 0.11.4 / ours")
    axes.invert_yaxis()
    figure.savefig(picture, dpi=150)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--peer", choices=("trl", "none"), default="trl", help="beside ours (default: trl)")
    option("--peer-mode", choices=("batched", "notebook"), default="batched",
           help="TRL generates the batch at once, or one dialogue at a time as the notebook does (default: batched)")  # fmt: skip
    option(
        "--peer-dtype", choices=("float32", "bfloat16"), default="float32", help="of TRL's weights (default: float32)"
    )
    option(
        "--peer-venv",
        type=Path,
        default=ROOT / ".venv-trl",
        metavar="FOLDER",
        help="of its Python; made if absent (default: .venv-trl)",
    )
    option("--shape", choices=("small", "base", "large"), default="small", help="of FLAN-T5 (default: small)")
    option("--setting", choices=tuple(SETTINGS), default="default",
           help="of ours: LoRA on the decoder and bf16, or LoRA everywhere and fp32 like the peer (default: default)")  # fmt: skip
    option("--epochs", type=int, default=4, help="PPO epochs (default: 4)")
    option("--batch", type=int, default=16, help="dialogues an iteration (default: 16)")
    option("--prompt", type=int, default=200, help="tokens of each dialogue with its instruction (default: 200)")
    option("--summary", type=int, default=48, help="sampled tokens of each summary (default: 48)")
    option("--ragged", action="store_true", help="real lengths instead; --summary is then the longest")
    option("--repetitions", type=int, default=5, help="iterations that are timed (default: 5)")
    option("--threads", type=int, default=os.cpu_count(), help="of each side (default: all cores)")
    option("--only", choices=("sampling",), help="measure decoding alone")
    option("--scale", action="store_true",
           help="measure how the cost of ours grows (takes 6 GB of memory and 3 GB of temporary files)")  # fmt: skip
    option("--json", type=Path, metavar="FILE", help="where to write the result")
    option("--plot", nargs="+", metavar="FILE", help="a picture to write, and the results to draw")
    args = parser.parse_args(argv)
    for name in ("epochs", "batch", "prompt", "summary", "repetitions", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if args.batch % MINIBATCH and args.peer == "trl" and not args.only and not args.scale:
        parser.error(f"--batch must be a multiple of {MINIBATCH}, the minibatch: TRL refuses others")
    if args.plot and len(args.plot) < 2:
        parser.error("--plot needs the picture to write and at least one result to draw")
    if args.only or args.scale:
        args.peer = "none"
    return args


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    if args.plot:
        return plot(args.plot[0], args.plot[1:])
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"Something else is running here (load average {load:.1f}): the figures will mean little.", flush=True)
    measure = compare_sampling if args.only else scale if args.scale else compare
    with tempfile.TemporaryDirectory() as folder:
        settings = {name: value for name, value in vars(args).items() if not isinstance(value, Path)}
        result = {"arguments": settings, "load_average_before": load} | measure(args, folder)
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
