"""The Python of deepseek_jax/python.md, as it stands there."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from deepseek_jax.losses import group_advantages
from deepseek_jax.models import count_params
from tests.recipes.small import small_config

ROOT = Path(__file__).resolve().parents[1]


PAGE = (ROOT / "deepseek_jax" / "python.md").read_text()
RUN, TALK, GRPO_STEP, REWARD, MODEL = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def run_snippet(code):
    """Run it, and return its names."""
    names = {}
    exec(code, names)
    return names


@pytest.mark.slow
def test_an_experiment_runs_and_its_policy_answers(tmp_path, monkeypatch, capsys):
    """Oracle: the scores that the page prints are an interval; the folder is where the second example looks.
    The run is shrunk to two steps.
    """
    monkeypatch.chdir(tmp_path)
    # Eight rows of an update for conftest's eight devices
    small = small_config(prompts_per_step=8, num_steps=1)
    names = {"small": small.to_dict()}
    short = RUN.replace("seed=1", "**small")
    assert short != RUN
    exec(short, names)
    mean, low, high = names["trained"].scores["after"]["accuracy"]
    assert 0 <= low <= mean <= high <= 1 and names["trained"].complete
    seen = run_snippet(TALK)
    assert capsys.readouterr().out.endswith(f"{seen['answers'].texts[0]}\n")
    policy, (question,) = seen["policy"], seen["questions"]
    assert policy.tokenizer.decode(question["prompt_ids"]).startswith("What is 2 + 3 + 4?")


@pytest.mark.slow
def test_the_example_samples_and_takes_one_grpo_step(capsys):
    """Oracle: by hand: texts are the tokens before the end, and a policy that has not moved has, a token, the
    loss of minus its completion's advantage. It is SmolLM2, and some answer is right.
    """
    seen = run_snippet(GRPO_STEP)
    printed = capsys.readouterr().out
    out, batch, tokenizer = seen["answers"].rollout, seen["batch"], seen["policy"].tokenizer
    assert all(repr(text) in printed for text in seen["answers"].texts)
    assert f"\n{seen['scores'].total}\nloss " in printed and 0 < seen["scores"].total.sum() < 8
    for text, ids, mask in zip(
        seen["answers"].texts, out.completion_ids, out.completion_mask, strict=True
    ):
        assert text == tokenizer.decode(ids[mask])
    wanted = group_advantages(seen["scores"].total, group_size=8, normalize_std=True)
    np.testing.assert_array_equal(batch["advantages"], wanted)
    lengths = batch["completion_mask"].sum(1)
    advantages = batch["advantages"][lengths > 0]
    assert float(seen["metrics"]["loss"]) == pytest.approx(-advantages.mean(), abs=1e-6)
    assert int(seen["state"].step) == 1


def test_the_reward_of_your_own_counts_beside_the_others():
    """Oracle: by hand: the first answer is right and brief, the second neither."""
    np.testing.assert_allclose(run_snippet(REWARD)["scores"].total, [1.2, 0.0], rtol=1e-6)


@pytest.mark.slow
def test_the_model_of_your_own_computes_logits():
    """Oracle: the shapes, and the number of parameters without making them."""
    seen = run_snippet(MODEL)
    assert seen["logits"].shape == (1, 16, 512) and np.isfinite(seen["logits"]).all()
    made = sum(leaf.size for leaf in jax.tree.leaves(seen["params"]))
    assert made == count_params(seen["config"])
