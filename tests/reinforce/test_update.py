"""The reinforcement that recipes share: replacements of the reference, also after an interruption."""

import jax
import numpy as np
import pytest

from deepseek_jax.data.tasks import QuestionStream
from deepseek_jax.models import build_model, random_params
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.reinforce import update as reinforce
from deepseek_jax.reinforce.groups import GroupSource
from deepseek_jax.rewards import Rewards, scoring
from deepseek_jax.rollout import Policy, generate, policy
from deepseek_jax.settings import build
from deepseek_jax.training.metrics import read_metrics
from deepseek_jax.worlds.arithmetic.tasks import arithmetic_task
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from tests.losses.test_grpo import make_batch, torch_loss
from tests.quick import others_slow
from tests.recipes.small import make_run, small_config

TOKENIZER = arithmetic_tokenizer()
REFRESHED = dict(num_steps=5, reference_every=2, minibatches=2)


@pytest.fixture
def seen(monkeypatch):
    """[(step, policy, reference)] of every batch, as numpy trees."""
    found = []
    taken = GroupSource.next

    def recording(self, state, step):
        reference = state.reference if self.reference is None else self.reference
        found.append((step, *jax.device_get((state.params, reference))))
        return taken(self, state, step)

    monkeypatch.setattr(GroupSource, "next", recording)
    monkeypatch.setitem(
        scoring.RULES, "correct_reasoning", scoring.Rule(lambda text, _: len(text) / 10)
    )
    return found


def train(workdir, should_stop=lambda: False, **fields):
    fields = dict(loss=dict(kl_coef=0.1), optimizer=dict(learning_rate=0.01)) | fields
    settings = build(GrpoSettings, small_config(**fields), "config")
    config, run = build_model(settings.model), make_run(workdir, should_stop, phase="rl")
    params = random_params(config, run.mesh, 0)
    policy = Policy(config, params, TOKENIZER, "{question}\n")
    questions = QuestionStream(policy.with_prompts(arithmetic_task(0, 8).train), 0)
    with Rewards(settings.rewards) as rewards:
        run = run.within(workdir / "checkpoints")
        return reinforce.reinforce(settings, policy, questions, rewards, run)


def assert_same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def same(tree, other):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b), tree, other)))


def test_the_policy_becomes_the_reference_every_few_steps(tmp_path, seen):
    """Oracle: the earlier policies: at step s the reference is the policy of step s - s % 2, bit for bit."""
    train(tmp_path, **REFRESHED)
    policies = [policy for _, policy, _ in seen]
    assert len(seen) == 5 and not same(policies[0], policies[2])
    for step, _, reference in seen:
        assert_same(reference, policies[step - step % 2])


@pytest.mark.parametrize("stop_after", others_slow([2, 3], 3))
def test_a_run_that_was_stopped_goes_on_with_the_same_reference(tmp_path, seen, stop_after):
    """Oracle: the run that nothing stopped, bit for bit; once on a step that replaces it, once between."""
    end = train(tmp_path / "whole", **REFRESHED)
    whole, asked = list(seen), []
    del seen[:]

    def stop():
        asked.append(None)
        return len(asked) == stop_after

    with pytest.raises(SystemExit):
        train(tmp_path / "parts", stop, **REFRESHED)
    assert_same(train(tmp_path / "parts", **REFRESHED), end)
    assert [step for step, *_ in seen] == [0, 1, 2, 3, 4]
    for (_, *ours), (_, *theirs) in zip(seen, whole, strict=True):
        assert_same(ours, theirs)


def test_without_an_interval_the_first_policy_stays_the_reference(tmp_path, seen):
    """Oracle: the policy of step 0, bit for bit."""
    train(tmp_path, num_steps=3)
    for _, _, reference in seen:
        assert_same(reference, seen[0][1])
    assert not same(seen[0][1], seen[2][1])


def test_an_interval_without_a_kl_is_refused():
    """Oracle: the words a reader needs."""
    with pytest.raises(
        ValueError, match="config.reference_every=2, but loss.kl_coef=0 reads no reference"
    ):
        build(GrpoSettings, small_config(reference_every=2), "config")


def test_one_wrong_token_of_the_sampler_stops_a_run_at_its_first_step(
    tmp_path, monkeypatch, capsys
):
    """Oracle: by hand: 0.05 nats planted in one of some hundred tokens, which their mean does not show."""

    def off_at_one_token(*arguments, **settings):
        rollout = generate(*arguments, **settings)
        rollout.sampler_logprobs[3, 0] -= 0.05
        assert 0.05 / rollout.completion_mask.sum() < reinforce.LARGEST_GAP["float32"]["mean"]
        return rollout

    monkeypatch.setattr(policy, "generate", off_at_one_token)
    monkeypatch.setitem(
        scoring.RULES, "correct_reasoning", scoring.Rule(lambda text, _: len(text) / 10)
    )
    with pytest.raises(
        ValueError, match="off the trainer's by 5.0e-02 nats at one token, .* 0.01;"
    ):
        train(tmp_path, num_steps=1, prompts_per_step=16, group_size=8)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "log-prob gap" in line]
    assert line.startswith("|old - sampler| log-prob gap: mean ")
    assert line.endswith("e-05, max 5.0e-02 nats")


@pytest.mark.parametrize(
    "dtype, mean, largest, fault",
    [
        ("float32", 7.5e-5, 0.15, "1.5e-01 nats at one token"),
        ("float32", 2e-4, 2e-4, "2.0e-04 nats on average"),
        ("float32", np.nan, 0.0, "nan nats on average"),
        ("float32", 0.0, np.nan, "nan nats at one token"),
        ("float32", 4e-7, 3e-5, None),
        ("bfloat16", 0.06, 0.5, "6.0e-02 nats on average"),
        ("bfloat16", 0.01, 3.2, None),
    ],
)
def test_a_gap_that_rounding_does_not_explain_is_an_error_once(dtype, mean, largest, fault):
    """Oracle: by hand; gaps of real runs pass: in bfloat16 a single token may go to other experts."""
    metrics = {"sampler_gap_mean": mean, "sampler_gap_max": largest}
    step = reinforce._checking_first(
        lambda state, batch, rng: (state, metrics), reinforce.LARGEST_GAP[dtype]
    )
    if fault is None:
        assert step("state", {}, None) == ("state", metrics)
    else:
        with pytest.raises(ValueError, match=fault):
            step("state", {}, None)
    assert step("state", {}, None) == ("state", metrics)  # the policy has moved: not asked again


def test_micro_batches_make_the_update_of_the_whole_batch(tmp_path, monkeypatch):
    """Oracle: the loss and the gradient's norm of the step that is not cut, to float32's rounding; for dapo,
    whose mean over tokens is no mean of the two groups' means.
    """
    monkeypatch.setitem(
        scoring.RULES, "correct_reasoning", scoring.Rule(lambda text, _: len(text) / 10)
    )
    lines = []
    for micro_batches in (1, 2):
        workdir = tmp_path / f"{micro_batches}"
        fields = dict(num_steps=1, loss=dict(loss_type="dapo"), micro_batches=micro_batches)
        train(workdir, **fields)
        lines += read_metrics(workdir / "metrics.jsonl", "rl")
    whole, cut = lines
    assert abs(whole["loss"]) > 1e-2 and whole["grad_norm"] > 1e-2
    for name in ("loss", "grad_norm", "entropy", "tokens"):
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "loss",
    [
        dict(loss_type="dr_grpo"),
        dict(loss_type="gspo"),
        dict(loss_type="dapo", kl_coef=0.1),
        dict(clip_eps=0.5),
        dict(clip_eps_high=0.9),
        dict(importance_cap=1.1),
    ],
)
def test_what_the_config_says_of_the_loss_is_what_a_step_computes(loss, monkeypatch):
    """Oracle: the papers' sums in float64 torch, where dr_grpo divides by the longest completion of any step.
    The loss without the config's setting differs.
    """
    logprobs, entropy, batch = make_batch()
    scored = logprobs, entropy, None
    monkeypatch.setattr(reinforce, "completion_logprobs", lambda *_, temperature: scored)

    def loss_of(**fields):
        rollout = dict(max_completion_length=((0, 5), (1, 7)))
        settings = build(GrpoSettings, small_config(loss=fields, rollout=rollout), "config")
        loss_fn = reinforce._loss_fn(settings, config=None)
        return float(loss_fn(None, batch | {"temperature": 1.0}, None)[0])

    plain = dict(loss_type="grpo", clip_eps=0.2, max_completion_length=7)
    wanted, _ = torch_loss(logprobs, batch, **(plain | loss))
    np.testing.assert_allclose(loss_of(**loss), wanted, rtol=1e-5)
    assert abs(loss_of() - wanted) > 1e-3
