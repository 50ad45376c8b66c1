"""Many teachers: whose questions come when, what each reads, and what the loop is given."""

import json
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from deepseek_jax.distill import taught
from deepseek_jax.distill.taught import TeachersUpdate, learn_from_teachers, merged
from deepseek_jax.distill.teacher_checks import check_teacher
from deepseek_jax.distill.teacher_settings import TaughtSettings
from deepseek_jax.distill.teachers import HIDDEN, TeacherSource, describe_by_teacher, teacher_batch
from deepseek_jax.models.moe import Routing
from deepseek_jax.parallel import make_mesh
from deepseek_jax.reinforce.settings import MOST_SHARED_SCORES
from deepseek_jax.reinforce.update import sampler_limits
from deepseek_jax.settings import build
from tests.recipes.small import one_device
from tests.reinforce.rollouts import rollout_of
from tests.tiny import CONFIGS


def settings_of(rollout=(), **fields):
    config = dict(num_steps=2, optimizer=dict(learning_rate=0.01))
    config["teachers"] = dict(sums=dict(task="x"), words=dict(task="y", weight=0.3))
    config["prompts_per_step"] = dict(x=2, y=3)
    rollout = dict(max_prompt_length=8, max_completion_length=4) | dict(rollout)
    return build(TaughtSettings, config | dict(rollout=rollout) | fields, "config")


def group(task, lengths, truncated=False, prompt=3):
    """Completions of these lengths, of at most four tokens."""
    ids = (np.arange(4) < np.array(lengths)[:, None]).astype(np.int32)
    rollout = rollout_of(ids, truncated=[truncated] * len(lengths))
    return dict(task=task, prompt_ids=[1] * prompt, rollout=rollout)


def test_what_is_not_set_is_one_completion_and_a_whole_kl():
    """Oracle: by hand."""
    settings = settings_of()
    assert [teacher.weight for teacher in settings.teachers.values()] == [1.0, 0.3]
    assert settings.group_size == 1 and not settings.keep_routing
    assert settings.questions_per_step() == 5


@pytest.mark.parametrize(
    "group_size, length, shares, rows",
    [(1, 4, False, 2), (2, 4, True, 2), (4, MOST_SHARED_SCORES, False, 8)],
)
def test_rows_are_prompts_where_completions_share_one(group_size, length, shares, rows):
    """Oracle: by hand: a single completion shares nothing, and long ones have too many scores in a row."""
    settings = settings_of(dict(max_completion_length=length), group_size=group_size)
    assert settings.shares_prompts() == shares and settings.rows("x") == rows


def test_the_first_token_that_two_tokenizers_have_elsewhere_is_named():
    """Oracle: by hand: the lowest id, and of one id the first in the alphabet; added tokens count."""

    def tokenizer(**ids):
        return SimpleNamespace(backend=SimpleNamespace(get_vocab=lambda added: added and ids))

    config = CONFIGS["gqa"]
    check_teacher(config, tokenizer(a=1), config, tokenizer(a=1))
    for other in "bcdefghijk":
        with pytest.raises(ValueError, match="'a' is token None there and 1 in"):
            check_teacher(config, tokenizer(a=1), config, tokenizer(**{other: 1}))
    with pytest.raises(ValueError, match="'z' is token 2 there and 1 in"):
        check_teacher(config, tokenizer(z=1, c=5), config, tokenizer(z=2, c=6))


def test_each_task_asks_its_questions_once_an_epoch_and_resumes():
    """Oracle: by hand: six questions of x, two a step, are all asked in three steps, and those of y in two; a
    source that resumes asks what comes next.
    """
    questions = {task: [{"number": number} for number in range(6)] for task in "xy"}
    made = [TeacherSource(settings_of(), None, {}, questions, one_device()) for _ in range(2)]
    source, fresh = made
    assert source.get_state() == {"positions": {"x": 0, "y": 0}}
    steps = [source._take() for _ in range(3)]
    for step in steps:
        assert [example["task"] for example in step] == ["x"] * 2 + ["y"] * 3
    asked = [Counter(e["number"] for s in part for e in s if e["task"] == task)
             for task, part in (("x", steps), ("y", steps[:2]))]  # fmt: skip
    assert asked == [Counter(range(6))] * 2
    fresh.set_state(json.loads(json.dumps(source.get_state())))
    assert fresh._take() == source._take()


def test_the_samples_of_each_teacher_are_described():
    """Oracle: by hand."""
    groups = {"sums": [group("x", [1, 2]), group("x", [4, 3], truncated=True)]}
    groups["words"] = [group("y", [2, 4])]
    assert describe_by_teacher(groups) == {
        "completion_length": 16 / 6,
        "completion_length_sums": 2.5,
        "completion_length_words": 3.0,
        "truncated_share": 2 / 6,
        "truncated_share_sums": 0.5,
        "truncated_share_words": 0.0,
    }


@pytest.mark.parametrize("group_size, prompts, lengths", [(2, 2, (32, 4)), (1, 2, (32, 32))])
def test_the_batch_of_a_teacher(group_size, prompts, lengths):
    """Oracle: by hand: prompts stand once for their group where completions share them; lengths are multiples
    of 16 for each of two devices of a row's tokens; the divisors count the tokens of this teacher.
    """
    mesh = make_mesh(data=1, context=2, devices=jax.devices()[:2])
    groups = [group("x", [1, 2][:group_size]), group("x", [4, 3][:group_size], prompt=20)]
    batch = teacher_batch(groups, settings_of(group_size=group_size), mesh, 0.7, 0.3)
    assert batch["prompt_ids"].shape == (prompts, lengths[0])
    assert batch["completion_ids"].shape == (2 * group_size, lengths[1])
    assert batch["num_tokens"] == batch["completion_mask"].sum() == (10 if group_size == 2 else 5)
    assert (batch["temperature"], batch["weight"]) == (np.float32(0.7), np.float32(0.3))


def test_what_the_loop_is_given(monkeypatch, tmp_path):
    """Oracle: by hand: the gap's limit alone, the teachers' terms, where to look for a fault."""
    calls = {}
    update, settings, config = SimpleNamespace(locate="locate"), settings_of(), CONFIGS["gqa"]
    run = SimpleNamespace(mesh=one_device(), folder=tmp_path / "run")
    policy = SimpleNamespace(config=config, params="params")

    def fake_train(*given):
        calls["train"] = given
        return SimpleNamespace(model="trained")

    monkeypatch.setattr(taught, "train", fake_train)
    monkeypatch.setattr(taught, "jitted_update", lambda *given: (lambda params: [params], update))
    monkeypatch.setattr(taught, "TeacherSource", lambda *given: given)
    assert learn_from_teachers(settings, policy, {}, {}, run) == "trained"
    *given, checks = calls["train"]
    source = settings, policy, {}, {}, run.mesh, tmp_path / "run_rollouts"
    assert given == [settings, ["params"], update, source, run, settings.seed]
    gap = "sampler_gap_mean"
    assert checks.limits == {gap: sampler_limits(config)[gap]}
    assert checks.terms == taught.terms_of(settings) and checks.locate == "locate"


def numbers(loss, gap, **more):
    return dict(kl=loss, entropy=2 * loss, loss=loss, sampler_gap=gap) | more


def test_metrics_of_teachers_add_up():
    """Oracle: by hand: the sum of the losses and of the routed tokens, the largest gap, and the names."""
    found = {
        "a": numbers(1.0, 0.5, routing={"moe_layers": np.float32([1, 2])}),
        "b": numbers(3.0, 0.25, routing={"moe_layers": np.float32([3, 5])}),
    }
    metrics = merged(found)
    np.testing.assert_array_equal(metrics.pop("routing")["moe_layers"], [4, 7])
    wanted = dict(kl_a=1.0, entropy_a=2.0, kl_b=3.0, entropy_b=6.0, loss=4.0, sampler_gap_mean=0.5)
    assert metrics == wanted
    plain = {name: {k: x for k, x in m.items() if k != "routing"} for name, m in found.items()}
    assert merged(plain) == wanted


@pytest.mark.parametrize("overflows", [None, (2, 3)])
def test_tokens_that_no_expert_had_room_for_are_summed_over_teachers(overflows):
    """Oracle: by hand; a model without such buffers has no such metric. Each teacher's head comes with its
    own part, and the gradients go from one to the next.
    """
    update = object.__new__(TeachersUpdate)
    update.teachers = {name: SimpleNamespace(head=lambda name=name: name) for name in "ab"}
    update.zeros = lambda params: [params]
    left = iter(overflows or ())

    def add(gradients, state, part, rng, head):
        more = {"expert_overflows": next(left)} if overflows else {}
        return [*gradients, (part, rng, head)], numbers(1.0, 0.0, **more)

    update.add, update.apply = add, lambda state, gradients, metrics: (gradients, metrics)
    batch, state = {"a": 1, "b": 2}, SimpleNamespace(params="params")
    gradients, metrics = update(state, batch, "rng")
    assert gradients == ["params", (1, "rng", "a"), (2, "rng", "b")]
    assert metrics.get("expert_overflows") == (5 if overflows else None) and metrics["loss"] == 2.0


@pytest.mark.parametrize("counted", [False, True])
def test_the_overflows_of_all_layers_are_counted_with_a_teachers_gradient(monkeypatch, counted):
    """Oracle: by hand: once, and no longer in the routing that goes on; the loss has the teacher's head."""
    overflows = np.array([1, 2]) if counted else None
    routing = {"moe_layers": Routing(np.float32([4]), np.float32(0), overflows)}

    def gradients_of(loss_fn, micro_batches):
        def gradients(state, part, rng):
            assert (state, part, rng, micro_batches) == ("state", "part", "rng", 2)
            return (loss_fn(), {"kl": 1.0, "routing": dict(routing)}), {"w": np.float32(2)}

        return gradients

    monkeypatch.setattr(taught, "gradients_of", gradients_of)
    update = object.__new__(TeachersUpdate)
    update.micro_batches, update.loss_fn = 2, lambda head: head
    gradients, metrics = update._add({"w": np.float32(5)}, "state", "part", "rng", 7.0)
    assert gradients["w"] == 7 and metrics["loss"] == 7.0
    assert metrics.get("expert_overflows") == (3 if counted else None)
    assert metrics["routing"]["moe_layers"] == routing["moe_layers"]._replace(overflows=None)


@pytest.mark.parametrize("routing", [{}, {"moe_layers": "routing"}])
@pytest.mark.parametrize("num_tokens, share", [(0, 1.0), (1, 1.0), (4, 0.25)])
def test_the_loss_of_a_teacher_is_a_mean_over_its_tokens(monkeypatch, num_tokens, share, routing):
    """Oracle: by hand: each token's share, of at least one; what the KL is given of student and teacher."""
    calls = []

    def teacher_kl(*given, **more):
        calls.append((given, more))
        return 3.0, {"kl": 1.0}

    states = SimpleNamespace(
        hidden="hidden", targets="targets", spread=lambda x: x, routing=routing
    )
    monkeypatch.setattr(taught, "completion_states", lambda *given: states)
    monkeypatch.setattr(taught, "head_weight", lambda *given: "own head")
    monkeypatch.setattr(taught, "teacher_kl", teacher_kl)
    mask = np.array([[True, False]])
    batch = dict(completion_mask=mask, num_tokens=num_tokens, sampler_logprobs="logprobs")
    batch |= {HIDDEN: "its hidden", "weight": 0.3, "temperature": 0.7}
    loss, metrics = taught.make_taught_loss("config")("params", batch, None, "its head")
    (((student, teacher, shares, sampled), more),) = calls
    assert student == ("hidden", "own head") and teacher == ("its hidden", "its head")
    assert shares.tolist() == [[share, 0.0]] and sampled == ("targets", "logprobs")
    assert more == dict(weight=0.3, temperature=0.7) and loss == 3.0
    assert metrics.get("routing", {}) == routing
