"""Compares a run's trained policy with its warm start and the human summaries, on held-out dialogues.

Examples:
  python -m detox_rl.evaluate lightning_logs/version_0
  python -m detox_rl.evaluate lightning_logs/version_0 --split validation --limit 50 --out quick
  python -m detox_rl.evaluate lightning_logs/version_0 --systems.other lightning_logs/version_1 --out compared

Any number of systems summarise the same dialogues, any number of judges and measures say what became of them, and each
system is compared with a baseline, dialogue by dialogue: tables on the screen, report.json, report.md, report.html.

A run folder is code: evaluating it builds whatever class_path its config names, and a Detoxify checkpoint and
alt-profanity-check are pickles. Evaluate only runs that you trust.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import ArgsType
from tqdm import tqdm

from detox_rl.classifiers import Classifier, Entailment, check_classifier, named
from detox_rl.cli import HelpFormatter, one_sentence_errors
from detox_rl.report import figures, provenance, values
from detox_rl.report.curves import curves
from detox_rl.report.dialogues import dialogue_table, is_annotated, read_data, run_data
from detox_rl.report.figures import Study
from detox_rl.report.files import FOLDER, REPORT, check_unlike, write, write_before_after
from detox_rl.report.judges import default_judges, note, role, trained_measures, unknown_terms
from detox_rl.report.measures import measures_with_values
from detox_rl.report.runs import read_config, read_rewards, usage_of
from detox_rl.report.systems import REFERENCES, WARM_START, Sampling, Systems, Texts, check_source, is_model
from detox_rl.report.tables import report_text
from detox_rl.rewards import fit_terms
from detox_rl.summarizer import Summarizer

SCHEMA = 1


def evaluate(
    run: str | None = None,
    systems: dict[str, str | None] | None = None,
    baseline: str | None = None,
    judges: list[Callable] | None = None,
    split: Literal["test", "validation"] = "test",
    data: dict | None = None,
    limit: int | None = None,
    samples: int = 0,
    temperature: float | None = None,
    nli: str | None = None,
    out: str | None = None,
    adapter: str | None = None,
    base_model: str | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares systems on the same dialogues, and writes report.json, report.md, before_after.* and a picture.

    A run folder is code (its config names classes that are built, and judges may be pickles): evaluate only runs you
    trust.

    Args:
        run: folder of a run of detox_rl.fit. Its systems are "warm start", "trained" and "references" (the humans).
        systems: more systems, or others for these names, null to leave one out; name -> folder of a run, folder or hub
            id of an adapter, `warm_start`, `base`, `references`, or a jsonl file of texts (id and summary a line) that
            anything made.
        baseline: the system that the others are compared with; unset: the first.
        judges: classifiers of detox_rl.classifiers, or your own, by class_path; unset: the reward's own, HashedNgrams,
            StrongWords, and ProfanityCheck if it is installed.
        split: validation or test.
        data: data options that replace those of the run, e.g. '{"test_file": "mine.jsonl"}'.
        limit: evaluate only this many dialogues (chosen by their text).
        samples: summaries sampled a dialogue beside the greedy one, judged for toxicity.
        temperature: of these samples; unset: that of the run, else 1.
        nli: folder or hub id of an NLI model that says whether a summary follows from its dialogue.
        out: folder for what is written; unset, and without other systems, judges or data: RUN/evaluation, and
            before_after.* in RUN itself.
        adapter: short for --systems.trained ADAPTER.
        base_model: of fluency, of `base`, and of adapters that do not name theirs; unset: that of the run, else
            embedded.
        resamples: of the bootstrap and of the permutation test.
        seed: of the resamples and of the samples.

    Returns:
        The report, as report.json has it.
    """
    asked = {name: value for name, value in locals().items() if name not in ("judges", "out")}
    if adapter is not None:
        systems = (systems or {}) | {"trained": adapter}
    check_options(judges, resamples, samples, temperature)
    folder = None if run is None else Path(run)
    config = {} if folder is None else read_config(folder)
    rewards = read_rewards(config["model"].get("rewards")) if config else []
    sources = system_sources(folder, systems or {})
    baseline = check_baseline(baseline, sources)
    judged = named(default_judges(rewards) if judges is None else judges)
    target = destination(folder, out, plain=not systems and judges is None and data is None)
    own_sources = {name: "RUN" if source == str(folder) else source for name, source in sources.items()}
    arguments = asked | {"run": folder and folder.name, "judges": list(judged), "systems": own_sources}
    check_unlike(target / REPORT, arguments)
    for name, source in sources.items():
        check_source(name, source)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepare_judges(judged, device)
    entailment = None if nli is None else Entailment(nli).to(device)

    usage = usage_of(config, base_model)
    datamodule = read_data(config, usage.base_model, split, limit, data or {}, seed)
    fit_terms(rewards, run_data(config, usage.base_model, seed))  # as they were in training, whatever is evaluated on
    usage = usage._replace(prompt=usage.prompt or datamodule.prompt)
    dialogues = dialogue_table(datamodule.rows[split])
    sampling = Sampling(samples, temperature or config.get("model", {}).get("temperature", 1.0), seed)
    writers = Systems(dialogues, usage, sampling, lambda path: usage_of(read_config(path)))
    base = lambda: Summarizer(None, usage.base_model, usage.max_new_tokens, usage.prompt)
    seconds: dict[str, float] = {}
    made, measured = measure(writers, sources, judged, base, entailment, seconds)
    with timed(seconds, "statistics"):
        roles = {name: role(judge, rewards) for name, judge in judged.items()}
        shown = measures_with_values(list(judged), measured.values, bool(dialogues["rude"].any()))
        trained = trained_measures(rewards, judged)
        study = Study(dialogues, *measured, sources, baseline, roles, shown, trained, resamples, seed)
        found = figures.report_figures(study)
    report = {
        "schema": SCHEMA,
        "made": {"at": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": seconds},
        "provenance": {
            "versions": provenance.versions(), "code": provenance.code_fingerprint(), "seed": seed, "samples": samples,
            "device": device.type, "arguments": arguments,
        },
        "run": {"folder": folder.name, "config": config, "unknown_terms": unknown_terms(rewards)} if folder else None,
        "data": {
            "split": split, "n": len(dialogues), "rude": int(dialogues["rude"].sum()),
            "fingerprint": provenance.data_fingerprint(dialogues), "options": dict(datamodule.hparams),
            "conflicts": "annotated" if is_annotated(datamodule.rows[split]) else "guessed from rude words",
        },
        "systems": [{"name": name, "source": sources[name], "fingerprint": made[name].fingerprint} for name in sources],
        "baseline": baseline,
        "judges": [{"name": name, "role": roles[name], "note": note(judge)} for name, judge in judged.items()],
        "curves": curves(folder) if folder else {},
        **found,
    }  # fmt: skip
    report = figures.plain(report)
    print(report_text(report))
    write(report, target)
    if folder is not None and study.primary():
        write_before_after(report, str(study.primary()), rewards, folder if out is None else target)
    return report


def measure(
    writers: Systems,
    sources: dict[str, str],
    judges: dict[str, Classifier],
    base: Callable[[], Summarizer],
    entailment: Entailment | None,
    seconds: dict[str, float],
) -> tuple[dict[str, Texts], values.Measured]:
    """All texts, and all that is measured of them, behind one progress bar.

    Args:
        writers: make the texts.
        sources: of the systems, by name.
        judges: by name.
        base: makes the untrained model, under which fluency is measured.
        entailment: an NLI model, or None.
        seconds: notes here how long each part took.
    """
    dialogues = writers.dialogues
    said = [turn for dialogue in dialogues["dialogue"] for turn in values.turns(dialogue)]
    n, models = len(dialogues), sum(is_model(source) for source in sources.values())
    greedy_texts, samples = n * len(sources), n * models * writers.sampling.count
    # An upper bound: what two systems share is made once, and equal texts are judged once.
    total = n * models + samples + 3 * greedy_texts + len(judges) * (greedy_texts + samples + len(said))
    with tqdm(total=total, desc="Evaluating", unit="text") as bar:
        with timed(seconds, "decoding"):
            made = {name: writers.texts(source, bar.update) for name, source in sources.items()}
        texts = pd.concat([own.table.assign(system=name) for name, own in made.items()], ignore_index=True)
        greedy = texts[texts["sample"] == 0]
        with timed(seconds, "fluency"):
            fluencies = values.fluency(base(), dialogues, greedy, bar.update)
        with timed(seconds, "judging"):
            toxicity = values.judge_texts(judges, [*texts["text"], *said], bar.update)
        with timed(seconds, "measuring"):
            reports = values.conflict_reports(dialogues, greedy, bar.update)
            table = values.all_values(dialogues, texts, toxicity, reports, fluencies, entailment, bar.update)
            worst = values.dialogue_toxicity(dialogues["dialogue"], toxicity)
        bar.update(total - bar.n)
    return made, values.Measured(texts, table, worst, reports)


def check_options(judges: list[Callable] | None, resamples: int, samples: int, temperature: float | None) -> None:
    """Refuses what makes no sense.

    Raises:
        ValueError: if an option does not.
    """
    if resamples < 1 or judges == []:
        raise ValueError("evaluate needs resamples of at least 1, and judges unset or at least one judge.")
    if samples < 0 or (temperature is not None and temperature <= 0):
        raise ValueError(f"samples must be at least 0 and temperature above 0, not {samples} and {temperature}.")


def system_sources(run: Path | None, systems: dict[str, str | None]) -> dict[str, str]:
    """Name -> source of all systems, those of the run first.

    Raises:
        ValueError: if there is none.
    """
    own = {} if run is None else {"warm start": WARM_START, "trained": str(run), "references": REFERENCES}
    found = {name: source for name, source in (own | systems).items() if source is not None}
    if not found:
        raise ValueError(
            "There is nothing to evaluate: give the folder of a run, systems (--systems.NAME SOURCE), or both."
        )
    return found


def check_baseline(baseline: str | None, sources: dict[str, str]) -> str:
    """The name of the baseline.

    Raises:
        ValueError: if no system bears it.
    """
    baseline = next(iter(sources)) if baseline is None else baseline
    if baseline not in sources:
        raise ValueError(f"There is no system {baseline!r} to be the baseline: name one of {', '.join(sources)}.")
    return baseline


def destination(run: Path | None, out: str | None, plain: bool) -> Path:
    """The folder that is written to.

    Raises:
        ValueError: if only the user can say.
    """
    if out is not None:
        return Path(out)
    if run is None or not plain:
        raise ValueError(
            "RUN/evaluation is for the plain call; with other systems, judges or data, or without a run, say where the "
            "report shall be written: --out FOLDER."
        )
    return run / FOLDER


def prepare_judges(judges: dict[str, Classifier], device: torch.device) -> None:
    """Tries them, and moves those that can be moved."""
    for judge in judges.values():
        check_classifier(judge)
        if hasattr(judge, "to"):
            judge.to(device)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes how long a block took."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 3)


def main(args: ArgsType = None) -> None:
    """The command line of `evaluate`."""
    with one_sentence_errors():
        parser = ArgumentParser(
            prog="python -m detox_rl.evaluate", description=__doc__, exit_on_error=False, formatter_class=HelpFormatter
        )
        run = "Folder of a run of detox_rl.fit; without one, name what is compared with --systems."
        parser.add_argument("run", nargs="?", type=str | None, default=None, help=run)
        parser.add_function_arguments(evaluate, skip={"run"})
        evaluate(**parser.instantiate(parser.parse_args(args)))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
