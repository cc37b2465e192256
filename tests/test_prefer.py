"""Human feedback through the same `main` as the shell: planted preferences, their files, and PPO on what was learnt."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from commands import QUIET, REWARDS, failure, fit_flags, flags
from conftest import embedded_rows
from preferred import planted_pairs, planted_ratings, shorter_pairs, tiny_encoder, write_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detox_rl import fit, prefer
from detox_rl.data.preferences import PreferenceDataModule
from detox_rl.preference import load_reward_model
from detox_rl.preference_module import PreferenceModule


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def prefer_flags(encoder: str, file: str, **options) -> list[str]:
    defaults = dict(
        model__backbone=encoder, model__lr=0.01, data__file=file, trainer__max_epochs=8, trainer__accelerator="cpu"
    )
    return QUIET + flags(**(defaults | options))


def trained(folder: Path, encoder: str, rows: list[dict], **options) -> Path:
    """Runs the command in a folder. Returns the folder of the run."""
    with contextlib.chdir(folder):
        prefer.main(prefer_flags(encoder, write_rows(folder / "rows.jsonl", rows), **options))
    return folder / "lightning_logs" / "version_0"


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory, encoder) -> Path:
    return trained(tmp_path_factory.mktemp("prefer"), encoder, planted_pairs(300))


# -- what is learnt --------------------------------------------------------------------------------


def test_a_planted_preference_is_learnt(run):
    found = metrics(run)
    assert found["measure"] == "pair_accuracy" and found["n"] == 60
    assert found["value"] >= 0.95 and found["low"] > 0.85


def test_the_test_has_no_part_in_what_is_learnt_or_chosen(tmp_path, encoder):
    """A coin decides what people prefer. With the coins of the test turned over, the model stays the same to the bit, and
    is right where it was wrong: so over all coins its accuracy is 0.5 on average, as it should be.
    """
    rows = planted_pairs(150, shuffled=True)
    data = PreferenceDataModule(write_rows(tmp_path / "rows.jsonl", rows))
    data.setup("fit")
    over = lambda row: row | {"preferred": row["rejected"], "rejected": row["preferred"]}
    turned = [over(row) if row["dialogue"] in data.test.dialogues else row for row in rows]
    runs = []
    for name, tossed in (("one", rows), ("other", turned)):
        (tmp_path / name).mkdir()
        runs.append(trained(tmp_path / name, encoder, tossed, trainer__max_epochs=3))
    one, other = ((run / "reward_model" / "model.safetensors").read_bytes() for run in runs)
    assert one == other and metrics(runs[0])["n"] == 30
    assert metrics(runs[0])["value"] + metrics(runs[1])["value"] == pytest.approx(1.0)


@pytest.mark.parametrize("of_each, measure, least", [(1, "rank_correlation", 0.8), (2, "pair_accuracy", 0.95)])
def test_planted_ratings_are_learnt(of_each, measure, least, tmp_path, encoder):
    """A rating of one summary a dialogue can only be ranked; two of the same dialogue are a pair."""
    rows = planted_ratings(300 // of_each, of_each)
    folder = trained(tmp_path, encoder, rows, model__lr=0.003, trainer__max_epochs=12)
    found = metrics(folder)
    assert found["measure"] == measure and found["n"] == 60 // of_each and found["value"] >= least
    settings = json.loads((folder / "reward_model" / "settings.json").read_text())
    assert settings["judgements"] == "ratings" and 2 < settings["standardisation"]["mean"] < 5
    rows = planted_pairs(20)
    texts = [row[kind] for kind in ("preferred", "rejected") for row in rows], 2 * [row["dialogue"] for row in rows]
    good, bad = load_reward_model(str(folder / "reward_model")).score(*texts).chunk(2)
    assert 0.5 < good.mean() < 1.5 and -1.5 < bad.mean() < -0.5  # a standard deviation above and below the mean


# -- what is written -------------------------------------------------------------------------------


def test_the_folder_is_whole(run):
    settings = json.loads((run / "reward_model" / "settings.json").read_text())
    assert settings["metrics"] == metrics(run) and settings["judgements"] == "pairs"
    assert [settings[part] for part in ("train", "validation", "test")] == [210, 30, 60]
    assert settings["standardisation"] is None
    assert {"config.yaml", "metrics.json"} <= {path.name for path in run.iterdir()}
    names = {path.name for path in (run / "reward_model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "settings.json"} <= names


def curve(run: Path, name: str) -> list[float]:
    return [event.value for event in EventAccumulator(str(run)).Reload().Scalars(name)]


def test_the_lowest_validation_loss_is_kept(run, encoder):
    losses = curve(run, "val/loss")
    (best,) = (run / "checkpoints").glob("step=*.ckpt")
    steps = int(best.stem.partition("=")[2])
    assert len(losses) == 8 and steps == 14 * (1 + losses.index(min(losses)))
    assert curve(run, "test/pair_accuracy") == pytest.approx([metrics(run)["value"]])
    module = PreferenceModule(encoder)
    module.load_state_dict(torch.load(best, weights_only=True)["state_dict"])
    rows = embedded_rows("validation")[:8]
    inputs = [row["summary"] for row in rows], [row["dialogue"] for row in rows]
    kept = load_reward_model(str(run / "reward_model"))
    assert torch.equal(kept.score(*inputs), module.eval().reward_model.score(*inputs))


def test_the_same_seed_learns_the_same(tmp_path, encoder):
    folders = [tmp_path / name for name in ("one", "two", "other")]
    for folder, seed in zip(folders, (0, 0, 1)):
        folder.mkdir()
        trained(folder, encoder, planted_pairs(60), trainer__max_epochs=1, seed_everything=seed)
    files = [folder / "lightning_logs/version_0/reward_model/model.safetensors" for folder in folders]
    one, two, other = (file.read_bytes() for file in files)
    assert one == two != other


def test_a_run_goes_on_where_it_stood(run, tmp_path, encoder, capfd):
    rows = write_rows(tmp_path / "rows.jsonl", planted_pairs(300))
    (best,) = (run / "checkpoints").glob("step=*.ckpt")
    more = prefer_flags(encoder, rows, ckpt_path=str(best), trainer__max_epochs=9)
    with contextlib.chdir(tmp_path):
        prefer.main(more)
    assert metrics(tmp_path / "lightning_logs" / "version_0")["value"] >= 0.95
    with contextlib.chdir(tmp_path):
        _, said = failure(prefer.main, prefer_flags("embedded", rows, ckpt_path=str(best)), capfd)
    assert "not one of a reward model over 'embedded': set model.backbone" in said


def test_fast_dev_run_keeps_nothing(tmp_path, encoder, capfd):
    with contextlib.chdir(tmp_path):
        prefer.main(
            prefer_flags(encoder, write_rows(tmp_path / "r.jsonl", planted_pairs(40)), trainer__fast_dev_run=True)
        )
    assert "fast_dev_run: everything works" in capfd.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_a_config_and_what_the_run_says_at_its_end(tmp_path, encoder, capfd):
    file = write_rows(tmp_path / "rows.jsonl", planted_pairs(40))
    (tmp_path / "own.yaml").write_text(f"data: {{file: {file}, test_share: 0.5}}\ntrainer: {{max_epochs: 1}}\n")
    with contextlib.chdir(tmp_path):
        prefer.main([*QUIET, "--config", "own.yaml", "--model.backbone", encoder, "--trainer.accelerator", "cpu"])
    said = capfd.readouterr().out
    assert "Test:            pairs ranked as people did" in said and "n = 20" in said
    assert "--model.rewards+=detox_rl.rewards.Preference --model.rewards.folder" in said


# -- PPO -------------------------------------------------------------------------------------------


def test_ppo_moves_the_term(encoder, tiny_t5, dialogue_files, tmp_path, monkeypatch):
    """By the flags that the run names at its end: people like short summaries, the term rises, and summaries get shorter."""
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path, encoder, shorter_pairs(300))
    assert metrics(run)["value"] >= 0.9
    options = dict(trainer__max_steps=12, trainer__val_check_interval=12, model__lr=0.02, model__floors=None,
                   model__kl_coef=0.0, data__batch_size=12, model__minibatch_size=6, guard__patience=99)  # fmt: skip
    measuring = REWARDS[0] | {"init_args": REWARDS[0]["init_args"] | {"weight": 0.0}}
    args = fit_flags(tiny_t5, None, dialogue_files["samsum"], model__rewards=[measuring], **options)
    fit.main([*args, "--model.rewards+=detox_rl.rewards.Preference", "--model.rewards.folder", f"{run}/reward_model"])
    folder = tmp_path / "lightning_logs" / "version_1"
    values, lengths = (curve(folder, name) for name in ("reward/preference", "tokens/responses_len_mean"))
    assert len(values) == 12 and max(values[:3]) < min(values[-3:]) and min(lengths[:3]) > max(lengths[-3:])


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("rows, options, sentence", [
    ([{"dialogue": "d", "summary": "s"}], {}, "has the columns dialogue, summary: people's judgements have either"),
    (planted_pairs(3)[:1] * 4, {}, "judgements of 1 different dialogues"),
    (planted_pairs(9), {"model__backbone": "no/such/encoder"}, "The backbone 'no/such/encoder' cannot be made"),
    (planted_pairs(9), {"model__lr": -1.0}, "model.lr must be at least 0, not -1.0"),
    (planted_pairs(9), {"trainer__devices": 2, "trainer__strategy": "ddp"}, "trained by one process, not 2"),
    (planted_pairs(9), {"data__file": "none.jsonl"}, "There is no file none.jsonl"),
    (planted_pairs(9), {"ckpt_path": "last"}, "There is no checkpoint 'last'"),
    (planted_pairs(9), {"data__train_file": "x"}, "data.train_file"),
])  # fmt: skip
def test_bad_input(rows, options, sentence, tmp_path, monkeypatch, encoder, capfd):
    monkeypatch.chdir(tmp_path)
    _, said = failure(prefer.main, prefer_flags(encoder, write_rows(tmp_path / "rows.jsonl", rows), **options), capfd)
    assert sentence in said and not Path("lightning_logs").exists()


def test_no_file(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    code, said = failure(prefer.main, [], capfd)
    assert code == 2 and "data.file" in said


def test_a_term_without_its_folder(tiny_t5, dialogue_files, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    term = {"class_path": "detox_rl.rewards.Preference", "init_args": {"folder": "nowhere"}}
    args = fit_flags(tiny_t5, None, dialogue_files["samsum"], model__rewards=[REWARDS[0], term])
    _, said = failure(fit.main, args, capfd)
    assert "The reward model 'nowhere' cannot be loaded" in said and not Path("lightning_logs").exists()
