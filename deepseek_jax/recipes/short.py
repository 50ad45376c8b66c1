"""The first stage of a recipe that trains one policy: a checkpoint, or a base to pre-train.

Tests: tests/recipes/test_driver.py.
"""

from deepseek_jax.recipes.kinds.given import GivenPolicy
from deepseek_jax.recipes.kinds.paying import RewardSource
from deepseek_jax.recipes.kinds.pretrain import BaseCorpus, Pretrain
from deepseek_jax.recipes.origin import Origin
from deepseek_jax.recipes.settings import PolicyRun
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.rollout.settings import Conversing

# The names of the two kinds of first stages
BASE = "pretrain"
CHECKPOINT = "init_from"


def first_stage(
    s: PolicyRun,
    template: str,
    *,
    conversing: Conversing | None = None,
    waiting: tuple[RewardSource, ...] = (),
    name: str = BASE,
) -> Stage:
    """Return the stage that all other stages begin from.

    Args:
        s: The settings of the run.
        template: The policy's template, see data.chat.
        conversing: The field of Origin.
        waiting: Rewards with models that are on the devices during the pre-training.
        name: The name of the stage if it pre-trains a base.
    """
    tokenizer = None if s.base is None else s.base.corpus
    origin = Origin(
        s.model, template, s.init_from, tokenizer, trained=s.trains_whole(), conversing=conversing
    )
    if s.base is None:
        return GivenPolicy(CHECKPOINT, None, origin=origin, path="", title="checkpoint")
    corpus = BaseCorpus(s.base, s.seed)
    return Pretrain(
        name,
        s.base,
        corpus,
        waiting=waiting,
        seed=s.seed,
        origin=origin,
        path="base",
        label="pretrain",
        title="base",
    )
