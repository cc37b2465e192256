"""What a checkpoint holds, that writing one can fail without harm, and that reading one runs no code."""

import errno
import os
import pickle
import shutil

import pytest
import torch
from conftest import make_t5, save_lora, save_t5
from doubles import make_batch, make_module, train, trained, unsettle, vowel_rewards

from detox_rl.checkpoints import AtomicCheckpointIO, check_fits, load_trained, trained_names
from detox_rl.rewards import LengthBand, MissingEOS


@pytest.fixture
def saved(tiny_t5, tmp_path):
    """A module after one iteration, and its checkpoint."""
    module = make_module(tiny_t5)
    trainer = train(module, [make_batch(4)], plugins=[AtomicCheckpointIO()])
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    return module, tmp_path / "one.ckpt"


def test_a_checkpoint_holds_what_is_trained_and_loads_weights_only(saved):
    module, path = saved
    checkpoint = torch.load(path, weights_only=True)
    names = set(checkpoint["state_dict"])
    assert set(module.trainable()) <= names
    assert {"kl_coef", "score.comoments", "value_head.weight", "value_head.bias"} <= names
    frozen = [name for name in module.state_dict() if name not in names]
    assert any("shared.weight" in name for name in frozen) and any("lm_head" in name for name in frozen)
    assert not [name for name in names if "base_layer" in name or "shared" in name or "lm_head" in name]
    assert checkpoint["optimizer_states"] and checkpoint["global_step"] == 1


def test_a_warm_start_adds_nothing_to_a_checkpoint(tiny_t5, tiny_adapter_everywhere):
    """It is folded into weights that can be loaded again."""
    assert trained_names(make_module(tiny_t5, tiny_adapter_everywhere)) == trained_names(make_module(tiny_t5))


def test_a_running_module_takes_weights_back(saved):
    module, path = saved
    kept, frozen = trained(module), {name: tensor.clone() for name, tensor in module.state_dict().items()}
    unsettle(module)
    load_trained(module, str(path))
    assert all(torch.equal(kept[name], tensor) for name, tensor in trained(module).items())
    assert all(torch.equal(frozen[name], tensor) for name, tensor in module.state_dict().items())


# -- writing ---------------------------------------------------------------------------------------


def full_disk(monkeypatch, tmp_path):
    """The real error of a full device, at the name that is written first."""
    (tmp_path / ".a.ckpt.partial").symlink_to("/dev/full")


def failing_sync(monkeypatch, tmp_path):
    def fsync(number):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)


def failing_rename(monkeypatch, tmp_path):
    def replace(*args):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize(
    "fault, reason", [(full_disk, "No space left on device"), (failing_sync, "Input/output"), (failing_rename, "quota")]
)
def test_a_write_that_fails_leaves_the_previous_checkpoint(fault, reason, tmp_path, monkeypatch):
    path, io = tmp_path / "a.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"step": 1, "base_model": "a"}, path)
    before = path.read_bytes()
    fault(monkeypatch, tmp_path)
    with pytest.raises(OSError, match=f"{reason}.*previous one is untouched") as failure:
        io.save_checkpoint({"step": 2, "weights": torch.zeros(100_000)}, path)
    assert "\n" not in str(failure.value) and str(path) in str(failure.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.ckpt"]
    monkeypatch.undo()
    io.save_checkpoint({"step": 2, "base_model": "a"}, path)
    assert io.load_checkpoint(path) == {"step": 2, "base_model": "a"}


def test_a_tensor_that_cannot_be_written_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    path, io = tmp_path / "a.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"step": 1, "base_model": "a"}, path)
    before = path.read_bytes()

    def save(checkpoint, file):
        file.write(b"half")
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RuntimeError):
        io.save_checkpoint({"step": 2}, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.ckpt"]


def test_a_leftover_of_a_killed_write_is_overwritten(tmp_path):
    (tmp_path / ".a.ckpt.partial").write_bytes(b"half a checkpoint")
    AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not be written"):
        AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "file" / "a.ckpt")


# -- reading ---------------------------------------------------------------------------------------


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("trust", [None, False, True])
def test_code_in_a_checkpoint_is_refused_and_not_run(trust, tmp_path):
    path, proof = tmp_path / "evil.ckpt", tmp_path / "proof"
    torch.save({"state_dict": {}, "base_model": "a", "code": Code(proof)}, path)
    with pytest.raises(ValueError, match="is not a checkpoint of detox_rl") as failure:
        AtomicCheckpointIO().load_checkpoint(path, weights_only=trust)
    assert not proof.exists() and "\n" not in str(failure.value)
    pickle.loads(pickle.dumps(Code(proof)))  # it would have worked
    assert proof.exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04half a zip"])
def test_what_is_no_checkpoint_is_refused(content, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match="is not a checkpoint of detox_rl"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")


def test_a_cut_checkpoint_is_refused(saved):
    _, path = saved
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="is not a checkpoint of detox_rl"):
        AtomicCheckpointIO().load_checkpoint(path)


# -- fitting ---------------------------------------------------------------------------------------


def resume(module, path):
    train(module, [make_batch(4)] * 2, plugins=[AtomicCheckpointIO()], resume=path)


def test_the_checkpoint_of_another_base_model_is_refused(saved, tmp_path, tiny_tokenizer):
    other = save_t5(make_t5(len(tiny_tokenizer), seed=5), tiny_tokenizer, tmp_path / "other")
    with pytest.raises(ValueError, match="another base model.*model.base_model"):
        resume(make_module(other), saved[1])


@pytest.mark.parametrize(
    "options", [dict(lora_rank=3), dict(lora_targets=["q"]), dict(lora_encoder=True), dict(lora_targets=["o"])]
)
def test_the_checkpoint_of_another_adapter_is_refused(options, saved, tiny_t5):
    with pytest.raises(ValueError, match="does not fit this model .*lora_"):
        resume(make_module(tiny_t5, **options), saved[1])


@pytest.fixture
def saved_with_floor(tiny_t5, tmp_path):
    rewards = [*vowel_rewards(), LengthBand(), MissingEOS()]
    module = make_module(tiny_t5, rewards=rewards, floors={"length_band": 0.1})
    train(module, [make_batch(4)], plugins=[AtomicCheckpointIO()]).save_checkpoint(tmp_path / "floor.ckpt")
    return tmp_path / "floor.ckpt"


@pytest.mark.parametrize("terms", [[LengthBand()], [MissingEOS(), LengthBand()]])
def test_the_checkpoint_of_other_rewards_is_refused(terms, saved_with_floor, tiny_t5):
    """What was gathered about one term would be taken for that of another."""
    other = make_module(tiny_t5, rewards=[*vowel_rewards(), *terms], floors={"length_band": 0.1})
    with pytest.raises(ValueError, match=r"does not fit this model \(at rewards.*the rewards it was"):
        resume(other, saved_with_floor)


@pytest.mark.parametrize("floors", [None, {"missing_eos": 0.1}, {"length_band": 0.05}])
def test_the_checkpoint_of_other_floors_is_refused(floors, saved_with_floor, tiny_t5):
    """Its best checkpoint may not hold them."""
    other = make_module(tiny_t5, rewards=[*vowel_rewards(), LengthBand(), MissingEOS()], floors=floors)
    with pytest.raises(
        ValueError, match=r"made with model\.floors \{'length_band': 0\.1\}, this run has .*resume with them"
    ):
        resume(other, saved_with_floor)


def test_weights_may_change_between_runs(saved_with_floor, tiny_t5):
    rewards = [*vowel_rewards(), LengthBand(weight=2.0), MissingEOS(weight=3.0)]
    module = make_module(tiny_t5, rewards=rewards, floors={"length_band": 0.1})
    resume(module, saved_with_floor)
    assert module.global_step == 2


def test_the_checkpoint_of_another_warm_start_is_refused(saved, tiny_t5, tiny_adapter, tmp_path):
    """What was trained on top of it would fit, and say nothing; the same one in another place is the same."""
    module = make_module(tiny_t5, tiny_adapter)
    trainer = train(module, [make_batch(4)], plugins=[AtomicCheckpointIO()])
    trainer.save_checkpoint(tmp_path / "warm.ckpt")
    sentence = r"^The checkpoint was made with another warm start than .*: set model\.warm_start to [^\n]*$"
    other = save_lora(tiny_t5, tmp_path / "other", seed=1)
    for warm_start, path in ((tiny_adapter, saved[1]), (None, tmp_path / "warm.ckpt"), (other, tmp_path / "warm.ckpt")):
        with pytest.raises(ValueError, match=sentence):
            resume(make_module(tiny_t5, warm_start), path)
    shutil.copytree(tiny_adapter, tmp_path / "same")
    resume(make_module(tiny_t5, str(tmp_path / "same")), tmp_path / "warm.ckpt")


def test_any_other_lightning_checkpoint_is_refused(tiny_t5):
    with pytest.raises(ValueError, match="another base model"):
        check_fits(make_module(tiny_t5), {"state_dict": {}})


def test_resuming_brings_everything_back(saved, tiny_t5):
    module, path = saved
    again = make_module(tiny_t5)
    seen = {}
    again.on_train_start = lambda: seen.update({name: tensor.clone() for name, tensor in again.state_dict().items()})
    resume(again, path)
    for name in trained_names(module):
        assert torch.equal(seen[name], module.state_dict()[name]), name
