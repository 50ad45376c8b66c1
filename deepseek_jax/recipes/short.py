"""Recipes that train one policy: from a checkpoint, or from a base that is pre-trained first."""

import functools

from deepseek_jax import reports
from deepseek_jax.checkpoint.locate import check_checkpoint
from deepseek_jax.errors import at
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.conversing import conversing, open_environments
from deepseek_jax.recipes.job import Job, Work, WorkdirJob
from deepseek_jax.recipes.kinds.measure import MEASURE
from deepseek_jax.recipes.kinds.pretrain import GIVEN, PRETRAIN
from deepseek_jax.recipes.page import write_page
from deepseek_jax.recipes.settings import AdapterRun, PolicyRun
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.recipes.start import (
    base_corpus,
    base_path,
    is_trained,
    planned_model,
    ready_to_train,
    save_trained,
    starting_policy,
)
from deepseek_jax.rollout.policy import Policy

BASE = "pretrain"  # the stage of a base, and its phase
CHECKPOINT = "init_from"  # the stage of a checkpoint


def with_tools(job: Job, policy: Policy):
    """The policy with the tools and the environment of the settings, which are open until the job's end."""
    if not getattr(job.settings, "converses", False):
        return policy
    environments = open_environments(job.settings, job.opened)
    return conversing(policy, environments, job.settings)


class FromPolicy:
    """The part of a job that starts from a base or a checkpoint, and whose settings are the whole config."""

    settings: PolicyRun

    def first(self, name: str = BASE):
        """The first stage of the list. name: of a base."""
        if self.settings.init_from is None:
            return Stage(name, PRETRAIN)
        return Stage(CHECKPOINT, GIVEN)

    @functools.cached_property
    def policy(self):
        """The Policy that the run starts from; without params where a base is pre-trained first."""
        policy = starting_policy(self.settings, self.mesh, self.settings.data.template)
        return with_tools(self, policy)

    @functools.cached_property
    def planned(self):
        """The ModelConfig as small files say it: parameters of gigabytes are not read to check it."""
        settings = self.settings
        if self.run is not None and settings.init_from:
            with at("init_from"):
                check_checkpoint(settings.init_from)
        return planned_model(settings.model, settings.init_from)

    def begin(self):
        return self.planned

    def path_of(self, stage: Stage):
        return "base" if stage.kind is PRETRAIN else ""

    def settings_of(self, stage: Stage):
        return self.settings.base if stage.kind is PRETRAIN else self.settings

    def config_of(self, stage: Stage):
        return self.planned

    def models(self, work: Work):
        # They are loaded before the first stage, and stay
        return getattr(self.settings, "reward_models", {})

    def policy_of(self, work: Work, params):
        return self.policy.at(params)

    def corpus(self, work: Work):
        """The documents of the base."""
        settings, folder = self.settings, work.phase.folder
        return base_corpus(settings.base, self.policy.tokenizer, folder, settings.seed)

    def pretraining_name(self, work: Work):
        """The name of a base's program."""
        return BASE


class PolicyJob(FromPolicy, WorkdirJob):
    """A job that leaves its results in the work directory."""

    def adapter_of(self, stage: Stage):
        return getattr(self.settings, "adapter", None)

    def policy_of(self, work: Work, params):
        return ready_to_train(super().policy_of(work, params), self.settings, self.run)

    def given(self, work: Work):
        """The policy of the checkpoint."""
        return self.policy_of(work, self.policy.params)


class TrainedJob(PolicyJob):
    """A PolicyJob that trains a policy, measured before and after, and leaves it in params, or its adapter in
    `adapter`, for launch/evaluate.py and launch/convert.py. trains: (name, kind) of the stage.
    """

    settings: AdapterRun
    trains: tuple[str, str]

    def __init__(self, *arguments):
        super().__init__(*arguments)
        start, (name, kind) = self.first(), self.trains
        self.stages = (
            start,
            Stage("before", MEASURE, start.name),
            Stage(name, kind, start.name),
            Stage("after", MEASURE, name),
        )

    def answers_of(self, measured) -> dict[str, dict]:
        """{task: the result of evaluate_both} of a measurement; "" for a single task."""
        raise NotImplementedError

    def page(self, page, measured):
        return reports.with_answers(page, {w: self.answers_of(m) for w, m in measured.items()})

    def is_complete(self):
        return is_trained(self.settings, self.run.folder)

    def finish(self):
        save_trained(self.settings, self.run.folder, self.policies[self.trains[0]])


class PayingJob(PolicyJob):
    """A PolicyJob that trains what rewards policies, and leaves it in params, for other runs'
    config.reward_models.NAME.path. trains: (name, kind) of the stage. title: of its scores. curves: metrics
    that are drawn.
    """

    trains: tuple[str, str]
    title: str
    curves: tuple[str, ...]

    def __init__(self, *arguments):
        super().__init__(*arguments)
        start = self.first()
        self.stages = start, Stage(*self.trains, start.name)

    def phase_of(self, stage: Stage):
        # What it leaves is that of the run
        return self.run.of(stage.name, self.run.folder if stage.start else None)

    def base_path(self):
        """The path of the frozen parameters beside an adapter, or None."""
        settings = self.settings
        return None if settings.trains_whole() else base_path(settings, self.run.folder)

    def measurements(self):
        # The stage measures before and after it trains
        return {when: f"{when}.json" for when in ("before", "after")}

    def is_complete(self):
        # What the stage leaves last
        return self.stages[-1].kind.is_left(self.run.folder)

    def report(self):
        """Draw the curves and print the scores. Process 0 alone."""
        if not first_process():
            return
        workdir, console = self.run.folder, reports.make_console()
        metrics, picture = workdir / "metrics.jsonl", workdir / "curves.png"
        reports.plot_curves(metrics, picture, phase=self.trains[0], names=self.curves)
        console.print(reports.reward_model_table(self.title, workdir))
        write_page(self)
        left = "report.html, metrics, curves.png, tensorboard and checkpoints"
        console.print(f"complete; {left} are in {workdir}")
        folder = workdir / "params"
        console.print(f"to be rewarded by it, set config.reward_models.NAME.path to {folder}")
