"""Two runs of a recipe from one config are equal, bit for bit, on a CPU."""

import pytest

from tests.recipes import test_judge as judge
from tests.recipes.distill import test_run as distill
from tests.recipes.evaluate import test_run as evaluate
from tests.recipes.generate import test_run as generate
from tests.recipes.grpo import test_run as grpo
from tests.recipes.outcome import assert_equal, left
from tests.recipes.pretrain import test_run as pretrain
from tests.recipes.r1 import test_run as r1
from tests.recipes.reward_model import test_run as reward_model
from tests.recipes.sft import test_run as sft
from tests.tiny import save_tiny_model

# Rules that a model of a few steps can earn
a_reward_that_varies = grpo.a_reward_that_varies
a_rule_that_varies = evaluate.a_rule_that_varies
rules_that_a_beginner_meets = r1.rules_that_a_beginner_meets
# A random teacher and texts, of distillation
files = distill.files

# recipe -> run(workdir, files, checkpoint)
RUNS = {
    "pretrain": lambda workdir, *_: pretrain.run(workdir, pretrain.small_config()),
    "sft": lambda workdir, *_: sft.run(workdir),
    "reward_model": lambda workdir, *_: reward_model.run(workdir),
    "judge": lambda workdir, *_: judge.run(workdir, num_steps=3, save_every=3, log_every=1),
    "grpo": lambda workdir, *_: grpo.run(workdir),
    "generate": lambda workdir, *_: generate.run(workdir),
    "evaluate": lambda workdir, _, checkpoint: evaluate.run(checkpoint, workdir),
    "r1": lambda workdir, *_: r1.run(workdir),
    "distill": lambda workdir, files, _: distill.run(workdir, distill.small_config(files)),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "params"
    save_tiny_model(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RUNS)
def test_two_runs_are_equal_bit_for_bit(recipe, files, checkpoint, tmp_path):  # noqa: F811
    """Oracle: the other run: every metric, measurement and parameter, and what is sampled."""
    workdirs = [tmp_path / "first", tmp_path / "second"]
    for workdir in workdirs:
        workdir.mkdir()
        RUNS[recipe](workdir, files, checkpoint)
    texts, params = left(workdirs[0])
    assert len(texts) > 1 or texts["metrics.jsonl"]
    assert params or recipe in ("evaluate", "generate")
    assert_equal(*workdirs)
    if recipe == "generate":
        assert generate.made(workdirs[0]) == generate.made(workdirs[1])
