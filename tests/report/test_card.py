"""The model card: what is known and what is not, and code that can be followed to the letter."""

import re

import pytest
from fake_report import fake_report
from hypothesis import given
from hypothesis import strategies as st

from detox_rl.data.prompts import TEMPLATE
from detox_rl.model.policy import Policy
from detox_rl.model.recipe import Recipe
from detox_rl.report.card import LIBRARIES, prompt_code, write_card
from detox_rl.summarizer import Summarizer

SAID = "Tom: You left the bin open.\nAnna: Sorry, I will close it."  # as the card has it
RECIPE = Recipe("the/base", "abc", TEMPLATE, 512, 7)
PPO = {
    "model": {"base_model": "embedded", "ppo_epochs": 4, "lr": 1e-3},
    "data": {"dataset": "embedded"},
    "seed_everything": 0,
}


def code_of(card: str) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    return code


def card(folder, *args, **options) -> str:
    write_card(folder, *args, **options)
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "template", [TEMPLATE, "{marked_dialogue} end", "{{ form }} \"and\" {% if %} 'PROMPT':\n{dialogue}\\n", None]
)
def test_the_card_works_with_plain_peft(template, tiny_t5, tiny_adapter, tmp_path, capsys):
    recipe = Policy(tiny_t5, tiny_adapter).save_adapter(tmp_path / "adapter", template, template and 512, 8)
    found = card(tmp_path / "adapter", "adapter", recipe, {})
    code = code_of(found)
    assert "detox_rl" not in code and ("rude turns are marked" in found) == ("marked" in str(template))
    capsys.readouterr()
    exec(code.replace("FOLDER OF THIS FILE", str(tmp_path / "adapter")), {})
    summarizer = Summarizer(str(tmp_path / "adapter"))
    if template is None:  # nobody knows: the dialogue alone
        inputs = summarizer.engine.tokenizer(SAID, return_tensors="pt")
        (expected,) = summarizer(inputs.input_ids, inputs.attention_mask.bool()).texts
    else:
        (expected,) = summarizer.summarize([SAID])
    assert capsys.readouterr().out == expected + "\n"


@given(st.text(st.characters(codec="utf-8"), max_size=40), st.text(st.characters(codec="utf-8"), max_size=40))
def test_the_prompt_of_the_card_means_the_template(before, after):
    template = f"{before} {{dialogue}} {after}"
    said = eval(prompt_code(RECIPE._replace(prompt_template=template)), {"dialogue": "A: hi"})
    assert said == template.replace("{dialogue}", "A: hi")


def test_the_embedded_base_is_explained(tmp_path):
    found = card(tmp_path, "adapter", RECIPE._replace(base_model="embedded"), {})
    assert "python -m detox_rl.embedded" in code_of(found) and "traceforge-title-model" in found
    found = card(tmp_path, "adapter", RECIPE, {})
    assert "base = 'the/base'" in code_of(found) and "traceforge" not in found


@pytest.mark.parametrize("form", LIBRARIES)
def test_every_form_has_its_own_code(form, tmp_path):
    found = card(tmp_path, form, RECIPE, {})
    assert f"library_name: {LIBRARIES[form]}\n" in found
    assert code_of(found).startswith(
        {"adapter": "from peft", "merged": "from transformers"}.get(form, "from ctranslate2")
    )
    compile(code_of(found), form, "exec")
    assert "\n\n\n" not in found and not re.search(r"[ \t]$|\{[%{]", found.replace("{dialogue}", ""), re.MULTILINE)


def test_without_report_or_options_it_says_so(tmp_path):
    found = card(tmp_path, "adapter", RECIPE, {})
    assert (
        "Nothing was measured" in found
        and "options of the run are not recorded" in found
        and "Data: not recorded" in found
    )


def test_the_results_are_those_of_the_report_with_numbers_and_intervals(tmp_path):
    report = fake_report()
    found = card(tmp_path, "merged", RECIPE, PPO, report)
    assert "Nothing was measured" not in found and "before this form was made" in found
    assert all(line.replace("&", "&amp;")[:20] in found for line in report["headline"])
    assert re.search(r"\| ROUGE-L[^|]*\| \d+ \| [\d.]+ \[[\d.]+, [\d.]+\]", found)
    assert f"{report['data']['n']} dialogues" in found


def test_the_training_is_told_by_its_options(tmp_path):
    assert "PPO against" in (ppo := card(tmp_path, "adapter", RECIPE, PPO)) and "lr: 0.001" in ppo and "4,030" in ppo
    sft = {"model": {"label_smoothing": 0.0}, "data": {"dataset": "knkarthick/samsum"}, "seed_everything": 0}
    assert "Supervised" in (told := card(tmp_path, "adapter", RECIPE, sft)) and "`knkarthick/samsum`" in told


def test_the_comparison_with_the_checkpoint_stands_there(tmp_path):
    found = card(
        tmp_path, "merged", RECIPE, {}, dtype="bfloat16", checks=[("mean toxicity", "0.1 -> 0.2", "0.05 more")]
    )
    assert "| mean toxicity | 0.1 -&gt; 0.2 | 0.05 more |" in found and "in bfloat16" in found
