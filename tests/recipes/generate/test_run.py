"""The whole recipe at toy size: stopped, killed or shared, it writes the same bytes."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from configs import models
from configs.generate_small import get_config
from deepseek_jax import files
from deepseek_jax.checkpoint import load_orbax, save_adapter
from deepseek_jax.data.messages import read_conversations
from deepseek_jax.data.sources import tfds_source
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.adapters import with_adapter
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes.generate import run as generate
from deepseek_jax.recipes.generate.sources import AskedQuestions, MeasuredOn
from deepseek_jax.rewards.arithmetic import correct
from deepseek_jax.rollout.sample_log import SampleLog
from deepseek_jax.settings import build
from deepseek_jax.synthesis.teacher import chunk_paths, read_rows
from deepseek_jax.training.loop import STOPPED
from tests.processes import run_two
from tests.recipes.outcome import assert_names, unlisted
from tests.recipes.pages import data_of, parts_of
from tests.recipes.small import one_device, run_recipe
from tests.tiny import random_leaves

ROOT = Path(__file__).resolve().parents[3]
DRAFTED = dict(
    samples_per_prompt=2, max_prompt_length=32, max_completion_length=8, speculative=True
)
DATASET = Path("dataset") / "teacher_conversations" / "1.0.0"


def small_config(**fields):
    """The ConfigDict of twelve sums and a base of few steps; fields: others of GenerateSettings."""
    config = get_config()
    # A dense layer, and no Muon: little to compile
    config.model = models.qwen2_tiny(vocab_size=21) | dict(num_hidden_layers=1)
    config.base.corpus = "arithmetic"
    config.base.update(dict(num_documents=400, batch_size=8, num_steps=5, bias_update_speed=0.0))
    config.base.optimizer.update(dict(kind="adamw", warmup_steps=1))
    config.data = dict(task="arithmetic", template="{question}\n", num_prompts=6, num_held_out=4)
    config.augment = dict(numbers=1)
    config.sampling.update(dict(samples_per_prompt=8, max_completion_length=8, slots=4))
    config.accuracy, config.rewards = "correct", dict(correct=1.0)
    config.keep = dict(at_least={}, max_per_prompt=4)
    config.chunk_size = 3
    config.unlock()
    for name, value in fields.items():
        config[name] = value  # a block as a whole
    return config


def run(workdir, should_stop=lambda: False, redo=False, **fields):
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        run_recipe(generate, small_config(**fields), workdir, should_stop, mesh, redo)


def made(workdir):
    """Everything but the teacher's base: name -> bytes, and of the dataset its records in their order: the
    fields of one are in an order of their own in every process that writes them.
    """
    paths = [p for name in ("samples", "dataset") for p in (workdir / name).rglob("*")]
    files = {str(p.relative_to(workdir)): p for p in paths if p.is_file()}
    told = {name: p.read_bytes() for name, p in files.items() if "array_record" not in name}
    source, _ = tfds_source(workdir / DATASET)
    return told | {"records": [repr(source[i]) for i in range(len(source))]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The work directory of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished")
    run(workdir)
    return workdir


@pytest.fixture
def with_base(finished, tmp_path):
    """A work directory with the teacher alone."""
    shutil.copytree(finished / "base", tmp_path / "base")
    return tmp_path


def test_the_guide_lists_every_file_of_the_run(finished):
    """Oracle: the files that the run left."""
    assert unlisted(finished) == []


def test_a_run_writes_its_dataset_and_says_what_became_of_the_rest(finished):
    """Oracle: the samples on disk: what is finished, no more than four of a prompt, none twice."""
    rows = list(read_rows(finished / "samples"))
    assert len(rows) == 12 and {row["example"]["origin"] for row in rows} == {"source", "numbers"}
    wanted = set()
    for row in rows:
        texts = dict.fromkeys(s["text"] for s in row["samples"] if s["finished"] and s["text"])
        wanted |= {(row["example"]["question"], text) for text in list(texts)[:4]}
        for sample in row["samples"]:
            assert sample["reward"] == correct(sample["text"], row["example"])
    source = read_conversations(finished / DATASET, None)
    read = [tuple(m["content"] for m in source[i]["messages"]) for i in range(len(source))]
    assert set(read) == wanted and len(read) == len(wanted) > 4
    report = json.loads((finished / "report.json").read_text())
    kept = sum(fates["kept"] for fates in report["completions"].values())
    assert kept == len(wanted) and report["questions"]["numbers"] == {"kept": 6}


def test_a_run_leaves_a_page(finished):
    """Oracle: the samples and fates on disk."""
    parts = parts_of(finished)
    assert list(parts) == ["results", "curves", "samples", "lineage"]
    fates = json.loads((finished / "report.json").read_text())["completions"].values()
    kept, asked = sum(f["kept"] for f in fates), sum(sum(f.values()) for f in fates)
    assert f"kept share {kept / asked:.1%}" in parts["results"]
    rows = list(read_rows(finished / "samples"))
    groups = data_of(finished, "samples")
    assert [g["prompt"] for g in groups] == [row["example"]["question"] for row in rows]
    assert [[c["total"] for c in g["completions"]] for g in groups] == [
        [s["reward"] for s in row["samples"]] for row in rows
    ]
    assert "4 of 4 stages are complete" in parts["lineage"]


def test_stopped_behind_a_completion_it_ends_in_the_same_bytes_and_samples_none_twice(
    finished, with_base, monkeypatch
):
    """Oracle: the bytes of the run that nothing interrupted, and of a complete one, run again; the number of
    completions that ended: four chunks of three prompts, eight of each.
    """
    ended, add = [], SampleLog.add
    monkeypatch.setattr(
        SampleLog,
        "add",
        lambda log, rows, r: (ended.extend((log.path, row) for row in rows), add(log, rows, r)),
    )
    for _ in range(3):
        before = len(ended)
        with pytest.raises(SystemExit) as stopped:
            run(with_base, should_stop=lambda: True)
        assert stopped.value.code == STOPPED and len(ended) > before
        (log,) = (with_base / "samples").glob("*.ended")
        with open(log, "a") as file:
            file.write('{"row": 5, "ids": [1')  # as of a process that was killed
    run(with_base)
    assert made(with_base) == made(finished)
    assert len(ended) == len(set(ended)) == 4 * 3 * 8
    run(with_base)
    assert made(with_base) == made(finished) and len(ended) == 4 * 3 * 8


def test_torn_from_a_chunk_it_does_that_one_again_and_no_other(finished, with_base, monkeypatch):
    """Oracle: the bytes of the run that nothing interrupted; which chunks are sampled after it."""
    write = os.replace

    def torn(fresh, path):
        if str(path).endswith("00002-of-00004.jsonl"):
            fresh.write_text(fresh.read_text()[:50])
            raise KeyboardInterrupt
        write(fresh, path)

    monkeypatch.setattr(files.os, "replace", torn)
    with pytest.raises(KeyboardInterrupt):
        run(with_base)
    monkeypatch.setattr(files.os, "replace", write)
    before = {path: path.stat().st_mtime_ns for path in with_base.glob("samples/*.jsonl")}
    assert len(before) == 2
    run(with_base)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert made(with_base) == made(finished)


def test_another_filter_goes_on_from_the_samples_that_are_there(finished, with_base):
    """Oracle: the samples' bytes; the message of a filter that leaves nothing, and the run after it."""
    for stage in ("questions", "samples"):
        shutil.copytree(finished / stage, with_base / stage)
    keep = dict(max_per_prompt=4, at_least=dict(correct=2.0))
    with pytest.raises(ValueError, match="config.keep.at_least.correct=2.0: nothing is left"):
        run(with_base, keep=keep)
    run(with_base, redo=True, keep=dict(max_per_prompt=1, at_least={}))
    samples = [{k: v for k, v in made(x).items() if "samples" in k} for x in (finished, with_base)]
    assert samples[0] == samples[1]
    source = read_conversations(with_base / DATASET, None)
    questions = [source[i]["messages"][0]["content"] for i in range(len(source))]
    assert len(set(questions)) == len(questions) > 4


def test_questions_of_an_evaluation_set_are_not_asked(finished, with_base, tmp_path):
    """Oracle: by hand: the question that is in a file of an evaluation set, of those that a run asks."""
    first, *others = (row["example"] for row in read_rows(finished / "samples"))
    path = tmp_path.with_suffix(".jsonl")
    path.write_text(json.dumps({"question": first["question"], "answer": first["answer"]}))
    run(with_base, keep=dict(max_per_prompt=4, at_least={}, decontaminate=(str(path),)))
    asked = [row["example"]["question"] for row in read_rows(with_base / "samples")]
    assert first["question"] not in asked
    sources = [e["question"] for e in others if e["origin"] == "source"]
    assert set(sources) < set(asked)


def test_a_held_out_question_without_working_counts_with_its_answer(tmp_path):
    """Oracle: by hand: of a user's function, one held-out question with working, one with None."""
    code = tmp_path / "own.py"
    code.write_text(
        "def sums(seed, num_held_out):\n"
        "    lines = [('2 + 3?', '5', None), ('1 + 1?', '2', '1 + 1 = 2'), ('4?', '4', '4')]\n"
        "    made = [dict(question=q, answer=a, solution=s) for q, a, s in lines]\n"
        "    return made[2:], made[:2]\n"
    )
    config = small_config(
        data=dict(task=f"{code}:sums", template="{question}\n", num_held_out=2),
        keep=dict(max_per_prompt=1, at_least={}, decontaminate=("held_out",)),
    )
    settings = build(generate.SETTINGS, config, "config")
    texts = MeasuredOn(settings, AskedQuestions(settings)).texts
    assert texts == (["2 + 3?", "1 + 1?"], ["5", "1 + 1 = 2"])


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        (dict(keep=dict(max_per_prompt=1, at_least=dict(corect=1.0))), "did you mean correct"),
        (
            dict(data=dict(template="chat")),
            "config.data.task=None and path=None: set just one of them",
        ),
        (dict(augment=dict(translate=dict(en="{question}"))), "a prompt for each of"),
        (dict(augment=dict(paraphrase=dict(en="Again!"))), "has no place for the question"),
        (
            dict(
                data=dict(path="q.jsonl", template="chat"),
                keep=dict(max_per_prompt=1, at_least={}, decontaminate=("held_out",)),
            ),
            "config.keep.decontaminate=.*: only data.task has held_out",
        ),
        (
            dict(data=dict(task="sums", template="{question}\n")),
            "config.data.task='sums' is not a world's task",
        ),
        (
            dict(data=dict(task="arithmetic", template="{question}\n", num_prompts=10**6)),
            "num_prompts=1000000 is above",
        ),
        (dict(sampling=DRAFTED), "num_nextn_predict_layers=0 has none that can"),
        (
            dict(sampling=DRAFTED, tools=("configs/own/tool.py:multiply",)),
            "config.sampling.speculative=True drafts in single turns",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_made(tmp_path, fields, complaint):
    """Oracle: the message."""
    with pytest.raises(ValueError, match=complaint) as error:
        run(tmp_path, **fields)
    assert_names(error, "")
    assert not list(tmp_path.iterdir())


def test_a_teacher_that_a_run_left_brings_its_tokenizer(finished, tmp_path):
    """Oracle: the bytes of its samples, which are the base's own."""
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    fields = dict(init_from=str(finished / "base"), base=None, model={})
    run(tmp_path, **fields)
    own = {name: text for name, text in made(tmp_path).items() if "stage.json" not in name}
    assert own == {name: text for name, text in made(finished).items() if "stage.json" not in name}


ONE_OF_TWO = """
import pathlib, sys
import jax
process, port, workdir = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
together = int(sys.argv[4])
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes.generate import run as generate
from tests.recipes.generate.test_run import small_config
from tests.recipes.small import run_recipe
mesh = make_mesh()
with jax.set_mesh(mesh):
    config = small_config(chunk_size=2, teacher_processes=together)
    run_recipe(generate, config, workdir, mesh=mesh)
"""


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, 2])
def test_two_processes_write_what_one_writes(finished, tmp_path, together):
    """Oracle: one process's run over the same teacher, of which each process has one, or both share it."""
    both, alone = tmp_path / "both", tmp_path / "alone"
    for workdir in (both, alone):
        shutil.copytree(finished / "base", workdir / "base")
    flags = "--xla_force_host_platform_device_count=1"
    statuses, outputs = run_two(ONE_OF_TWO, both, together, xla_flags=flags)
    assert statuses == [0, 0], outputs
    run(alone, chunk_size=2)
    assert made(both) == made(alone)
    assert len(chunk_paths(both, 12, 2)) == 6


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_bytes(finished, with_base):
    """Oracle: the bytes of the run that nothing interrupted; SIGKILL as soon as another chunk is there."""
    program = (
        "import jax, pathlib, sys\n"
        "from tests.recipes.generate.test_run import run\n"
        "run(pathlib.Path(sys.argv[1]))\n"
    )
    for done in (1, 3):
        process = subprocess.Popen([sys.executable, "-c", program, str(with_base)], cwd=ROOT)
        while len(list(with_base.glob("samples/*.jsonl"))) < done and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
    subprocess.run([sys.executable, "-c", program, str(with_base)], cwd=ROOT, check=True)
    assert made(with_base) == made(finished)


@pytest.mark.slow
def test_a_teacher_with_an_adapter_answers_otherwise_and_a_new_one_the_same(finished, tmp_path):
    """Oracle: the samples of the teacher without an adapter; a new adapter changes nothing."""
    mesh, params = one_device(), finished / "base" / "params"
    config, base = load_orbax(params, mesh=mesh)
    new = with_adapter(config, base, AdapterSettings(rank=2, alpha=4.0), mesh, 0)
    noisy = random_leaves(new.adapter, jax.random.key(0))
    adapters = {"new": new, "noisy": dataclasses.replace(new, adapter=noisy)}
    samples = {}
    for name, adapted in adapters.items():
        save_adapter(tmp_path / f"{name}_adapter", config, adapted, params)
        fields = dict(init_from=str(params), base=None, model={})
        run(tmp_path / name, adapter=str(tmp_path / f"{name}_adapter"), **fields)
        samples[name] = list(read_rows(tmp_path / name / "samples"))
    assert samples["new"] == list(read_rows(finished / "samples")) != samples["noisy"]
