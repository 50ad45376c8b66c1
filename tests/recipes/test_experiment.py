"""How the recipe of a config is found."""

import pytest

from deepseek_jax import recipes
from deepseek_jax.recipes.experiment import find_recipe
from tests.launch.test_train import RECIPE


def test_a_recipe_is_found_by_the_name_of_its_module(tmp_path, monkeypatch):
    """Oracle: the module's own class and settings; a module without SETTINGS is no recipe."""
    (tmp_path / "polling.py").write_text(RECIPE)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path)])
    recipe = find_recipe("polling")
    assert recipe.__name__ == "deepseek_jax.recipes.polling" and recipe.SETTINGS is recipe.Polling
    for name in ("blocks", "settings", None, ""):
        with pytest.raises(ValueError, match=r"is not a recipe; .*allowed: .*polling"):
            find_recipe(name)


def test_every_recipe_names_the_settings_of_its_config():
    """Oracle: the nine recipes, by hand; each has a list of stages, a page, a report, and a dataclass with a
    field recipe.
    """
    names = "distill evaluate generate grpo judge pretrain r1 reward_model sft".split()
    with pytest.raises(ValueError, match=f"allowed: {', '.join(names)}$"):
        find_recipe("")
    for name in names:
        recipe = find_recipe(name)
        assert "recipe" in recipe.SETTINGS.__dataclass_fields__
        assert all(callable(getattr(recipe, part)) for part in ("stages", "page", "report"))
