"""R1-Zero, and R1 in its four stages (arXiv:2501.12948), from one base model.

The questions are a toy world's or a user's own.

base -> R1-Zero: reinforcement only, rewarded for right answers and their layout
base -> 1 cold-start fine-tuning on R1-Zero's readable traces -> Dev1
     -> 2 reasoning reinforcement, rewarded for a single language too -> Dev2
        -> rejection sampling: reasoning answers by rules, general ones by a judge
           (the base, fine-tuned)
base -> 3 fine-tuning on the accepted answers and on good answers to general questions -> Dev3
        Dev3 -> two reward models, of helpfulness and of safety
     -> 4 reinforcement for all scenarios, rewarded by rules and by the reward models -> R1
or (V4's last stage, arXiv:2606.19348), or also, to compare the two:
        Dev3 -> specialists, each reinforced on the questions of one task
     -> 4 distillation from a teacher of each task on the student's own samples -> R1, distilled

Every policy is measured on held-out questions.
"""

import dataclasses
from collections.abc import Iterable

from deepseek_jax.recipes.kinds.accept import Accept, Accepted, Rule, TrainedJudge
from deepseek_jax.recipes.kinds.given import GivenPolicy
from deepseek_jax.recipes.kinds.judge import JudgedPairs, TrainJudge
from deepseek_jax.recipes.kinds.learn_from import (
    CheckpointTeacher,
    LearnFrom,
    StageTeacher,
    Teachers,
    TeacherSource,
)
from deepseek_jax.recipes.kinds.prefer import Prefer
from deepseek_jax.recipes.kinds.preferences import Preferences
from deepseek_jax.recipes.kinds.pretrain import BaseCorpus, Pretrain
from deepseek_jax.recipes.kinds.reinforce import Reinforce
from deepseek_jax.recipes.kinds.tune import Tune
from deepseek_jax.recipes.origin import Origin
from deepseek_jax.recipes.paid import StageRewards
from deepseek_jax.recipes.r1.report import page, report, report_sweep
from deepseek_jax.recipes.r1.scores import MeasureWorld
from deepseek_jax.recipes.r1.settings import SPECIALISTS, R1Settings, R1TeacherSettings
from deepseek_jax.recipes.r1.sources import (
    FirstQuestions,
    HeldOutQuestions,
    HeldOutSolutions,
    LastRequests,
    SolutionTexts,
    TrainingQuestions,
    WorldData,
    reinforcing,
)
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.training.lineage import own_seed

__all__ = ["SETTINGS", "page", "report", "report_sweep", "stages"]
SETTINGS = R1Settings


def stages(s: R1Settings) -> list[Stage]:
    """List the stages of R1: the list is R1's data flow.

    A stage without a block in the config is left out.
    """
    data, reinforced_settings = WorldData.of(s), s.reinforced()
    rule, held_out, prompts = Rule(data.rule()), HeldOutSolutions(data), FirstQuestions(data)
    reasoning, preferences, traces = (
        reinforcing(data),
        Preferences(data.world),
        Accepted(("traces",)),
    )
    accepted_texts = Accepted(("rejection", "judged") if s.judged else ("rejection",))
    num_learned = max(s.cold_start.data.num_requests, s.sft.data.num_requests)

    def stage_rewards(name):
        return StageRewards(reinforced_settings[name], tuple(s.models_for(name)))

    listed_stages: list[Stage | None] = [
        Reinforce(
            "zero",
            s.zero,
            reasoning,
            stage_rewards("zero"),
            start="base",
            title="R1-Zero",
            expect="Expect more and longer right answers; languages mix, as no reward forbids it.",
        ),
        Accept(
            "traces",
            s.traces,
            prompts,
            rule,
            start="zero",
            expect="Expect no training: R1-Zero answers, and its right and readable answers stay.",
        ),
        Tune(
            "cold_start",
            s.cold_start,
            SolutionTexts(data, traces),
            held_out,
            start="base",
            title="Dev1",
            expect="Expect readable answers in one language, and at most a few right ones less.",
        ),
        Reinforce(
            "reasoning",
            s.reasoning,
            reasoning,
            stage_rewards("reasoning"),
            start="cold_start",
            title="Dev2",
            expect="Expect more right answers, still in one language: both are rewarded.",
        ),
        TrainJudge(
            "judge",
            s.judge,
            start="base",
            pairs=JudgedPairs(data.world),
            expect="Expect no policy: a judge learns which of two answers to a request is good.",
        )
        if s.judge
        else None,
        Accept(
            "rejection",
            s.rejection,
            prompts,
            rule,
            start="reasoning",
            title="accepted",
            expect="Expect no training: Dev2 answers, and its right and readable answers stay.",
        ),
        Accept(
            "judged",
            s.judged,
            LastRequests(data, num_learned),
            rule,
            TrainedJudge("judge", s.judge.max_completion_length),
            start="reasoning",
            expect="Expect few answers to stay: Dev2 was not trained on requests.",
        )
        if s.judged and s.judge
        else None,
        Tune(
            "sft",
            s.sft,
            SolutionTexts(data, accepted_texts),
            held_out,
            start="base",
            title="Dev3",
            expect="Expect far more helpful answers to requests, and about as many right answers.",
        ),
        *(
            Prefer(
                name,
                block,
                start="sft",
                preferences=preferences,
                title=name.removesuffix("_model"),
                expect="Expect no policy: a reward model learns which of two answers is preferred.",
            )
            for name, block in s.reward_models().items()
        ),
        Reinforce(
            "scenarios",
            s.scenarios,
            reinforcing(data, general=s.scenarios.general is not None),
            stage_rewards("scenarios"),
            start="sft",
            title="R1",
            expect="Expect fewer harmful answers; a small reward model may make them less helpful.",
        )
        if s.scenarios
        else None,
        *(
            Reinforce(
                name,
                reinforced_settings[name],
                reinforcing(data, only=kind),
                stage_rewards(name),
                start="sft",
                title=name.replace("_", " "),
                expect="Expect a gain on its own task: no reward is for the other one.",
            )
            for name, kind in SPECIALISTS.items()
            if name in reinforced_settings
        ),
        LearnFrom(
            "distilled",
            s.distilled,
            TrainingQuestions(data, {task: task for task in s.distilled.prompts_per_step}),
            Teachers({name: _teacher(t, s, data) for name, t in s.distilled.teachers.items()}),
            start="sft",
            title="R1, distilled",
            expect="Expect one policy that answers the tasks of all its teachers about as they do.",
        )
        if s.distilled
        else None,
    ]
    # The base draws as in every recipe. Other seeds come from names, so that a new stage does not
    # change the seeds of the others
    seeded_stages = [
        dataclasses.replace(stage, seed=own_seed(s.seed, stage.name))
        for stage in filter(None, listed_stages)
    ]
    return measured([_base(s, data), *seeded_stages], s, data)


def _base(s: R1Settings, data: WorldData) -> Stage:
    """Return the stage of the base, or of a checkpoint in its place.

    The base draws by the run's seed, as in every other recipe.
    """
    tokenizer = None if s.base is None else s.base.corpus
    origin = Origin(s.model, data.world.template, s.init_from, tokenizer)
    if s.base is None:
        return GivenPolicy(
            "base",
            None,
            origin=origin,
            path="",
            title="base",
            expect="Expect no training: the checkpoint is the base.",
        )
    return Pretrain(
        "base",
        s.base,
        BaseCorpus(s.base, s.seed),
        seed=s.seed,
        origin=origin,
        label="pretrain",
        title="base",
        expect="Expect the loss to fall; a base imitates its corpus, and often answers wrong.",
    )


def _teacher(teacher: R1TeacherSettings, s: R1Settings, data: WorldData) -> TeacherSource:
    if teacher.path is not None:
        return CheckpointTeacher(teacher.path, s.model, data.world.template)
    # R1TeacherSettings have either a stage or a path
    assert teacher.stage is not None
    return StageTeacher(teacher.stage)


def measured(stages_to_measure: Iterable[Stage], s: R1Settings, data: WorldData) -> list[Stage]:
    """Return the stages, with a measurement after each stage that produces a policy.

    All measurements draw by the same seed.
    """
    questions, rule = HeldOutQuestions(data), Rule(data.rule())
    all_stages: list[Stage] = []
    for stage in stages_to_measure:
        all_stages.append(stage)
        if stage.leaves_policy:
            all_stages.append(
                MeasureWorld(
                    f"measured/{stage.name}",
                    s.evaluation,
                    questions,
                    rule,
                    seed=s.seed,
                    start=stage.name,
                    path="evaluation",
                    label="evaluation: ",
                    title=stage.title,
                    expect="Expect no training: answers to held-out questions are scored.",
                )
            )
    return all_stages
