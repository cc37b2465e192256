"""How long a PPO iteration takes: ours beside TRL 0.11.4, on the same weights, dialogues and token counts.

    python scripts/bench.py --peer trl --shape small --epochs 4 --json result.json     ours against TRL
    python scripts/bench.py --only sampling --json sampling.json                       our decoding against transformers
    python scripts/bench.py --scale --json scale.json                                  how the cost of ours grows
    python scripts/bench.py --plot speed.png result.json [...]                         ratios as a picture

Each side is a process of its own which keeps its model and runs one iteration when it is asked to, so that the sides
alternate on one machine; its first iteration is not counted. Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench_limits import SHAPES, decode_bytes, operations, parameters

ROOT = Path(__file__).resolve().parent.parent
PEER_PACKAGES = (
    "torch>=2.6,<2.14", "trl==0.11.4", "transformers==4.46.3", "peft==0.13.2", "accelerate==1.2.1", "datasets<4", "rich",
)  # fmt: skip
SETTINGS = {  # of ours; the peer always has LoRA r=32 on q and v everywhere, like the notebook
    "default": {"lora_rank": 16, "lora_encoder": False, "precision": "bf16-mixed", "dtype": "bfloat16"},
    "like-for-like": {"lora_rank": 32, "lora_encoder": True, "precision": "32-true", "dtype": "float32"},
}
MINIBATCH = 8
LEARNING_RATE = 1.41e-5


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


# -- what the workers of both sides share --------------------------------------------------------


def forced_eos(logits, step: int, lengths, eos_token_id: int):
    """Ends a summary with its `lengths`-th token and not before, by overwriting one logit; on both sides the same.

    Args:
        logits: of the coming token; changed in place. (rows, vocabulary)
        step: number of the coming token, from 1.
        lengths: of each summary, EOS included. (rows,)
        eos_token_id: id that ends a summary.
    """
    logits[:, eos_token_id] = (step >= lengths).to(logits) * 2e4 - 1e4
    return logits


def reward(summary: str) -> float:
    """A score that costs nothing, since both sides would call the same classifier."""
    return len(summary.split()) / 10


class Channel:
    """The worker's end: requests come in as JSON lines on stdin, answers go out on what was stdout."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a library prints goes to the log
        self.imported_mb = memory()

    def requests(self) -> Iterator[dict]:
        self.reply(imported_mb=self.imported_mb)  # everything is loaded
        for line in sys.stdin:
            yield json.loads(line)

    def reply(self, **answer) -> None:
        print(json.dumps({**answer, "memory_mb": memory()}), file=self.out, flush=True)


def memory() -> float:
    """Most memory this process has had at one time, in MB: on the GPU if there is one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


# -- processes -----------------------------------------------------------------------------------


class Worker:
    """The driver's end of a process that answers JSON lines. The driver imports no torch: it stays small and quiet."""

    def __init__(self, python: str, script: str, config: dict, threads: int) -> None:
        self.log = tempfile.TemporaryFile("w+")
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        command = [python, str(ROOT / "scripts" / script), json.dumps(config | {"threads": threads})]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                        text=True, env=environment)  # fmt: skip
        ready = self.read()
        self.baseline_mb = {"imported": ready["imported_mb"], "loaded": ready["memory_mb"]}

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            raise SystemExit(f"A benchmark process ended with code {self.process.returncode}:\n{self.log.read()[-3000:]}")
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
    worker = Worker(sys.executable, "bench_ours.py", config | {"job": job}, threads)
    answer = worker.ask()
    worker.close()
    return answer


def peer_python(folder: Path) -> str:
    """Python of the peer's virtual environment, which is made if it is not there (about 1 GB)."""
    ready = folder / "ready"
    if not ready.exists():
        print(f"Making the peer's virtual environment in {folder}: {', '.join(PEER_PACKAGES)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        (folder / ".gitignore").write_text("*\n")
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
        ready.touch()
    return str(folder / "bin" / "python")


# -- the driver ----------------------------------------------------------------------------------


def compare(args: argparse.Namespace, folder: str) -> dict:
    """Ours and the peer in turns. Returns what goes into the JSON file."""
    prepared = once("prepare", args.threads, shape=args.shape, folder=folder)
    config = {"model": prepared["model"], "batch": args.batch, "epochs": args.epochs, "summary": args.summary}
    peer = peer_python(args.peer_venv) if args.peer == "trl" else None
    sides = {"ours": Worker(sys.executable, "bench_ours.py", config | {"job": "ours", "setting": args.setting}, args.threads)}
    if peer:
        sides["peer"] = Worker(peer, "bench_trl.py", config | {"mode": args.peer_mode, "dtype": args.peer_dtype}, args.threads)
    requests = [work(prepared["pool"], args.batch, args.prompt, args.summary, args.ragged, turn)
                for turn in range(args.repetitions + 1)]  # fmt: skip
    answers = take_turns(sides, requests)
    for name, side in sides.items():
        answers[name]["memory_mb"] |= side.baseline_mb
        side.close()
    result = {"arguments": vars(args), "load_average": os.getloadavg()}
    result |= answers
    if peer:
        result["ratio_vs_trl"] = answers["peer"]["seconds"]["median"] / answers["ours"]["seconds"]["median"]
        result["memory_ratio"] = answers["ours"]["memory_mb"]["peak"] / answers["peer"]["memory_mb"]["peak"]
    return result | limits(args, answers["ours"], requests[1:])


def take_turns(sides: dict[str, Worker], requests: list[dict]) -> dict[str, dict]:
    """Every side answers every request; who begins changes each time. The first request only warms up."""
    heard = {name: [] for name in sides}
    for turn, request in enumerate(requests):
        for name in sorted(sides, reverse=bool(turn % 2)):
            heard[name].append(sides[name].ask(**request))
            print(f"{'warm-up' if turn == 0 else f'turn {turn}'}: {name} {heard[name][-1]['seconds']:.2f} s", flush=True)
        tokens = {name: heard[name][-1]["tokens"] for name in sides}
        if len(set(tokens.values())) > 1:
            raise SystemExit(f"The sides sampled different numbers of tokens: {tokens}")
    results = {}
    for name, answers in heard.items():
        counted = answers[1:]
        seconds = spread([answer["seconds"] for answer in counted])
        results[name] = {
            "seconds": seconds,
            "dialogues_per_second": len(requests[0]["prompts"]) / seconds["median"],
            "phases": {phase: statistics.median(answer["phases"][phase] for answer in counted) for phase in counted[0]["phases"]},
            "memory_mb": {"warm": answers[0]["memory_mb"], "peak": answers[-1]["memory_mb"]},
        }
    return results


def limits(args: argparse.Namespace, ours: dict, requests: list[dict]) -> dict:
    """What the machine could do at best, and the share of it that ours reaches."""
    shape, dtype = SHAPES[args.shape], SETTINGS[args.setting]["dtype"]
    machine = once("machine", args.threads, shape=shape, tokens=MINIBATCH * args.summary)
    needed = count(requests, args)
    rate = max(machine["gflops"][dtype].values()) * 1e9
    prompt = round(statistics.mean(len(ids) for request in requests for ids in request["prompts"]))
    summary = round(statistics.mean(min(length, args.summary) for request in requests for length in request["lengths"]))
    read = decode_bytes(shape, args.batch, prompt, summary, 2 if dtype == "bfloat16" else 4)
    share = {
        "iteration_of_products": sum(needed.values()) / rate / ours["seconds"]["median"],
        "update_of_products": needed["update"] / rate / ours["phases"]["update"],
        "sample_of_bandwidth": read / (machine["bandwidth_gb_s"] * 1e9) / ours["phases"]["sample"],
    }
    return {"machine": machine, "operations": needed, "decode_bytes": read, "share": share}


def compare_sampling(args: argparse.Namespace, folder: str) -> dict:
    """Greedy decoding, encoder included: ours and `transformers.generate` of one model in one process."""
    prepared = once("prepare", args.threads, shape=args.shape, folder=folder)
    worker = Worker(sys.executable, "bench_ours.py", {"job": "sampling", "model": prepared["model"], "summary": args.summary}, args.threads)
    seconds, identical = {}, []
    for turn in range(args.repetitions + 1):
        request, tokens = work(prepared["pool"], args.batch, args.prompt, args.summary, args.ragged, turn), {}
        for side in ("ours float32", "generate float32", "ours bfloat16", "generate bfloat16"):
            answer = worker.ask(side=side, **request)
            tokens[side] = answer["tokens"]
            seconds.setdefault(side, []).extend([answer["seconds"]] if turn else [])
        identical.append(tokens["ours float32"] == tokens["generate float32"])
    worker.close()
    result = {"arguments": vars(args), "identical_float32": identical}
    result |= {"seconds": {side: spread(values) for side, values in seconds.items()}}
    median = {side: values["median"] for side, values in result["seconds"].items()}
    result |= {f"ratio_{dtype}": median[f"generate {dtype}"] / median[f"ours {dtype}"] for dtype in ("float32", "bfloat16")}
    return result


def scale(args: argparse.Namespace, folder: str) -> dict:
    """Ours alone, with one quantity changed at a time; shapes too large to run are computed and say so."""
    points = [{"batch": batch} for batch in (8, 16, 32, 64)] + [{"prompt": prompt} for prompt in (100, 400)]
    points += [{"summary": summary} for summary in (24, 96)] + [{"shape": "base"}]
    rows = []
    for point in points:
        point_args = argparse.Namespace(**vars(args) | {"peer": "none"} | point)
        result = compare(point_args, folder)
        rows.append({**point, "how": "measured", "seconds": result["ours"]["seconds"], "phases": result["ours"]["phases"],
                     "memory_mb": result["ours"]["memory_mb"]["peak"], "operations": sum(result["operations"].values())})  # fmt: skip
    pace = rows[-1]["seconds"]["median"] / rows[-1]["operations"]
    for shape in ("large", "xl"):
        row = argparse.Namespace(**vars(args) | {"shape": shape})
        needed = sum(count([{"prompts": [[0] * args.prompt] * args.batch, "lengths": [args.summary] * args.batch}], row).values())
        rows.append({"shape": shape, "how": "computed: operations at the pace of base", "seconds": {"median": pace * needed},
                     "operations": needed, "parameters": parameters(SHAPES[shape])})  # fmt: skip
    return {"arguments": vars(args), "scale": rows}


def plot(picture: str, files: list[str]) -> None:
    """One bar a result: how many times faster than the peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = [json.loads(Path(file).read_text()) for file in files]
    names = ["{shape}, {setting}, {epochs} epochs, batch {batch}, {peer_mode}".format(**result["arguments"]) for result in results]
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.4 * len(names)), layout="constrained")
    bars = axes.barh(names, [result["ratio_vs_trl"] for result in results])
    axes.bar_label(bars, fmt="%.1fx")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("seconds an iteration of TRL 0.11.4 / ours")
    axes.invert_yaxis()
    figure.savefig(picture, dpi=150)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=("trl", "none"), default="trl")
    parser.add_argument("--peer-mode", choices=("batched", "notebook"), default="batched", help="how TRL generates: a batch at once, or one dialogue at a time as the notebook does")
    parser.add_argument("--peer-dtype", choices=("float32", "bfloat16"), default="float32", help="of TRL's weights; the notebook loads bfloat16")
    parser.add_argument("--peer-venv", type=Path, default=ROOT / ".venv-trl", metavar="FOLDER", help="the peer's virtual environment, made if absent")
    parser.add_argument("--shape", choices=("small", "base"), default="small")
    parser.add_argument("--setting", choices=tuple(SETTINGS), default="default", help="of ours: decoder-only LoRA in bf16, or LoRA everywhere in fp32 like the peer")
    parser.add_argument("--epochs", type=int, default=4, help="PPO epochs")
    parser.add_argument("--batch", type=int, default=16, help="dialogues an iteration")
    parser.add_argument("--prompt", type=int, default=200, help="tokens of each dialogue with its instruction")
    parser.add_argument("--summary", type=int, default=48, help="sampled tokens of each summary")
    parser.add_argument("--ragged", action="store_true", help="real dialogue and summary lengths instead (--summary is the longest)")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=("sampling",), help="measure decoding alone")
    parser.add_argument("--scale", action="store_true", help="measure how the cost of ours grows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the result")
    parser.add_argument("--plot", nargs="+", metavar="FILE", help="a picture to write, and the results to draw")
    args = parser.parse_args(argv)
    for name in ("epochs", "batch", "prompt", "summary", "repetitions", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if args.batch % MINIBATCH and args.peer == "trl" and not args.only and not args.scale:
        parser.error(f"--batch must be a multiple of {MINIBATCH}, the minibatch: TRL refuses others")
    if args.plot and len(args.plot) < 2:
        parser.error("--plot needs the picture to write and at least one result to draw")
    return args


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    if args.plot:
        return plot(args.plot[0], args.plot[1:])
    measure = compare_sampling if args.only else scale if args.scale else compare
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, folder)
    text = json.dumps(result, indent=2, default=str)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
