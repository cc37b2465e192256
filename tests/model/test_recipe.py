"""What travels with an adapter: written, read, and a card that can be followed to the letter."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detox_rl.data.prompts import TEMPLATE
from detox_rl.model.policy import Policy
from detox_rl.model.recipe import Recipe, read_recipe
from detox_rl.summarizer import Summarizer

SAID = "Tom: You left the bin open.\nAnna: Sorry, I will close it."  # as the card has it


def code_of(card: str) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    return code


def test_what_is_written_is_read(tmp_path):
    recipes = Recipe("some/base", "abc", "é\n{dialogue}", 512, 48), Recipe("b", "c", None, None, 1)
    for number, recipe in enumerate(recipes):
        (tmp_path / str(number)).mkdir()
        recipe.write(tmp_path / str(number))
        assert read_recipe(str(tmp_path / str(number))) == recipe
        assert {path.name for path in (tmp_path / str(number)).iterdir()} == {"recipe.json", "README.md"}


def test_an_adapter_of_other_making_has_none(tiny_adapter, tmp_path):
    assert read_recipe(tiny_adapter) is None
    assert read_recipe(str(tmp_path)) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"base_model": "x", "colour": 1}', b"\xff\xfe"])
def test_a_damaged_one_is_named(content, tmp_path):
    (tmp_path / "recipe.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"recipe\.json is damaged: export it again, or delete that file\.$"):
        read_recipe(str(tmp_path))


@pytest.mark.parametrize("template", [TEMPLATE, "TOKENS \"and\" 'PROMPT' of BASE:\n{dialogue}\\n", None])
def test_the_card_works_with_plain_peft(template, tiny_t5, tiny_adapter, tmp_path, capsys):
    Policy(tiny_t5, tiny_adapter).save_adapter(tmp_path / "adapter", template, template and 512, 8)
    code = code_of((tmp_path / "adapter" / "README.md").read_text(encoding="utf-8"))
    assert "detox_rl" not in code
    capsys.readouterr()
    exec(code.replace("FOLDER OF THIS FILE", str(tmp_path / "adapter")), {})
    summarizer = Summarizer(str(tmp_path / "adapter"))
    if template is None:  # nobody knows: the dialogue alone
        inputs = summarizer.tokenizer(SAID, return_tensors="pt")
        (expected,) = summarizer(inputs.input_ids, inputs.attention_mask.bool()).texts
    else:
        (expected,) = summarizer.summarize([SAID])
    assert capsys.readouterr().out == expected + "\n"


@given(st.text(st.characters(codec="utf-8"), max_size=40), st.text(st.characters(codec="utf-8"), max_size=40))
def test_the_card_means_the_template(before, after):
    """Whatever stands in it, the words of the card's own pattern among them."""
    template = f"{before} PROMPT{{dialogue}}TOKENS {after}".replace("```", "")
    code = code_of(Recipe("the/BASE", "abc", template, 512, 7).card())
    (prompt,) = re.findall(r"tokenizer\((.*), return_tensors", code)
    assert eval(prompt, {"dialogue": "A: hi"}) == template.replace("{dialogue}", "A: hi")
    assert "base = 'the/BASE'" in code and "max_new_tokens=7)" in code


def test_the_embedded_base_is_explained():
    assert "python -m detox_rl.embedded" in code_of(Recipe("embedded", "abc", TEMPLATE, 512, 48).card())
