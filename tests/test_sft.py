"""Supervised fine-tuning through the same `main` as the shell, on a tiny model."""

import re
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from commands import fit_flags, sft_flags
from conftest import make_t5, save_t5
from doubles import make_batch, train
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detox_rl import DialogueDataModule, fit, sft
from detox_rl.checkpoints import load_trained
from detox_rl.data import datamodule
from detox_rl.data.batching import Batch
from detox_rl.functional.masking import shift_right
from detox_rl.sft_module import SFTModule


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_t5, dialogue_files) -> Path:
    import contextlib

    with contextlib.chdir(tmp_path_factory.mktemp("sft")) as _:
        sft.main(sft_flags(tiny_t5, dialogue_files["dialogsum"], trainer__max_steps=8, model__lr=0.05))
        return Path("lightning_logs/version_0").absolute()


def test_files_are_written(run):
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    adapter = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert adapter | {"config.yaml", "checkpoints/last.ckpt"} <= names


def test_the_loss_falls_on_what_it_is_trained_on(run):
    scalars = EventAccumulator(str(run)).Reload()
    losses = [event.value for event in scalars.Scalars("train/loss")]
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.1
    assert {"val/loss", "val/rougeL"} <= set(scalars.Tags()["scalars"])


def test_ppo_starts_from_the_adapter(run, tiny_t5, dialogue_files, tmp_path, monkeypatch):
    """What is trained has the options' rank, not the warm start's; policy and reference agree before the first update."""
    monkeypatch.chdir(tmp_path)
    fit.main(fit_flags(tiny_t5, str(run / "adapter"), dialogue_files["samsum"]))
    scalars = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0")).Reload()
    assert scalars.Scalars("objective/kl")[0].value == pytest.approx(0.0, abs=1e-5)
    weights = torch.load(tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert {len(tensor) for name, tensor in weights.items() if "lora_A" in name} == {16}


def test_an_adapter_can_be_trained_further(run, tiny_t5, dialogue_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = sft_flags(tiny_t5, dialogue_files["dialogsum"], model__warm_start=str(run / "adapter"), trainer__max_steps=1)
    sft.main(args)
    first = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0")).Reload().Scalars("train/loss")[0].value
    fresh = EventAccumulator(str(run)).Reload().Scalars("train/loss")[0].value
    assert first < fresh - 0.1
    adapter = tmp_path / "lightning_logs" / "version_0" / "adapter"
    ranks = [
        len(tensor) for name, tensor in load_file(adapter / "adapter_model.safetensors").items() if "lora_A" in name
    ]
    assert set(ranks) == {4 + 4}  # what it started from, and what was trained on top


def test_gradients_are_clipped_and_accumulated_by_lightning(tiny_t5, dialogue_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = dict(accumulate_grad_batches=2, gradient_clip_val=0.1, val_check_interval=2)
    options = {f"trainer__{name}": value for name, value in options.items()}
    sft.main(sft_flags(tiny_t5, dialogue_files["dialogsum"], **options))
    assert (tmp_path / "lightning_logs" / "version_0" / "adapter").is_dir()


# -- label smoothing -------------------------------------------------------------------------------


def all_logits(module: SFTModule, batch: Batch) -> torch.Tensor:
    """Of the real target tokens, by the model's own forward pass. (tokens, vocabulary)"""
    t5 = module.policy.t5
    inputs = shift_right(batch.targets, t5.config.decoder_start_token_id)
    output = t5(input_ids=batch.prompt_ids, attention_mask=batch.prompt_mask, decoder_input_ids=inputs)
    return output.logits[batch.targets_mask]


@pytest.fixture(scope="module")
def tied_t5(tmp_path_factory, tiny_tokenizer) -> str:
    """Whose decoder states are scaled before the vocabulary projection."""
    return save_t5(make_t5(len(tiny_tokenizer), tied=True), tiny_tokenizer, tmp_path_factory.mktemp("tied_t5"))


@pytest.mark.parametrize("kind", ["tiny_t5", "tied_t5"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_the_loss_is_torchs_cross_entropy(kind, smoothing, request):
    module = SFTModule(request.getfixturevalue(kind), lora_rank=2, lora_dropout=0.0)
    for parameter in module.trainable().values():
        torch.nn.init.normal_(parameter, std=0.3)
    batch = ragged(make_batch(6))
    expected = F.cross_entropy(all_logits(module, batch), batch.targets[batch.targets_mask], label_smoothing=smoothing)
    loss = module.loss(batch, smoothing)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    parameters = list(module.trainable().values())
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def ragged(batch: Batch) -> Batch:
    """Targets of one to three tokens."""
    mask = torch.arange(batch.targets.shape[1]) <= torch.arange(len(batch.ids)).unsqueeze(-1) % 3
    return batch._replace(targets_mask=mask)


def test_training_is_smoothed_and_validation_is_not(tiny_t5):
    batch, losses = make_batch(4), []
    for smoothing in (0.0, 0.3):
        torch.manual_seed(0)
        module = SFTModule(tiny_t5, lora_rank=2, lora_dropout=0.0, lr=0.0, label_smoothing=smoothing)
        metrics = train(module, [batch], validation=[batch], val_check_interval=1).callback_metrics
        assert metrics["train/loss"] == pytest.approx(module.loss(batch, smoothing).item(), abs=1e-5)
        losses.append((metrics["train/loss"].item(), metrics["val/loss"].item()))
    assert losses[0][1] == losses[1][1] and abs(losses[0][0] - losses[1][0]) > 0.01


# -- several targets, early stopping, another measure of the best ----------------------------------


def test_further_targets_are_trained_on(tiny_t5, tmp_path, monkeypatch):
    """Of the embedded dialogues, the rude ones have a quoting summary too."""
    told = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datamodule, "rank_zero_info", told.append)
    limits = dict(data__train_limit=20, data__validation_limit=4, data__further_summary_columns=["quoting_summary"])
    sft.main(sft_flags(tiny_t5, {}, **limits))
    data = DialogueDataModule(tokenizer=tiny_t5, polite_per_rude=None, train_limit=20)
    data.setup("fit")
    rude = sum(row.rude for row in data.rows["train"])
    assert rude > 0 and re.search(rf"^train: 20 of 3630 rows used .* {rude} further targets\. Cut", told[0])


def values(folder: Path, name: str) -> dict[int, float]:
    """Step -> value of a metric that TensorBoard shows."""
    return {event.step: event.value for event in EventAccumulator(str(folder)).Reload().Scalars(name)}


def exported_is(folder: Path, base: str, step: int) -> bool:
    """Whether the adapter is what is exported of a checkpoint."""
    module = SFTModule(base, lora_rank=4)
    load_trained(module, str(folder / "checkpoints" / f"step={step}.ckpt"))
    module.policy.save_adapter(folder / "of_checkpoint")
    saved, own = (load_file(folder / name / "adapter_model.safetensors") for name in ("adapter", "of_checkpoint"))
    return saved.keys() == own.keys() and all(torch.equal(saved[name], own[name]) for name in saved)


def test_lightnings_early_stopping_stops_and_the_best_is_exported(tiny_t5, dialogue_files, tmp_path, monkeypatch):
    """As the README has it. A learning rate of 10 leaves nothing to hope for after the first step."""
    monkeypatch.chdir(tmp_path)
    early = [
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val/loss",
        "--trainer.callbacks.patience=2",
    ]
    options = dict(trainer__max_steps=50, model__lr=10.0)
    sft.main([*sft_flags(tiny_t5, dialogue_files["dialogsum"], **options), *early])
    folder = tmp_path / "lightning_logs" / "version_0"
    losses = values(folder, "val/loss")
    best = min(losses, key=losses.get)
    assert len(losses) == best + 1 + 2 < 50  # steps of the log count from 0
    assert exported_is(folder, tiny_t5, best + 1)


def test_the_best_can_be_that_of_highest_rouge(tiny_t5, dialogue_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = dict(trainer__max_steps=8, model__lr=0.01, checkpoint__monitor="val/rougeL", checkpoint__mode="max")
    sft.main(sft_flags(tiny_t5, dialogue_files["dialogsum"], **options))
    folder = tmp_path / "lightning_logs" / "version_0"
    rouges, losses = values(folder, "val/rougeL"), values(folder, "val/loss")
    best = max(rouges, key=rouges.get)
    assert best != min(losses, key=losses.get) and len(set(rouges.values())) > 2
    assert exported_is(folder, tiny_t5, best + 1)


@pytest.mark.parametrize("dropout, losses", [(0.5, 4), (0.0, 1)])
def test_each_micro_batch_drops_out_its_own(dropout, losses, tiny_t5):
    class Losses(L.Callback):
        def __init__(self):
            self.seen = set()

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.seen.add(float(trainer.callback_metrics["train/loss"]))

    torch.manual_seed(0)  # of the adapter
    module = SFTModule(tiny_t5, lora_rank=4, lora_dropout=dropout, lr=0.0)
    torch.nn.init.normal_(next(tensor for name, tensor in module.trainable().items() if "lora_B" in name))
    callback = Losses()
    train(module, [make_batch(4)] * 4, callbacks=[callback], accumulate_grad_batches=2, max_steps=2)
    assert len(callback.seen) == losses
