"""The judges that are not the reward: the shipped ones on planted sentences, and tiny ones of known weights."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from detox_rl import embedded
from detox_rl.classifiers import HashedNgrams, StrongWords, clean_log_odds

REPORTING = [
    "Tom insults Anna and storms out.",
    "Tom swears at the agent about the refund.",
    "Carlos threatens to hurt the landlord over the rent; she will call the police.",
    "A gay couple and their Muslim neighbour agree to meet for coffee on Monday.",
]
REPEATING = [
    "Tom calls Anna a stupid bitch and storms out.",
    "Tom wants his fucking money back from the agent.",
    "The landlord is a lying bastard, says Carlos about the rent; she will call the police.",
    "The idiot next door ruined the coffee, so they will meet on Monday.",
]
ASSET_BYTES = {
    "conflict": 150_000,
    "dialogues": 4_000_000,
    "group_terms.txt": 5_000,
    "hashed_ngrams": 3_000_000,
    "strong_words.txt": 20_000,
    "summary_adapter": 6_000_000,
    "toxicity": 8_000_000,
}


@pytest.mark.parametrize("judge", [HashedNgrams(), StrongWords()], ids=lambda judge: judge.name)
def test_repeating_an_insult_is_worse_than_reporting_one(judge):
    clean, rude = judge(REPORTING), judge(REPEATING)
    assert clean.probability.max() < min(0.5, rude.probability.min())
    assert rude.clean_logit.max() < clean.clean_logit.min()
    assert clean.probability.dtype == clean.clean_logit.dtype == torch.float32


@pytest.mark.parametrize("judge", [HashedNgrams(), StrongWords()], ids=lambda judge: judge.name)
def test_each_text_is_judged_alone(judge):
    together = judge([*REPORTING, "", *REPEATING])
    alone = torch.cat([judge([text]).clean_logit for text in [*REPORTING, "", *REPEATING]])
    torch.testing.assert_close(together.clean_logit, alone)
    assert judge([]).probability.shape == judge([]).clean_logit.shape == (0,)


def test_the_ngram_judge_adds_up_the_weights_of_what_it_finds(tmp_path):
    words = {"analyzer": "word", "ngram_range": [1, 1], "n_features": 64, "binary": True, "norm": None}
    settings = {"bias": -2.0, "ngrams": {"words": words | {"alternate_sign": False}}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    save_file({"words": torch.full((64,), 1.5, dtype=torch.float16)}, tmp_path / "weights.safetensors")
    verdict = HashedNgrams(str(tmp_path))(["idiot", "idiot moron", ""])
    torch.testing.assert_close(verdict.clean_logit, torch.tensor([0.5, -1.0, 2.0]))
    torch.testing.assert_close(verdict.probability, torch.tensor([-0.5, 1.0, -2.0]).sigmoid())


def damaged(tmp_path, damage):
    folder = shutil.copytree(embedded.hashed_ngrams(), tmp_path / "judge")
    damage(folder)
    return str(folder)


@pytest.mark.parametrize(
    "damage",
    [
        shutil.rmtree,
        lambda folder: (folder / "settings.json").write_text("no json"),
        lambda folder: (folder / "settings.json").write_text("{}"),
        lambda folder: (folder / "weights.safetensors").write_bytes(b"no weights"),
        lambda folder: save_file({"words": torch.ones(3)}, folder / "weights.safetensors"),
        lambda folder: (folder / "settings.json").write_text(
            (folder / "settings.json").read_text().replace("char_wb", "letterwise")
        ),
    ],
    ids=["absent", "no json", "no settings", "no weights", "too few weights", "unknown setting"],
)
def test_a_folder_that_is_no_ngram_judge_is_refused_in_one_sentence(tmp_path, damage):
    folder = damaged(tmp_path, damage)
    expected = rf"^The n-gram judge {re.escape(repr(folder))} cannot be loaded \(.+\): name a folder .*'embedded'\.$"
    with pytest.raises(ValueError, match=expected) as caught:
        HashedNgrams(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["fuck", "FUCKING", "fucked-up", "A fucker!", "idiots", "idiotic", "(bitches)", '"shitty"', "wankers,", "f**king"],
)
def test_strong_words_are_found_with_their_inflections(text):
    assert StrongWords()([text]).probability.item() == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "Scunthorpe", "a class assignment", "Shitake mushrooms", "cocktails", "Dickens", "a blue tit", "a donkey",
        "the loser pays", "raccoon", "spice", "title", "analysis", "digits", "a gay Muslim woman", "",
    ],
)  # fmt: skip
def test_strong_words_are_not_found_inside_harmless_ones(text):
    assert StrongWords()([text]).probability.item() == 0.0


def test_strong_words_are_sure():
    verdict = StrongWords()(["an idiot", "a friend"])
    assert verdict.probability.tolist() == [1.0, 0.0]
    torch.testing.assert_close(verdict.clean_logit, clean_log_odds(verdict.probability))


def test_strong_words_of_your_own(tmp_path):
    (tmp_path / "words.txt").write_text("# my list\nblast, blasted\nwhat a pity,  c++  ,\n\n")
    judge = StrongWords(str(tmp_path / "words.txt"))
    assert judge(["Blasted!", "What a pity.", "in C++"]).probability.tolist() == [1, 1, 1]
    assert judge(["my list", "blaster", "idiot"]).probability.tolist() == [0, 0, 0]


def test_strong_words_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"^The list of words 'absent.txt' cannot be read \(.*\): name a text file"):
        StrongWords("absent.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be read .*: name a text file in UTF-8, or 'embedded'"):
        StrongWords(str(tmp_path / "binary"))
    (tmp_path / "empty.txt").write_text("# nothing yet\n ,\n")
    with pytest.raises(ValueError, match="is empty: write words into it, parted by commas"):
        StrongWords(str(tmp_path / "empty.txt"))


def test_the_list_of_strong_words_has_no_entry_twice():
    lines = embedded.strong_words().read_text(encoding="utf-8").splitlines()
    entries = [entry.strip() for line in lines if line and not line.startswith("#") for entry in line.split(",")]
    assert len(set(entries)) == len(entries) > 500
    assert all(entry == entry.lower() for entry in entries)


def test_the_embedded_ngram_judge_is_stored_in_half_precision_without_pickle():
    folder = embedded.hashed_ngrams()
    files = {path.name for path in folder.iterdir()}
    assert files == {"CARD.md", "metrics.json", "settings.json", "weights.safetensors"}
    weights = load_file(folder / "weights.safetensors")
    assert all(w.dtype == torch.float16 and w.isfinite().all() for w in weights.values())


def test_every_asset_is_at_most_its_size():
    assets = Path(embedded.__file__).parent / "assets"
    found = {path.name: path for path in assets.iterdir()}
    assert set(found) == set(ASSET_BYTES)
    for name, path in found.items():
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) <= ASSET_BYTES[name], name
