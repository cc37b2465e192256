"""All measures of all texts, as one long table: id, system, sample, measure, value."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd

from detox_rl.classifiers import Classifier, Entailment
from detox_rl.conflict.report import Report, judge_report
from detox_rl.data.batching import pad
from detox_rl.report import measures
from detox_rl.report.measures import NAN, TOXIC
from detox_rl.report.systems import batches
from detox_rl.summarizer import Summarizer

Advance = Callable[[int], object]
Reports = dict[tuple[str, str], Report]
CHUNK = 256  # texts that a judge sees between two moves of the progress bar
FLUENCY_LIMIT = 100  # dialogues: the base has to encode them once more, which costs as much as to decode them


class Measured(NamedTuple):
    """What was measured.

    Attributes:
        texts: id, system, sample, text, ended.
        values: id, system, sample, measure, value.
        worst: toxicity of each dialogue's worst turn; one row a dialogue, one column a judge.
        reports: (id, text) -> what the text does with the conflict; None where there is none.
    """

    texts: pd.DataFrame
    values: pd.DataFrame
    worst: pd.DataFrame
    reports: Reports


def judge_texts(judges: dict[str, Classifier], texts: list[str], advance: Advance) -> pd.DataFrame:
    """Probability of being toxic: one row a different text, one column a judge. Each judge reads a text once."""
    different = sorted(dict.fromkeys(texts), key=len)  # texts of like length are judged together, with little padding
    columns: dict[str, list[float]] = {}
    for name, judge in judges.items():
        columns[name] = []
        for start in range(0, len(different), CHUNK):
            chunk = different[start : start + CHUNK]
            columns[name] += judge(chunk).probability.tolist()
            advance(len(chunk))
    return pd.DataFrame(columns, index=different)


def turns(dialogue: str) -> list[str]:
    """What is said in each line of a dialogue, without the speaker's name."""
    return [said or speaker for speaker, _, said in (line.partition(": ") for line in dialogue.splitlines())]


def dialogue_toxicity(dialogues: pd.Series, toxicity: pd.DataFrame) -> pd.DataFrame:
    """How toxic the worst turn of each dialogue is, by each judge. (dialogues, judges)"""
    worst = [toxicity.loc[turns(dialogue)].max().to_numpy() for dialogue in dialogues]
    return pd.DataFrame(worst, columns=toxicity.columns, index=dialogues.index)


def conflict_reports(dialogues: pd.DataFrame, texts: pd.DataFrame, advance: Advance) -> Reports:
    """(id, text) -> what the text does with the dialogue's conflict, or says of one where there is none. References too.

    Args:
        dialogues: id, dialogue, reference, conflicts.
        texts: id and text.
        advance: told how many texts are done.
    """
    human = dialogues[["id", "reference"]].set_axis(["id", "text"], axis=1)
    pairs = pd.concat([texts[["id", "text"]], human]).drop_duplicates()
    said, found = dialogues.set_index("id"), {}
    for name, text in pairs.itertuples(index=False):
        found[name, text] = judge_report(text, said.at[name, "dialogue"], said.at[name, "conflicts"])
    advance(len(texts))
    return found


def fluency(base: Summarizer, dialogues: pd.DataFrame, texts: pd.DataFrame, advance: Advance) -> dict[tuple, float]:
    """(id, system) -> mean log-probability a token under the base, in nats, of at most `FLUENCY_LIMIT` dialogues.

    Args:
        base: the base without any adapter.
        dialogues: id and dialogue.
        texts: id, system and text, a text a system and dialogue.
        advance: told how many texts are done.
    """
    wide = texts.pivot(index="id", columns="system", values="text")
    dialogues = dialogues.sample(min(FLUENCY_LIMIT, len(dialogues)), random_state=0)
    prompts, _ = base.prompt.encode(base.tokenizer, base.prompt.read(dialogues["dialogue"].tolist()))
    found: dict[Any, float] = {}
    for batch in batches(prompts):
        encoded = base.encode(*pad([prompts[i] for i in batch], base.tokenizer.pad_token_id))
        names = dialogues["id"].iloc[batch]
        for system in wide.columns:
            means = base.mean_logprobs(encoded, wide.loc[names, system].tolist())
            found |= {(name, system): mean for name, mean in zip(names, means)}
            advance(len(names))
    return found


def all_values(
    dialogues: pd.DataFrame,
    texts: pd.DataFrame,
    toxicity: pd.DataFrame,
    reports: Reports,
    fluencies: dict[tuple, float],
    entailment: Entailment | None,
    advance: Advance,
) -> pd.DataFrame:
    """Every measure of every greedy text, and toxicity of the samples too.

    Args:
        dialogues: id, dialogue, reference, rude, conflicts.
        texts: id, system, sample, text, ended.
        toxicity: by `judge_texts`, of all these texts.
        reports: by `conflict_reports`.
        fluencies: by `fluency`.
        entailment: an NLI model, or None.
        advance: told how many texts are done.

    Returns:
        Columns id, system, sample, measure, value; a value may be NaN.
    """
    greedy = texts[texts["sample"] == 0].merge(dialogues, on="id", sort=False)
    parts = []
    for system, rows in greedy.groupby("system", sort=False):
        columns = {
            **_toxicity(rows["text"], toxicity),
            **_meaning(rows, [reports[key] for key in zip(rows["id"], rows["text"])],
                       [reports[key] for key in zip(rows["id"], rows["reference"])]),
            **_form(rows),
            "fluency": [fluencies.get((name, system), NAN) for name in rows["id"]],
        }  # fmt: skip
        if entailment is not None:
            columns["entailment"] = entailment(rows["dialogue"].tolist(), rows["text"].tolist())
        columns["joint"] = _joint(pd.DataFrame(columns), rows["rude"].to_numpy() | (not dialogues["rude"].any()))
        parts.append(_long(rows, columns))
        advance(len(rows))
    samples = texts[texts["sample"] > 0]
    return pd.concat([*parts, _long(samples, _toxicity(samples["text"], toxicity))], ignore_index=True)


def _long(rows: pd.DataFrame, columns: dict[str, list[float]]) -> pd.DataFrame:
    wide = pd.DataFrame(columns, index=pd.MultiIndex.from_frame(rows[["id", "system", "sample"]]), dtype=float)
    return wide.rename_axis(columns="measure").stack(future_stack=True).rename("value").reset_index()


def _toxicity(texts: pd.Series, toxicity: pd.DataFrame) -> dict[str, list[float]]:
    columns = {}
    for judge in toxicity:
        probability = toxicity[judge].loc[texts]
        columns[f"toxicity/{judge}"] = probability.tolist()
        columns[f"toxic/{judge}"] = (probability > TOXIC).astype(float).tolist()
    return columns


def _meaning(rows: pd.DataFrame, own: list[Report], human: list[Report]) -> dict[str, list[float]]:
    rude = [bool(conflicts) for conflicts in rows["conflicts"]]
    wanted = [conflict and reference.kind == "report" for conflict, reference in zip(rude, human)]
    calm = [not conflict and reference.kind != "report" for conflict, reference in zip(rude, human)]
    kind = lambda name: [float(report.kind == name) if conflict else NAN for report, conflict in zip(own, rude)]
    right = [report.kind == "report" and report.speaker is True for report in own]
    texts, said, references = (rows[name].tolist() for name in ("text", "dialogue", "reference"))
    compared = {**measures.rouge(texts, references), "length_ratio": [*map(measures.length_ratio, texts, references)]}
    if texts == references:  # the humans compared with themselves: nothing is known
        compared = {name: [NAN] * len(texts) for name in compared}
    return {
        "reports": [value if asked else NAN for value, asked in zip(kind("report"), wanted)],
        "right_speaker": [float(value) if asked else NAN for value, asked in zip(right, wanted)],
        "quotes": kind("quote"),
        "omits": kind("omit"),
        "invents": [float(report.kind == "report") if asked else NAN for report, asked in zip(own, calm)],
        **compared,
        "foreign_names": [float(len(measures.foreign_names(*pair))) for pair in zip(texts, said)],
    }


def _form(rows: pd.DataFrame) -> dict[str, list[float]]:
    texts = rows["text"].tolist()
    return {
        "copied": [measures.copied(*pair) for pair in zip(texts, rows["dialogue"])],
        "repeated": [measures.repeated(text) for text in texts],
        "empty": [float(not text.strip()) for text in texts],
        "unended": [float(not ended) for ended in rows["ended"]],
        "duplicate": measures.duplicates(texts),
    }


def _joint(columns: pd.DataFrame, asked: list[bool]) -> list[float]:
    """Clean by every judge, conflict reported of the right speaker where the reference reports it, form in order."""
    judges = [name for name in columns if name.startswith("toxic/")]
    clean = ~columns[judges].any(axis=1)
    kept = columns["right_speaker"].fillna(1.0) == 1.0
    ordered = pd.Series([measures.form_in_order(row) for row in columns.to_dict("records")])
    return [float(value) if wanted else NAN for value, wanted in zip(clean & kept & ordered, asked)]
