"""`python -m detox_rl.evaluate`, through the same `main` as the shell, on runs of a tiny model."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import REWARDS, failure, fit_flags
from conftest import embedded_rows
from doubles import VowelJudge
from studies import found

from detox_rl import evaluate, fit
from detox_rl.classifiers import named
from detox_rl.functional.scores import comoments, inverse_std
from detox_rl.report.files import REPORT
from detox_rl.rewards import ContentRecall, Examples, NonToxicity, Summaries, term_values

VOWELS = '[{"class_path": "doubles.VowelJudge"}]'


def write_rows(folder: Path, rude: dict[str, int], polite: dict[str, int]) -> dict[str, str]:
    """The first rude and polite embedded dialogues of each split. Returns split -> path."""
    files = {}
    for split in ("train", "validation", "test"):
        rows = embedded_rows(split)
        chosen = [row for row in rows if row["rudeness"] != "none"][: rude[split]]
        chosen += [row for row in rows if row["rudeness"] == "none"][: polite[split]]
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return files


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_t5, tiny_adapter) -> Path:
    """A run on data with 5 rude and 4 polite test dialogues."""
    folder = tmp_path_factory.mktemp("evaluated")
    files = write_rows(folder, rude=dict(train=8, validation=2, test=5), polite=dict(train=4, validation=3, test=4))
    with contextlib.chdir(folder):
        fit.main(fit_flags(tiny_t5, tiny_adapter, files, model__lr=0.05))
    return folder / "lightning_logs" / "version_0"


def evaluated(run: Path, out: Path | None, *args: str) -> dict:
    """The report, written to `out`; where that is None, by the plain call."""
    evaluate.main([str(run), "--resamples", "200", *(() if out is None else ("--out", str(out))), *args])
    return json.loads(((out or run / "evaluation") / REPORT).read_text(encoding="utf-8"))


def before_after(folder: Path) -> dict:
    return json.loads((folder / "before_after.json").read_text())


def without_making(report: dict) -> dict:
    return {name: part for name, part in report.items() if name != "made"}


@pytest.fixture(scope="module")
def report(run) -> dict:
    """Of the plain call."""
    return evaluated(run, None)


# -- the plain call --------------------------------------------------------------------------------


def test_the_plain_call_compares_warm_start_trained_and_humans_by_four_judges(report, run):
    assert [system["name"] for system in report["systems"]] == ["warm start", "trained", "references"]
    assert report["baseline"] == "warm start" and report["schema"] == 1
    assert {judge["name"]: judge["role"] for judge in report["judges"]} == {
        "vowels": "reward", "hashed-ngrams": "other", "strong-words": "independent", "profanity-check": "other",
    }  # fmt: skip
    assert (report["data"]["n"], report["data"]["rude"], report["data"]["conflicts"]) == (9, 5, "annotated")
    assert report["provenance"]["arguments"]["run"] == report["run"]["folder"] == run.name
    assert {"val/toxicity", "warm_start/toxicity"} <= report["curves"].keys()
    assert report["measures"]["toxicity/vowels"]["objective"] and report["measures"]["length_ratio"]["objective"]
    assert (
        not report["measures"]["rougeL"]["objective"] and not report["measures"]["toxicity/strong-words"]["objective"]
    )
    assert len({system["fingerprint"] for system in report["systems"]}) == 3
    assert report["made"]["seconds"].keys() == {"decoding", "fluency", "judging", "measuring", "statistics"}


def test_every_dialogue_has_every_text_once(report, run):
    given = [json.loads(line) for line in (run.parent.parent / "test.jsonl").read_text().splitlines()]
    assert {row["dialogue"] for row in report["rows"]} == {row["dialogue"].strip() for row in given}
    assert len(report["rows"]) == 9 and all(len(row["texts"]) == 3 for row in report["rows"])
    assert any(row["texts"]["warm start"]["text"] != row["texts"]["trained"]["text"] for row in report["rows"])
    assert all(row["texts"]["references"]["text"] == row["reference"] for row in report["rows"])
    assert all(row["texts"]["trained"]["values"]["fluency"] < 0 for row in report["rows"])


def test_the_files_that_scripts_read_stay_as_they_are(report, run):
    result = before_after(run)
    assert result["judges"].keys() == {"vowels", "hashed-ngrams", "strong-words", "profanity-check"}
    for judge in result["judges"].values():
        assert judge.keys() == {"before", "after", "ci_low", "ci_high", "n"}
        assert judge["n"] == 5  # the rude ones
        assert judge["ci_low"] - 1e-9 <= judge["after"] - judge["before"] <= judge["ci_high"] + 1e-9
        assert 0 <= judge["before"] <= 1 and 0 <= judge["after"] <= 1
    assert result["rougeL"].keys() == {"before", "after"} and 0 <= result["rougeL"]["after"] <= 100
    assert result["length_ratio"] > 0 and result["n"] == 9
    rows = [json.loads(line) for line in (run / "before_after.jsonl").read_text().splitlines()]
    assert len(rows) == 9 and sum(row["rude"] for row in rows) == 5
    assert all({"id", "dialogue", "before", "after", "reference", "rude"} <= row.keys() for row in rows)
    assert all(row["difference"] == row["reward_after"] - row["reward_before"] for row in rows)
    mean = sum(row["vowels_after"] for row in rows if row["rude"]) / 5
    assert result["judges"]["vowels"]["after"] == pytest.approx(mean)
    table = (run / "before_after.md").read_text().splitlines()
    assert [name.strip() for name in table[0].strip("|").split("|")] == [
        "dialogue", "before", "after", "reward before", "reward after", "difference",
    ]  # fmt: skip
    assert sum(line.startswith("|") for line in table) == 2 + 9
    assert (run / "before_after.png").read_bytes().startswith(b"\x89PNG")


def test_every_file_names_its_report(report, run):
    mark = before_after(run)["report"]
    assert mark in (run / "evaluation" / "report.md").read_text() and mark in (run / "before_after.md").read_text()
    assert mark.encode() in (run / "before_after.png").read_bytes()
    assert mark in (run / "before_after.jsonl").read_text().splitlines()[0]


def test_equal_seeds_give_the_same_report_and_it_is_printed(run, report, capfd):
    capfd.readouterr()
    assert without_making(evaluated(run, None)) == without_making(report)
    printed = capfd.readouterr().out
    assert "profanity-check" in printed and "95 % interval" in printed and "before_after.json" in printed
    assert report["headline"][0] in printed and "report.json" in printed


# -- other calls -----------------------------------------------------------------------------------


def test_a_report_is_not_replaced_by_one_made_with_other_arguments(run, report, tmp_path, capfd):
    before = (run / "evaluation" / REPORT).read_bytes()
    code, sentence = failure(evaluate.main, [str(run), "--resamples", "200", "--limit", "3"], capfd)
    assert code == 1 and "other arguments (limit)" in sentence and "--out" in sentence
    for option in (["--judges", VOWELS], ["--data", "{}"], ["--systems", '{"base": "base"}'], ["--adapter", "x"]):
        assert "--out FOLDER" in failure(evaluate.main, [str(run), *option], capfd)[1]
    assert (run / "evaluation" / REPORT).read_bytes() == before
    evaluated(run, tmp_path, "--limit", "3")
    assert "other arguments" in failure(evaluate.main, [str(run), "--out", str(tmp_path), "--limit", "4"], capfd)[1]


def test_judges_of_the_command_line(run, tmp_path):
    both = '[{"class_path": "doubles.VowelJudge"}, {"class_path": "detox_rl.classifiers.StrongWords"}]'
    evaluated(run, tmp_path, "--judges", both)
    assert before_after(tmp_path)["judges"].keys() == {"vowels", "strong-words"}


def test_the_other_split(run, tmp_path):
    report = evaluated(run, tmp_path, "--judges", VOWELS, "--split", "validation")
    assert (report["data"]["n"], before_after(tmp_path)["judges"]["vowels"]["n"]) == (5, 2)


def test_limit_takes_the_same_few_each_time(run, tmp_path):
    reports = [evaluated(run, tmp_path / name, "--judges", VOWELS, "--limit", "4") for name in "ab"]
    assert reports[0]["data"]["n"] == 4 and without_making(reports[0]) == without_making(reports[1])


def test_fluency_is_that_of_a_few_the_same_ones_for_every_system(run, tmp_path, monkeypatch):
    """The base has to encode them once more."""
    monkeypatch.setattr("detox_rl.report.values.FLUENCY_LIMIT", 2)
    report = evaluated(run, tmp_path, "--judges", VOWELS)
    assert found(report["means"], system="trained", measure="fluency", stratum="all")["n"] == 2
    known = [
        {name: row["texts"][name]["values"]["fluency"] is not None for name in row["texts"]} for row in report["rows"]
    ]
    assert sum(own["trained"] for own in known) == 2 and all(len(set(own.values())) == 1 for own in known)


def test_the_warm_start_as_adapter_changes_nothing(run, tiny_adapter, tmp_path):
    report = evaluated(run, tmp_path, "--judges", VOWELS, "--adapter", tiny_adapter)
    result = before_after(tmp_path)
    assert result["judges"]["vowels"]["before"] == result["judges"]["vowels"]["after"]
    assert result["judges"]["vowels"]["ci_low"] == result["judges"]["vowels"]["ci_high"] == 0.0
    assert result["rougeL"]["before"] == result["rougeL"]["after"] and result["length_ratio"] == 1.0
    assert (
        "the same on each of 5 rude dialogues"
        in found(report["differences"], system="trained", measure="toxicity/vowels", stratum="rude")["sentence"]
    )


def test_swapped_systems_give_mirrored_differences(run, tmp_path):
    names = ({}, {"warm start": str(run), "trained": "warm_start"})
    one, other = (
        evaluated(run, tmp_path / str(number), "--judges", VOWELS, "--systems", json.dumps(systems))
        for number, systems in enumerate(names)
    )
    for row in one["differences"]:
        if row["system"] == "trained":
            key = {name: row[name] for name in ("system", "measure", "stratum")}
            mirrored = found(other["differences"], **key)
            assert mirrored["difference"] == pytest.approx(-row["difference"], abs=1e-8)
            assert (mirrored["low"], mirrored["high"]) == pytest.approx((-row["high"], -row["low"]), abs=1e-8)
            assert (mirrored["p"], mirrored["n"]) == (row["p"], row["n"])


def test_texts_that_anything_made_without_a_run(run, report, tiny_t5, tmp_path):
    """The trained policy's own texts, from a file, have the figures that it has."""
    lines = [json.dumps({"id": row["id"], "summary": row["texts"]["trained"]["text"],
                         "ended": row["texts"]["trained"]["ended"]}) for row in report["rows"]]  # fmt: skip
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {"test_file": str(run.parent.parent / "test.jsonl"), "min_characters": 1, "max_characters": 3000}
    systems = {"humans": "references", "mine": str(tmp_path / "texts.jsonl")}
    evaluate.main([
        "--systems", json.dumps(systems), "--data", json.dumps(data), "--base_model", tiny_t5, "--judges", VOWELS,
        "--resamples", "200", "--out", str(tmp_path),
    ])  # fmt: skip
    own = json.loads((tmp_path / REPORT).read_text())
    assert own["run"] is None and own["baseline"] == "humans" and own["curves"] == {} and own["sampled"] == []
    for measure in ("toxicity/vowels", "rougeL", "right_speaker", "unended", "copied"):
        stratum = own["measures"][measure]["stratum"]
        means = [
            found(rows, system=system, measure=measure, stratum=stratum)["mean"]
            for rows, system in ((own["means"], "mine"), (report["means"], "trained"))
        ]
        assert means[0] == pytest.approx(means[1])
    assert not (tmp_path / "before_after.json").exists()  # there is no reward to fill its columns


def test_any_number_of_systems_and_samples(run, tiny_adapter, tmp_path):
    """The base, an adapter, and another run's folder, by its own config."""
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(run / "config.yaml", other)
    shutil.copytree(tiny_adapter, other / "adapter")
    systems = {"untrained": "base", "adapter": tiny_adapter, "other run": str(other), "references": None}
    report = evaluated(
        run, tmp_path / "out", "--judges", VOWELS, "--systems", json.dumps(systems), "--samples", "2",
        "--baseline", "untrained",
    )  # fmt: skip
    fingerprints = {system["name"]: system["fingerprint"] for system in report["systems"]}
    assert list(fingerprints) == ["warm start", "trained", "untrained", "adapter", "other run"]
    assert fingerprints["warm start"] == fingerprints["other run"] == fingerprints["adapter"]
    assert len(set(fingerprints.values())) == 3
    assert {row["system"] for row in report["differences"]} == fingerprints.keys() - {"untrained"}
    sampled = found(report["sampled"], system="trained", judge="vowels")
    assert (sampled["k"], sampled["n"]) == (2, 5)
    mean = found(report["means"], system="trained", measure="toxicity/vowels", stratum="rude")["mean"]
    assert 0 < mean and 0 <= sampled["any_toxic"] <= 1 and 0 < sampled["expected_maximum"] <= 1


def test_an_nli_model_says_what_follows(run, tiny_hate_classifier, tmp_path):
    model = Path(tiny_hate_classifier("nothate", "hate"))
    config = json.loads((model / "config.json").read_text())
    labels = {"id2label": {"0": "CONTRADICTION", "1": "ENTAILMENT"}, "label2id": {"CONTRADICTION": 0, "ENTAILMENT": 1}}
    (model / "config.json").write_text(json.dumps(config | labels))
    report = evaluated(run, tmp_path, "--judges", VOWELS, "--nli", str(model))
    row = found(report["means"], system="references", measure="entailment", stratum="all")
    assert 0 < row["mean"] < 1 and row["n"] == 9


def test_other_data_than_that_of_the_run(run, tmp_path):
    files = write_rows(tmp_path, rude=dict(train=1, validation=1, test=3), polite=dict(train=1, validation=1, test=0))
    data = json.dumps({"test_file": files["test"]})
    assert evaluated(run, tmp_path / "out", "--judges", VOWELS, "--data", data)["data"]["n"] == 3


def test_terms_that_learn_score_here_as_they_did_in_training(tmp_path, monkeypatch, tiny_t5, tiny_adapter):
    """They learn from rude and polite dialogues, though only rude ones are trained on, whatever is evaluated."""
    monkeypatch.chdir(tmp_path)
    files = write_rows(tmp_path, rude=dict(train=8, validation=2, test=1), polite=dict(train=6, validation=2, test=1))
    learning = [{"class_path": "detox_rl.rewards.ContentRecall"}]
    options = dict(model__rewards=[REWARDS[0], *learning], data__polite_per_rude=0, trainer__max_steps=1)
    fit.main(fit_flags(tiny_t5, tiny_adapter, files, **options))
    run = tmp_path / "lightning_logs" / "version_0"
    evaluated(run, tmp_path / "out", "--judges", VOWELS, "--data", json.dumps({"test_file": files["validation"]}))
    training = [json.loads(line) for line in Path(files["train"]).read_text().splitlines()]
    recall = ContentRecall()
    recall.fit(Examples([row["dialogue"] for row in training], [row["summary"] for row in training]))
    terms = [NonToxicity(VowelJudge()), recall]
    references = {row["dialogue"]: row["summary"] for row in embedded_rows("validation")}

    def values(rows: list[dict], when: str) -> torch.Tensor:
        dialogues, texts = [row["dialogue"] for row in rows], [row[when] for row in rows]
        assert len(rows) == 4 and len(set(texts)) > 1
        batch = Summaries(texts, dialogues, [references[dialogue] for dialogue in dialogues], [True] * len(rows))
        return term_values(named(terms), batch).double()

    seen = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]["score.comoments"]
    for table, moments in ((run / "samples" / "step=1.jsonl", seen), (tmp_path / "out" / "before_after.jsonl", None)):
        rows = [json.loads(line) for line in table.read_text().splitlines()]
        both = {when: values(rows, when) for when in ("before", "after")}
        moments = comoments(torch.cat(list(both.values()))) if moments is None else moments
        for when, own in both.items():
            wanted = (own @ inverse_std(moments)).tolist()
            assert [row[f"reward_{when}"] for row in rows] == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_held_out_validation_is_that_of_the_runs_seed(tmp_path, monkeypatch, tiny_t5, tiny_adapter):
    """Where the data has no validation split, the seed of the run decides which dialogues it never trained on."""
    monkeypatch.chdir(tmp_path)
    files = write_rows(tmp_path, rude=dict(train=15, validation=0, test=1), polite=dict(train=0, validation=0, test=0))
    del files["validation"]
    fit.main(fit_flags(tiny_t5, tiny_adapter, files, seed_everything=7, data__validation_share=0.3))
    run = tmp_path / "lightning_logs" / "version_0"
    report = evaluated(run, tmp_path / "out", "--judges", VOWELS, "--split", "validation")
    lines = (run / "samples" / "step=0.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == {row["id"] for row in report["rows"]}
