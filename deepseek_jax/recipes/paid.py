"""The rewards of a reinforcement stage, as a source.

Tests: tests/recipes/grpo/test_run.py.
"""

import contextlib
import dataclasses

from typing_extensions import override

from deepseek_jax.errors import at
from deepseek_jax.named_code import code_digests
from deepseek_jax.progress import waiting_for
from deepseek_jax.recipes.conversing import rewards_of
from deepseek_jax.recipes.kinds.paying import RewardSource
from deepseek_jax.recipes.origin import digest
from deepseek_jax.recipes.stage import Context
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.scenarios import scenario_rewards
from deepseek_jax.reinforce.settings import ModelRewardSettings, ReinforceSettings
from deepseek_jax.rewards.scoring import Rewards


@dataclasses.dataclass(frozen=True, eq=False)
class StageRewards(RewardSource):
    """Rules, an environment's rewards, and reward models, for the stages of reinforcement.

    Attributes:
        reads: The earlier stages that train reward models for this one.
        reward_models: {name: settings} of reward models in other folders.
        stays: True to keep the rewards open, for all stages, from the first stage that opens them
            to the end of the run. Otherwise each stage opens and closes them.
    """

    settings: ReinforceSettings
    reads: tuple[str, ...] = ()
    reward_models: dict[str, ModelRewardSettings] = dataclasses.field(default_factory=dict)
    stays: bool = False

    @override
    def models(self, folder=None):
        paths = {
            name: "" if folder is None else str(folder / name / "params") for name in self.reads
        }
        return self.reward_models | {n: ModelRewardSettings(path) for n, path in paths.items()}

    @override
    def covers(self, context):
        paths = {name: digest(block.path) for name, block in self.reward_models.items()}
        return [paths, code_digests(self.settings)]

    def open(
        self, context: Context, *, trained: bool = True
    ) -> contextlib.AbstractContextManager[dict[str, Rewards]]:
        """Return a context with the Rewards of each scenario, see scenario_rewards.

        Args:
            context: The context of the stage.
            trained: False before any stage has run. Then the names stand in for reward models that
                are still to be trained.
        """
        if not self.stays:
            return self._open(context, trained)

        def stay():
            return context.opened.enter_context(self._open(context, trained))

        return contextlib.nullcontext(context.once(self, stay))

    @contextlib.contextmanager
    def _open(self, context, trained):
        models, policy = self.models(context.folder), context.policy
        later = [] if trained else self.reads
        with at("reward_models"):
            ready = {name: block for name, block in models.items() if name not in later}
            loaded = load_model_rewards(ready, context.mesh, policy.config.expert_buffer)
        loaded |= dict.fromkeys(later)
        if policy.tools is not None:
            loaded |= rewards_of(policy.tools.environments)
        with contextlib.ExitStack() as stack:
            with waiting_for(f"opening the rewards of {context.stage.name}"):
                paid = stack.enter_context(scenario_rewards(self.settings, loaded))
            yield paid
