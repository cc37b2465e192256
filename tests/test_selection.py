"""Which checkpoint is exported: the best of those whose floors hold, and the warm start where none does."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch
from commands import REWARDS, fit_flags
from doubles import make_batch, make_module, train
from safetensors.torch import load_file

from detox_rl import fit
from detox_rl.callbacks import ExportAdapter, FirstValidation, LastCheckpoint
from detox_rl.checkpoints import BestCheckpoint, is_start
from detox_rl.classifiers import Toxicity
from detox_rl.data.batching import Batch
from detox_rl.ppo_module import PPOModule
from detox_rl.rewards import NonToxicity, RougeL
from detox_rl.summarizer import Summarizer
from detox_rl.trainers import BEST, PPO_MONITOR


def wordy(texts: list[str]) -> Toxicity:
    """The more words, the more toxic: silence is cleanest."""
    words = torch.tensor([float(len(text.split())) for text in texts])
    return Toxicity(words / (1.0 + words), -words)


@pytest.fixture
def batch(tiny_t5, tiny_adapter) -> Batch:
    """Whose human summaries are the warm start's own: any other loses ROUGE-L."""
    module, batch = make_module(tiny_t5, tiny_adapter), make_batch(6, seed=9)
    texts = module.greedy(batch).texts
    assert all(texts)
    return batch._replace(references=texts)


def run(
    base: str, warm_start: str, batch: Batch, folder: Path, steps: int = 3, **more
) -> tuple[PPOModule, BestCheckpoint]:
    """Training that wants silence and nothing else."""
    options = dict(floors={"rouge_l": 0.0}, lr=0.05, resume=None) | more
    resume = options.pop("resume")
    terms = [NonToxicity(wordy, transform="logit"), RougeL(weight=1e-6)]
    module, best = make_module(base, warm_start, rewards=terms, **options), BestCheckpoint(monitor=PPO_MONITOR, **BEST)
    callbacks = [FirstValidation(), LastCheckpoint(), ExportAdapter(), best]
    batches = [make_batch(8, seed) for seed in range(3)]
    train(module, batches, validation=[batch], folder=folder, max_steps=steps, val_check_interval=1,
          callbacks=callbacks, resume=resume)  # fmt: skip
    return module, best


def adapter(folder: Path) -> Path:
    (found,) = folder.glob("lightning_logs/version_0/adapter")
    return found


def says(adapter: Path | str, base: str, batch: Batch) -> list[str]:
    return Summarizer(str(adapter), base, max_new_tokens=8)(batch.prompt_ids, batch.prompt_mask).texts


def test_where_no_checkpoint_holds_its_floors_the_warm_start_is_exported_and_it_is_said(
    tiny_t5, tiny_adapter, batch, tmp_path, monkeypatch
):
    sentences = []
    monkeypatch.setattr("detox_rl.callbacks.rank_zero_warn", sentences.append)
    module, best = run(tiny_t5, tiny_adapter, batch, tmp_path)
    metrics = module.trainer.callback_metrics
    lost = -metrics["val/floor/rouge_l"].item()
    assert metrics["val/rougeL"] < metrics["warm_start/rougeL"] == 100.0
    assert lost > 0.0 and metrics["val/selection"] > 1.0 > best.best_model_score > metrics["val/toxicity"]
    assert is_start(best.best_model_path)
    assert says(adapter(tmp_path), tiny_t5, batch) == says(tiny_adapter, tiny_t5, batch) == batch.references
    assert module.greedy(batch).texts == batch.references  # the module keeps what was exported
    (sentence,) = sentences
    assert sentence.startswith("No checkpoint of this run is better than its start by val/selection, so the start is ")
    assert f"rouge_l lay up to {lost:.3g} below the warm start's, where model.floors allows 0." in sentence
    assert f"val/toxicity was {metrics['val/toxicity']:.3f} (warm start " in sentence and "\n" not in sentence


def test_without_its_floor_the_same_run_exports_what_it_trained(tiny_t5, tiny_adapter, batch, tmp_path, monkeypatch):
    """The toxicity alone selects, and silence is cleanest."""
    sentences = []
    monkeypatch.setattr("detox_rl.callbacks.rank_zero_warn", sentences.append)
    module, best = run(tiny_t5, tiny_adapter, batch, tmp_path, floors=None)
    assert best.best_model_score < module.trainer.callback_metrics["warm_start/toxicity"] and sentences == []
    assert not is_start(best.best_model_path)
    assert says(adapter(tmp_path), tiny_t5, batch) == module.greedy(batch).texts != batch.references


def test_a_resumed_run_selects_as_one_that_never_stopped(tiny_t5, tiny_adapter, batch, tmp_path):
    """The start is known from the checkpoint; it is not measured anew, and its file stays where it was."""
    whole, stopped, again = tmp_path / "whole", tmp_path / "stopped", tmp_path / "again"
    _, one = run(tiny_t5, tiny_adapter, batch, whole)
    run(tiny_t5, tiny_adapter, batch, stopped, steps=1)
    last = stopped / "lightning_logs/version_0/checkpoints/last.ckpt"
    _, other = run(tiny_t5, tiny_adapter, batch, again, resume=last)
    assert one.best_model_score == other.best_model_score and is_start(one.best_model_path)
    assert Path(other.best_model_path).is_relative_to(stopped) and is_start(other.best_model_path)
    exported = [load_file(adapter(folder) / "adapter_model.safetensors") for folder in (whole, again)]
    assert all(torch.equal(tensor, exported[1][name]) for name, tensor in exported[0].items())


def test_a_run_may_be_started_again_from_its_start(tiny_t5, tiny_adapter, batch, tmp_path):
    module, best = run(tiny_t5, tiny_adapter, batch, tmp_path / "one")
    again, _ = run(tiny_t5, tiny_adapter, batch, tmp_path / "two", resume=best.best_model_path)
    ends = [torch.load(tmp_path / name / "lightning_logs/version_0/checkpoints/last.ckpt") for name in ("one", "two")]
    assert all(torch.equal(tensor, ends[1]["state_dict"][name]) for name, tensor in ends[0]["state_dict"].items())


def test_the_command_says_it_and_ends_well(tiny_t5, tiny_adapter, dialogue_files, tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    rewards = [*REWARDS, {"class_path": "doubles.Silence"}]
    args = fit_flags(
        tiny_t5, tiny_adapter, dialogue_files["samsum"], model__rewards=rewards, model__floors={"length_band": 0.0},
        model__lr=0.2, trainer__max_steps=4, trainer__val_check_interval=2, model__max_new_tokens=48,
    )  # fmt: skip
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        fit.main(args)
    (sentence,) = [str(warning.message) for warning in recwarn if "No checkpoint of this run" in str(warning.message)]
    assert re.search(r"length_band lay up to [\d.]+ below the warm start's, where model\.floors allows 0\.$", sentence)
    assert "Adapter (warm start):" in printed.getvalue()
