"""Distillation at toy size: a whole run, and its parts where they can be had alone."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configs.common import tiny_base
from configs.distill_small import get_config, made_teacher
from deepseek_jax.checkpoint import load_orbax, save_orbax
from deepseek_jax.data import conversations
from deepseek_jax.data.carried import carried_files
from deepseek_jax.distill.objective import PROJECTIONS
from deepseek_jax.models import build_model, forward, random_params
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes.distill import run as distill
from deepseek_jax.recipes.distill.settings import DistillSettings, TaskSettings
from deepseek_jax.recipes.distill.tasks import (
    StudentTexts,
    TaskTexts,
    WorldQuestions,
    file_tasks,
    mixed,
    transfer_tasks,
)
from deepseek_jax.recipes.kinds.student import StudentRun
from deepseek_jax.rewards.answer import exact_answer
from deepseek_jax.rollout import AnswerOptions, Policy, load_policy
from deepseek_jax.settings import build
from deepseek_jax.training.lineage import content_hash
from deepseek_jax.training.metrics import read_metrics
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer
from deepseek_jax.worlds.bilingual.world import BILINGUAL
from tests.compilations import compilations
from tests.data.rows import with_rows
from tests.recipes.outcome import unlisted, without_group
from tests.recipes.pages import data_of, parts_of
from tests.recipes.small import make_run, one_device, run_recipe
from tests.turns import turns

pack_conversations = with_rows(conversations.pack_conversations)

REVERSED = dict(weights=dict(soft=1.0), divergence="reverse_kl")
TEMPLATE = "{question} = "
TERMS = dict(soft=0.5, hard=0.5, hidden=0.1, relations=0.1, l2=1e-5)


def write_texts(path):
    """40 conversations of a world with two answers."""
    lines = [json.dumps({"messages": turns(f"{k} + 5", str(k % 2 + 12))}) for k in range(40)]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a random teacher, and texts."""
    return make_files(tmp_path_factory.mktemp("distill"))


def make_files(folder):
    """Write a random teacher, and texts: -> (folder, the path of the texts)."""
    config = build_model(made_teacher()["model"])
    files = carried_files(bilingual_tokenizer(), TEMPLATE)
    save_orbax(folder / "teacher", config, random_params(config, one_device(), 1), files)
    return folder, write_texts(folder / "texts.jsonl")


def small_config(files, **fields):
    """One student of each term, for four steps, on texts from a file."""
    folder, texts = files
    config = get_config(f"teacher={folder / 'teacher'}")
    config.text = None
    config.template = TEMPLATE
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
    run_recipe(distill, config, folder, mesh=mesh)


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(folder, small_config(files))
    return folder


def test_every_metric_has_a_group_on_the_boards(finished):
    """Oracle: the names of the lines that a run leaves, against the table of groups."""
    assert without_group(finished) == set()


def test_the_guide_lists_every_file_of_the_run(finished):
    """Oracle: the files that the run left."""
    assert unlisted(finished) == []


@pytest.mark.slow
def test_every_term_is_logged_the_rate_follows_and_projections_are_dropped(finished, files):
    """Oracle: the weights, which the loss must be the sum of; the tree of the start; the schedule of the
    rate; and by hand, two evaluations of two updates each, the second not lower by nine tenths.
    """
    *records, end = read_metrics(finished / "metrics.jsonl", "students/qwen")
    assert [record["step"] for record in (*records, end)] == [0, 1, 2, 3, 4]
    for record in records:
        total = sum(weight * record[name] for name, weight in TERMS.items())
        np.testing.assert_allclose(record["loss"], total, rtol=1e-4)
    assert [record["plateau_scale"] for record in records] == [1, 1, 1, 0.5]
    scheduled = (
        build(DistillSettings, small_config(files), "config").students["qwen"].optimizer.rate(4)
    )
    for record in records:
        rate = scheduled(record["step"]) * record["plateau_scale"]
        np.testing.assert_allclose(record["learning_rate"], rate, rtol=1e-6)
    assert [record["temperature"] for record in records] == [2, 1.75, 1.5, 1.25]
    for name in ("a", "b"):
        measured = f"held_out_loss/{name}"
        assert measured in records[0] and measured not in records[1]
        assert end[measured] != records[2][measured] and "loss" not in end  # behind the last update
    config, student = load_orbax(finished / "students" / "qwen" / "params")
    assert (finished / "qwen.png").exists()
    assert PROJECTIONS not in student and config.model_type == "qwen2"


def test_what_is_unchanged_is_not_made_again(finished, files, capsys):
    """Oracle: what the run says, the report alone; no request for a compilation; the hash of texts, by the
    content of their file.
    """
    with compilations() as requests:
        run(finished, small_config(files))
    assert not requests
    said = capsys.readouterr().out
    assert "complete: " in said and "stage 1 of" not in said
    settings = build(DistillSettings, small_config(files), "config")
    texts = TaskTexts(settings, WorldQuestions(settings))
    before, path = content_hash(texts.covers(None)), Path(files[1])
    text = path.read_text()
    path.write_text(text.replace("13", "14"))
    assert content_hash(texts.covers(None)) != before
    path.write_text(text)
    assert content_hash(texts.covers(None)) == before


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(finished, files, tmp_path):
    """Oracle: the run in one piece, record by record."""
    stops = iter([False, True])
    config = small_config(files)
    with pytest.raises(SystemExit):
        run_recipe(distill, config, tmp_path, lambda: next(stops))
    run(tmp_path, config)
    names = ("loss", "soft", "hidden", "grad_norm")
    ours, theirs = (
        read_metrics(f / "metrics.jsonl", "students/qwen") for f in (tmp_path, finished)
    )
    for one, other in zip(ours, theirs, strict=True):
        for name in names if "loss" in other else ["held_out_loss"]:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5)


@pytest.mark.slow
def test_a_users_own_questions_measure_teacher_and_students(files, tmp_path):
    """Oracle: exact_answer on the teacher's own answers to the questions of the file, asked anew."""
    lines = [{"question": f"{k} + 5", "answer": "#### 12"} for k in range(6)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = small_config(files)
    task = dict(questions=str(tmp_path / "asked.jsonl"), rule="exact_answer")
    config.tasks.a.update(task)
    config.evaluation.update(dict(samples=3, max_completion_length=4))
    run(tmp_path / "run", config)
    answers = json.loads((tmp_path / "run" / "answers.json").read_text())["answers"]
    assert set(answers) == {"teacher", "start qwen", "qwen"}
    assert all(list(found) == ["a"] and len(found["a"]) == 6 for found in answers.values())
    teacher = load_policy(files[0] / "teacher")
    asked, options = teacher.with_prompts(lines), AnswerOptions(max_completion_length=4, slots=128)
    groups = teacher.answer(asked, options, n=3, seed=config.seed).groups()
    wanted = [np.mean([exact_answer(t, {"answer": "12"}) for t in group]) for group in groups]
    np.testing.assert_allclose(answers["teacher"]["a"], wanted)
    parts = parts_of(tmp_path / "run")
    assert list(parts) == ["results", "curves", "completions", "samples", "lineage"]
    assert f"{np.mean(wanted):.1%}" in parts["results"]
    pair = data_of(tmp_path / "run", "pairs")[0]
    assert [side["title"] for side in pair["sides"]] == ["teacher", "start qwen", "qwen"]
    assert (pair["prompt"], pair["sides"][0]["text"]) == (lines[0]["question"], groups[0][0])


def test_questions_that_a_task_is_measured_on_are_not_learned(tmp_path, capsys):
    """Oracle: by hand: two of the six conversations to train on ask what the file of questions asks."""
    talks = [{"prompt": f"{k}?", "completion": "1"} for k in range(8)]
    asked = [{"question": f"{k}?", "answer": "1"} for k in range(8, 20)]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, talks)))
    task = dict(path=str(tmp_path / "talks.jsonl"), num_held_out=2, rule="exact_answer")

    def learned(questions):
        (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, questions)))
        own = TaskSettings(**task, questions=str(tmp_path / "asked.jsonl"))
        found = file_tasks(SimpleNamespace(tasks={"a": own}), tmp_path / "data")["a"]
        return {found.train[i]["messages"][0]["content"] for i in range(len(found.train))}

    every = learned(asked)
    first, second = sorted(every)[:2]
    shared = [{"question": text, "answer": "1"} for text in (first, second)]
    assert learned([*asked, *shared]) == every - {first, second} and len(every) == 6
    assert "2 of 6 training records ask what is held out" in capsys.readouterr().out


def test_a_start_that_is_read_otherwise_is_another_start(files):
    """Oracle: the inputs of the stages' hashes: another tokenizer and more positions each change those of
    their own line's first stage alone; a checkpoint has its own tokenizer.
    """

    def inputs(change):
        config = small_config(files)
        config.starts.small = dict(init_from=str(files[0] / "teacher"))
        config.unlock()
        change(config)
        stages = distill.stages(build(DistillSettings, config, "config"))
        return {
            stage.name: content_hash(stage.origin.covers()) for stage in stages if not stage.start
        }

    plain = inputs(lambda config: None)
    assert set(plain) == {"teacher", "starts/qwen", "starts/small"}
    changes = {
        "starts/qwen": lambda c: c.starts.qwen.update(tokenizer="letters"),
        "starts/small": lambda c: c.starts.small.update(max_position_embeddings=512),
    }
    for name, change in changes.items():
        changed = inputs(change)
        assert {other for other in plain if changed[other] != plain[other]} == {name}
    assert inputs(lambda c: c.teacher.update(tokenizer="letters")) == plain


def test_questions_of_ones_own_need_a_rule_and_an_evaluation(files):
    """Oracle: by hand."""
    config = small_config(files)
    config.tasks.a.update(dict(questions="asked.jsonl"))
    with pytest.raises(
        ValueError, match="^config.tasks.a.questions='asked.jsonl' and rule=None: set both"
    ):
        build(DistillSettings, config, "config")
    config.tasks.a.update(dict(rule="exact_answer"))
    config.evaluation = None
    with pytest.raises(ValueError, match="^config.evaluation=None, and tasks.a has questions"):
        build(DistillSettings, config, "config")


@pytest.mark.slow
def test_eight_devices_learn_what_one_does(finished, files, tmp_path):
    """Oracle: the run on one device, up to the order of float32 sums."""
    run(tmp_path, small_config(files), make_mesh(data=2, fsdp=2, expert=2))
    ours, theirs = (
        read_metrics(f / "metrics.jsonl", "students/qwen") for f in (tmp_path, finished)
    )
    for one, other in zip(ours[:-1], theirs[:-1], strict=True):
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
    *records, _ = read_metrics(tmp_path / "metrics.jsonl", "students/qwen")
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
    *records, _ = read_metrics(tmp_path / "metrics.jsonl", "students/qwen")
    assert all(records[0][name] > 0 for name in weights)
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]


@pytest.fixture(scope="module")
def cached(files, tmp_path_factory):
    """(settings, tasks of two weights, one text of them too long for a row, tokenizer, the teacher)."""
    folder, _ = files
    long = turns("3 + 4", "7 + 0 + 0 + 0 + 0 + 0 + 0 + 0 + 0 + 0")
    lines = [turns(f"{k} + 3", str(k + 3)) for k in range(9)] + [long]
    path = folder / "long.jsonl"
    path.write_text("\n".join(json.dumps({"messages": messages}) for messages in lines))
    config = small_config(files)
    config.tasks.a.weight, config.tasks.b = 0.5, dict(path=str(path), num_held_out=2, weight=3.0)
    settings = build(DistillSettings, config, "config")
    of_files = file_tasks(settings, tmp_path_factory.mktemp("data"))
    tasks = transfer_tasks(settings, BILINGUAL, {}, None, of_files)
    config, params = load_orbax(folder / "teacher")
    teacher = Policy(config, params, bilingual_tokenizer(), settings.template)
    return settings, tasks, teacher


def student_run(cached, folder, **fields):
    """The StudentRun of the config's stage on the cached tasks. fields: others of its settings."""
    settings, tasks, _ = cached
    stage = next(stage for stage in distill.stages(settings) if stage.name == "students/qwen")
    stage = dataclasses.replace(stage, settings=dataclasses.replace(stage.settings, **fields))
    batches = settings.mixing_temperature, settings.packing, settings.readers
    return StudentRun(stage, StudentTexts(tasks, *batches), make_run(folder), folder)


def batches_of(cached, folder, count, **loss):
    """`count` batches of a student that learns soft and hard, as its run would draw them."""
    settings, _, teacher = cached
    fields = dict(weights=dict(soft=0.5, hard=0.5), temperature=2.0, **loss)
    loss = build(type(settings.students["qwen"].loss), fields, "config")
    run = student_run(cached, folder, loss=loss)
    iterator = iter(run._batches(teacher, teacher)(run._rows()))
    drawn = [next(iterator) for _ in range(count)]
    iterator.close()
    return drawn


def test_a_student_of_a_cache_learns_the_same_texts_as_one_of_the_teacher(cached, tmp_path):
    """Oracle: the batches without a cache, array by array: the two differ in what the teacher tells alone."""
    dense, kept = (batches_of(cached, tmp_path, 6, **loss) for loss in ({}, dict(top_k=3)))
    for one, other in zip(dense, kept, strict=True):
        assert other.keys() - one.keys() == {"top_ids", "top_logprobs", "dropped"}
        for name, array in one.items():
            np.testing.assert_array_equal(other[name], array, err_msg=name)


def test_a_cache_says_at_each_place_what_the_teacher_does(cached, tmp_path):
    """Oracle: the teacher's whole logits of the packed rows, sorted by numpy; 1e-4: rounding."""
    config, params = cached[2].config, cached[2].params
    (batch,) = batches_of(cached, tmp_path, 1, top_k=3)
    options = {name: batch[name] for name in ("segment_ids", "positions")}
    logits = np.float64(forward(config, params, batch["tokens"], **options)) / 2
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    real = batch["segment_ids"] > 0
    wanted = -np.sort(-logp, axis=-1)
    np.testing.assert_allclose(batch["top_logprobs"][real], wanted[real][:, :3], atol=1e-4)
    told = np.take_along_axis(logp, batch["top_ids"], -1)
    np.testing.assert_allclose(batch["top_logprobs"][real], told[real], atol=1e-4)
    np.testing.assert_allclose(
        batch["dropped"][real], np.exp(wanted[real][:, 3:]).sum(-1), atol=1e-4
    )


def test_a_tasks_tokens_count_as_its_weight_says(cached, tmp_path):
    """Oracle: by hand: of two tasks weighed 0.5 and 3, whose texts say which they are of, in every batch."""
    tokenizer, weights = cached[2].tokenizer, set()
    for batch in batches_of(cached, tmp_path, 6):
        for row, segments in enumerate(batch["segment_ids"]):
            for segment in range(1, segments.max() + 1):
                place = segments == segment
                text = tokenizer.decode(batch["tokens"][row][place])
                found = batch["loss_weights"][row][place]
                weights.add((text.partition(" = ")[0].split()[-1], *found[found > 0].tolist()[:1]))
    assert weights == {("5", 0.5), ("3", 3.0)}


def test_texts_of_the_teacher_take_the_place_of_the_worlds_own():
    """Oracle: by hand: one answer to each kind of puzzle, beside the world's own requests."""
    config = get_config("teacher=made")
    settings = build(DistillSettings, config, "config")
    asked = WorldQuestions(settings).tasks
    puzzles = {e["kind"]: e["question"] for e in asked["bilingual_puzzles"].train}
    accepted = [dict(question=q, solution=f"so: {kind}") for kind, q in puzzles.items()]
    tasks = transfer_tasks(settings, BILINGUAL, asked, accepted, {})
    for kind in ("sum", "countdown"):
        (shown,) = [tasks[kind].train[i] for i in range(len(tasks[kind].train))]
        assert shown["messages"] == turns(puzzles[kind], f"so: {kind}")
        assert {e["kind"] for e in tasks[kind].questions} == {kind}
        assert not {e["question"] for e in tasks[kind].questions} & set(puzzles.values())
    assert len(tasks["requests"].train) == len(asked["bilingual_requests"].train)
    with pytest.raises(ValueError, match="config.tasks.countdown: the teacher has no right answer"):
        transfer_tasks(settings, BILINGUAL, asked, accepted[:0], {})


def test_a_text_no_row_has_room_for_is_counted_and_none_that_fits_is_an_error(
    cached, tmp_path, capsys
):
    """Oracle: by hand: one of eight or nine is too long; of rows of four tokens, all are."""
    config = build_model(get_config().starts.qwen.model)
    policy = dataclasses.replace(cached[2], config=config)
    student_run(cached, tmp_path).check_texts(policy)
    said = [line for line in capsys.readouterr().out.splitlines() if " b " in line]
    assert len(said) == 2 and sum("1 longer than 16 and left out" in line for line in said) == 1
    run = student_run(cached, tmp_path, sequence_length=4)
    with pytest.raises(
        ValueError, match=r"^config\.students\.qwen\.sequence_length=4 is too short: 0"
    ):
        run.check_texts(policy)


def test_a_loss_that_does_not_fit_the_teacher_is_named_with_its_path(cached, tmp_path):
    """Oracle: by hand: a teacher of more tokens than the student, and a top_k above the number of tokens."""
    run, teacher = student_run(cached, tmp_path), cached[2]
    config = dataclasses.replace(teacher.config, vocab_size=teacher.config.vocab_size + 1)
    with pytest.raises(ValueError, match=r"^config\.students\.qwen\.loss\.vocab_size=None leaves"):
        run.objective(teacher, dataclasses.replace(teacher, config=config))
    with pytest.raises(
        ValueError, match=r"^config\.students\.qwen\.loss\.top_k=9999 must be from 1"
    ):
        batches_of(cached, tmp_path, 1, top_k=9999)


def test_tasks_are_mixed_by_size_and_temperature():
    """Oracle: by hand: 900 and 100 texts, drawn 9 to 1, and under temperature 2 as 3 to 1."""
    sources = [["x"] * 900, ["y"] * 100]
    assert mixed(sources, 1.0).weights == (900, 100)
    assert mixed(sources, 2.0).weights == (30, 10)


@pytest.mark.parametrize(
    "field, value, words",
    [
        (
            "students.qwen.loss.weights.sofd",
            1.0,
            "qwen.loss.weights.sofd=1.0 names no term; did you mean soft",
        ),
        (
            "students.qwen.start",
            "qwem",
            "config.students.qwen.start='qwem' is not one of starts; did you mean",
        ),
        ("tasks.c", {}, "config.tasks.c.path=None, and it is not a part"),
        (
            "comparisons",
            dict(x=("qwen", "llama")),
            "config.comparisons['x']=('qwen', 'llama'): 'llama' is not a student",
        ),
        ("teacher", None, ".loss.weights="),
        ("teacher.path", None, "config.teacher.path=None: set either path"),
        ("teacher.base", tiny_base("bilingual"), ": set either path"),
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
