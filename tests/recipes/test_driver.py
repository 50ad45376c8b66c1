"""A recipe is one file and one config: this one asks a small base the questions of its world. And what the
driver does for every recipe: what is run anew, what stays, and what is refused.
"""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import models
from deepseek_jax import recipes
from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.costs.program import argument_bytes
from deepseek_jax.recipes import driver
from deepseek_jax.recipes.experiment import find_recipe
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.settings import build
from tests.compilations import compilations
from tests.recipes import cases
from tests.recipes.small import one_device, run_recipe, small_config

RECIPE = '''
"""A base -> the share of its world's held-out questions that it answers right."""

import dataclasses

from deepseek_jax.recipes.kinds.measure import Measure, scored_answer_programs
from deepseek_jax.recipes.page import run_page
from deepseek_jax.recipes.settings import PolicyRun, QuestionData
from deepseek_jax.recipes.short import first_stage
from deepseek_jax.recipes.stage import AnswerPlan
from deepseek_jax.rollout.settings import AnswerOptions, Limit
from deepseek_jax.worlds.registry import find_questions, open_rewards


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quiz(PolicyRun):
    data: QuestionData
    answers: AnswerOptions


SETTINGS = Quiz


def stages(s):
    first = first_stage(s, s.data.template)
    asked = {"data": s.data, "answers": s.answers}
    return [first, MeasureQuiz("quiz", asked, s, start=first.name, path="", label="answers: ")]


@dataclasses.dataclass(frozen=True, eq=False)
class MeasureQuiz(Measure):
    whole: Quiz

    def programs(self, config, mesh, others):
        asked = AnswerPlan(self.whole.answers, self.whole.data.num_held_out)
        return scored_answer_programs(self, config, mesh, asked)

    def run(self, context):
        data, options, policy = self.whole.data, self.whole.answers, context.load_start()
        _, questions = find_questions(data.task)
        task = questions.make(self.whole.seed, data.num_held_out)
        asked = policy.with_fitting_prompts(task.held_out, Limit(options.max_completion_length), "held-out")
        with open_rewards({questions.rule: 1.0}) as rewards:
            scores = rewards.score_together(asked, policy.answer(asked, options).texts)
        return {"right": float(scores.total.mean()), "of": len(asked)}


def page(results):
    return run_page(results, "Quiz")


def report(results):
    print("answers right:", results.contents()["quiz"])
'''


def config_of_a_quiz():
    """The one config of the one file."""
    shared = small_config()
    base = shared.base.to_dict() | dict(bias_update_speed=0.0, num_steps=2)
    model = models.qwen2_tiny(vocab_size=shared.model.vocab_size) | dict(num_hidden_layers=1)
    return ConfigDict(
        dict(
            recipe="quiz",
            seed=0,
            model=model,
            base=base,
            data=dict(num_held_out=8),
            answers=dict(max_completion_length=4, slots=8),
        )
    )


@pytest.fixture
def quiz(tmp_path, monkeypatch):
    (tmp_path / "quiz.py").write_text(RECIPE)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path)])
    return find_recipe("quiz")


def test_a_recipe_is_one_file_and_one_config(quiz, tmp_path, capsys):
    """Oracle: by hand: what it leaves; its programs; that it says so when it is complete, without a
    compilation; and that the driver checks it before anything runs.
    """
    config, workdir = config_of_a_quiz(), tmp_path / "run"
    planned = driver.plan(quiz, build(quiz.SETTINGS, config, "config"), one_device())
    names = [program.name for program in planned]
    assert names[0] == "pretrain" and "answers: decode" in names
    run_recipe(quiz, config, workdir)
    found = json.loads((workdir / "quiz" / "scores.json").read_text())
    assert found["of"] == 8 and 0 <= found["right"] <= 1
    assert json.loads((workdir / "run.json").read_text())["stage"] == "pretrain"
    with compilations() as requests:
        run_recipe(quiz, config, workdir)
    assert not requests and capsys.readouterr().out.count("answers right:") == 2
    config.base.sequence_length = 10_000
    with pytest.raises(
        ValueError, match="^config.base.sequence_length=10000 is beyond the model's"
    ):
        run_recipe(quiz, config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_first_and_the_last_lines_are_for_a_person(quiz, tmp_path, capsys):
    """Oracle: by hand: what is about to happen; each stage by its number; in the end the score, the time, the
    page and the command for a chat. A complete run has no time, and a stage that stays says so.
    """
    config, workdir = config_of_a_quiz(), tmp_path / "run"
    run_recipe(quiz, config, workdir)
    lines = capsys.readouterr().out.splitlines()
    leaves = jax.tree.leaves(load_orbax(workdir / "pretrain" / "params")[1])
    count = f"{sum(leaf.size for leaf in leaves):,}"
    assert lines[:2] == [
        f"model: qwen2, 1 layer, {count} parameters",
        "2 stages; steps of training: pretrain 2",
    ]
    assert [line for line in lines if line.startswith("stage ")] == [
        "stage 1 of 2, pretrain (base)",
        "stage 2 of 2, quiz",
    ]
    assert re.fullmatch(r"complete: 2 of 2 stages in \d+ (s|min)", lines[-3])
    assert lines[-2:] == [
        f"  page: {workdir / 'report.html'}",
        f"  chat: python launch/chat.py {workdir}",
    ]
    run_recipe(quiz, config, workdir)
    said = capsys.readouterr().out
    assert "complete: 2 of 2 stages, and was before this start\n" in said and "stage 1" not in said
    config.answers.max_completion_length = 3
    run_recipe(quiz, config, workdir, redo=True)
    assert "stage 1 of 2, pretrain (base): unchanged, not run again\n" in capsys.readouterr().out


def test_what_no_device_holds_is_planned_and_never_run(quiz, tmp_path, monkeypatch):
    """Oracle: by hand: the bytes of the parameters and of Adam's two moments, in float32, and of the batch. A
    plan, which is of other devices, lists the same programs as before.
    """
    config = config_of_a_quiz()
    settings = build(quiz.SETTINGS, config, "config")
    programs = driver.plan(quiz, settings, one_device())
    state, batch, _ = programs[0].arguments
    sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
    needed = 12 * sum(sizes) + argument_bytes(batch)
    # Counters, and the key of the update's randomness
    assert needed <= argument_bytes(programs[0].arguments) < needed + 100
    monkeypatch.setattr(driver, "device_bytes", lambda: needed - 1)
    with pytest.raises(ValueError, match="^config.base: 'pretrain' does not fit in a device's"):
        run_recipe(quiz, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert driver.plan(quiz, settings, one_device())[0].name == "pretrain"
    monkeypatch.setattr(driver, "device_bytes", lambda: 2 * needed)
    driver.check_memory(programs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a fine-tuning of four steps from a base, and its config."""
    folder = tmp_path_factory.mktemp("finished")
    config = cases.sft(folder)
    config.optimizer.schedule = "constant"
    run_recipe(SFT, config, folder)
    return folder, config


SFT = find_recipe("sft")


@pytest.fixture
def left(finished, tmp_path):
    """A copy of it: (folder, config)."""
    folder, config = tmp_path / "run", finished[1].copy_and_resolve_references()
    shutil.copytree(finished[0], folder)
    return folder, config


def times(folder):
    """{file: when it was written} of all files but those that every start writes."""
    files = (
        f for f in folder.rglob("*") if f.is_file() and f.name in ("stage.json", "scores.json")
    )
    return {f.relative_to(folder).as_posix(): f.stat().st_mtime_ns for f in files}


# The base depends on neither, and what is trained not on how it is measured
CHANGES = [
    (
        lambda c: c.optimizer.update(learning_rate=0.5),
        ["sft (complete): settings", "after (complete): parent"],
    ),
    (
        lambda c: c.answers.update(temperature=0.5),
        ["before (complete): settings", "after (complete): settings"],
    ),
]


@pytest.mark.parametrize("change, dropped", CHANGES, ids=["training", "answers"])
def test_a_change_that_drops_stages_is_refused_with_their_list(left, change, dropped):
    """Oracle: by hand. All files are as they were."""
    folder, config = left
    change(config)
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    with pytest.raises(ValueError, match="has stages that are of other inputs") as refused:
        run_recipe(SFT, config, folder)
    lines = str(refused.value).splitlines()
    assert [line.strip() for line in lines[1:-1]] == dropped
    assert "--redo" in lines[-1] and "--workdir" in lines[-1]
    assert {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()} == before


def test_redo_runs_the_changed_stages_anew_and_keeps_the_others(left):
    """Oracle: the times of the files: only those of the two stages are new."""
    folder, config = left
    config.optimizer.learning_rate *= 2
    before = times(folder)
    run_recipe(SFT, config, folder, redo=True)
    new = {name for name, time in times(folder).items() if time != before[name]}
    assert new == {"sft/stage.json", "after/stage.json", "after/scores.json"}


def test_fields_that_change_no_result_change_freely(left, capsys):
    """Oracle: the times of all files, and that nothing compiles."""
    folder, config = left
    before, config.save_every = times(folder), 3
    with config.unlocked():
        config.checkpoints = dict(keep=1)
        config.faults = dict(nonfinite=7)
    with compilations() as requests:
        run_recipe(SFT, config, folder)
    assert times(folder) == before and not requests and "complete" in capsys.readouterr().out


def test_more_steps_go_on_where_the_schedule_is_constant(left, tmp_path):
    """Oracle: a run of six steps in one piece, to the bit. Only what was measured after them is made anew."""
    folder, config = left
    before, config.num_steps = times(folder), 6
    run_recipe(SFT, config, folder)
    new = {name for name, time in times(folder).items() if time != before[name]}
    assert new == {"sft/stage.json", "after/stage.json", "after/scores.json"}
    run_recipe(SFT, config, tmp_path / "whole")
    ours, theirs = (load_orbax(f / "sft" / "params")[1] for f in (folder, tmp_path / "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("change", [dict(num_steps=6), dict(seed=1)])
def test_what_is_run_anew_may_be_stopped_and_resumed(left, change):
    """Oracle: that the second call, which is not told to drop anything, ends the run."""
    folder, config = left
    config.update(change)
    with pytest.raises(SystemExit):
        run_recipe(SFT, config, folder, lambda: True, redo=True)
    run_recipe(SFT, config, folder)
    assert all(json.loads(f.read_text())["complete"] for f in folder.rglob("stage.json"))


def test_fewer_steps_and_those_of_another_schedule_are_refused(left):
    """Oracle: by hand: a cosine over six steps has other rates in the first four."""
    folder, config = left
    config.num_steps = 3
    with pytest.raises(ValueError, match="sft .complete.: num_steps"):
        run_recipe(SFT, config, folder)
    config.num_steps, config.optimizer.schedule = 6, "cosine"
    with pytest.raises(ValueError, match="sft .complete.: num_steps, settings"):
        run_recipe(SFT, config, folder)


def test_a_run_is_for_the_policy_that_no_other_stage_reads():
    """Oracle: by hand."""
    assert driver.left_by(SFT.stages(build(SFT.SETTINGS, small_sft(), "config"))) == "sft"
    one, two = Stage("one", None), Stage("two", None, start="one")
    assert driver.left_by([one, two]) == "two"
    assert driver.left_by([one, two, Stage("three", None, start="one")]) is None


def small_sft():
    return cases.sft(None)
