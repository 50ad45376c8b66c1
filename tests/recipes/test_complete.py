"""A recipe whose run is complete says so, and neither builds a model nor compiles nor writes."""

import importlib

import pytest

from tests.compilations import compilations
from tests.recipes.cases import CASES
from tests.recipes.small import run_recipe


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "reward_model", "judge", "evaluate", "generate"])
def test_a_complete_run_says_so_before_it_compiles(name, tmp_path, capsys):
    """Oracle: the word, no request for a compilation, every file's bytes. The other recipes test it beside
    their own runs.
    """
    case, workdir = CASES[name], tmp_path / "run"
    recipe = importlib.import_module(f"deepseek_jax.recipes.{case.recipe}.run")
    with pytest.MonkeyPatch.context() as patch:
        case.replace(patch)
        run_recipe(recipe, case.config(tmp_path), workdir)
        before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
        capsys.readouterr()
        with compilations() as requests:
            run_recipe(recipe, case.config(tmp_path), workdir)
    assert "complete: " in capsys.readouterr().out and not requests
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before
