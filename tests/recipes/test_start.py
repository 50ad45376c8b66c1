"""The policy that a run starts from, after it is read."""

import dataclasses
import re
from types import SimpleNamespace

import pytest

from configs import distill_small, grpo_small, models, r1_small, sft_small
from deepseek_jax.checkpoint import load_orbax, save_orbax
from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.data.read_tokenizer import load_tokenizer
from deepseek_jax.errors import at
from deepseek_jax.recipes.distill.settings import DistillSettings
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.recipes.r1.settings import R1Settings
from deepseek_jax.recipes.sft.settings import SftSettings
from deepseek_jax.recipes.start import check_slots, ending_turns
from deepseek_jax.settings import build
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
