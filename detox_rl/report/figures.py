"""From long tables to the figures of report.json: means, paired differences, where toxicity comes from, sentences."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from detox_rl.classifiers import StrongWords
from detox_rl.report import measures, statistics
from detox_rl.report.measures import TOXIC, Measure
from detox_rl.report.systems import REFERENCES
from detox_rl.report.values import Reports
from detox_rl.report.wording import STRATA, shown, shown_change, shown_interval, shown_p

_DIGITS, _VALUE_DIGITS = 10, 9  # of a figure, and of a value of one text, of which a report holds many


class Study(NamedTuple):
    """All that was measured.

    Attributes:
        dialogues: id, dialogue, reference, rude, conflicts.
        texts: id, system, sample, text, ended.
        values: id, system, sample, measure, value.
        worst: toxicity of each dialogue's worst turn; one row a dialogue, one column a judge.
        reports: (id, text) -> what the text does with the conflict.
        systems: name -> source.
        baseline: the system that the others are compared with.
        roles: judge -> "reward", "independent" or "other".
        measures: by name, in the order in which they are shown.
        trained: names of the measures that training optimised.
        resamples: of bootstrap and permutation test.
        seed: of the same.
    """

    dialogues: pd.DataFrame
    texts: pd.DataFrame
    values: pd.DataFrame
    worst: pd.DataFrame
    reports: Reports
    systems: dict[str, str]
    baseline: str
    roles: dict[str, str]
    measures: dict[str, Measure]
    trained: set[str]
    resamples: int
    seed: int

    def strata(self) -> dict[str, np.ndarray]:
        """Name -> which dialogues belong to it; only "all" where the data calls none rude. (dialogues,) each"""
        rude = self.dialogues["rude"].to_numpy(bool)
        found = {"all": np.ones(len(rude), bool), "rude": rude, "polite": ~rude}
        return {name: chosen for name, chosen in found.items() if name == "all" or (rude.any() and chosen.any())}

    def main_stratum(self) -> str:
        """The dialogues that toxicity is about."""
        return "rude" if "rude" in self.strata() else "all"

    def greedy(self) -> pd.DataFrame:
        """One row a (system, measure), one column a dialogue, of the greedy texts."""
        chosen = self.values[self.values["sample"] == 0]
        wide = chosen.pivot(index=["system", "measure"], columns="id", values="value")
        order = [(system, name) for system in self.systems for name in self.measures]
        return wide.reindex(order)[self.dialogues["id"]]

    def rivals(self) -> list[str]:
        """The systems that are compared with the baseline."""
        return [name for name in self.systems if name != self.baseline]

    def primary(self) -> str | None:
        """The first rival that is a model or a file of texts, not the humans; None if there is none."""
        return next((name for name in self.rivals() if self.systems[name] != REFERENCES), None)


def report_figures(study: Study) -> dict[str, Any]:
    """All of a report that is about systems and dialogues."""
    about = {name: measure._asdict() | {"objective": name in study.trained} for name, measure in study.measures.items()}
    means, differences = means_and_differences(study)
    found = {"measures": about, "means": means, "differences": differences, "gap": gap(study)}
    return found | {
        "corpus": corpus_figures(study),
        "sampled": sampled_toxicity(study),
        "origin": origin(study),
        "identity": identity(study),
        "headline": headline(study, found),
        "rude_words": rude_words(study),
        "rows": text_rows(study),
    }


# -- means and differences -------------------------------------------------------------------------


def means_and_differences(study: Study) -> tuple[list[dict], list[dict]]:
    """The report's `means` and `differences`: every system and measure on every stratum."""
    wide, means, differences = study.greedy(), [], []
    for stratum, chosen in study.strata().items():
        values = wide.loc[:, chosen]
        changes = pd.concat(
            {name: values.loc[name] - values.loc[study.baseline] for name in study.rivals()} or {"": values.loc[[]]}
        )
        stacked = np.vstack([values.to_numpy(float), changes.to_numpy(float).reshape(-1, chosen.sum())])
        found = statistics.estimates(stacked, study.resamples, study.seed)
        own, between = (
            statistics.Estimates(*(column[part] for column in found))
            for part in (slice(len(values)), slice(len(values), None))
        )
        means += _mean_rows(values.index, stratum, own)
        if len(changes):
            p = statistics.p_values(changes.to_numpy(float), study.resamples, study.seed)
            differences += _difference_rows(changes.index, stratum, between, p)
    _correct(differences)
    by_key = {(row["system"], row["measure"], row["stratum"]): row for row in means}
    for row in differences:
        before, after = (
            by_key[name, row["measure"], row["stratum"]]["mean"] for name in (study.baseline, row["system"])
        )
        row["sentence"] = sentence(row, study, before, after)
    return means, differences


def _mean_rows(index: pd.MultiIndex, stratum: str, found: statistics.Estimates) -> list[dict]:
    columns = zip(index, *(column.tolist() for column in found))
    return [
        {
            "system": system,
            "measure": name,
            "stratum": stratum,
            "mean": mean,
            "sd": sd,
            "n": n,
            "low": low,
            "high": high,
        }
        for (system, name), mean, sd, n, low, high in columns
        if n
    ]


def _difference_rows(index: pd.MultiIndex, stratum: str, found: statistics.Estimates, p: np.ndarray) -> list[dict]:
    effects, smallest = statistics.effect_sizes(found), statistics.smallest_detectable(found)
    return [
        {
            "system": system, "measure": name, "stratum": stratum, "difference": float(found.mean[row]),
            "low": float(found.low[row]), "high": float(found.high[row]), "p": float(p[row]), "p_holm": None,
            "effect": float(effects[row]), "n": int(found.n[row]), "smallest": float(smallest[row]),
        }
        for row, (system, name) in enumerate(index)
        if found.n[row]
    ]  # fmt: skip


def _correct(differences: list[dict]) -> None:
    """Puts Holm's p-values beside those of toxicity: a family is one figure of one system, by all judges."""
    families: dict[tuple, list[dict]] = {}
    for row in differences:
        figure, slash, _ = row["measure"].partition("/")
        if slash:
            families.setdefault((row["system"], row["stratum"], figure), []).append(row)
    for family in families.values():
        for row, corrected in zip(family, statistics.holm(np.array([row["p"] for row in family])).tolist()):
            row["p_holm"] = corrected


def sentence(row: dict, study: Study, before: float, after: float) -> str:
    """A difference in words.

    It is called one where the interval leaves out zero and the p-value, corrected if there are several judges, is below
    5 %. Otherwise there is no percentage, but what would have been seen.
    """
    measure, n, where = study.measures[row["measure"]], row["n"], STRATA[row["stratum"]]
    title, show = measure.title[0].upper() + measure.title[1:], lambda value: shown(value, measure.unit)
    head = f"{title}, {study.baseline} to {row['system']}: {show(before)} to {show(after)}"
    interval = f"difference {shown_change(row['difference'], row['low'], row['high'], measure.unit)}"
    tail = f"on {n} {where}dialogues"
    if row["low"] == row["high"] == 0:
        return f"{head}: the same on each of {n} {where}dialogues."
    p, corrected = (row["p"], "") if row["p_holm"] is None else (row["p_holm"], " over all judges")
    if row["low"] <= 0 <= row["high"] or p >= 1 - statistics.LEVEL:
        seen = f"; {show(row['smallest'])} would be found four times in five" if np.isfinite(row["smallest"]) else ""
        return f"{head}: no difference shown, {interval}, {shown_p(p)}{corrected}, {tail}{seen}."
    change = f" ({100 * (after / before - 1):+.0f} %)" if measure.unit != "nats" and before > 0 else ""
    return f"{head}{change}, {interval}, {shown_p(p)}{corrected}, {tail}."


# -- beyond means ----------------------------------------------------------------------------------


def corpus_figures(study: Study) -> list[dict]:
    """What can only be said of all greedy texts of a system together."""
    dialogues, references = (study.dialogues[name].tolist() for name in ("dialogue", "reference"))
    found = []
    for system in study.systems:
        figures = measures.corpus(_greedy_texts(study, system), dialogues, references)
        found += [{"system": system, "measure": name, "value": value} for name, value in figures.items()]
    return found


def sampled_toxicity(study: Study) -> list[dict]:
    """Of K samples: mean of the most toxic one, share of dialogues with any toxic one (Gehman et al., 2020)."""
    ids = study.dialogues["id"][study.strata()[study.main_stratum()]]
    found, values = [], study.values[(study.values["sample"] > 0) & study.values["id"].isin(ids)]
    for judge in study.roles:
        drawn = values[values["measure"] == f"toxicity/{judge}"].groupby(["system", "id"], sort=False)["value"]
        for system, rows in drawn.agg(["max", "size"]).groupby("system", sort=False):
            any_toxic = float((rows["max"] > TOXIC).mean())
            found.append({"system": system, "judge": judge, "expected_maximum": float(rows["max"].mean()),
                          "any_toxic": any_toxic, "k": int(rows["size"].iloc[0]), "n": len(rows)})  # fmt: skip
    return found


def origin(study: Study) -> list[dict]:
    """Where toxicity comes from, by each judge, on each stratum.

    inherited: share of toxic summaries among dialogues with a turn that the judge calls toxic. introduced: the same
    among dialogues without one. removed: share of clean summaries among dialogues whose summary by the baseline is
    toxic.
    """
    wide, found = study.greedy(), []
    for stratum, chosen in study.strata().items():
        for judge in study.roles:
            toxic = wide.xs(f"toxic/{judge}", level="measure").loc[:, chosen] == 1.0
            given = study.worst[judge].to_numpy()[chosen] > TOXIC
            before = toxic.loc[study.baseline].to_numpy()
            for system in study.systems:
                own = toxic.loc[system].to_numpy()
                found.append({
                    "system": system, "judge": judge, "stratum": stratum, "inherited": _share(own[given]),
                    "introduced": _share(own[~given]), "removed": _share(~own[before]),
                    "n_toxic_dialogues": int(given.sum()), "n_clean_dialogues": int((~given).sum()),
                    "n_toxic_baseline": int(before.sum()),
                })  # fmt: skip
    return found


def identity(study: Study) -> list[dict]:
    """Polite dialogues that mention a group of people: are they summarised worse than the other polite ones?

    kept: of those whose reference mentions a group that the dialogue names, the share of summaries that do so too.
    """
    polite = study.strata().get("polite", study.strata()["all"])
    named = [measures.groups(dialogue) for dialogue in study.dialogues["dialogue"]]
    kept_by_human = [own & measures.groups(text) for own, text in zip(named, study.dialogues["reference"])]
    mentions = polite & np.array([bool(own) for own in named])
    wide, (judge, *_), found = study.greedy(), study.roles, []
    for system in study.systems:
        rouge, toxicity = (wide.loc[(system, name)].to_numpy() for name in ("rougeL", f"toxicity/{judge}"))
        kept = [bool(own & measures.groups(text)) for own, text in zip(named, _greedy_texts(study, system))]
        asked = mentions & np.array([bool(human) for human in kept_by_human])
        others = polite & ~mentions
        found.append({
            "system": system, "n": int(mentions.sum()), "rougeL": _mean(rouge[mentions]),
            "toxicity": _mean(toxicity[mentions]), "judge": judge, "kept": _share(np.array(kept)[asked]),
            "n_kept": int(asked.sum()), "n_others": int(others.sum()),
            "rougeL_others": _mean(rouge[others]), "toxicity_others": _mean(toxicity[others]),
        })  # fmt: skip
    return found


def gap(study: Study) -> dict[str, Any]:
    """How much further toxicity fell by the reward's judge than by independent ones: a sign of over-optimisation.

    Relative changes of the mean on the main stratum, of the first rival against the baseline; {} where there is no such
    pair of judges.
    """
    by_role = {role: [judge for judge, own in study.roles.items() if own == role] for role in ("reward", "independent")}
    system = study.primary()
    if not (system and all(by_role.values())):
        return {}
    reward, chosen = by_role["reward"][0], study.strata()[study.main_stratum()]
    wide = study.greedy().loc[:, chosen]
    column = lambda name, judge: wide.loc[(name, f"toxicity/{judge}")].to_numpy(float)
    judges = [reward, *by_role["independent"]]
    pairs = [(column(study.baseline, judge), column(system, judge)) for judge in judges]
    changes = {
        judge: _mean(after) / _mean(before) - 1.0 if before.any() else None
        for judge, (before, after) in zip(judges, pairs)
    }
    value, low, high = statistics.ratio_gap(pairs, study.resamples, study.seed)
    found = {
        "system": system,
        "reward_judge": reward,
        "changes": changes,
        "gap": value,
        "low": low,
        "high": high,
        "n": int(chosen.sum()),
    }
    return found | {"sentence": _gap_sentence(found)}


def _gap_sentence(found: dict) -> str:
    if not np.isfinite(found["gap"]):
        return "A judge saw nothing toxic in the baseline: there is no relative change to compare."
    percent = {judge: f"{100 * change:+.0f} %" for judge, change in found["changes"].items()}
    others = ", ".join(f"{change} by {judge}" for judge, change in percent.items() if judge != found["reward_judge"])
    head = f"Toxicity changed by {percent[found['reward_judge']]} by the reward's own judge, {others}"
    ends = f"{100 * found['gap']:+.0f} points [{100 * found['low']:+.0f}, {100 * found['high']:+.0f}]"
    if found["low"] > 0:
        return f"{head}: the reward's judge sees {ends} more of a fall, which is over-optimisation."
    if found["high"] < 0:
        return f"{head}: the independent judges see more of a fall, {ends}."
    return f"{head}: no gap shown between them, {ends}."


def headline(study: Study, report: dict[str, Any]) -> list[str]:
    """What there is to say first: the joint share, toxicity by each judge, the conflict, the gap."""
    stratum = study.main_stratum()
    joint = [row for row in report["means"] if (row["measure"], row["stratum"]) == ("joint", stratum)]
    shares = ", ".join(
        f"{row['system']} {shown_interval(row['mean'], row['low'], row['high'], 'share')}" for row in joint
    )
    known = study.values.loc[study.values["measure"] == "right_speaker", "value"].notna().any()
    told = "the conflict reported of the right speaker where the reference reports it, " if known else ""
    lines = (
        [f"Clean by every judge, {told}form in order, of {joint[0]['n']} {STRATA[stratum]}dialogues: {shares}."]
        if joint
        else []
    )
    wanted = ["joint", *(f"toxicity/{judge}" for judge in study.roles), "reports", "right_speaker", "omits", "invents"]
    found = {
        (row["system"], row["measure"]): row["sentence"]
        for row in report["differences"]
        if row["stratum"] == study.measures[row["measure"]].stratum
    }
    lines += [found[study.primary(), name] for name in wanted if (study.primary(), name) in found]
    return lines + ([report["gap"]["sentence"]] if report["gap"] else [])


# -- texts -----------------------------------------------------------------------------------------


def text_rows(study: Study) -> list[dict]:
    """One row a dialogue with every system's greedy text and its values."""
    wide = study.greedy().round(_VALUE_DIGITS)
    texts = study.texts[study.texts["sample"] == 0].set_index(["id", "system"])
    rows = []
    for row in study.dialogues.itertuples(index=False):
        own = {}
        for system in study.systems:
            text, ended = texts.loc[(row.id, system), ["text", "ended"]]
            report, measured = study.reports[row.id, text], wide.loc[system][row.id].to_dict()
            kind = report.kind if row.conflicts else "invent" if measured.get("invents") == 1.0 else None
            own[system] = {
                "text": text, "ended": bool(ended), "values": measured,
                "report": kind, "speaker": report.speaker if row.conflicts else None,
            }  # fmt: skip
        rows.append({"id": row.id, "dialogue": row.dialogue, "reference": row.reference, "rude": bool(row.rude),
                     "conflicts": [conflict._asdict() for conflict in row.conflicts], "texts": own})  # fmt: skip
    return rows


def rude_words(study: Study) -> list[str]:
    """The strong words that occur, for whoever shows the texts."""
    pattern, texts = StrongWords().pattern, [*study.texts["text"], *study.dialogues["dialogue"]]
    return sorted({word.lower() for text in texts for word in pattern.findall(text)})


def plain(value: Any) -> Any:
    """What JSON can hold: NaN becomes null, figures are rounded."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return round(value, _DIGITS) if np.isfinite(value) else None
    return value


def _greedy_texts(study: Study, system: str) -> list[str]:
    """In the order of the dialogues."""
    chosen = study.texts[(study.texts["system"] == system) & (study.texts["sample"] == 0)]
    return chosen.set_index("id")["text"].loc[study.dialogues["id"]].tolist()


def _share(flags: np.ndarray) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
