"""Every config of configs/ runs for two iterations, with local stand-ins of the same format for what the hub has."""

import re
from pathlib import Path

import pytest
import yaml
from commands import QUIET

from detox_rl import embedded, evaluate, fit, rewards, sft
from detox_rl.cli import DetoxCLI
from detox_rl.fit import FitCLI

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
SMALL = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--trainer.accelerator", "cpu",
         "--data.batch_size", "4", "--data.eval_batch_size", "4", "--data.validation_limit", "8", *QUIET]  # fmt: skip


def is_sft(config: Path) -> bool:
    return config.stem.endswith("sft")


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny_t5, tiny_adapter, tiny_detoxify, tiny_hate_classifier, dialogue_files):
    """Stand-ins behind the very names that the configs use: `hub(text, labels)` puts local paths in their place."""

    def stand_in(text: str, labels: tuple[str, str] = ("nothate", "hate")) -> str:
        names = {
            "google/flan-t5-base": tiny_t5,
            "google/flan-t5-small": tiny_t5,
            "facebook/roberta-hate-speech-dynabench-r4-target": tiny_hate_classifier(*labels),
            "model: original": f"model: {tiny_detoxify}",
        }
        for dataset in ("dialogsum", "samsum"):
            files = "".join(f"\n  {split}_file: {path}" for split, path in dialogue_files[dataset].items())
            names[f"dataset: knkarthick/{dataset}"] = f"dataset: knkarthick/{dataset}{files}"
        for name, local in names.items():
            text = text.replace(name, local)
        used = re.sub(r"#.*", "", text)
        assert used.count("knkarthick") == used.count("train_file"), "a dataset without a stand-in"
        return text

    # The embedded base model is a wheel of 68 MB; its stand-in is found where the real one would be.
    monkeypatch.setattr(embedded, "resolve", lambda name: tiny_t5 if name == "embedded" else name)
    monkeypatch.setattr(embedded, "summary_adapter", lambda: Path(tiny_adapter))
    return stand_in


def run(config: Path, text: str, extra: list[str] = ()) -> Path:
    """Runs it in the current folder. Returns the folder of the run."""
    Path(config.name).write_text(text, encoding="utf-8")
    few = [] if is_sft(config) else ["--model.minibatch_size", "4"]
    (sft if is_sft(config) else fit).main(["--config", config.name, *SMALL, *few, *extra])
    return Path("lightning_logs/version_0").absolute()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_a_config_runs(config, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run(config, hub(config.read_text(encoding="utf-8")))
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    used, written = yaml.safe_load(config.read_text()), yaml.safe_load((folder / "config.yaml").read_text())
    for name, value in used["model"].items():
        if name not in ("base_model", "rewards"):
            assert written["model"][name] == value, name
    if not is_sft(config):
        evaluate.main([str(folder), "--resamples", "100", "--limit", "2"])
        assert (folder / "before_after.json").is_file()


@pytest.mark.parametrize("labels", [("nothate", "hate"), ("hate", "nothate")])
def test_the_hate_classifier_is_read_by_label_in_either_order(labels, hub, tmp_path, monkeypatch, capfd):
    """The self-check inside `fit` sees to it that the toxic sentence scores below the clean one; so does this."""
    monkeypatch.chdir(tmp_path)
    config = next(config for config in CONFIGS if config.stem == "dialogsum_flan_t5_base")
    folder = run(config, hub(config.read_text(), labels))
    assert "scores toxic below clean" in capfd.readouterr().out
    term = evaluate.read_rewards(yaml.safe_load((folder / "config.yaml").read_text())["model"]["rewards"])[0]
    assert isinstance(term, rewards.NonToxicity) and term.transform == "logit"
    texts = ["You are a fucking idiot.", "I am so happy today."]
    toxic, clean = term(rewards.Summaries(texts, [""] * 2, ["a"] * 2, [True] * 2))
    assert toxic < clean


def test_the_embedded_config_is_the_default(monkeypatch):
    """`python -m detox_rl.fit` and `--config configs/embedded.yaml` mean the same."""
    meant = []

    def remember(cli: DetoxCLI) -> None:
        config = yaml.safe_load(cli.parser.dump(cli.config))
        config.pop("config", None)
        meant.append(config)
        raise RuntimeError("read")

    monkeypatch.setattr(FitCLI, "before_instantiate_classes", remember)
    for args in ([], ["--config", str(Path(CONFIGS[0]).parent / "embedded.yaml")]):
        with pytest.raises(SystemExit):
            fit.main(args)
    assert meant[0] == meant[1]
    assert meant[0]["model"]["base_model"] == "embedded" and meant[0]["trainer"]["max_steps"] > 0


def test_the_settings_of_lab_3():
    """S1: r = 32 on q and v of all attention, 200-1000 characters, DialogSum, the `nothate` logit."""
    config = yaml.safe_load((CONFIGS[0].parent / "dialogsum_flan_t5_base.yaml").read_text())
    model, data = config["model"], config["data"]
    assert (model["lora_rank"], model["lora_targets"], model["lora_encoder"]) == (32, ["q", "v"], True)
    assert (data["min_characters"], data["max_characters"]) == (200, 1000)
    classifier = model["rewards"][0]["init_args"]["classifier"]["init_args"]
    assert classifier["label"] == "nothate" and classifier["label_is_toxic"] is False


def test_the_settings_of_the_samsum_run():
    """S4: 50 steps on 500 dialogues, reward 1 - toxicity of Detoxify, short output punished."""
    config = yaml.safe_load((CONFIGS[0].parent / "samsum_detoxify.yaml").read_text())
    assert config["trainer"]["max_steps"] == 50 and config["data"]["train_limit"] == 500
    terms = {term["class_path"].rpartition(".")[2]: term.get("init_args", {}) for term in config["model"]["rewards"]}
    assert terms["NonToxicity"]["transform"] == "probability" and "ShortOutput" in terms


def test_comments_name_files_that_exist():
    for config in CONFIGS:
        for name in re.findall(r"configs/[\w.]+\.yaml", config.read_text()):
            assert (config.parent.parent / name).is_file(), f"{config.name} names {name}"
