"""What is checked of settings before a run starts."""

import dataclasses
import json
import re
from types import SimpleNamespace

import pytest

from configs import distill_small, grpo_small, models, r1_small, sft_small
from deepseek_jax.checkpoint import load_orbax, save_orbax
from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.data.read_tokenizer import load_tokenizer
from deepseek_jax.errors import at
from deepseek_jax.recipes.checks import check_slots
from deepseek_jax.recipes.distill.settings import DistillSettings
from deepseek_jax.recipes.experiment import find_recipe
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.recipes.r1.settings import R1Settings
from deepseek_jax.recipes.sft.settings import SftSettings
from deepseek_jax.rollout.policy import ending_turns
from deepseek_jax.settings import build
from deepseek_jax.training.lineage import RECORD, Inputs
from tests.recipes import cases
from tests.recipes.small import run_recipe
from tests.tiny import tiny_model


def test_an_indexer_that_should_learn_is_refused_where_the_loss_has_no_part_for_it():
    """Oracle: the words a reader needs; and fine-tuning, which has one, but not beside an adapter."""
    model = models.deepseek_v3_2_tiny(21) | dict(indexer_loss="sparse")
    told = "config.model.indexer_loss='sparse' is a part of the loss of pre-training"
    for settings, module in ((GrpoSettings, grpo_small), (R1Settings, r1_small)):
        config = module.get_config()
        config.model = model
        with pytest.raises(ValueError, match=told):
            build(settings, config, "config")
    config = sft_small.get_config()
    config.model = model
    assert build(SftSettings, config, "config").model["indexer_loss"] == "sparse"
    config.adapter = dict(rank=2, alpha=4.0, targets=["o_proj"])
    with pytest.raises(ValueError, match=told):
        build(SftSettings, config, "config")


@pytest.mark.slow
def test_a_base_that_learns_a_chat_template_ends_its_turns(tmp_path):
    """Oracle: by hand: the template's <|im_end|> and the document's end token, also once saved and read."""
    config, params = tiny_model("gqa")
    smollm2 = load_tokenizer(smollm2_gguf())
    end = smollm2.backend.token_to_id("<|im_end|>")
    base = dataclasses.replace(config, eos_token_id=0)
    ending = ending_turns(base, smollm2, "chat")
    assert ending.eos_ids == (0, end)
    assert ending_turns(ending, smollm2, "chat") is ending
    save_orbax(tmp_path / "params", ending, params)
    assert load_orbax(tmp_path / "params")[0].eos_ids == (0, end)


@pytest.mark.parametrize(
    "settings, path",
    [
        (lambda: build(GrpoSettings, grpo_small.get_config(), "config"), "rollout.slots=128"),
        (lambda: build(R1Settings, r1_small.get_config(), "config"), "zero.rollout.slots=128"),
        (
            lambda: build(DistillSettings, distill_small.get_config(), "config"),
            "evaluation.slots=128",
        ),
    ],
)
def test_slots_that_do_not_split_are_named_before_a_run_starts(settings, path):
    """Oracle: the field, of configs that a mesh of eight devices takes, on one of 24 devices."""
    settings = settings()
    check_slots(settings, SimpleNamespace(size=8))
    with pytest.raises(
        ValueError, match=rf"^config\.{re.escape(path)} does not split over .* 24 devices"
    ):
        with at("config"):
            check_slots(settings, SimpleNamespace(size=24))


def without_data(recipe, folder):
    """(a small config of a recipe whose data are not there, the field that names them)."""
    config, field = getattr(cases, recipe)(folder), "data.path"
    if recipe == "pretrain":
        config.data.update(sources=("no.jsonl",), weights=(1.0,))
        return config, "data.sources"
    if recipe == "distill":
        config.tasks.a.path = "no.jsonl"
        return config, "tasks.a.path"
    with config.unlocked(), config.data.ignore_type():
        config.data.update(
            dict(path="no.jsonl") | (dict(task=None) if recipe == "generate" else {})
        )
    return config, field


def begin(folder, recipe, config):
    """Write the record of a stage of another config, as a run leaves it that has begun."""
    stages = recipe.stages(build(recipe.SETTINGS, config, "config"))
    last = max((stage for stage in stages), key=lambda stage: len(stage.sources))
    (folder / last.name).mkdir(parents=True)
    record = Inputs({}).record(last.name) | {"complete": False}
    (folder / last.name / RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("name", ["sft", "grpo", "pretrain", "generate", "reward_model", "distill"])
def test_data_that_are_not_there_are_named_by_their_field(tmp_path, name, begun):
    """Oracle: the field, whole and once: of a new run, and of one whose data have gone since it began."""
    (config, field), recipe = without_data(name, tmp_path), find_recipe(name)
    if begun:
        begin(tmp_path / "run", recipe, config)
    with pytest.raises(ValueError) as error:
        run_recipe(recipe, config, tmp_path / "run")
    assert str(error.value).startswith(f"config.{field}='no.jsonl' is not a file")
