"""R1's stages at toy size: what is run again and what is not, and that stopping changes nothing."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.r1_small import get_config
from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.recipes.r1 import run as r1
from deepseek_jax.recipes.r1.findings import CLAIMS, SCORED
from deepseek_jax.recipes.r1.settings import REWARD_MODELS, SPECIALISTS, R1Settings
from deepseek_jax.recipes.results import Results
from deepseek_jax.rewards import Rule, scoring
from deepseek_jax.settings import build
from deepseek_jax.synthesis import rejection
from deepseek_jax.training.lineage import content_hash
from deepseek_jax.training.metrics import read_metrics
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer
from deepseek_jax.worlds.bilingual.world import BILINGUAL
from tests.compilations import compilations
from tests.recipes.outcome import unlisted, without_group
from tests.recipes.pages import data_of, parts_of
from tests.recipes.small import one_device, run_recipe
from tests.tiny import save_tiny_model

EVERY = r1.stages(build(R1Settings, get_config("last=both"), "config"))
NAMES = tuple(stage.name for stage in EVERY if not stage.measures)
ORDER, LATER = NAMES[:12], NAMES[12:]
TRAINED = ("zero", "cold_start", "reasoning", "judge", "sft", *REWARD_MODELS, "scenarios")
PHASES = ("base", *TRAINED)
MEASURED = ("base", "zero", "cold_start", "reasoning", "sft", "scenarios")
STEPS = 2  # of every stage


def small_config(arg=None):
    """Two steps of each stage. Stages share sizes where they can, since compiling takes most of the time."""
    config = get_config(arg)
    config.base.update(dict(num_documents=300, batch_size=4, num_steps=STEPS))
    config.base.optimizer.warmup_steps = 1
    for name in ("zero", "reasoning", "scenarios", *SPECIALISTS):
        if name not in config:
            continue
        stage = config[name]
        stage.update(dict(num_steps=STEPS, prompts_per_step=2, group_size=2, save_every=1))
        stage.log_every = 1
        stage.rollout.update(dict(max_completion_length=16, slots=4, temperature=1.0))
        stage.loss.kl_coef, stage.reference_every = 0.001, 2
    config.zero.eval_every = 1
    if "scenarios" in config:
        config.scenarios.general.update(dict(num_steps=1, per_step=1))
    if "distilled" in config:
        stage = config.distilled
        stage.update(dict(num_steps=STEPS, group_size=2, save_every=1, log_every=1))
        stage.prompts_per_step = dict(reasoning=2, general=2)
        stage.rollout.update(dict(max_completion_length=16, slots=4))
    for name in ("cold_start", "sft"):
        config[name].update(dict(num_steps=STEPS, batch_size=4, eval_every=1, log_every=1))
        config[name].optimizer.update(dict(learning_rate=1e-3, warmup_steps=1))
    for name in (*REWARD_MODELS, "judge"):
        config[name].update(dict(num_steps=STEPS, batch_size=4, log_every=1))
        config[name].data.update(dict(num_train=16, num_held_out=8))
        config[name].optimizer.warmup_steps = 1
    config.cold_start.data.num_puzzles = 40
    config.sft.data.num_requests = 40
    for name in ("traces", "rejection", "judged"):
        sampled = dict(num_prompts=16, samples_per_prompt=4, max_completion_length=48, slots=4)
        config[name].update(sampled)
    evaluation = dict(num_puzzles=8, num_requests=16, samples=2, max_completion_length=16, slots=4)
    config.evaluation.update(evaluation)
    return config


def tellable(text, example):
    """1.0 for any text that can be tokenized: a base of two steps can earn it."""
    try:
        return float(bool(bilingual_tokenizer().encode(text)))
    except Exception:  # pieces that run together
        return 0.0


@pytest.fixture(scope="module", autouse=True)
def rules_that_a_beginner_meets():
    with pytest.MonkeyPatch.context() as patch:
        make_rules_easy(patch)
        yield


def make_rules_easy(patch):
    """Replace the rules by ones that a base of two steps can meet."""
    patch.setattr(rejection, "LAYOUT", {"untellable": "tellable"})
    patch.setattr(rejection, "IN_ONE_LANGUAGE", {})
    patch.setitem(scoring.RULES, "tellable", Rule(tellable))
    reading = BILINGUAL.rewards["puzzle_answer"].reading
    patch.setitem(BILINGUAL.rewards, "puzzle_answer", Rule(tellable, None, reading))
    by_length = Rule(lambda text, _: len(text) / 10)
    patch.setitem(scoring.RULES, "think_answer_format", by_length)


def run(workdir, should_stop=lambda: False, config=None, redo=False):
    run_recipe(r1, config or small_config(), workdir, should_stop, redo=redo)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The work directory of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished")
    run(workdir)
    return workdir


def records(workdir):
    return {
        name: json.loads((workdir / name / "stage.json").read_text())
        for name in (*ORDER, *(f"measured/{stage}" for stage in MEASURED))
    }


def params(workdir, name):
    return load_orbax(workdir / name / "params", mesh=one_device())[1]


def assert_same(workdir, other):
    for name in MEASURED:
        jax.tree.map(np.testing.assert_array_equal, params(workdir, name), params(other, name))
        ours, theirs = (
            json.loads((w / "measured" / name / "scores.json").read_text())
            for w in (workdir, other)
        )
        assert ours == theirs
    assert records(workdir) == records(other)


def logged(workdir):
    return {p: [r["step"] for r in read_metrics(workdir / "metrics.jsonl", p)] for p in PHASES}


class Killed(BaseException):
    """What no recipe catches."""


def kill_at(step, asked: list):
    """A should_stop that raises Killed at its step-th call. asked: grows by one a call."""

    def should_stop():
        asked.append(None)
        if len(asked) == step:
            raise Killed
        return False

    return should_stop


@pytest.mark.slow
def test_a_stage_may_measure_on_the_way(finished):
    """Oracle: by hand: the one stage with eval_every=1 has the metric in each line, a share of eight."""
    for phase in PHASES:
        lines = read_metrics(finished / "metrics.jsonl", phase)
        found = [line["held_out_accuracy"] for line in lines if "held_out_accuracy" in line]
        assert len(found) == (STEPS if phase == "zero" else 0)
        assert all(8 * share in range(9) for share in found)


@pytest.mark.slow
def test_every_metric_has_a_group_on_the_boards(finished):
    """Oracle: the names of the lines that a run leaves, against the table of groups."""
    assert without_group(finished) == set()


@pytest.mark.slow
def test_the_guide_lists_every_file_of_the_run(finished):
    """Oracle: the files that the run left."""
    assert unlisted(finished) == []


@pytest.mark.slow
def test_a_run_leaves_every_stage_with_its_parents_scores_and_metrics(finished):
    """Oracle: by hand: the pipeline's arrows (stage 3 begins at the base again); the steps of the config."""
    found = records(finished)
    arrows = dict(zero="base", traces="zero", cold_start="base", reasoning="cold_start")
    arrows |= dict(rejection="reasoning", sft="base", scenarios="sft")
    arrows |= dict(judge="base", judged="reasoning")
    arrows |= dict.fromkeys(REWARD_MODELS, "sft")
    for child, parent in arrows.items():
        assert found[child]["inputs"]["parent"] == content_hash(found[parent]["hash"])
    more = [("cold_start", "traces"), ("judged", "judge"), ("sft", "rejection"), ("sft", "judged")]
    more += [("scenarios", name) for name in REWARD_MODELS]
    for child, parent in more:
        assert found[child]["inputs"][parent] == content_hash(found[parent]["hash"])
    assert len({record["hash"] for record in found.values()}) == len(found)
    assert all(record["complete"] for record in found.values())
    assert logged(finished) == dict.fromkeys(PHASES, [0, 1])
    first, last = read_metrics(finished / "metrics.jsonl", "scenarios")
    assert all(f"reward_{name}" in last and f"reward_{name}" not in first for name in REWARD_MODELS)
    assert (finished / "findings.txt").read_text().count("reproduced") >= len(CLAIMS)
    trees = [params(finished, name) for name in MEASURED]
    for i, tree in enumerate(trees):
        for other in trees[:i]:
            assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), tree, other)))


@pytest.mark.slow
def test_a_run_leaves_a_page_of_its_stages_scores_and_samples(finished):
    """Oracle: the stages' records; the config's numbers of prompts kept and of samples of each."""
    page = (finished / "report.html").read_text()
    for name, record in records(finished).items():
        assert (record["hash"] in page) == (name in ORDER)
    assert "not begun" not in page and "outdated" not in page.partition("<body>")[2]
    parts = ["results", "rewarded", "curves", "completions", "samples", "lineage"]
    assert list(parts_of(finished)) == parts
    evaluation = small_config().evaluation
    # Beside what was sampled to train on
    groups = [group for group in data_of(finished, "samples") if group["stage"] != "training"]
    # Of the requests, the first 8
    assert len(groups) == len(MEASURED) * (evaluation.num_puzzles + 8)
    assert {len(group["completions"]) for group in groups} == {evaluation.samples}


@pytest.mark.slow
def test_the_page_sets_the_first_stage_beside_the_last(finished):
    """Oracle: the files of both measurements: scores with intervals, and the first completions."""
    base, last = (
        json.loads((finished / "measured" / name / "scores.json").read_text())
        for name in ("base", "scenarios")
    )
    old, new = (found["scores"]["pass@1"] for found in (base, last))
    said = f"pass@1 {old[0]:.1%} → {new[0]:.1%} base {old[1]:.1%} to {old[2]:.1%} R1"
    results = parts_of(finished)["results"]
    assert results.startswith(f"Results {said}") and "R1-Zero solves far more" in results
    for pair, kind in zip(data_of(finished, "pairs"), ("puzzles", "requests") * 2, strict=False):
        number = next(
            i for i, g in enumerate(base["samples"][kind]) if g["prompt"] == pair["prompt"]
        )
        sides = [found["samples"][kind][number]["completions"][0]["text"] for found in (base, last)]
        assert [side["text"] for side in pair["sides"]] == sides


@pytest.mark.slow
def test_running_again_runs_no_stage(finished, capsys):
    """Oracle: every file's bytes before; what is said, the report alone; no request for a compilation."""
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with compilations() as requests:
        run(finished)
    assert not requests
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    out = capsys.readouterr().out
    assert "complete: " in out and "stage 1 of" not in out
    table = out.partition("findings of 1 run")[0]
    rows = [line.split()[0] for line in table.splitlines() if line[:1].strip()]
    wanted = ["base", "R1-Zero", "Dev1", "Dev2", "Dev3", "R1"]
    assert [row for row in rows if row in wanted] == wanted and "…" not in out


@pytest.mark.slow
def test_a_changed_setting_of_stage_2_reruns_it_and_what_follows(finished, tmp_path):
    """Oracle: the hashes and modification times of the run before; stage 1, R1-Zero and the base stay. Unless
    it is asked for, nothing is run anew, and the message names each of these stages with what changed.
    """
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = records(tmp_path)
    times = {name: (tmp_path / name / "stage.json").stat().st_mtime_ns for name in before}
    config = small_config()
    config.reasoning.optimizer.learning_rate = 1e-3
    rerun = {"reasoning", "rejection", "judged", "sft", *REWARD_MODELS, "scenarios"}
    rerun |= {f"measured/{name}" for name in rerun & set(MEASURED)}
    with pytest.raises(ValueError, match="has stages that are of other inputs") as error:
        run(tmp_path, config=config)
    named = dict(re.findall(r"^  (\S+) \(complete\): (.*)$", str(error.value), re.MULTILINE))
    assert set(named) == rerun and named["reasoning"] == "settings"
    assert named["sft"] == "judged, rejection" and named["measured/sft"] == "parent"
    assert records(tmp_path) == before
    run(tmp_path, config=config, redo=True)
    after = records(tmp_path)
    assert {name for name in before if before[name] != after[name]} == rerun
    touched = {n for n in times if (tmp_path / n / "stage.json").stat().st_mtime_ns != times[n]}
    assert touched == rerun
    assert logged(tmp_path) == dict.fromkeys(PHASES, [0, 1])


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_like_one_that_was_not(finished, tmp_path):
    """Oracle: every stage's parameters and scores of the run that nothing interrupted, bit for bit. Killed in
    the middle of R1-Zero, of stage 2, and of stage 3; what was done is not done again: 18 steps,
    and for each kill the one that was lost, and one more if its save had not ended.
    """
    asked = []

    for step in (4, 9, 14):
        with pytest.raises(Killed):
            run(tmp_path, kill_at(step, asked))
    run(tmp_path, kill_at(None, asked))
    assert 3 <= len(asked) - len(PHASES) * STEPS <= 6
    assert_same(tmp_path, finished)


@pytest.mark.slow
def test_a_finished_run_goes_on_with_distillation_beside_its_last_stage(finished, tmp_path, capsys):
    """Oracle: the records of the run before, of which none changes; by hand: a specialist begins at Dev3, and
    the student has it, Dev3 and the other as parents; the page and the findings have both forms.
    """
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = records(tmp_path)
    run(tmp_path, config=small_config("last=both"))
    assert records(tmp_path) == before
    found = {name: json.loads((tmp_path / name / "stage.json").read_text()) for name in LATER}
    for name in LATER:
        assert found[name]["inputs"]["parent"] == content_hash(before["sft"]["hash"])
        assert found[name]["complete"] and (tmp_path / "measured" / name / "scores.json").exists()
    for teacher in ("reasoning", "general"):
        parent = content_hash(found[f"{teacher}_teacher"]["hash"])
        assert found["distilled"]["inputs"][f"{teacher}_teacher"] == parent
    assert set(REWARD_MODELS) <= set(found["general_teacher"]["inputs"])
    assert not set(REWARD_MODELS) & set(found["reasoning_teacher"]["inputs"])
    first, last = read_metrics(tmp_path / "metrics.jsonl", "distilled")
    # Two steps move nobody far: a KL may be 0 in one line, and is not in both
    assert all(first[f"kl_{n}"] or last[f"kl_{n}"] for n in ("reasoning", "general"))
    assert last["sampler_gap_mean"] < 1e-5
    page = (tmp_path / "report.html").read_text()
    assert all(record["hash"] in page for record in found.values()) and "R1, distilled" in page
    assert "outdated" not in page.partition("<body>")[2] and "not begun" not in page
    findings = json.loads((tmp_path / "findings.json").read_text())
    beside = [f for f in findings["findings"] if f["beside"]]
    # So few requests may have no score of harmlessness
    scored = json.loads((tmp_path / "measured" / "distilled" / "scores.json").read_text())["scores"]
    assert [f["ours"] for f in beside] == [["distilled", s] for s in SCORED if s in scored]
    distilled = [params(tmp_path, name) for name in (*LATER, "sft", "scenarios")]
    for i, tree in enumerate(distilled):
        for other in distilled[:i]:
            assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), tree, other)))


@pytest.mark.slow
def test_a_distillation_that_is_killed_ends_like_one_that_was_not(finished, tmp_path):
    """Oracle: the run that nothing interrupted, bit for bit; killed in a specialist and in the student."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        shutil.copytree(finished, folder)
    config, asked = small_config("last=distill"), []
    run(whole, config=config)

    for step in (2, 7):
        with pytest.raises(Killed):
            run(parts, kill_at(step, asked), config)
    run(parts, config=config)
    for name in LATER:
        jax.tree.map(np.testing.assert_array_equal, params(parts, name), params(whole, name))


@pytest.mark.slow
def test_a_teacher_may_be_a_checkpoint(finished, tmp_path):
    """Oracle: by hand: the student that learns from the same parameters as a stage, bit for bit."""
    students = []
    for name, where in dict(stage=dict(stage="zero"), path=dict(path="zero/params")).items():
        workdir = tmp_path / name
        shutil.copytree(finished, workdir)
        config = small_config("last=distill")
        for block in ("general_teacher", *REWARD_MODELS):
            del config[block]
        if "path" in where:
            where = dict(path=str(finished / where["path"]))
        config.distilled.unlock()
        config.distilled.teachers.general = dict(task="general", **where)
        run(workdir, config=config)
        students.append(params(workdir, "distilled"))
    jax.tree.map(np.testing.assert_array_equal, *students)


def test_no_two_stages_draw_alike_in_any_of_some_runs():
    """Oracle: by hand: 14 stages besides the base, in each of 100 runs. A stage's seed is of its name, not of
    its place: a shorter list leaves it as it is. The base draws as that of any recipe does.
    """
    both, alone = (build(R1Settings, small_config(last), "config") for last in ("last=both", None))

    def seeds(settings, seed):
        stages = r1.stages(dataclasses.replace(settings, seed=seed))
        return {stage.name: stage.seed for stage in stages if not stage.measures}

    found = [seeds(both, seed) for seed in range(100)]
    assert [each.pop("base") for each in found] == [*range(100)]
    every = [seed for each in found for seed in each.values()]
    assert len(set(every)) == len(every) == 100 * 14 and max(every) < 2**31
    assert seeds(alone, 7).items() <= (found[7] | {"base": 7}).items()


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda c: c.distilled.teachers.general.update(stage="sft"),
            "general_teacher trains a teacher that distilled.teachers does not name",
        ),
        (
            lambda c: c.__delitem__("general_teacher"),
            "config.distilled.teachers.general.stage='general_teacher', and general_teacher=None",
        ),
        (
            lambda c: c.__delitem__("distilled"),
            "config.scenarios=None and distilled=None leave the run without its last stage",
        ),
        (
            lambda c: c.general_teacher.rewards.__delitem__("safety_model"),
            "safety_model is a reward model that pays nothing",
        ),
        (
            lambda c: c.distilled.rollout.update(max_prompt_length=4),
            "config.distilled.rollout.max_prompt_length=4 is below all",
        ),
    ],
)
def test_a_mistake_about_teachers_is_named_before_anything_is_written(tmp_path, change, words):
    """Oracle: the words a reader needs, and an empty work directory."""
    config = small_config("last=distill")
    config.unlock()
    change(config)
    with pytest.raises(ValueError) as error:
        run(tmp_path, config=config)
    assert words in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_teacher_of_another_vocabulary_is_named_before_anything_is_written(tmp_path):
    """Oracle: the words a reader needs, of a model of the small world of sums."""
    teacher, _ = save_tiny_model(tmp_path / "teacher")
    config = small_config("last=distill")
    config.unlock()
    del config["general_teacher"]
    for name in REWARD_MODELS:
        del config[name]
    where = str(tmp_path / "teacher")
    config.distilled.teachers.general = dict(task="general", path=where)
    words = f"the teacher's vocab_size={teacher.vocab_size} is not the student's 202"
    with pytest.raises(ValueError) as error:
        run(tmp_path / "run", config=config)
    assert str(error.value).startswith(f"config.distilled.teachers.general: {words}")
    for wrong, words in (
        (dict(path=f"{where}s"), f"there is nothing at {where}s; give a Hugging Face folder"),
        (dict(stage="reasoning_teacher"), "task='general' is not what reasoning_teacher learns"),
    ):
        config.distilled.teachers.general = dict(task="general", **wrong)
        with pytest.raises(ValueError) as error:
            run(tmp_path / "run", config=config)
        assert words in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_base_that_is_a_checkpoint_stands_on_the_page():
    """Oracle: by hand: its stage runs, and others descend from it; a form of the last stage that is left out
    does not.
    """
    config = small_config()
    config.unlock()
    del config["base"]
    config.init_from = "CHECKPOINT"
    settings = build(R1Settings, config, "config")
    titles = Results(settings, r1.stages(settings), Path()).titles()
    assert titles["base"] == "base" and set(titles) == {*ORDER, "base"}


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c.base.update(corpus="arithmetic"), "config.base.corpus='arithmetic'"),
        (
            lambda c: c.scenarios.general.update(num_steps=3),
            "config.scenarios.general.num_steps=3 is above",
        ),
        (lambda c: c.scenarios.general.update(per_step=2), "leaves no other questions"),
        (lambda c: c.zero.update(general=c.scenarios.general), "config.zero.general=General"),
        (
            lambda c: c.safety_model.data.update(template="{question}"),
            "config.safety_model.data.template='{question}'",
        ),
        (
            lambda c: c.judge.data.update(template="{question}"),
            "config.judge.data.template='{question}'",
        ),
        (
            lambda c: c.judged.update(num_prompts=2030),
            "config.judged.num_prompts=2030 must be within 0..2008, the general questions whose",
        ),
        (lambda c: c.sft.update(sequence_length=300), "config.sft.sequence_length=300 is beyond"),
        (lambda c: c.cold_start.update(micro_batches=3), "config.cold_start.batch_size=4"),
        (lambda c: c.model.update(vocab_size=100), "config.model.vocab_size=100 is below"),
        (
            lambda c: c.rejection.update(num_prompts=5000),
            "config.rejection.num_prompts=5000 must be within 0..4096",
        ),
        (
            lambda c: c.reasoning.rollout.update(max_prompt_length=4),
            "config.reasoning.rollout.max_prompt_length=4 is below all",
        ),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(tmp_path, change, words):
    """Oracle: the words a reader needs, and an empty work directory."""
    config = small_config()
    change(config)
    with pytest.raises(ValueError) as error:
        run(tmp_path, config=config)
    assert words in str(error.value)
    assert not list(tmp_path.iterdir())


def test_judgements_longer_than_a_row_are_named_before_anything_is_trained(tmp_path):
    """Oracle: the words a reader needs, and no stage begun."""
    config = small_config()
    config.judge.sequence_length = 16
    with pytest.raises(ValueError, match="config.judge.sequence_length=16 is below"):
        run(tmp_path, config=config)
    assert not list(tmp_path.glob("*/stage.json"))
