"""What users really give a command: each bad input ends with one clear sentence, and leaves nothing half-written."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from commands import REWARDS, failure, fit_flags, left_behind, sft_flags
from conftest import make_t5, save_lora, save_t5, train_tokenizer
from safetensors.torch import load_file, save_file

from detox_rl import evaluate, fit, sft, summarize

VOWELS = '[{"class_path": "doubles.VowelJudge"}]'
TEXT = "Tom: hello Anna, you are a good friend\nAnna: thank you, see you at home\n" * 4


def rows(count: int, **changes) -> list[dict]:
    row = lambda i: {"id": str(i), "dialogue": f"{TEXT}Tom: {i}", "summary": f"Tom thanks Anna {i} times."}
    return [row(i) | changes for i in range(count)]


@pytest.fixture(scope="module")
def other_t5(tmp_path_factory, tiny_tokenizer) -> str:
    """Of another width than `tiny_t5`."""
    model = make_t5(len(tiny_tokenizer), seed=1, d_model=24)
    return save_t5(model, tiny_tokenizer, tmp_path_factory.mktemp("other_t5"))


@pytest.fixture(scope="module")
def other_adapter(tmp_path_factory, other_t5) -> str:
    return save_lora(other_t5, tmp_path_factory.mktemp("other_adapter"))


@pytest.fixture(scope="module")
def strange_t5(tmp_path_factory, tiny_t5) -> str:
    """`tiny_t5` with the tokenizer of a model that knows more words."""
    folder = tmp_path_factory.mktemp("strange_t5") / "model"
    shutil.copytree(tiny_t5, folder)
    train_tokenizer([" ".join(f"word{i}" for i in range(900))], 900, ("</s>",)).save_pretrained(folder)
    return str(folder)


def trained_in(folder: Path, main: Callable, args: list[str]) -> Path:
    """Runs a command in a folder. Returns the folder of the run."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        main(args)
    finally:
        os.chdir(here)
    return folder / "lightning_logs" / "version_0"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_t5, tiny_adapter, dialogue_files) -> Path:
    """A good run of `fit`."""
    args = fit_flags(tiny_t5, tiny_adapter, dialogue_files["samsum"])
    return trained_in(tmp_path_factory.mktemp("finished"), fit.main, args)


@pytest.fixture(scope="module")
def finished_sft(tmp_path_factory, tiny_t5, dialogue_files) -> Path:
    """A good run of `sft`."""
    args = sft_flags(tiny_t5, dialogue_files["samsum"])
    return trained_in(tmp_path_factory.mktemp("finished_sft"), sft.main, args)


class Place:
    """A folder to be wrong in, and good models, data and runs to be wrong with."""

    def __init__(self, folder: Path, **good) -> None:
        self.folder = folder
        self.__dict__.update(good)

    def file(self, name: str, content: str | bytes | list[dict]) -> str:
        """Writes bytes, text or rows. Returns the path."""
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return str(path)

    def fit(self, **options) -> tuple[Callable, list[str]]:
        return fit.main, fit_flags(self.base, self.adapter, self.data, **options)

    def sft(self, **options) -> tuple[Callable, list[str]]:
        return sft.main, sft_flags(self.base, self.data, **options)

    def evaluate(self, *args: str) -> tuple[Callable, list[str]]:
        out = str(self.folder / "out")
        return evaluate.main, [str(self.run), "--resamples", "100", "--judges", VOWELS, "--out", out, *args]

    def texts(self, *rows: dict | str) -> tuple[Callable, list[str]]:
        """Evaluates a file of texts beside the run's own systems."""
        content = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
        return self.evaluate("--systems", json.dumps({"mine": self.file("texts.jsonl", content)}))

    def summarize(self, *args: str, base: str | None = None, adapter: str | None = None) -> tuple[Callable, list[str]]:
        models = ["--base_model", base or self.base, "--model", adapter or self.adapter]
        return summarize.main, [*models, "--max_new_tokens", "4", *args]

    def train_file(self, name: str, content: str | bytes | list[dict], **options) -> tuple[Callable, list[str]]:
        return self.fit(data__train_file=self.file(name, content), **options)

    def rewards(self, *terms: dict | str) -> tuple[Callable, list[str]]:
        """Trains on a good reward and on these."""
        return self.fit(model__rewards=[REWARDS[0], *terms])

    def classifier(self, kind: str, **options) -> tuple[Callable, list[str]]:
        """Trains on the judgement of one of `detox_rl.classifiers`."""
        classifier = {"class_path": f"detox_rl.classifiers.{kind}", "init_args": options}
        term = {"class_path": "detox_rl.rewards.NonToxicity", "init_args": {"classifier": classifier}}
        return self.fit(model__rewards=[term])

    def config(self, content: str | bytes) -> tuple[Callable, list[str]]:
        main, args = self.fit()
        return main, ["--config", self.file("config.yaml", content), *args]

    def checkpoint(self, change: Callable[[Path], None]) -> tuple[Callable, list[str]]:
        """Resumes from a copy of a good checkpoint that `change` has been at."""
        path = self.folder / "changed.ckpt"
        shutil.copy(self.last, path)
        change(path)
        return self.fit(ckpt_path=str(path))

    @property
    def last(self) -> str:
        """A good checkpoint."""
        return str(self.run / "checkpoints" / "last.ckpt")

    @property
    def last_sft(self) -> str:
        return str(self.sft_run / "checkpoints" / "last.ckpt")

    def copied_run(self, change: Callable[[Path], None]) -> tuple[Callable, list[str]]:
        """Evaluates a copy of a good run that `change` has been at."""
        copy = self.folder / "run"
        shutil.copytree(self.run, copy)
        change(copy)
        main, args = self.evaluate()
        return main, [str(copy), *args[1:]]


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_t5, tiny_adapter, tiny_detoxify, tiny_hate_classifier, dialogue_files, other_t5,
          other_adapter, strange_t5, finished, finished_sft) -> Place:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return Place(
        tmp_path, base=tiny_t5, adapter=tiny_adapter, data=dialogue_files["samsum"], detoxify=tiny_detoxify,
        hate=tiny_hate_classifier, other_base=other_t5, other_adapter=other_adapter, strange_base=strange_t5,
        run=finished, sft_run=finished_sft,
    )  # fmt: skip


# -- a few things to be wrong with -----------------------------------------------------------------


def raises(summaries):
    raise RuntimeError("the server of this reward does not answer")


def too_few(summaries):
    return torch.zeros(len(summaries.texts) - 1)


def not_a_number(summaries):
    return torch.full((len(summaries.texts),), float("nan"))


class Touch:
    """A pickle that runs a command when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def plant_code(path: Path) -> None:
    path.write_bytes(pickle.dumps(Touch(path.parent / "executed")))


def plant_code_in_zip(path: Path) -> None:
    torch.save({"state_dict": Touch(path.parent / "executed")}, path)


def broken_adapter(place: Place) -> str:
    folder = place.folder / "broken"
    shutil.copytree(place.adapter, folder)
    truncate(folder / "adapter_model.safetensors")
    return str(folder)


def broken_base(place: Place, change: Callable[[Path], None]) -> str:
    folder = place.folder / "broken_base"
    shutil.copytree(place.base, folder)
    change(folder / "model.safetensors")
    return str(folder)


def drop_a_layer(path: Path) -> None:
    """transformers would fill it with random numbers."""
    weights = {name: tensor for name, tensor in load_file(path).items() if "decoder.block.1." not in name}
    save_file(weights, path, metadata={"format": "pt"})


def edit_config(folder: Path, **model) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"].update(model)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


# name -> (what is given, what the sentence must hold). Names ending in * fail once training has begun.
BAD: dict[str, tuple[Callable[[Place], tuple[Callable, list[str]]], str]] = {
    # data files
    "train file missing": (lambda p: p.fit(data__train_file="nowhere.jsonl"), "nowhere.jsonl"),
    "train file is a folder": (lambda p: p.fit(data__train_file=str(p.folder)), "ends in none of"),
    "train file empty": (lambda p: p.train_file("a.jsonl", b""), "a.jsonl is empty"),
    "train file without rows": (lambda p: p.train_file("a.csv", "dialogue,summary\n"), "no row|holds no rows|No row"),
    "binary as jsonl": (lambda p: p.train_file("a.jsonl", bytes(range(256)) * 9), "a.jsonl cannot be read"),
    "binary as parquet": (lambda p: p.train_file("a.parquet", bytes(range(256)) * 9), "a.parquet cannot be read"),
    "text as gzip": (lambda p: p.train_file("a.jsonl.gz", rows(8)), "a.jsonl.gz cannot be read"),
    "unknown suffix": (lambda p: p.train_file("a.txt", rows(8)), "a.txt ends in none of"),
    "latin-1": (
        lambda p: p.train_file("a.jsonl", b'{"dialogue": "caf\xe9 ' + b"x" * 300 + b'", "summary": "s"}\n'),
        "UTF-8|utf-8",
    ),
    "utf-16": (
        lambda p: p.train_file("a.csv", "dialogue,summary\nhello,hi\n".encode("utf-16")), "cannot be read|UTF-8|utf-8",
    ),
    "truncated jsonl": (lambda p: p.train_file("a.jsonl", json.dumps(rows(1)[0])[:50]), "cannot be read"),
    "wrong columns": (
        lambda p: p.train_file("a.jsonl", [{"text": "a", "label": "b"}]), "no column 'dialogue', only text, label",
    ),
    "unknown column": (lambda p: p.fit(data__dialogue_column="chat"), "no column 'chat'"),
    "numbers as dialogues": (lambda p: p.train_file("a.jsonl", rows(8, dialogue=5)), "int in column 'dialogue'"),
    "lists as summaries": (lambda p: p.train_file("a.jsonl", rows(8, summary=["a"])), "list in column 'summary'"),
    "mixed types": (
        lambda p: p.train_file("a.jsonl", [*rows(4), *rows(4, dialogue={"a": 1})]),
        "cannot be read|in column 'dialogue'",
    ),
    "all rows filtered out": (lambda p: p.fit(data__min_characters=100_000, data__max_characters=200_000), "No row of the .* split is left"),
    "only empty dialogues": (
        lambda p: p.train_file("a.jsonl", rows(8, dialogue=" \n")), "No row of the train split is left",
    ),
    "one row": (lambda p: p.train_file("a.jsonl", rows(1)), "1 training dialogues do not fill one batch of 4"),
    "ids file missing": (lambda p: p.fit(data__train_ids="ids.txt"), "no file ids.txt"),
    "ids of other data": (
        lambda p: p.fit(data__train_ids=p.file("ids.txt", "x\ny\n")), "No row of the train split is left",
    ),
    "fewer than no polite dialogues": (lambda p: p.fit(data__polite_per_rude=-1), "data.polite_per_rude must be at least 0"),
    "no hub dataset": (
        lambda p: p.fit(data__dataset="nobody/nothing", **{f"data__{split}_file": None for split in p.data}),
        "'nobody/nothing' is neither",
    ),
    "template without dialogue": (lambda p: p.fit(data__prompt_template="Summarize."), "must hold {dialogue} once"),
    "template longer than the prompt": (
        lambda p: p.fit(data__max_prompt_tokens=5), "max_prompt_tokens=5 leaves no room",
    ),
    "negative batch size": (lambda p: p.fit(data__batch_size=-4), "data.batch_size must be at least 1"),
    "negative limit": (lambda p: p.fit(data__train_limit=-1), "data.train_limit must be at least 1"),
    # models
    "no hub model": (lambda p: p.fit(model__base_model="nobody/t5"), "'nobody/t5'.*neither a local model folder nor"),
    "base is no T5": (lambda p: p.fit(model__base_model=p.hate("nothate", "hate")), "T5"),
    "base folder empty": (lambda p: p.fit(model__base_model=str(p.folder)), "neither a local model folder nor"),
    "tokenizer of another model": (lambda p: p.fit(model__base_model=p.strange_base), "tokenizer .*another model"),
    "weights of the base truncated": (lambda p: p.fit(model__base_model=broken_base(p, truncate)), "cannot be loaded"),
    "weights of the base incomplete": (
        lambda p: p.fit(model__base_model=broken_base(p, drop_a_layer)), "no weights for .*decoder",
    ),
    "warm start missing": (lambda p: p.fit(model__warm_start="nowhere"), "adapter 'nowhere' is not a PEFT adapter"),
    "warm start is no adapter": (lambda p: p.fit(model__warm_start=p.base), "is not a PEFT adapter"),
    "warm start of another base": (
        lambda p: p.fit(model__warm_start=p.other_adapter), "is not a PEFT adapter of this base",
    ),
    "warm start truncated": (lambda p: p.fit(model__warm_start=broken_adapter(p)), "is not a PEFT adapter"),
    "lora on layers that are not there": (
        lambda p: p.fit(model__warm_start=None, model__lora_targets=["query"]), "query",
    ),
    # checkpoints
    "checkpoint missing": (lambda p: p.fit(ckpt_path="nowhere.ckpt"), "no checkpoint 'nowhere.ckpt'"),
    "checkpoint is a folder": (lambda p: p.fit(ckpt_path=str(p.folder)), "no checkpoint"),
    "checkpoint truncated": (lambda p: p.checkpoint(truncate), "is not a checkpoint of detox_rl"),
    "checkpoint empty": (lambda p: p.checkpoint(lambda path: path.write_bytes(b"")), "is not a checkpoint of detox_rl"),
    "checkpoint is text": (
        lambda p: p.checkpoint(lambda path: path.write_text("hello")), "is not a checkpoint of detox_rl",
    ),
    "checkpoint is a pickle with code": (lambda p: p.checkpoint(plant_code), "is not a checkpoint of detox_rl"),
    "checkpoint holds code": (lambda p: p.checkpoint(plant_code_in_zip), "is not a checkpoint of detox_rl"),
    "checkpoint of something else": (
        lambda p: p.checkpoint(lambda path: torch.save([1, 2], path)), "is not a checkpoint of detox_rl",
    ),
    "checkpoint of another base": (
        lambda p: p.fit(model__base_model=p.other_base, model__warm_start=p.other_adapter, ckpt_path=p.last),
        "another base model",
    ),
    "checkpoint of another rank": (
        lambda p: p.fit(model__lora_rank=2, ckpt_path=p.last), "does not fit this model",
    ),
    "checkpoint of another warm start": (
        lambda p: p.fit(model__warm_start=None, ckpt_path=p.last), "another warm start than None: set model.warm_start",
    ),
    "checkpoint of sft": (
        lambda p: p.fit(model__warm_start=None, ckpt_path=p.last_sft), "does not fit this model",
    ),
    "checkpoint of other data*": (
        lambda p: p.fit(data__batch_size=6, ckpt_path=p.last), "made with dialogues per batch 4, this run has 6",
    ),
    # rewards
    "unknown label": (
        lambda p: p.classifier("TextClassifier", model=p.hate("nothate", "hate"), label="toxic", label_is_toxic=True),
        "no label 'toxic', but (hate, nothate|nothate, hate)",
    ),
    "unknown Detoxify label": (
        lambda p: p.classifier("Detoxify", model=p.detoxify, labels=["rude"]),
        "no label rude: set labels to one or more of toxicity",
    ),
    "Detoxify checkpoint missing": (
        lambda p: p.classifier("Detoxify", model="nowhere.ckpt"), "'nowhere.ckpt' cannot be loaded",
    ),
    "Detoxify checkpoint is text": (
        lambda p: p.classifier("Detoxify", model=p.file("a.ckpt", "hello")), "cannot be loaded",
    ),
    "no hub classifier": (
        lambda p: p.classifier("TextClassifier", model="nobody/bert", label="toxic", label_is_toxic=True),
        "'nobody/bert' cannot be loaded",
    ),
    "classifier is a T5": (
        lambda p: p.classifier("TextClassifier", model=p.base, label="LABEL_0", label_is_toxic=True),
        "text classification",
    ),
    "unknown class_path": (lambda p: p.rewards({"class_path": "my_rewards.Kindness"}), "No module named 'my_rewards'"),
    "misspelt class": (lambda p: p.rewards({"class_path": "detox_rl.rewards.LengthBend"}), "no attribute 'LengthBend'"),
    "misspelt argument": (
        lambda p: p.rewards({"class_path": "detox_rl.rewards.LengthBand", "init_args": {"lov": 1}}),
        "'lov' is not accepted",
    ),
    "argument out of range": (
        lambda p: p.rewards({"class_path": "detox_rl.rewards.LengthBand", "init_args": {"low": 5.0}}),
        "LengthBand needs",
    ),
    "nothing to judge toxicity": (
        lambda p: p.fit(model__rewards=[{"class_path": "detox_rl.rewards.ShortOutput"}]), "No reward has a classifier",
    ),
    "further targets for PPO": (
        lambda p: p.fit(data__further_summary_columns=["topic"]), "are targets of detox_rl.sft.*leave the option out",
    ),
    "floor under no term": (lambda p: p.fit(model__floors={"rougeL": 0.1}), "floors names rougeL, but the terms of"),
    "floor under the toxicity": (lambda p: p.fit(model__floors={"non_toxicity": 0.1}), "which training is to raise"),
    "negative allowance": (lambda p: p.fit(model__floors={"length_band": -1.0}), "length_band is .*, not -1.0"),
    "allowance of another type": (lambda p: p.fit(model__floors={"length_band": "much"}), "model.floors: Expected .*float.*much"),
    "checkpoint of other floors": (
        lambda p: p.fit(model__floors={"length_band": 0.1}, ckpt_path=p.last), "made with model.floors {}, this run has {.length_band.: 0.1}",
    ),
    "checkpoint of other rewards": (
        lambda p: p.fit(model__rewards=REWARDS[:1], ckpt_path=p.last), "the rewards it was trained with",
    ),
    "reward that raises*": (
        lambda p: p.rewards("test_bad_input.raises"), "reward term raises failed: the server of this reward",
    ),
    "reward of wrong length*": (
        lambda p: p.rewards("test_bad_input.too_few"), "reward term too_few must return one value a summary",
    ),
    "reward that is no number*": (
        lambda p: p.rewards("test_bad_input.not_a_number"), "reward term not_a_number gives nan to the summary",
    ),
    # options
    "misspelt flag": (lambda p: p.fit(model__learning_rate=1), "--model.learning_rate"),
    "value of another type": (lambda p: p.fit(model__lr="fast"), '"model.lr".*fast'),
    "misspelt key": (lambda p: p.config("model:\n  learning_rate: 1\n"), "no option model.learning_rate"),
    "config is no YAML": (lambda p: p.config("model: [1\n: {"), "parsing config|YAML"),
    "config is a list": (lambda p: p.config("- 1\n- 2\n"), "Unexpected config"),
    "config is binary": (lambda p: p.config(bytes(range(128, 256))), "not UTF-8"),
    "config missing": (lambda p: p.fit(config="nowhere.yaml"), "nowhere.yaml"),
    "gradient_clip_val": (lambda p: p.fit(trainer__gradient_clip_val=1.0), "model.max_grad_norm"),
    "accumulate_grad_batches": (lambda p: p.fit(trainer__accumulate_grad_batches=2), "model.micro_batch_size"),
    "FSDP": (lambda p: p.fit(trainer__strategy="fsdp"), "fsdp.*ddp"),
    "DeepSpeed": (lambda p: p.fit(trainer__strategy="deepspeed_stage_2"), "deepspeed_stage_2.*ddp"),
    "FSDP by class": (
        lambda p: p.fit(trainer__strategy={"class_path": "lightning.pytorch.strategies.FSDPStrategy"}),
        "FSDPStrategy.*ddp",
    ),
    "unknown strategy": (lambda p: p.fit(trainer__strategy="fast"), "'fast'"),
    "bf16 weights": (lambda p: p.sft(trainer__precision="bf16-true"), "bf16-mixed or 32-true"),
    "fp16": (lambda p: p.fit(trainer__precision="16-true"), "bf16-mixed or 32-true"),
    "temperature 0": (lambda p: p.fit(model__temperature=0), "model.temperature must be above 0"),
    "no epochs": (lambda p: p.fit(model__ppo_epochs=0), "model.ppo_epochs must be at least 1"),
    "minibatch of 0": (lambda p: p.fit(model__minibatch_size=0), "model.minibatch_size must be at least 1"),
    "no new tokens": (lambda p: p.fit(model__max_new_tokens=0), "model.max_new_tokens must be at least 1"),
    "schedule without end*": (
        lambda p: p.fit(trainer__max_steps=-1, trainer__max_epochs=1, model__lr_schedule="cosine"),
        "set trainer.max_steps",
    ),
    "unknown schedule": (lambda p: p.fit(model__lr_schedule="zigzag"), "zigzag"),
    "unwritable folder": (lambda p: p.fit(trainer__default_root_dir=p.file("file", "") + "/logs"), "file"),
    # sft
    "sft: train file missing": (lambda p: p.sft(data__train_file="nowhere.jsonl"), "nowhere.jsonl"),
    "sft: no column of further summaries": (
        lambda p: p.sft(data__further_summary_columns=["gist"]), "no column 'gist', only .*data.further_summary_columns",
    ),
    "sft: more smoothing than all": (lambda p: p.sft(model__label_smoothing=2), "model.label_smoothing must be at least 0"),
    "sft: no hub model": (lambda p: p.sft(model__base_model="nobody/t5"), "'nobody/t5'"),
    "sft: warm start of another base": (
        lambda p: p.sft(model__warm_start=p.other_adapter), "is not a PEFT adapter",
    ),
    "sft: checkpoint of another rank": (
        lambda p: p.sft(model__lora_rank=3, ckpt_path=p.last_sft), "does not fit this model",
    ),
    "sft: option of fit": (lambda p: p.sft(model__rewards=[]), "--model.rewards"),
    "sft: unknown schedule": (lambda p: p.sft(model__lr_schedule="zigzag"), "zigzag"),
    "sft: DeepSpeed": (lambda p: p.sft(trainer__strategy="deepspeed"), "deepspeed.*ddp"),
    # evaluate
    "evaluate: folder missing": (lambda p: (evaluate.main, ["nowhere"]), "nowhere holds no config.yaml"),
    "evaluate: no run": (lambda p: (evaluate.main, [str(p.folder)]), "holds no config.yaml"),
    "evaluate: nothing named": (lambda p: (evaluate.main, []), "nothing to evaluate.*--systems"),
    "evaluate: no folder for other judges": (
        lambda p: (evaluate.main, [str(p.run), "--judges", VOWELS]), "--out FOLDER",
    ),
    "evaluate: no folder without a run": (
        lambda p: (evaluate.main, ["--systems", '{"humans": "references"}']), "--out FOLDER",
    ),
    "evaluate: system is nowhere": (lambda p: p.evaluate("--systems", '{"mine": "no/where/at all"}'), "The system 'mine'"),
    "evaluate: no such baseline": (lambda p: p.evaluate("--baseline", "mine"), "no system 'mine'.*warm start, trained"),
    "evaluate: texts of other dialogues": (lambda p: p.texts({"id": "x", "summary": "y"}), "lacks . of . dialogues"),
    "evaluate: texts without summaries": (lambda p: p.texts({"id": "x"}), "Line 1 of .*texts.jsonl is not of the form"),
    "evaluate: texts are broken": (lambda p: p.texts("{"), "Line 1 of .*texts.jsonl is not of the form"),
    "evaluate: samples below 0": (lambda p: p.evaluate("--samples", "-1"), "samples must be at least 0"),
    "evaluate: no temperature": (lambda p: p.evaluate("--temperature", "0"), "temperature above 0"),
    "evaluate: NLI model missing": (lambda p: p.evaluate("--nli", "nobody/nli"), "'nobody/nli' cannot be loaded"),
    "evaluate: NLI model has no entailment": (
        lambda p: p.evaluate("--nli", p.hate("nothate", "hate")), "one label that is called entailment",
    ),
    "evaluate: run without adapter": (
        lambda p: p.copied_run(lambda folder: shutil.rmtree(folder / "adapter")), "holds no adapter",
    ),
    "evaluate: config broken": (
        lambda p: p.copied_run(lambda folder: (folder / "config.yaml").write_text("model: [")), "config.yaml",
    ),
    "evaluate: config of something else": (
        lambda p: p.copied_run(lambda folder: (folder / "config.yaml").write_text("a: 1\n")), "config.yaml",
    ),
    "evaluate: reward is gone": (
        lambda p: p.copied_run(lambda folder: edit_config(folder, rewards=[{"class_path": "detox_rl.rewards.Gone"}])),
        "Gone",
    ),
    "evaluate: base is gone": (
        lambda p: p.copied_run(lambda folder: edit_config(folder, base_model="gone/t5")), "'gone/t5'",
    ),
    "evaluate: adapter of another base": (
        lambda p: p.evaluate("--adapter", p.other_adapter), "is not a PEFT adapter of this base",
    ),
    "evaluate: adapter missing": (lambda p: p.evaluate("--adapter", "nowhere"), "'nowhere'"),
    "evaluate: unknown split": (lambda p: p.evaluate("--split", "train"), "split.*train"),
    "evaluate: limit 0": (lambda p: p.evaluate("--limit", "0"), "limit must be at least 1"),
    "evaluate: resamples 0": (lambda p: p.evaluate("--resamples", "0"), "resamples"),
    "evaluate: unknown judge": (
        lambda p: p.evaluate("--judges", '[{"class_path": "nobody.Judge"}]'), "No module named 'nobody'",
    ),
    "evaluate: no judges": (lambda p: p.evaluate("--judges", "[]"), "judge"),
    "evaluate: unknown data option": (lambda p: p.evaluate("--data", '{"test_fiel": "a"}'), "test_fiel"),
    "evaluate: test file missing": (lambda p: p.evaluate("--data", '{"test_file": "nowhere.jsonl"}'), "nowhere.jsonl"),
    # summarize
    "summarize: file missing": (lambda p: p.summarize("nowhere.txt"), "nowhere.txt: No such file"),
    "summarize: a folder": (lambda p: p.summarize(str(p.folder)), "Is a directory"),
    "summarize: binary": (lambda p: p.summarize(p.file("a.txt", bytes(range(256)))), "not UTF-8"),
    "summarize: empty": (lambda p: p.summarize(p.file("a.txt", "")), "a.txt is empty"),
    "summarize: adapter missing": (lambda p: p.summarize(p.file("a.txt", TEXT), adapter="nowhere"), "'nowhere'"),
    "summarize: no hub model": (lambda p: p.summarize(p.file("a.txt", TEXT), base="nobody/t5"), "'nobody/t5'"),
    "summarize: adapter of another base": (
        lambda p: p.summarize(p.file("a.txt", TEXT), adapter=p.other_adapter), "is not a PEFT adapter of this base",
    ),
    "summarize: no new tokens": (
        lambda p: p.summarize(p.file("a.txt", TEXT), "--max_new_tokens", "0"), "max_new_tokens must be at least 1",
    ),
    "summarize: blank dialogue": (lambda p: p.summarize("--dialogue", " "), "dialogue is empty"),
    "summarize: unknown suffix": (lambda p: p.summarize(p.file("a.docx", TEXT)), "ends in none of .txt, .json"),
    "summarize: no such column": (
        lambda p: p.summarize(p.file("a.jsonl", rows(1)), "--dialogue_column", "chat"),
        "no column 'chat', only id, dialogue, summary",
    ),
    "summarize: a row without dialogue": (
        lambda p: p.summarize(p.file("a.jsonl", rows(2, dialogue=""))), "Row 0 of .* has no dialogue",
    ),
    "summarize: best of none": (
        lambda p: p.summarize(p.file("a.txt", TEXT), "--best_of", "0"), "best_of must be at least 1, not 0",
    ),
    "summarize: no beams": (lambda p: p.summarize(p.file("a.txt", TEXT), "--num_beams", "0"), "num_beams must be"),
    "summarize: frozen": (lambda p: p.summarize(p.file("a.txt", TEXT), "--temperature", "0"), "temperature must be above"),
    "summarize: searches and draws": (
        lambda p: p.summarize(p.file("a.txt", TEXT), "--num_beams", "2", "--temperature", "1"), "leave out one or",
    ),
    "summarize: limit above 1": (
        lambda p: p.summarize(p.file("a.txt", TEXT), "--max_toxicity", "50"), "max_toxicity must be at least 0 and at most 1",
    ),
    "summarize: flags without a limit": (
        lambda p: p.summarize(p.file("a.txt", TEXT), "--flag_only", "true"), "flag_only marks rows above max_toxicity",
    ),
    "summarize: flags in text": (
        lambda p: p.summarize(p.file("a.txt", TEXT), "--flag_only", "true", "--max_toxicity", "0.5"), "name a .jsonl file",
    ),
    "summarize: no such judge": (
        lambda p: p.summarize(p.file("a.txt", TEXT), "--judge", "nobody.Judge"), "nobody",
    ),
    "summarize: no folder to write into": (
        lambda p: p.summarize(p.file("a.txt", TEXT), "--out", "nowhere/out.txt"), "There is no folder nowhere",
    ),
    "summarize: unknown kind of output": (
        lambda p: p.summarize(p.file("a.txt", TEXT), "--out", "out.csv"), "out must end in .jsonl or .txt, not 'out.csv'",
    ),
    "summarize: output is the input": (
        lambda p: p.summarize(p.file("a.jsonl", rows(2)), "--out", "a.jsonl"), "a.jsonl is there already",
    ),
    "summarize: no model": (
        lambda p: (summarize.main, [p.file("a.txt", TEXT), "--model", "nowhere"]), "There is no model 'nowhere'",
    ),
    "summarize: the base of no adapter": (
        lambda p: p.summarize(p.file("a.txt", TEXT), adapter=p.other_base), "leave base_model out for a whole model",
    ),
    "summarize: not a T5": (
        lambda p: (summarize.main, [p.file("a.txt", TEXT), "--model", p.hate("nothate", "hate")]), "detox_rl needs a T5",
    ),
    "summarize: another option": (lambda p: p.summarize(p.file("a.txt", TEXT), "--adapter", "x"), "adapter"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, place, capfd):
    given, expected = BAD[name]
    main, args = given(place)
    _, sentence = failure(main, args, capfd)
    assert re.search(expected, sentence), sentence
    assert len(sentence) < 700 and "weights_only" not in sentence, sentence
    assert not left_behind(place.folder)
    assert not (place.folder / "executed").exists()
    if not name.endswith("*"):
        assert not (place.folder / "lightning_logs").exists()
    assert not list(place.folder.rglob("before_after*")) or "run" in name


def test_the_table_is_as_long_as_promised():
    assert len(BAD) >= 40


# -- what looks bad and must work ------------------------------------------------------------------

LINE = "Tom: hello Anna, you are a good friend\n"
STRANGE = {
    "100,000 characters": LINE * (100_000 // len(LINE)),
    "emoji": "\U0001f600\U0001f469\u200d\U0001f4bb Tom: hello \U0001f1e9\U0001f1ea\n" * 9,
    "right to left": (
        "\u05ea\u05d5\u05dd: \u05e9\u05dc\u05d5\u05dd\n"
        "\u0622\u0646\u0627: \u0645\u0631\u062d\u0628\u0627 \u202eabc\u202c\n"
    )
    * 9,
    "NUL bytes": "Tom: hel\x00lo\x00\nAnna: \x07\x1b[31mred\x1b[0m\n" * 9,
    "HTML and pipes": "<script>alert(1)</script> | ** `a` | [x](javascript:y)\n" * 9,
    "one endless word": "a" * 5000,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STRANGE)
def test_strange_dialogues_are_trained_on_and_shown(name, place):
    """Train, validation and test hold it; sample tables, TensorBoard, evaluate and summarize show it."""
    strange = STRANGE[name]
    files = {}
    for split, count in (("train", 4), ("validation", 2), ("test", 2)):
        summary = f"Tom says {strange[:20]} to Anna."
        texts = [{"dialogue": f"{split} {i} {strange}", "summary": summary} for i in range(count)]
        files[split] = place.file(f"{split}.jsonl", texts)
    args = fit_flags(place.base, place.adapter, files, data__max_characters=200_000, trainer__max_steps=1)
    fit.main(args)
    run = place.folder / "lightning_logs" / "version_0"
    out = place.folder / "out"
    evaluate.main([str(run), "--resamples", "100", "--judges", VOWELS, "--out", str(out)])
    row = json.loads((out / "before_after.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert row["dialogue"].startswith("test") and strange.strip()[:100] in row["dialogue"]
    for table in (out / "before_after.md", run / "samples" / "step=1.md"):
        text = table.read_text(encoding="utf-8").partition("\n<!-- report")[0]
        assert len(text.splitlines()) == 2 + 2 and "<script" not in text and "\x00" not in text and "\x1b" not in text
    summarize.main([place.file("a.txt", strange), "--base_model", place.base, "--model", place.adapter])


@pytest.mark.filterwarnings("ignore")
def test_duplicated_ids_are_separate_dialogues(place):
    """The greedy summary of the reference is remembered, and must not be by an id that two dialogues share."""
    files = {}
    for split in ("train", "validation", "test"):
        same = rows(6, id="same")
        for i, row in enumerate(same):
            row["dialogue"] = f"{split} {i} " + " ".join(TEXT.split()[i:])
        files[split] = place.file(f"{split}.jsonl", same)
    fit.main(fit_flags(place.base, place.adapter, files, model__lr=0.0, model__value_lr=0.0))
    samples = place.folder / "lightning_logs/version_0/samples/step=2.jsonl"
    table = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(table) == 6 and len({row["dialogue"] for row in table}) == 6
    assert all(row["before"] == row["after"] for row in table)


@pytest.mark.filterwarnings("ignore")
def test_paths_in_data_never_reach_the_file_system(place):
    """An id that looks like a path is a name in a table, nothing else."""
    evil = [row | {"id": f"../../evil{i}"} for i, row in enumerate(rows(6))]
    files = {}
    for split in ("train", "validation"):
        files[split] = place.file(f"{split}.jsonl", [row | {"dialogue": f"{split} {row['dialogue']}"} for row in evil])
    fit.main(fit_flags(place.base, place.adapter, files, trainer__max_steps=1))
    assert not list(place.folder.parent.glob("evil*")) and not list(place.folder.rglob("evil*"))
