"""Rewards against closed forms. The classifiers are tiny networks of the real formats that know two rude words."""

import math
import sys
import urllib.error
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from detox_rl import rewards
from detox_rl.rewards import (
    Copying,
    Detoxify,
    LengthBand,
    MissingEOS,
    NonToxicity,
    ProfanityCheck,
    Repetition,
    RougeL,
    Samples,
    ShortOutput,
    TextClassifier,
    Toxicity,
    classify,
    clean_log_odds,
    default_rewards,
    max_tokens,
    total_score,
)

WORDS = "<s> <pad> </s> <unk> you are a kind friend here today idiot moron".split()
CLEAN = ["you are a friend", "kind friend here", "a kind friend here today", "are you here today"]
RUDE = ["you are a idiot", "moron friend here", "a kind moron here today", "are you idiot today"]
SIX = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", WORDS.index("<s>")), ("</s>", WORDS.index("</s>"))]
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>")


SHAPE = dict(
    vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    pad_token_id=1, max_position_embeddings=34, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    initializer_range=0.2,  # at the usual 0.02 so small a BERT learns nothing
)  # fmt: skip


def learn(model: torch.nn.Module, targets: torch.Tensor, loss: Callable) -> None:
    inputs = tokenizer()(CLEAN + RUDE, padding=True, return_tensors="pt")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss(model(**inputs).logits, targets).backward()
        optimizer.step()
    model.eval()


def save(model: torch.nn.Module, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def hate(tmp_path_factory) -> dict[str, str]:
    """One tiny RoBERTa in both orders of its labels: "first" has nothate at 0, "last" at 1."""
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(RobertaConfig(**SHAPE, id2label={0: "nothate", 1: "hate"}))
    learn(model, torch.tensor([0] * 4 + [1] * 4), torch.nn.functional.cross_entropy)
    folders = {"first": save(model, tmp_path_factory.mktemp("first"))}
    model.config.id2label, model.config.label2id = {0: "hate", 1: "nothate"}, {"hate": 0, "nothate": 1}
    for parameter in model.classifier.out_proj.parameters():
        parameter.data = parameter.data.flip(0)
    return folders | {"last": save(model, tmp_path_factory.mktemp("last"))}


@pytest.fixture(scope="module")
def six_labels(tmp_path_factory) -> str:
    """A tiny Detoxify checkpoint whose tokenizer and config lie beside it."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SHAPE, num_labels=6))
    # "moron" is toxic alone, "idiot" an insult too.
    targets = torch.zeros(8, 6)
    targets[4:, 0] = 1.0
    targets[[4, 7], 4] = 1.0
    learn(model, targets, torch.nn.functional.binary_cross_entropy_with_logits)
    folder = tmp_path_factory.mktemp("detoxify")
    model.config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    arch = dict(model_type="./", model_name="BertForSequenceClassification", num_classes=6)
    arch |= dict(tokenizer_name="PreTrainedTokenizerFast")
    config = {"arch": {"args": arch}, "dataset": {"args": {"classes": SIX}}}
    torch.save({"config": config, "state_dict": model.state_dict()}, folder / "tiny.ckpt")
    return str(folder / "tiny.ckpt")


def samples(
    summaries: list[str],
    references: list[str] | None = None,
    dialogues: list[str] | None = None,
    ended: list[bool] | None = None,
) -> Samples:
    count = len(summaries)
    return Samples(summaries, dialogues or [""] * count, references or ["a b c"] * count, ended or [True] * count)


def judge(probabilities: list[float]) -> Callable:
    probability = torch.tensor(probabilities)
    return lambda texts: Toxicity(probability, 100.0 - probability)


# -- classifiers -----------------------------------------------------------------------------------


def test_batching_by_length_keeps_the_order(hate):
    classifier = TextClassifier(hate["first"], "hate", True)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 20, (150,), generator=generator).tolist()
    texts = [" ".join(WORDS[int(torch.randint(4, 13, (), generator=generator))] for _ in range(n)) for n in lengths]
    together = classify(classifier.model, classifier.tokenizer, texts)
    alone = torch.cat([classify(classifier.model, classifier.tokenizer, [text]) for text in texts])
    assert alone.std() > 0.5
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_classify_of_nothing_and_of_empty_texts(hate):
    classifier = TextClassifier(hate["first"], "hate", True)
    assert classify(classifier.model, classifier.tokenizer, []).shape == (0, 2)
    assert classify(classifier.model, classifier.tokenizer, ["", " "]).isfinite().all()


def test_scores_do_not_depend_on_autocast(hate):
    classifier = TextClassifier(hate["first"], "hate", True)
    inputs = classifier.tokenizer(RUDE, padding=True, return_tensors="pt")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert classifier.model(**inputs).logits.dtype == torch.bfloat16  # autocast would act
        inside = classifier(RUDE).clean_logit
    assert inside.dtype == torch.float32
    assert torch.equal(inside, classifier(RUDE).clean_logit)


def test_long_text_is_cut_to_what_the_classifier_reads(hate, six_labels):
    roberta, bert = TextClassifier(hate["first"], "hate", True), Detoxify(six_labels)
    assert roberta.tokenizer.model_max_length > 1e20
    assert max_tokens(roberta.model, roberta.tokenizer) == 32  # of 34 positions
    assert max_tokens(bert.model, bert.tokenizer) == 34
    for classifier, words in ((roberta, 30), (bert, 32)):
        long = classifier([" ".join(["kind"] * words + ["idiot"] * 1000)])
        torch.testing.assert_close(long, classifier([" ".join(["kind"] * words)]))


def test_networks_are_frozen(hate, six_labels):
    for classifier in (TextClassifier(hate["first"], "hate", True), Detoxify(six_labels)):
        assert not classifier.model.training
        assert not any(parameter.requires_grad for parameter in classifier.model.parameters())
        assert not classifier(RUDE).clean_logit.requires_grad


@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize(("label", "label_is_toxic"), [("nothate", False), ("hate", True)])
def test_label_is_read_by_its_name(hate, order, label, label_is_toxic):
    classifier = TextClassifier(hate[order], label, label_is_toxic)
    clean, rude = classifier(CLEAN), classifier(RUDE)
    assert clean.probability.max() < 0.5 < rude.probability.min()
    assert rude.clean_logit.max() < clean.clean_logit.min()
    # All four ways of asking give the same probability, and the logit is the label's raw one.
    torch.testing.assert_close(rude.probability, TextClassifier(hate["first"], "hate", True)(RUDE).probability)
    column = int((label == "hate") == (order == "first"))
    logits = classify(classifier.model, classifier.tokenizer, RUDE)[:, column]
    torch.testing.assert_close(rude.clean_logit, -logits if label_is_toxic else logits)


def test_labels_that_do_not_exclude_each_other_have_a_sigmoid_each(hate):
    classifier = TextClassifier(hate["first"], "hate", True)
    logits = classify(classifier.model, classifier.tokenizer, RUDE)
    torch.testing.assert_close(classifier(RUDE).probability, logits.softmax(-1)[:, 1])
    classifier.exclusive = False
    torch.testing.assert_close(classifier(RUDE).probability, logits[:, 1].sigmoid())


def test_problem_type_of_the_config_decides(hate, tmp_path):
    model = RobertaForSequenceClassification.from_pretrained(hate["first"])
    model.config.problem_type = "multi_label_classification"
    assert not TextClassifier(save(model, tmp_path / "multi"), "hate", True).exclusive
    assert TextClassifier(hate["first"], "hate", True).exclusive
    one = BertForSequenceClassification(BertConfig(**SHAPE, id2label={0: "toxic"}))
    assert not TextClassifier(save(one, tmp_path / "one"), "toxic", True).exclusive


def test_text_classifier_refuses(hate, tmp_path):
    with pytest.raises(ValueError, match=r"no label 'toxic', but nothate, hate\.$"):
        TextClassifier(hate["first"], "toxic", True)
    with pytest.raises(ValueError, match="cannot be loaded .*: name a folder"):
        TextClassifier(str(tmp_path / "absent"), "hate", True)
    headless = BertForSequenceClassification(BertConfig(**SHAPE)).bert
    with pytest.raises(ValueError, match="has no weights for classifier.bias: name a model fine-tuned"):
        TextClassifier(save(headless, tmp_path / "headless"), "LABEL_1", True)


def test_detoxify_takes_the_largest_of_its_labels(six_labels):
    toxic, insult = Detoxify(six_labels), Detoxify(six_labels, ("insult",))
    both = Detoxify(six_labels, ("insult", "toxicity"))
    assert toxic(CLEAN).probability.max() < 0.5 < toxic(RUDE).probability.min()
    assert (insult(RUDE).probability > 0.5).tolist() == [True, False, False, True]
    larger = torch.maximum(toxic(RUDE).probability, insult(RUDE).probability)
    torch.testing.assert_close(both(RUDE).probability, larger)
    torch.testing.assert_close(both(RUDE).clean_logit, -larger.logit(), atol=1e-4, rtol=1e-4)
    assert both([]).probability.shape == (0,)


def test_detoxify_agrees_with_the_package(six_labels, monkeypatch):
    monkeypatch.chdir(Path(six_labels).parent)
    theirs = rewards.detoxify.Detoxify(checkpoint="tiny.ckpt").predict(RUDE)
    torch.testing.assert_close(Detoxify("tiny.ckpt")(RUDE).probability, torch.tensor(theirs["toxicity"]))
    assert Path.cwd() == Path(six_labels).parent


def test_detoxify_refuses(six_labels, tmp_path, monkeypatch):
    here = Path.cwd()
    with pytest.raises(ValueError, match=r"no label toxic: set labels to one or more of toxicity, .*_attack\.$"):
        Detoxify(six_labels, ("toxicity", "toxic"))
    with pytest.raises(ValueError, match="no label to select"):
        Detoxify(six_labels, ())
    with pytest.raises(ValueError, match="'absent.ckpt' cannot be loaded .*No such file"):
        Detoxify("absent.ckpt")
    (tmp_path / "text.ckpt").write_text("no pickle")
    with pytest.raises(ValueError, match="text.ckpt' cannot be loaded .*name a file that is a Detoxify checkpoint"):
        Detoxify(str(tmp_path / "text.ckpt"))
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="other.ckpt' cannot be loaded"):
        Detoxify(str(tmp_path / "other.ckpt"))

    def no_network(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    with pytest.raises(ValueError, match="'original' cannot be loaded .*not known.*'embedded'"):
        Detoxify("original")
    assert Path.cwd() == here


def test_profanity_check():
    clean, rude = ProfanityCheck()(["He will call tomorrow.", "He is a fucking idiot."]).probability
    assert clean < 0.5 < rude
    verdict = ProfanityCheck()(["fuck", "", "hello"])
    torch.testing.assert_close(verdict.clean_logit, clean_log_odds(verdict.probability))
    assert ProfanityCheck()([]).probability.shape == (0,)


def test_profanity_check_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "detox_rl\[demo\]"'):
        ProfanityCheck()


# -- terms -----------------------------------------------------------------------------------------


@given(st.floats(0.0, 1.0))
def test_log_odds_against_float64(toxicity):
    toxicity = float(torch.tensor(toxicity))  # as fp32 has it
    limits = 1.0 / (1.0 + math.exp(6.0)), 1.0 / (1.0 + math.exp(-6.0))
    p = min(max(toxicity, limits[0]), limits[1])
    assert clean_log_odds(torch.tensor(toxicity)).item() == pytest.approx(math.log1p(-p) - math.log(p), abs=1e-4)


def test_transforms():
    batch, toxicity = samples(["x", "y", "z"]), [0.0, 0.5, 1.0]
    scores = {kind: NonToxicity(judge(toxicity), kind)(batch) for kind in ("probability", "log_odds", "logit")}
    torch.testing.assert_close(scores["probability"], torch.tensor([1.0, 0.5, 0.0]))
    torch.testing.assert_close(scores["log_odds"], torch.tensor([6.0, 0.0, -6.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(scores["logit"], torch.tensor([100.0, 99.5, 99.0]))
    with pytest.raises(ValueError, match="log_odds, probability or logit, not 'odds'"):
        NonToxicity(judge([]), "odds")


@pytest.mark.parametrize("toxicity", [[1e-5] * 20, [0.4] * 8])
def test_saturation_is_told_once(toxicity):
    batch = samples(["x"] * len(toxicity))
    term = NonToxicity(judge(toxicity), "probability")
    with pytest.warns(UserWarning, match="transform=log_odds"):
        term(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        term(batch)
        NonToxicity(judge(toxicity), "log_odds")(batch)
        NonToxicity(judge(toxicity[:7]), "probability")(samples(["x"] * 7))
        NonToxicity(judge([0.0, 0.1] * 4), "probability")(samples(["x"] * 8))


def test_only_the_summary_is_judged(hate):
    term = NonToxicity(TextClassifier(hate["first"], "nothate", False), "probability")
    quiet, loud = (term(samples(CLEAN, dialogues=[word] * 4)) for word in ("kind", "idiot"))
    assert torch.equal(quiet, loud)


def test_to_moves_the_classifier(hate):
    term = NonToxicity(TextClassifier(hate["first"], "hate", True))
    assert term.to("meta") is term
    assert {parameter.device.type for parameter in term.classifier.model.parameters()} == {"meta"}
    assert NonToxicity(judge([0.1])).to("meta")(samples(["x"])).device.type == "cpu"


def test_rouge_l_by_hand():
    # Longest common subsequence "cat sat mat" of 3 words: precision 3/4, recall 3/6, F1 0.6; stems make cats a cat.
    pairs = ["cats sat mat fish", "the cat sat on the mat", "", "nothing alike"]
    scores = RougeL()(samples(pairs, ["the cat sat on the mat"] * 4))
    torch.testing.assert_close(scores, torch.tensor([0.6, 1.0, 0.0, 0.0]))


def test_length_band_by_hand():
    reference = "one two three four five six seven eight nine ten"
    summaries = [" ".join(["w"] * count) for count in (8, 10, 12, 4, 20, 0, 1, 1000)]
    scores = LengthBand()(samples(summaries, [reference] * 8))
    expected = [0.0, 0.0, 0.0, math.log(0.5), -math.log(2 / 1.25), -math.log(6.4), -math.log(6.4), -math.log(6.4)]
    torch.testing.assert_close(scores, torch.tensor(expected))
    for low, high in ((0.1, 1.0), (1.0, 9.0), (1.2, 0.8)):
        with pytest.raises(ValueError, match="1/8 < low <= high < 8"):
            LengthBand(low, high)


@pytest.mark.parametrize("term", [RougeL(), LengthBand()])
def test_reference_must_not_be_empty(term):
    with pytest.raises(ValueError, match="no human summary"):
        term(samples(["a", "b"], ["fine", " "]))


def test_end_and_shortness_by_hand():
    torch.testing.assert_close(MissingEOS()(samples(["x", "y"], ended=[True, False])), torch.tensor([0.0, -1.0]))
    scores = ShortOutput()(samples(["", "  ", "They talk.", "They talk again."]))
    torch.testing.assert_close(scores, torch.tensor([-1.0, -1.0, -1.0, 0.0]))


def test_repetition_by_hand():
    texts = ["a b c d", "a b a b a b", "Go, go! GO go", "", "one two"]
    # "a b a b a b": aba bab aba bab, 2 of 4 new; "go go go go": 1 of 2 new.
    torch.testing.assert_close(Repetition()(samples(texts)), torch.tensor([0.0, -0.5, -0.5, 0.0, 0.0]))
    torch.testing.assert_close(Repetition(n=1)(samples(["a a a a"])), torch.tensor([-0.75]))


def test_copying_by_hand():
    dialogue = "Ann: I'll meet you at the old station at five. Bob: Fine."
    texts = ["Meet you at the old station", "They say: meet you at the old", "They meet at five", ""]
    scores = Copying()(samples(texts, dialogues=[dialogue] * 4))
    torch.testing.assert_close(scores, torch.tensor([-1.0, -1 / 3, 0.0, 0.0]))


TERMS = [
    (NonToxicity(ProfanityCheck()), -6.0, 6.0),
    (NonToxicity(ProfanityCheck(), "probability"), 0.0, 1.0),
    (RougeL(), 0.0, 1.0),
    (LengthBand(), -math.log(6.4), 0.0),
    (MissingEOS(), -1.0, 0.0),
    (ShortOutput(), -1.0, 0.0),
    (Repetition(), -1.0, 0.0),
    (Copying(), -1.0, 0.0),
]


@pytest.mark.filterwarnings("ignore:The classifier calls")
@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text(), st.text().filter(str.strip), st.booleans()), max_size=4))
def test_every_term_stays_in_its_range_on_any_text(rows):
    batch = Samples(*([row[column] for row in rows] for column in range(4)))
    for term, low, high in TERMS:
        scores = term(batch)
        assert scores.shape == (len(rows),)
        assert scores.dtype == torch.float32
        assert ((low - 1e-4 <= scores) & (scores <= high + 1e-4)).all(), term


# -- the total -------------------------------------------------------------------------------------


def test_total_is_the_weighted_sum():
    def mood(batch: Samples) -> list[int]:  # a user's own: a plain function, no weight, no tensor
        return [1, 2]

    shouting = RougeL(weight=10.0)
    shouting.name = "shouting"
    batch = samples(["a b c", "b"], ended=[True, False])
    total, means = total_score([mood, MissingEOS(weight=3.0), MissingEOS(weight=0.5), shouting], batch)
    torch.testing.assert_close(total, torch.tensor([1.0 + 10.0, 2.0 - 3.0 - 0.5 + 10.0 * 0.5]))
    expected = {"mood": 1.5, "missing_eos": -0.5, "missing_eos_2": -0.5, "shouting": 0.75}
    assert {name: mean.item() for name, mean in means.items()} == pytest.approx(expected)
    assert list(means) == list(expected)
    assert total.dtype == torch.float32


def test_names_never_collide():
    terms = [MissingEOS(), MissingEOS(), MissingEOS(), NonToxicity(judge([0.1])), MissingEOS()]
    terms[0].name = "missing_eos_2"
    names = list(total_score(terms, samples(["x"]))[1])
    assert names == ["missing_eos_2", "missing_eos", "missing_eos_3", "non_toxicity", "missing_eos_4"]


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (torch.zeros(3), r"must return one score a summary, shape \(2,\), not \(3,\)"),
        (torch.zeros(2, 1), r"shape \(2,\), not \(2, 1\)"),
        (torch.tensor([0.0, float("nan")]), "gives the score nan to the summary 'second'"),
        (torch.tensor([float("-inf"), 0.0]), "gives the score -inf to the summary 'first'"),
        ("text", "failed"),
        (None, "failed"),
    ],
)
def test_a_bad_term_is_named(returned, sentence):
    class BadTerm:
        def __call__(self, batch: Samples) -> object:
            return returned

    with pytest.raises(ValueError, match=f"^The reward term bad_term .*{sentence}"):
        total_score([MissingEOS(), BadTerm()], samples(["first", "second"]))


def test_a_term_that_raises_is_named():
    def my_term(batch: Samples) -> torch.Tensor:
        return {}["key"]

    with pytest.raises(ValueError, match="^The reward term my_term failed: 'key'$") as caught:
        total_score([my_term], samples(["x"]))
    assert isinstance(caught.value.__cause__, KeyError)


def test_default_rewards_prefer_the_clean_twin():
    clean = "Tom is late again and Ann is annoyed with him."
    summaries = [clean, "Tom is late again and Ann calls him a fucking idiot.", "", "Tom " * 10]
    total, means = total_score(default_rewards(), samples(summaries, [clean] * 4))
    assert total.argmax() == 0
    names = ["non_toxicity", "rouge_l", "length_band", "missing_eos", "short_output", "repetition"]
    assert list(means) == names
    non_toxicity = default_rewards()[0](samples(summaries))
    assert non_toxicity[1] < 0 < non_toxicity[0]


def test_terms_come_from_a_config(hate, six_labels):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rewards", type=list[Callable] | None, default=None)
    module = "detox_rl.rewards."
    reader = {"model": hate["last"], "label": "nothate", "label_is_toxic": False}
    judges = [
        {"class_path": module + "TextClassifier", "init_args": reader},
        {"class_path": module + "Detoxify", "init_args": {"model": six_labels, "labels": ["toxicity", "insult"]}},
        {"class_path": module + "ProfanityCheck"},
    ]
    options = [{"classifier": classifier, "transform": "logit", "weight": 2} for classifier in judges]
    terms = [{"class_path": module + "NonToxicity", "init_args": chosen} for chosen in options]
    plain = ("RougeL", "LengthBand", "MissingEOS", "ShortOutput", "Repetition", "Copying")
    terms += [{"class_path": module + name, "init_args": {"weight": 0.5}} for name in plain]
    parsed = parser.instantiate(parser.parse_object({"rewards": terms})).rewards
    assert [type(term.classifier).__name__ for term in parsed[:3]] == ["TextClassifier", "Detoxify", "ProfanityCheck"]
    assert [term.transform for term in parsed[:3]] == ["logit"] * 3
    assert [type(term).__name__ for term in parsed[3:]] == list(plain)
    assert [term.weight for term in parsed] == [2.0] * 3 + [0.5] * 6
    total, means = total_score(parsed, samples(["you are a idiot", "you are a friend"], ["you are a friend"] * 2))
    assert total[0] < total[1]
    assert len(means) == 9
