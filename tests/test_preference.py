"""The reward model: what it reads, that it is kept whole, and the reward term."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from preferred import tiny_encoder
from safetensors.torch import load_file, save_file
from tiny_classifiers import hate_classifier, save

from detox_rl.classifiers import Detoxify
from detox_rl.preference import RewardModel, load_reward_model, untrained
from detox_rl.rewards import Preference, Summaries, check_terms, named

SETTINGS = {"metrics": {}}
TEXTS = ["you are a friend", "idiot", "a kind moron here today", "you are here"]
DIALOGUES = ["you are kind today", "a friend", "moron idiot", "are you a friend here today"]
LONG = "you are a kind friend here today "


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def model(encoder) -> RewardModel:
    return untrained(encoder, seed=0)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("reward") / "reward_model"
    model.save(folder, SETTINGS)
    return str(folder)


def one(model: RewardModel, summary: str, dialogue: str) -> float:
    return model.score([summary], [dialogue]).item()


# -- what is read ----------------------------------------------------------------------------------


def test_a_score_depends_on_its_own_pair_alone(model):
    scores = model.score(TEXTS, DIALOGUES)
    assert len(scores.unique()) == 4
    alone = [one(model, *pair) for pair in zip(TEXTS, DIALOGUES)]
    torch.testing.assert_close(scores, torch.tensor(alone), atol=1e-5, rtol=1e-5)
    many = model.score(TEXTS * 50, DIALOGUES * 50)  # more than one batch, sorted by length
    torch.testing.assert_close(many, scores.repeat(50), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(TEXTS, DIALOGUES).detach(), scores, atol=1e-5, rtol=1e-5)
    assert model.score([], []).shape == (0,)


def test_the_dialogue_loses_its_end(model):
    """The window is 34 tokens, 3 of them around the texts: a summary of 4 words leaves 27 to the dialogue."""
    assert model.window == 34
    most = (LONG * 5).split()[:27]
    whole = one(model, TEXTS[0], " ".join(most))
    assert one(model, TEXTS[0], " ".join([*most, "idiot", "moron"])) == pytest.approx(whole, abs=1e-6)
    assert abs(one(model, TEXTS[0], " ".join([*most[:-1], "idiot"])) - whole) > 1e-4
    assert abs(one(model, "you are a idiot", " ".join(most)) - whole) > 1e-4


def test_a_summary_leaves_a_quarter_to_the_dialogue(model):
    """25 of 34 tokens are read of it, 6 of the dialogue."""
    summary, dialogue = (LONG * 5).split()[:25], (LONG * 5).split()[:6]
    text = " ".join(summary)
    whole = one(model, text, " ".join(dialogue))
    assert one(model, text + " idiot moron" * 40, " ".join(dialogue) + " idiot") == pytest.approx(whole, abs=1e-6)
    assert abs(one(model, " ".join([*summary[:-1], "idiot"]), " ".join(dialogue)) - whole) > 1e-4
    assert abs(one(model, text, " ".join([*dialogue[:-1], "idiot"])) - whole) > 1e-4


def test_scores_are_fp32_whatever_is_around(model):
    expected = model.score(TEXTS, DIALOGUES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.score(TEXTS, DIALOGUES), expected)


# -- what it is made of ----------------------------------------------------------------------------


def test_the_embedded_backbone_is_the_classifiers_body_with_a_new_head():
    judge, state = Detoxify().model, torch.get_rng_state()
    model = untrained("embedded", seed=0)
    assert torch.equal(torch.get_rng_state(), state) and model.window == 128
    own, other = model.network.state_dict(), judge.state_dict()
    different = {name for name in own if not torch.equal(own[name], other[name])}
    assert different == {"classifier.weight", "classifier.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    again, another = (untrained("embedded", seed).network.classifier.weight for seed in (0, 1))
    assert torch.equal(own["classifier.weight"], again) and not torch.equal(again, another)


def test_a_classifiers_head_is_replaced_and_a_reward_models_kept(folder, model, tmp_path):
    classifier = save(hate_classifier(), tmp_path / "hate")  # a RoBERTa with two labels
    heads = [untrained(classifier, seed).score(TEXTS, DIALOGUES) for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert torch.equal(untrained(folder, seed=1).score(TEXTS, DIALOGUES), model.score(TEXTS, DIALOGUES))


def without_a_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if "encoder.layer.0" in name)
    save_file(
        {name: tensor for name, tensor in weights.items() if name != gone},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def test_backbones_that_are_none(encoder, tiny_t5, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(encoder, damaged)
    without_a_layer(damaged)
    with pytest.raises(ValueError, match="cannot be made a reward model .*it has no weights for bert.encoder.layer.0"):
        untrained(str(damaged), seed=0)
    for name in (str(tmp_path), "no/such"):
        with pytest.raises(ValueError, match=f"The backbone '{name}' cannot be made a reward model .* or 'embedded'"):
            untrained(name, seed=0)


# -- the term --------------------------------------------------------------------------------------


def test_the_term_says_what_the_model_said(folder, model):
    term = Preference(folder, weight=2.0)
    assert term.weight == 2.0 and term.optimises == () and list(named([term])) == ["preference"]
    check_terms([term])
    values = term.to("cpu")(Summaries(TEXTS, DIALOGUES, [""] * 4, [True] * 4))
    assert torch.equal(values, model.score(TEXTS, DIALOGUES))
    assert not any(parameter.requires_grad for parameter in term.reward_model.parameters())
    assert not term.reward_model.training


@pytest.mark.parametrize("damage", [
    lambda folder: shutil.rmtree(folder),
    lambda folder: (folder / "settings.json").unlink(),  # what is written last: the folder is not whole
    lambda folder: (folder / "settings.json").write_text("[]"),
    lambda folder: (folder / "model.safetensors").write_bytes(b"no"),
    lambda folder: (folder / "tokenizer.json").unlink(),
    without_a_layer,
])  # fmt: skip
def test_a_folder_that_holds_no_reward_model(damage, folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    damage(other)
    with pytest.raises(
        ValueError, match=f"^The reward model '{other}' cannot be loaded .*detox_rl.prefer has written.$"
    ):
        Preference(str(other))


def test_a_classifier_is_no_reward_model(tmp_path):
    folder = Path(save(hate_classifier(), tmp_path / "hate"))
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_reward_model(str(folder))
