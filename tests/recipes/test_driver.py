"""A recipe is one file and one config: this one asks a small base the questions of its world."""

import json

import jax
import pytest
from ml_collections import ConfigDict

from configs import models
from deepseek_jax import recipes
from deepseek_jax.costs.program import argument_bytes
from deepseek_jax.recipes import driver, stage
from deepseek_jax.recipes.experiment import find_recipe
from deepseek_jax.recipes.job import LineageJob, Work
from deepseek_jax.settings import build
from tests.compilations import compilations
from tests.recipes.small import make_run, one_device, run_recipe, small_config

RECIPE = '''
"""A base -> the share of its world's held-out questions that it answers right."""

import dataclasses

from deepseek_jax.recipes.stage import Answering, Stage
from deepseek_jax.recipes.kinds.measure import MEASURE
from deepseek_jax.recipes.kinds.pretrain import PRETRAIN
from deepseek_jax.recipes.settings import PolicyRun, QuestionData
from deepseek_jax.recipes.short import PolicyJob
from deepseek_jax.rollout.settings import AnswerOptions, Limit
from deepseek_jax.worlds.registry import find_questions, open_rewards


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quiz(PolicyRun):
    data: QuestionData
    answers: AnswerOptions


class QuizJob(PolicyJob):
    stages = (Stage("pretrain", PRETRAIN), Stage("quiz", MEASURE, "pretrain"))

    def answering(self, work):
        return Answering(self.settings.answers, self.settings.data.num_held_out)

    def measure(self, work):
        data, options, policy = self.settings.data, self.settings.answers, work.start()
        _, questions = find_questions(data.task)
        task = questions.make(self.settings.seed, data.num_held_out)
        asked = policy.ask(task.held_out, Limit(options.max_completion_length), "held-out")
        with open_rewards({questions.rule: 1.0}) as rewards:
            scores = rewards.score_together(asked, policy.answer(asked, options).texts)
        return {"right": float(scores.total.mean()), "of": len(asked)}

    def is_complete(self):
        return (self.run.folder / "quiz.json").exists()

    def report(self):
        print("complete; answers right:", (self.run.folder / "quiz.json").read_text())


SETTINGS = Quiz
JOB = QuizJob
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
    names = [
        p.name for p in driver.plan(quiz.JOB(build(quiz.SETTINGS, config, "config"), one_device()))
    ]
    assert names[0] == "pretrain" and "answers: decode" in names
    run_recipe(quiz, config, workdir)
    found = json.loads((workdir / "quiz.json").read_text())
    assert found["of"] == 8 and 0 <= found["right"] <= 1
    with compilations() as requests:
        run_recipe(quiz, config, workdir)
    assert not requests and capsys.readouterr().out.count("complete; answers right") == 2
    config.base.sequence_length = 10_000
    with pytest.raises(
        ValueError, match="^config.base.sequence_length=10000 is beyond the model's"
    ):
        run_recipe(quiz, config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_no_device_holds_is_planned_and_never_run(quiz, tmp_path, monkeypatch):
    """Oracle: by hand: the bytes of the parameters and of Adam's two moments, in float32, and of the batch. A
    plan, which is of other devices, lists the same programs as before.
    """
    config = config_of_a_quiz()
    job = quiz.JOB(build(quiz.SETTINGS, config, "config"), one_device())
    update = driver.plan(job)[0]
    state, batch, _ = update.arguments
    sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
    needed = 12 * sum(sizes) + argument_bytes(batch)
    # Counters, and the key of the update's randomness
    assert needed <= argument_bytes(update.arguments) < needed + 100
    monkeypatch.setattr(driver, "device_bytes", lambda: needed - 1)
    with pytest.raises(ValueError, match="^config.base: 'pretrain' does not fit in a device's"):
        run_recipe(quiz, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert driver.plan(job)[0].name == "pretrain"
    for room in (None, 2 * needed):
        monkeypatch.setattr(driver, "device_bytes", lambda room=room: room)
        driver.check_memory(job)


def test_a_measurement_is_made_once_for_its_inputs(tmp_path):
    """Oracle: a count of the calls; the same result from memory and from the file, with JSON's lists."""
    calls, settings = [], {}

    def measure(work):
        calls.append(None)
        return {"share": (0.5, len(calls))}

    kind = stage.Kind(
        check=lambda work: None,
        compiles=lambda work: [],
        run=measure,
        covers=lambda work: settings,
        is_measure=True,
    )
    for number, wanted in ((1, 1), (1, 1), (2, 2)):
        settings["number"] = number
        job = LineageJob(None, one_device(), make_run(tmp_path))
        job.keep(Work(stage.Stage("found", kind), job))
        assert job.made["found"].result == {"share": [0.5, wanted]}
    assert len(calls) == 2
