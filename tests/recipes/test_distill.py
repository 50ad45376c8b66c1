"""Distillation at toy size: a whole run, and its parts where they can be had alone."""

import json

import jax
import numpy as np
import pytest

from configs.distill_small import get_config
from deepseek_jax.checkpoint import load_orbax, save_orbax
from deepseek_jax.data.bilingual_tokenizer import bilingual_tokenizer
from deepseek_jax.data.conversations import pack_conversations
from deepseek_jax.evaluation.conversation_loss import ConversationLoss
from deepseek_jax.losses.objective import PROJECTIONS, SAMPLED, Objective
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes import distill
from deepseek_jax.recipes.blocks import build_model, random_params
from deepseek_jax.recipes.distill_data import mixed
from deepseek_jax.recipes.distill_settings import DistillSettings
from deepseek_jax.recipes.distill_source import OnPolicyRows, TaskWatch, sampled_rows
from deepseek_jax.recipes.distill_update import check_first
from deepseek_jax.recipes.settings import build
from deepseek_jax.rollout import generate
from deepseek_jax.training.metrics import read_metrics
from tests.recipes.small import one_device
from tests.tiny import tiny_model
from tests.turns import turns

TERMS = dict(soft=0.5, hard=0.5, hidden=0.1, relations=0.1, l2=1e-5)


def write_texts(path):
    """40 conversations of a world with two answers."""
    lines = [json.dumps({"messages": turns("7 + 5", str(k % 2 + 12))}) for k in range(40)]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a random teacher, and texts."""
    folder = tmp_path_factory.mktemp("distill")
    config = build_model(get_config().teacher.model)
    save_orbax(folder / "teacher", config, random_params(config, one_device(), 1)[0])
    return folder, write_texts(folder / "texts.jsonl")


def small_config(files, **fields):
    """One student of each term, for four steps, on texts from a file."""
    folder, texts = files
    config = get_config(f"teacher={folder / 'teacher'}")
    config.text = None
    config.template = "{question} = "
    config.tasks = dict(a=dict(path=texts, num_held_out=4), b=dict(path=texts, num_held_out=4))
    config.starts = dict(qwen=dict(model=config.starts.qwen.model.to_dict(), tokenizer="bilingual"))
    student = config.students.qwen.unlock()
    student.update(dict(num_steps=4, batch_size=8, sequence_length=16, eval_every=2, save_every=2))
    student.update(dict(log_every=1))
    loss = dict(weights=TERMS, temperature=((0, 2.0), (4, 1.0)))
    student.loss = student.loss.to_dict() | loss
    student.optimizer.warmup_steps = 1
    student.plateau = dict(factor=0.5, patience=1, rtol=0.9)  # which is never reached
    config.students = dict(qwen=student)
    config.unlock()
    config.update(fields)
    return config


def run(folder, config, mesh=None):
    mesh = mesh or one_device()
    with jax.set_mesh(mesh):
        distill.run(config, mesh, folder, lambda: False)


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(folder, small_config(files))
    return folder


def test_every_term_is_logged_the_rate_follows_and_projections_are_dropped(finished, files):
    """Oracle: the weights, which the loss must be the sum of; the tree of the start; and by hand, two
    evaluations of two updates each, the second not lower by nine tenths.
    """
    records = read_metrics(finished / "metrics.jsonl", "qwen")
    assert [record["step"] for record in records] == [0, 1, 2, 3]
    for record in records:
        total = sum(weight * record[name] for name, weight in TERMS.items())
        np.testing.assert_allclose(record["loss"], total, rtol=1e-4)
    assert [record["plateau_scale"] for record in records] == [1, 1, 1, 0.5]
    for name in ("a", "b"):
        assert f"held_out_loss/{name}" in records[0] and f"held_out_loss/{name}" not in records[1]
    _, student = load_orbax(finished / "students" / "qwen" / "params")
    config, _ = load_orbax(finished / "starts" / "qwen" / "params")
    assert PROJECTIONS not in student and config.model_type == "qwen2"


def test_what_is_unchanged_is_not_made_again(finished, files, capsys):
    """Oracle: what the run says: other weights change the student, and not its start."""
    run(finished, small_config(files))
    said = capsys.readouterr().out
    assert said.count("not run again") == 2 and "complete" in said


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(finished, files, tmp_path):
    """Oracle: the run in one piece, record by record."""
    stops = iter([False, True])
    mesh, config = one_device(), small_config(files)
    with jax.set_mesh(mesh):
        with pytest.raises(SystemExit):
            distill.run(config, mesh, tmp_path, lambda: next(stops))
    run(tmp_path, config)
    names = ("loss", "soft", "hidden", "grad_norm")
    ours, theirs = (read_metrics(f / "metrics.jsonl", "qwen") for f in (tmp_path, finished))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose([one[n] for n in names], [other[n] for n in names], rtol=1e-5)


@pytest.mark.slow
def test_eight_devices_learn_what_one_does(finished, files, tmp_path):
    """Oracle: the run on one device, up to the order of float32 sums."""
    run(tmp_path, small_config(files), make_mesh(data=2, fsdp=2, expert=2))
    ours, theirs = (read_metrics(f / "metrics.jsonl", "qwen") for f in (tmp_path, finished))
    for one, other in zip(ours, theirs, strict=True):
        for name in (*TERMS, "loss", "grad_norm"):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-3, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        dict(weights=dict(soft=0.5, hard=0.5), top_k=8),
        dict(
            weights=dict(on_policy=1.0, hard=0.5),
            on_policy=dict(prompts=8, max_completion_length=8),
        ),
    ],
)
def test_a_cache_and_the_students_own_samples_train_it_too(files, tmp_path, fields):
    """Oracle: the loss falls, and is the weighted sum of its terms."""
    config = small_config(files)
    config.students.qwen.loss = fields
    config.students.qwen.num_steps, config.students.qwen.micro_batches = 12, 2
    run(tmp_path, config)
    records = read_metrics(tmp_path / "metrics.jsonl", "qwen")
    for record in records:
        total = sum(weight * record[name] for name, weight in fields["weights"].items())
        np.testing.assert_allclose(record["loss"], total, rtol=1e-4)
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]


@pytest.mark.slow
def test_a_student_that_spells_learns_from_one_that_reads_words(files, tmp_path):
    """Oracle: as above, of a student with another tokenizer; one text a row."""
    config = small_config(files, packing=False)
    config.starts.qwen.update(tokenizer="letters")
    weights = dict(matched=0.5, sorted=0.5, hard=0.5)
    config.students.qwen.loss = dict(weights=weights, temperature=2.0)
    config.students.qwen.num_steps = 12
    run(tmp_path, config)
    records = read_metrics(tmp_path / "metrics.jsonl", "qwen")
    assert all(records[0][name] > 0 for name in weights)
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]


def test_a_term_that_does_nothing_stops_the_run():
    """Oracle: by hand: a student that is its teacher has no distance to it, and a gradient of 0."""
    config, params = tiny_model("gqa")
    batch = sampled_rows([([1, 2], [3, 4, 5])], 8) | {"temperature": np.float32(1)}
    objective = Objective(student=config, teacher=config, weights=dict(soft=0.5, hard=0.5))
    with pytest.raises(ValueError, match="config.students.s.loss.weights.soft=0.5, and the term's"):
        check_first(objective, params, batch, params, "config.students.s.loss")


def test_sampled_rows_learn_the_completions():
    """Oracle: by hand."""
    batch = sampled_rows([([5, 6], [7, 8]), ([1], [2])], 5)
    np.testing.assert_array_equal(batch["tokens"], [[5, 6, 7, 8, 0], [1, 2, 0, 0, 0]])
    np.testing.assert_array_equal(batch["targets"][0, :3], [6, 7, 8])
    np.testing.assert_array_equal(batch["loss_mask"], [[0, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch["segment_ids"], [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    assert batch["normalizer"] == 3


def test_on_policy_rows_are_the_students_own_and_depend_on_the_step_alone(files):
    """Oracle: rollout.generate on the prompts that the rows begin with; another object, the same step."""
    config, params = tiny_model("gqa")
    settings = build(DistillSettings, small_config(files), "config").built_students()["qwen"].loss
    on_policy = dict(prompts=3, max_completion_length=4, slots=3)
    loss = dict(weights=dict(on_policy=1.0), temperature=1.0, on_policy=on_policy)
    settings = build(type(settings), loss, "config").on_policy
    prompts = [[1, 2], [3, 4, 5]]
    made = [
        OnPolicyRows(config, prompts, settings, eos_ids=(0,), sequence_length=8, seed=1)
        for _ in range(2)
    ]
    first, again, later = made[0](params, 5), made[1](params, 5), made[0](params, 6)
    tokens = SAMPLED + "tokens"
    np.testing.assert_array_equal(first[tokens], again[tokens])
    assert (first[tokens] != later[tokens]).any()
    draw = np.random.default_rng([1, 5])
    chosen = [prompts[i] for i in draw.integers(2, size=3)]
    how = dict(max_completion_length=4, eos_ids=(0,), slots=3, seed=int(draw.integers(2**31)))
    rollout = generate(config, params, chosen, **how)
    for row, prompt, ids, mask in zip(
        first[tokens], chosen, rollout.completion_ids, rollout.completion_mask, strict=True
    ):
        wanted = [*prompt, *ids[mask]]
        np.testing.assert_array_equal(row[: len(wanted)], wanted)


def test_a_task_that_regresses_is_named(capsys):
    """Oracle: by hand: parameters that are noise predict worse than those that were trained, of one task."""
    mesh, tokenizer = one_device(), bilingual_tokenizer()
    config = build_model(get_config().starts.qwen.model)
    how = dict(template="{question} = ", sequence_length=16, batch_size=8, seed=0, num_epochs=1)
    texts = [{"messages": turns(f"{k} + 5", str(k + 5)), "weight": 1.0} for k in range(8)]
    batches = {"sums": list(pack_conversations(texts, tokenizer, **how))}
    with jax.set_mesh(mesh):
        watch = TaskWatch(ConversationLoss(config, [], mesh), batches, "qwen")
        good, _ = random_params(config, mesh, 0)
        worse = jax.tree.map(lambda leaf: 3 * leaf, good)
        assert watch(good)["regressed/sums"] == 0 and watch(good)["regressed/sums"] == 0
        state = watch.get_state()
        assert watch(worse)["regressed/sums"] == 1
    assert "qwen: task sums regressed at evaluation 3" in capsys.readouterr().out
    fresh = TaskWatch(watch.loss_of, batches, "qwen")
    fresh.set_state(json.loads(json.dumps(state)))
    assert fresh.best == state["best"] and fresh.evaluations == 2


def test_tasks_are_mixed_by_size_and_temperature():
    """Oracle: by hand: 900 and 100 texts, drawn 9 to 1, and under temperature 2 as 3 to 1."""
    sources = [["x"] * 900, ["y"] * 100]
    assert mixed(sources, 1.0).weights == (900, 100)
    assert mixed(sources, 2.0).weights == (30, 10)


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("students.qwen.loss.weights.sofd", 1.0, "weights.sofd is no term; did you mean soft"),
        ("students.qwen.loss.weights", dict(l2=1.0), "leaves nothing to learn"),
        ("students.qwen.loss.top_k", 4, "temperature one number"),
        ("students.qwen.loss.weights.on_policy", 1.0, "set both, or neither"),
        ("students.qwen.loss.weights.matched", 1.0, "as two tokenizers do"),
        ("students.qwen.loss.divergence", "jsd", "config.students.qwen.loss.beta to one such"),
        ("students.qwen.start", "qwem", "config.students.qwen.start='qwem' is none; did you mean"),
        ("tasks.c", {}, "config.tasks.c has no path"),
        ("mixing_temperature", 0.0, "config.mixing_temperature=0.0 must be"),
        ("comparisons", dict(x=("qwen", "llama")), "names 'llama'"),
        ("teacher", None, "needs config.teacher"),
        ("teacher.path", None, "set either config.teacher.path"),
    ],
)
def test_a_mistake_is_named(files, field, value, words):
    """Oracle: the words a reader needs."""
    config = small_config(files)
    *blocks, last = field.split(".")
    block = config
    for name in blocks:
        block = block[name]
    with block.unlocked(), block.ignore_type():
        block[last] = value
    with pytest.raises(ValueError) as error:
        build(DistillSettings, config, "config")
    assert words in str(error.value)
