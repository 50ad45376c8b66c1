"""Recipes that train one policy: from a checkpoint, or from a base that is pre-trained first."""

import functools

from deepseek_jax.checkpoint import is_orbax
from deepseek_jax.data.tokenizer import check_checkpoint
from deepseek_jax.errors import at
from deepseek_jax.recipes.driver import Stage, Work, WorkdirJob
from deepseek_jax.recipes.pretrain.corpus import base_corpus
from deepseek_jax.recipes.settings import AdapterRun, PolicyRun
from deepseek_jax.recipes.start import (
    base_path,
    is_trained,
    planned_model,
    ready_to_train,
    save_trained,
    starting_policy,
)

BASE = "pretrain"  # the stage of a base, and its phase
CHECKPOINT = "init_from"  # the stage of a checkpoint


def start_of(settings: PolicyRun):
    """The first stage of a recipe's list."""
    return Stage(BASE, "pretrain") if settings.init_from is None else Stage(CHECKPOINT, "given")


class PolicyJob(WorkdirJob):
    """A job of a base or a checkpoint, and of stages that begin with it, whose settings are the whole config.

    template: how a question becomes a prompt.
    """

    settings: PolicyRun

    @property
    def template(self):
        return self.settings.data.template

    @functools.cached_property
    def policy(self):
        """The Policy that the run starts from; without params where a base is pre-trained first."""
        return starting_policy(self.settings, self.mesh, self.template)

    @functools.cached_property
    def planned(self):
        """The ModelConfig as small files say it: parameters of gigabytes are not read to check it."""
        settings = self.settings
        if self.run is not None and settings.init_from and not is_orbax(settings.init_from):
            with at("init_from"):
                check_checkpoint(settings.init_from)
        return planned_model(settings.model, settings.init_from)

    def begin(self):
        return self.planned

    def path_of(self, stage: Stage):
        return "base" if stage.kind == "pretrain" else ""

    def settings_of(self, stage: Stage):
        return self.settings.base if stage.kind == "pretrain" else self.settings

    def config_of(self, stage: Stage):
        return self.planned

    def adapter_of(self, stage: Stage):
        return getattr(self.settings, "adapter", None)

    def models(self, work: Work):
        # They are loaded before the first stage, and stay
        return getattr(self.settings, "reward_models", {})

    def policy_of(self, work: Work, params):
        return ready_to_train(self.policy.at(params), self.settings, self.run)

    def given(self, work: Work):
        """The policy of the checkpoint."""
        return ready_to_train(self.policy, self.settings, self.run)

    def corpus(self, work: Work):
        """The documents of the base."""
        settings, folder = self.settings, work.phase.folder
        return base_corpus(settings.base, self.policy.tokenizer, folder, settings.seed)

    def pretraining_name(self, work: Work):
        """The name of a base's program."""
        return BASE

    def tokenizer_name(self):
        """For worlds.registry.named_tokenizer."""
        return self.settings.init_from or self.settings.base.corpus

    def base_path(self):
        """The path of the frozen parameters beside an adapter, or None."""
        settings = self.settings
        return None if settings.trains_whole() else base_path(settings, self.run.folder)


class SavedPolicyJob(PolicyJob):
    """A PolicyJob that leaves its last policy in params, or its adapter in `adapter`."""

    settings: AdapterRun

    def is_complete(self):
        return is_trained(self.settings, self.run.folder)

    def finish(self):
        policy = self.policies[self.stages[-2].name]
        save_trained(self.settings, self.run.folder, policy.config, policy.params)
