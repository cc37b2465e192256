"""`python -m detox_rl.export`, through the same `main` as the shell: what is written says what the checkpoint says."""

import contextlib
import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from commands import failure, fit_flags, sft_flags
from conftest import VARIANTS, embedded_rows, make_t5, save_lora, save_t5
from safetensors import safe_open
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from detox_rl import export, fit, sft, summarize, verifying
from detox_rl.data.prompts import Prompt
from detox_rl.embedded import EMBEDDED
from detox_rl.engines import CTranslate2Engine, Decoding
from detox_rl.model.policy import Policy
from detox_rl.model.recipe import read_recipe
from detox_rl.summarizer import Summarizer
from detox_rl.verifying import Said, check_faithful, checks

HAS_CTRANSLATE2 = importlib.util.find_spec("ctranslate2") is not None
needs_ctranslate2 = pytest.mark.skipif(
    not HAS_CTRANSLATE2, reason='ctranslate2 is not installed (pip install ".[serve]")'
)
WHOLE = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
DIALOGUES = [row["dialogue"] for row in embedded_rows("validation")[:6]]
OWN = "{dialogue}\nTom thinks:"
OF_THE_CARD = "Tom: You left the bin open.\nAnna: Sorry, I will close it."
REPORT = {
    "headline": ["It became cleaner."], "baseline": "warm start", "systems": [{"name": "warm start"}, {"name": "trained"}],
    "data": {"split": "test", "n": 2, "rude": 1}, "means": [], "differences": [], "measures": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_t5, tiny_adapter, dialogue_files) -> Path:
    """Of three iterations, with a checkpoint that is not the exported one."""
    folder = tmp_path_factory.mktemp("exported")
    options = dict(model__lr=0.003, trainer__max_steps=3, data__prompt_template=OWN)
    with contextlib.chdir(folder):
        fit.main(fit_flags(tiny_t5, tiny_adapter, dialogue_files["dialogsum"], **options))
    return folder / "lightning_logs" / "version_0"


@pytest.fixture(scope="module")
def sft_run(tmp_path_factory, tiny_t5, dialogue_files) -> Path:
    """Without a warm start, with dropout."""
    folder = tmp_path_factory.mktemp("exported_sft")
    options = dict(model__lora_dropout=0.5, model__lr=0.05)
    with contextlib.chdir(folder):
        sft.main(sft_flags(tiny_t5, dialogue_files["dialogsum"], **options))
    return folder / "lightning_logs" / "version_0"


def exported(source: object, form: str, out: Path, *args: str) -> Path:
    export.main([str(source), "--to", form, "--out", str(out), *args])
    return out


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def exported_checkpoint(run: Path) -> Path:
    """The one whose weights the run exported."""
    (best,) = (file for file in (run / "checkpoints").glob("*.ckpt") if file.name != "last.ckpt")
    return best


def moved_checkpoint(run: Path, folder: Path) -> Path:
    """A checkpoint in a copy of the run, whose weights are none that the run had."""
    copy = shutil.copytree(run, folder / "copy")
    checkpoint = torch.load(exported_checkpoint(run), weights_only=True)
    for name, tensor in checkpoint["state_dict"].items():
        checkpoint["state_dict"][name] = tensor + 0.1
    torch.save(checkpoint, copy / "checkpoints" / "moved.ckpt")
    return copy / "checkpoints" / "moved.ckpt"


def said_by_the_card(folder: Path, capfd) -> str:
    """What the lines of code in the folder's README print: the summary of one dialogue of theirs."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    capfd.readouterr()
    exec(code.replace("FOLDER OF THIS FILE", str(folder)), {})
    return capfd.readouterr().out.removesuffix("\n")


def generated(model, tokenizer, prompt: Prompt, **options) -> list[str]:
    """Texts of plain `generate`, a dialogue at a time."""
    prompts, _ = prompt.encode(tokenizer, prompt.read(DIALOGUES))
    made = [model.generate(input_ids=ids[None], **options)[0] for ids in prompts]
    return tokenizer.batch_decode(made, skip_special_tokens=True)


# -- merged ----------------------------------------------------------------------------------------


def test_a_merged_folder_says_in_plain_transformers_what_the_run_says(run, tmp_path, capfd):
    out = exported(run, "merged", tmp_path / "new" / "merged")
    assert names(out) == WHOLE | {"recipe.json", "README.md"} and names(out.parent) == {"merged"}
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    recipe = read_recipe(str(out))
    assert (recipe.prompt_template, recipe.max_new_tokens) == (OWN, 12)
    expected = Summarizer(str(run)).summarize(DIALOGUES)
    assert generated(model, tokenizer, Prompt(OWN)) == expected  # greedy, and cut, by its own generation config
    assert Summarizer(str(out)).summarize(DIALOGUES) == expected
    assert len(set(expected)) > 1 and expected != Summarizer(None, recipe.base_model, 12, Prompt(OWN)).summarize(
        DIALOGUES
    )
    assert "equal greedy summaries" in capfd.readouterr().out
    assert said_by_the_card(out, capfd) == Summarizer(str(run)).summarize([OF_THE_CARD])[0]


@pytest.mark.parametrize("shape", VARIANTS)
def test_logits_survive_in_every_shape(shape, tiny_tokenizer, tmp_path):
    """A head of its own must be written, one that is tied need not be; outputs are scaled or not."""
    base = save_t5(make_t5(len(tiny_tokenizer), seed=1, **VARIANTS[shape]), tiny_tokenizer, tmp_path / "base")
    lora = save_lora(base, tmp_path / "lora", target_modules=r"decoder\..*\.(q|k|v|o|wi|wi_0|wi_1|wo)")
    policy = Policy(base, lora)
    for parameter in policy.trainable().values():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    policy.save_adapter(tmp_path / "adapter", "{dialogue}", 512, 8)
    out = exported(tmp_path / "adapter", "merged", tmp_path / "merged")
    prompts = tiny_tokenizer(DIALOGUES, padding=True, return_tensors="pt")
    inputs = dict(input_ids=prompts.input_ids, attention_mask=prompts.attention_mask)
    inputs["decoder_input_ids"] = torch.randint(3, 300, (len(DIALOGUES), 9))
    with torch.no_grad():
        found, expected = (
            model(**inputs).logits for model in (AutoModelForSeq2SeqLM.from_pretrained(out).eval(), policy.t5)
        )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with safe_open(out / "model.safetensors", "pt") as weights:
        assert ("lm_head.weight" in weights.keys()) == ("tied" not in shape.split())
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] == ("tied" in shape.split())


def test_what_a_base_would_have_generate_do_is_left_behind(tiny_t5, tmp_path):
    base = shutil.copytree(tiny_t5, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps(config | {"task_specific_params": {"summarization": {"num_beams": 4}}})
    )
    (base / "generation_config.json").write_text(
        json.dumps({"num_beams": 4, "min_length": 30, "decoder_start_token_id": 0})
    )
    Policy(str(base)).save_adapter(tmp_path / "adapter", "{dialogue}", 512, 8)
    out = exported(tmp_path / "adapter", "merged", tmp_path / "merged")
    assert "task_specific_params" not in json.loads((out / "config.json").read_text())
    assert json.loads((out / "generation_config.json").read_text()) == {
        "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "do_sample": False, "num_beams": 1,
        "max_new_tokens": 8,
    }  # fmt: skip


def test_bfloat16_halves_the_weights(run, tmp_path):
    full, half = (
        exported(run, "merged", tmp_path / dtype, "--dtype", dtype, "--no_verify") for dtype in ("float32", "bfloat16")
    )
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (full, half)]
    assert sizes[1] < 0.6 * sizes[0]
    assert AutoModelForSeq2SeqLM.from_pretrained(half).dtype == torch.bfloat16


# -- sources, adapters -----------------------------------------------------------------------------


def test_the_exported_checkpoint_of_a_run_gives_the_adapter_of_the_run(run, tmp_path):
    """Bit for bit; another one says something else."""
    own = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    same = []
    for source in (exported_checkpoint(run), moved_checkpoint(run, tmp_path)):
        out = exported(source, "adapter", tmp_path / source.stem)
        assert names(out) == {"adapter_config.json", "adapter_model.safetensors", "recipe.json", "README.md"}
        assert read_recipe(str(out)) == read_recipe(str(run / "adapter"))
        same.append((out / "adapter_model.safetensors").read_bytes() == own)
    assert same == [True, False]


def test_a_checkpoint_without_a_warm_start_and_with_dropout(sft_run, tmp_path):
    out = exported(sft_run / "checkpoints" / "last.ckpt", "merged", tmp_path / "merged")
    assert "Supervised" in (out / "README.md").read_text()
    best = exported(sft_run, "adapter", tmp_path / "adapter")
    assert Summarizer(str(best)).summarize(DIALOGUES) == Summarizer(str(sft_run)).summarize(DIALOGUES)


def test_results_stand_in_the_card_of_what_they_were_measured_of(run, tmp_path):
    """Not in that of another checkpoint of the same run."""
    moved = moved_checkpoint(run, tmp_path)
    copy = moved.parent.parent
    (copy / "evaluation").mkdir()
    (copy / "evaluation" / "report.json").write_text(json.dumps(REPORT))
    measured = []
    for number, source in enumerate((copy, copy / "checkpoints" / exported_checkpoint(run).name, moved)):
        text = (exported(source, "adapter", tmp_path / str(number), "--no_verify") / "README.md").read_text()
        measured.append("It became cleaner." in text)
        assert ("Nothing was measured" in text) != measured[-1] and "PPO against" in text
    assert measured == [True, True, False]


def test_the_embedded_adapter_is_exported_and_summarises(tmp_path, capfd):
    """The real base: eight layers, 32128 tokens, a head of its own."""
    out = exported(EMBEDDED, "merged", tmp_path / "merged")
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    expected = Summarizer().summarize(DIALOGUES)
    assert generated(model, tokenizer, Prompt()) == expected and len(set(expected)) == len(DIALOGUES)
    assert "16 of 16" in capfd.readouterr().out


# -- the comparison --------------------------------------------------------------------------------


def test_a_form_that_says_something_else_is_not_kept(run, tmp_path, monkeypatch, capfd):
    """As if the head had been tied: what transformers 5 does to a checkpoint that lacks it."""
    load = verifying._load

    def tied(*args):
        model = load(*args)
        model.lm_head.weight = model.shared.weight
        return model

    monkeypatch.setattr(verifying, "_load", tied)
    args = [str(run), "--to", "merged", "--out", str(tmp_path / "merged")]
    code, sentence = failure(export.main, args, capfd)
    assert code == 1 and sentence.startswith(
        "The merged in float32 differs from its checkpoint (equal greedy summaries"
    )
    assert not list(tmp_path.iterdir())
    export.main([*args, "--no_verify"])
    assert "Beside the checkpoint" not in capfd.readouterr().out


def test_equal_texts_are_asked_of_float32_alone(capsys):
    expected = ["Tom calls Anna a fucking idiot.", "Anna thanks Tom."]
    human = ["Tom insults Anna.", "Anna thanks Tom."]
    assert [line.holds for line in checks(expected, Said(expected, 1e-4), human, "float32")] == [True, True]
    assert [line.holds for line in checks(expected, Said(expected[::-1], 1e-2), human, "float32")] == [False, False]
    lines = checks(expected, Said(expected[::-1], 3.0), human, "bfloat16")
    assert [line.holds for line in lines] == [True, True, True, False]  # the same toxicity, other summaries
    assert all(line.holds for line in checks(expected, Said(human, None), human, "int8"))  # a gain is no loss
    lines = checks(human, Said(expected, None), human, "int8")
    assert [line.holds for line in lines] == [True, False, False]
    with pytest.raises(ValueError, match=r"mean toxicity: 0\.\d+ -> 0\.\d+; allowed: 0.05 more.*--dtype float32\.$"):
        check_faithful(lines, "ctranslate2", "int8")


# -- bad input -------------------------------------------------------------------------------------


def test_bad_input_is_one_sentence_before_any_work(run, tiny_adapter, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(export, "write_form", lambda *args: pytest.fail("something was written"))
    (tmp_path / "there").mkdir()
    shutil.copytree(run, tmp_path / "unfinished", ignore=shutil.ignore_patterns("adapter"))
    stray = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "stray.ckpt")
    judging = shutil.copytree(run, tmp_path / "judging") / "config.yaml"
    judging.write_text("model: {backbone: embedded}\ndata: {}\nseed_everything: 0\n")
    to = lambda source, form="merged", *args: [str(source), "--to", form, "--out", str(tmp_path / "new"), *args]
    for args, words in (
        ([str(run), "--to", "merged", "--out", str(tmp_path / "there")], "exists already, and is not overwritten"),
        (to(run, "adapter", "--dtype", "bfloat16"), "adapter has weights of float32, not bfloat16"),
        (to(run, "merged", "--dtype", "int8"), "merged has weights of float32 or bfloat16, not int8"),
        (to(run, "ctranslate2", "--dtype", "int8", "--no_verify"), "leave out --no_verify"),
        (to(tmp_path / "nothing"), "There is nothing to export in"),
        (to(tmp_path / "nothing.ckpt"), "There is no checkpoint"),
        (to(stray), "holds no config.yaml"),
        (to(tmp_path / "unfinished"), "holds no adapter"),
        (to(tmp_path / "judging" / "checkpoints" / "last.ckpt"), "is not the run of a summariser"),
        (to(tiny_adapter), "has no recipe.json"),
        (to(run, "onnx"), "onnx"),
    ):
        assert words in failure(export.main, args, capfd)[1]
    assert not (tmp_path / "new").exists()


def test_the_checkpoint_of_another_adapter_is_refused(run, tmp_path, capfd):
    copy = shutil.copytree(run, tmp_path / "run")
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(re.sub(r"lora_rank: \d+", "lora_rank: 3", config))
    args = [str(copy / "checkpoints" / "last.ckpt"), "--to", "adapter", "--out", str(tmp_path / "new")]
    assert "does not fit the lora_* options" in failure(export.main, args, capfd)[1]
    assert names(tmp_path) == {"run"}


def test_without_ctranslate2_the_extra_is_named(run, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(__import__("sys").modules, "ctranslate2", None)
    args = [str(run), "--to", "ctranslate2", "--out", str(tmp_path / "new")]
    assert 'pip install "detox_rl[serve]"' in failure(export.main, args, capfd)[1]
    (tmp_path / "model.bin").touch()
    (tmp_path / "dialogue.txt").write_text("Tom: hello")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(read_recipe(str(run / "adapter")).base_model) / file, tmp_path)
    args = [str(tmp_path / "dialogue.txt"), "--model", str(tmp_path)]
    assert 'pip install "detox_rl[serve]"' in failure(summarize.main, args, capfd)[1]


# -- CTranslate2 -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(run, tmp_path_factory) -> Path:
    return exported(run, "ctranslate2", tmp_path_factory.mktemp("converted") / "folder")


@needs_ctranslate2
def test_a_ctranslate2_folder_summarises_like_the_run_without_its_weights(converted, run, tmp_path, monkeypatch, capfd):
    assert {"model.bin", "tokenizer.json", "recipe.json", "README.md"} <= names(converted)
    expected = Summarizer(str(run)).summarize(DIALOGUES)
    monkeypatch.setattr("detox_rl.engines.Policy", lambda *args, **options: pytest.fail("PyTorch weights were loaded"))
    assert Summarizer(str(converted)).summarize(DIALOGUES) == expected
    assert [said_by_the_card(converted, capfd)] == Summarizer(str(converted)).summarize([OF_THE_CARD])
    (tmp_path / "dialogue.txt").write_text(DIALOGUES[0], encoding="utf-8")
    capfd.readouterr()
    summarize.main(["--model", str(converted), str(tmp_path / "dialogue.txt")])
    assert capfd.readouterr().out == expected[0] + "\n"


@needs_ctranslate2
def test_its_candidates_say_whether_they_ended(converted, run):
    one, other = Summarizer(str(converted)), Summarizer(str(run))
    prompts, _ = one.prompt.encode(one.engine.tokenizer, DIALOGUES)
    for limit in (1, 3, 12):
        found, expected = (summarizer.engine.respond(prompts, Decoding(limit)) for summarizer in (one, other))
        assert found == expected
    assert {candidate.ended for (candidate,) in expected} == {True, False}
    assert all(row[0].text for row in one.engine.respond(prompts, Decoding(12, beams=3)))


@needs_ctranslate2
def test_in_int8_each_thread_decodes_prompts_of_its_own(converted, run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(export, "check_faithful", lambda *args: None)
    rounded = Summarizer(str(exported(run, "ctranslate2", tmp_path / "int8", "--dtype", "int8")))
    decoders = [one.engine.translator.translator.num_translators for one in (Summarizer(str(converted)), rounded)]
    assert decoders == [1, 2]
    alone = [rounded.summarize([dialogue])[0] for dialogue in DIALOGUES]
    assert rounded.summarize(DIALOGUES) == alone and rounded.summarize([]) == []


@needs_ctranslate2
def test_it_draws_no_samples(converted):
    with pytest.raises(ValueError, match="leave out temperature and best_of"):
        Summarizer(str(converted), temperature=0.7).summarize(DIALOGUES[:1])


@needs_ctranslate2
def test_fingerprints_tell_converted_models_apart(converted, run, tmp_path):
    rounded = exported(run, "ctranslate2", tmp_path / "bf16", "--dtype", "bfloat16", "--no_verify")
    prints = [CTranslate2Engine(str(folder)).fingerprint for folder in (converted, converted, rounded)]
    assert prints[0] == prints[1] != prints[2]


@needs_ctranslate2
@pytest.mark.parametrize("shape", VARIANTS)
def test_ctranslate2_gives_the_same_probabilities_in_every_shape(shape, tiny_tokenizer, tmp_path):
    """Greedy texts alone would not show that outputs are scaled where they must not be."""
    base = save_t5(make_t5(len(tiny_tokenizer), seed=1, **VARIANTS[shape]), tiny_tokenizer, tmp_path / "base")
    Policy(base).save_adapter(tmp_path / "adapter", "{dialogue}", 512, 12)
    out = exported(tmp_path / "adapter", "ctranslate2", tmp_path / "converted")
    engine, own = CTranslate2Engine(str(out)), Summarizer(None, base, 12, Prompt("{dialogue}"))
    texts = ["Tom", "Anna is an idiot", "you are good", "hello", "the home", "Anna"]
    prompts, _ = own.prompt.encode(engine.tokenizer, DIALOGUES)
    responses = [tiny_tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    found = engine.translator.logprobs([prompt.tolist() for prompt in prompts], responses)
    assert [len(row) for row in found] == [len(row) + 1 for row in responses]
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    expected = own.mean_logprobs(own.encode(padded, padded != 0), texts)
    assert [sum(row) / len(row) for row in found] == pytest.approx(expected, abs=1e-4)
