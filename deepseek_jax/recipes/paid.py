"""Rewards as sources: of rules, of reward models that a run trains, and of those in other folders."""

import contextlib
import dataclasses

from deepseek_jax.errors import at
from deepseek_jax.named_code import code_digests
from deepseek_jax.recipes.conversing import rewards_of
from deepseek_jax.recipes.kinds.reinforce import ScenarioPaid
from deepseek_jax.recipes.origin import digest
from deepseek_jax.recipes.stage import Context
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.scenarios import scenario_rewards
from deepseek_jax.reinforce.settings import ModelRewardSettings, ReinforceSettings


@dataclasses.dataclass(frozen=True, eq=False)
class StageRewards(ScenarioPaid):
    """The rewards of one stage: rules, and the reward models that earlier stages have trained."""

    settings: ReinforceSettings
    reads: tuple[str, ...] = ()

    def models(self, folder=None):
        paths = {
            name: "" if folder is None else str(folder / name / "params") for name in self.reads
        }
        return {name: ModelRewardSettings(path) for name, path in paths.items()}

    @contextlib.contextmanager
    def open(self, context):
        buffer = context.policy.config.expert_buffer
        models = load_model_rewards(self.models(context.folder), context.mesh, buffer)
        with scenario_rewards(self.settings, models) as paid:
            yield paid

    def open_to_check(self, context):
        return scenario_rewards(self.settings, dict.fromkeys(self.reads))


@dataclasses.dataclass(frozen=True, eq=False)
class RunRewards(ScenarioPaid):
    """The rewards of a whole run: rules, an environment's, and reward models in other folders. They are
    opened before the first stage, and stay open.
    """

    settings: ReinforceSettings
    reward_models: dict[str, ModelRewardSettings]

    def models(self, folder=None):
        return self.reward_models

    def covers(self, context):
        paths = {name: digest(block.path) for name, block in self.reward_models.items()}
        return [paths, code_digests(self.settings)]

    def open(self, context):
        return contextlib.nullcontext(context.once(self, lambda: self._open(context)))

    def _open(self, context: Context):
        models, policy = {}, context.policy
        if self.reward_models:
            with at("config"), at("reward_models"):
                buffer = policy.config.expert_buffer
                models = load_model_rewards(self.reward_models, context.mesh, buffer)
        if policy.tools is not None:
            models |= rewards_of(policy.tools.environments)
        with at("config"):
            return context.opened.enter_context(scenario_rewards(self.settings, models))
