"""The whole recipe at toy size: what it leaves behind, and that stopping it changes nothing."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from configs.sft_small import get_config
from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.checkpoint.store import Store
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes.sft import run as sft
from deepseek_jax.recipes.sft.settings import SftSettings
from deepseek_jax.recipes.stage import Context
from deepseek_jax.settings import build
from deepseek_jax.training.metrics import read_metrics
from tests.compilations import compilations
from tests.quick import others_slow
from tests.recipes.outcome import assert_names, scores_in, unlisted, without_group
from tests.recipes.pages import PARTS, data_of, parts_of
from tests.recipes.small import CLOCKS, ONE_LAYER, make_run, run_recipe
from tests.turns import turns


def small_config(**fields):
    """The ConfigDict of four steps; fields: others of SftSettings."""
    config = get_config()
    config.model.update(ONE_LAYER)
    config.update(dict(num_steps=4, batch_size=8, save_every=1, log_every=1, eval_every=2))
    config.base.update(dict(num_documents=400, batch_size=8, num_steps=5))
    config.base.optimizer.warmup_steps = 1
    config.optimizer.warmup_steps = 0
    config.data.num_held_out = 12
    config.answers.update(dict(num_prompts=8, max_completion_length=12, slots=8))
    config.unlock()
    config.update(fields)
    return config


def run(workdir, should_stop=lambda: False, mesh=None, **fields):
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        run_recipe(sft, small_config(**fields), workdir, should_stop, mesh)


def records(workdir):
    return [
        {name: value for name, value in record.items() if not name.endswith(CLOCKS)}
        for record in read_metrics(workdir / "metrics.jsonl", "sft")
    ]


def parameters(workdir, phase, step):
    folder = workdir / phase / "checkpoints" / str(step)
    return ocp.load_checkpointables(folder)["state"]["params"]


@pytest.fixture(scope="module")
def finished(toys):
    """The work directory of a run that nothing interrupted."""
    return toys.run(small_config())


@pytest.fixture
def with_base(finished, tmp_path):
    """A work directory in which the base is pre-trained, and no more."""
    shutil.copytree(finished / "pretrain", tmp_path / "pretrain")
    return tmp_path


def test_every_metric_has_a_group_on_the_boards(finished):
    """Oracle: the names of the lines that a run leaves, against the table of groups."""
    assert without_group(finished) == set()


def test_the_guide_lists_every_file_of_the_run(finished):
    """Oracle: the files that the run left."""
    assert unlisted(finished) == []


def test_a_run_measures_before_every_few_steps_and_after(finished):
    """Oracle: by hand, the steps of the config; the first loss in training is the one before it."""
    before, after = (scores_in(finished, name) for name in ("before", "after"))
    for m in (before, after):
        assert m["loss"]["conversations"] == 12
        low, high = m["loss"]["loss"][1:]
        assert low < m["loss"]["loss"][0] < high
        assert m["answers"].keys() == {"sampled", "greedy"}
        assert len(m["answers"]["greedy"]["samples"]) == 8
    assert after["loss"]["loss"][0] < before["loss"]["loss"][0] - 0.1
    lines = records(finished)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert ["held_out_loss" in line for line in lines] == [True, False, True, False]
    assert lines[0]["held_out_loss"] == before["loss"]["loss"][0]
    assert all(line["tokens"] > 100 and line["nonfinite"] == 0 for line in lines)
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    with Store(finished / "sft" / "checkpoints") as store:
        assert store.latest_step() == 4


def test_a_run_leaves_a_page(finished):
    """Oracle: the files of the run: losses with intervals, and answers before and after."""
    parts = parts_of(finished)
    assert list(parts) == [name for name in PARTS if name != "rewarded"]
    old, new = (scores_in(finished, name)["loss"]["loss"] for name in ("before", "after"))
    assert parts["results"].startswith(
        f"Results held out loss {old[0]:.3f} → {new[0]:.3f} before {old[1]:.3f} to {old[2]:.3f} "
    )
    assert "held out loss" in parts["curves"].partition(" more")[0]
    sides = [[s["text"] for s in pair["sides"]] for pair in data_of(finished, "pairs")]
    texts = [
        [s["completion"] for s in scores_in(finished, name)["answers"]["sampled"]["samples"]]
        for name in ("before", "after")
    ]
    assert sides == [list(both) for both in zip(*texts, strict=True)]


def test_the_learning_rate_falls_by_a_cosine_to_a_tenth(finished):
    """Oracle: Adam's first step is the sign of the gradient; by hand: 1e-3 at update 0 of 4."""
    settings = build(SftSettings, small_config(), "config")
    tx = settings.make_optimizer()
    params = {"w": np.ones(3, np.float32)}
    state, moved = tx.init(params), []
    for _ in range(4):
        updates, state = tx.update({"w": np.full(3, 0.1, np.float32)}, state, params)
        moved.append(-float(updates["w"][0]))
    wanted = [1e-4 + 9e-4 * (1 + np.cos(np.pi * i / 4)) / 2 for i in range(4)]
    np.testing.assert_allclose(moved, wanted, rtol=1e-4)


def test_everything_is_trained_but_the_router_bias(finished):
    """Oracle: the checkpoints of the base and of the end."""
    base, end = parameters(finished, "pretrain", 5), parameters(finished, "sft", 4)
    bias = [params["moe_layers"]["ffn"].pop("router_bias") for params in (base, end)]
    np.testing.assert_array_equal(*bias)
    assert np.abs(bias[0]).max() > 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), base, end)
    assert all(jax.tree.leaves(moved))


def test_the_policy_that_a_run_leaves_is_its_last(finished):
    """Oracle: the checkpoint after the last step."""
    left = load_orbax(finished / "sft" / "params")[1]
    jax.tree.map(np.testing.assert_array_equal, left, parameters(finished, "sft", 4))


@pytest.mark.slow
def test_a_run_told_to_stop_goes_on_as_if_it_had_not(finished, with_base, capsys):
    """Oracle: metrics and measurements of the run that nothing interrupted, digit for digit."""
    for _ in range(3):
        with pytest.raises(SystemExit) as stopped:
            run(with_base, lambda: True)
        assert stopped.value.code == 75
    run(with_base)
    assert "sft: resuming at step 3 of 4" in capsys.readouterr().out
    assert records(with_base) == records(finished)
    for name in ("before", "after"):
        assert scores_in(with_base, name) == scores_in(finished, name)
    with compilations() as requests:
        run(with_base)
    assert "complete: 4 of 4 stages" in capsys.readouterr().out and not requests


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    others_slow([dict(micro_batches=2), dict(data=dict(packing=False))], dict(micro_batches=2)),
)
def test_micro_batches_change_nothing_and_a_conversation_a_row_only_the_order(
    finished, with_base, fields
):
    """Oracle: the run in one piece, up to the order of float32 sums; without packing, another order's run."""
    run(with_base, num_steps=4, **fields)
    ours, theirs = records(with_base), records(finished)
    if "micro_batches" in fields:
        for ours_at, theirs_at in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(ours_at["loss"], theirs_at["loss"], rtol=1e-4)
    np.testing.assert_allclose(ours[0]["held_out_loss"], theirs[0]["held_out_loss"], rtol=1e-5)
    assert (ours[0]["tokens"] < theirs[0]["tokens"] / 1.5) == ("data" in fields)


@pytest.mark.slow
def test_eight_devices_learn_what_one_does(finished, with_base):
    """Oracle: the run on one device, whose base it starts from, up to the order of float32 sums."""
    run(with_base, mesh=make_mesh(data=2, fsdp=2, expert=2))
    for ours, theirs in zip(records(with_base), records(finished), strict=True):
        for name in ("loss", "held_out_loss", "grad_norm"):
            if name in theirs:
                np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3)
        assert ours["tokens"] == theirs["tokens"]


def write_conversations(path, weight):
    """Twenty questions, answered in two ways each: what says 2 weighs `weight`, 3 one."""
    lines = []
    for k in range(40):
        messages = turns(f"What is 1 + {k // 8} + {k // 2 % 4}?", "23"[k % 2])
        lines.append(json.dumps({"messages": messages, "weight": [weight, 1.0][k % 2]}))
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.slow
def test_a_conversation_that_weighs_more_is_what_is_learned(with_base, tmp_path_factory):
    """Oracle: by hand: with 9 to 1 for "2" it is the likelier answer, whose odds approach 9."""
    path = write_conversations(tmp_path_factory.mktemp("chats") / "my.jsonl", 9.0)
    run(
        with_base,
        num_steps=40,
        save_every=40,
        eval_every=40,
        log_every=10,
        data=dict(path=path, num_held_out=4),
        answers=dict(num_prompts=2, temperature=1e-3),
        optimizer=dict(learning_rate=1e-2, weight_decay=0.0),
    )
    samples = scores_in(with_base, "after")["answers"]["greedy"]["samples"]
    assert [sample["completion"] for sample in samples] == ["2", "2"]
    last = records(with_base)[-1]
    np.testing.assert_allclose(last["loss"], np.log(10) - 0.9 * np.log(9), atol=0.2)


def unrewarded(**fields):
    """small_config without rewards."""
    config = small_config(**fields)
    del config.accuracy, config.rewards
    return config


@pytest.mark.slow
def test_conversations_of_ones_own_need_no_rewards(with_base, tmp_path_factory):
    """Oracle: by hand: the loss and the lengths are measured, answers have no score, and references may be
    texts.
    """
    path = tmp_path_factory.mktemp("chats") / "my.jsonl"
    talks = [turns(f"What is {k}?", "we add then the answer is ") for k in range(12)]
    path.write_text("\n".join(json.dumps({"messages": talk}) for talk in talks))
    data, answers = dict(path=str(path), num_held_out=4), dict(num_prompts=2)
    run_recipe(sft, unrewarded(num_steps=2, data=data, answers=answers), with_base)
    after = scores_in(with_base, "after")
    assert after["loss"]["loss"][0] < scores_in(with_base, "before")["loss"]["loss"][0]
    for answered in after["answers"].values():
        assert set(answered["scores"]) == {"completion_length", "truncated"}
        assert answered["unscored"] == 0
        assert [sample["reward"] for sample in answered["samples"]] == [None, None]


def opened_in(folder, settings):
    """(the AnswerRewards of a config, its Rewards, which are closed then)."""
    paid, run = sft.AnswerRewards(settings), make_run(folder, mesh=make_mesh())
    with contextlib.ExitStack() as opened:
        return paid, paid.read(Context(None, run, folder, {}, {}, opened, {}, {}))


def test_answers_to_a_worlds_task_are_scored_by_its_rule_without_rewards(tmp_path):
    """Oracle: by hand: the rule of sums; a reward that is named takes its place."""
    for config, name in ((unrewarded(), "correct"), (small_config(), "correct")):
        assert sft.AnswerRewards(build(SftSettings, config, "config")).accuracy == name
    _, rewards = opened_in(tmp_path, build(SftSettings, unrewarded(), "config"))
    assert rewards.weights == {"correct": 1.0}


@pytest.mark.parametrize(
    ("rewards", "name"),
    [
        ({"exact_answer": 1.0, "true_equations": 0.5}, "exact_answer"),
        ({"true_equations": -1.0}, None),
    ],
)
def test_rewards_of_ones_own_conversations_say_what_is_right(rewards, name, tmp_path):
    """Oracle: by hand: the reward of the larger weight; what takes reward away says nothing of it."""
    config = unrewarded(data=dict(path="my.jsonl", num_held_out=4))
    settings = build(SftSettings, config.to_dict() | {"rewards": rewards}, "config")
    paid, opened = opened_in(tmp_path, settings)
    assert paid.accuracy is None and paid.decides(opened) == name


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(eval_every=3, log_every=2), "config.eval_every=3 falls on steps that are not logged"),
        (
            dict(accuracy="corect"),
            "config.rewards.corect=0.0 is not of a reward; did you mean correct?",
        ),
        (dict(data=dict(task="sums")), "config.data.task='sums' is not a world's task"),
        (dict(data=dict(template="chat")), "config.data.template='chat', but this tokenizer"),
        (
            dict(micro_batches=3),
            "batch_size=8, sequence_length=64: a batch of 8 rows does not split",
        ),
        (dict(sequence_length=300), "config.sequence_length=300 is beyond the model's"),
        (dict(sequence_length=12), "config.sequence_length=12 is too short: 0 of the first"),
        (dict(answers=dict(num_prompts=13)), "config.answers.num_prompts=13, and 12 held-out"),
        (dict(answers=dict(max_completion_length=250)), "lower it"),
        (dict(model=dict(vocab_size=20)), "config.model.vocab_size=20 is below the tokenizer's 21"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(tmp_path, fields, words):
    """Oracle: the words a reader needs, and an empty work directory."""
    with pytest.raises(ValueError) as error:
        run(tmp_path, **fields)
    assert_names(error, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_conversations_that_are_too_long_are_counted(with_base, capsys):
    """Oracle: by hand: 3 operands make 19 to 22 tokens, 4 make 27 and more; half of the held-out each."""
    run(with_base, num_steps=1, sequence_length=24, answers=dict(num_prompts=4))
    assert "6 longer than 24 and left out" in capsys.readouterr().out
    assert scores_in(with_base, "before")["loss"]["conversations"] == 6
