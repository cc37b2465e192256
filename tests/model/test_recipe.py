"""What travels with an adapter: written and read."""

import pytest

from detox_rl.model.recipe import Recipe, read_recipe


def test_what_is_written_is_read(tmp_path):
    recipes = Recipe("some/base", "abc", "é\n{dialogue}", 512, 48), Recipe("b", "c", None, None, 1)
    for number, recipe in enumerate(recipes):
        (tmp_path / str(number)).mkdir()
        recipe.write(tmp_path / str(number))
        assert read_recipe(str(tmp_path / str(number))) == recipe
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["recipe.json"]


def test_an_adapter_of_other_making_has_none(tiny_adapter, tmp_path):
    assert read_recipe(tiny_adapter) is None
    assert read_recipe(str(tmp_path)) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"base_model": "x", "colour": 1}', b"\xff\xfe"])
def test_a_damaged_one_is_named(content, tmp_path):
    (tmp_path / "recipe.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"recipe\.json is damaged: export it again, or delete that file\.$"):
        read_recipe(str(tmp_path))
