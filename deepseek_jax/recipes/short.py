"""The first stage of a recipe that trains one policy: a checkpoint, or a base that is pre-trained first."""

from typing import Any

from deepseek_jax.recipes.kinds.given import Given
from deepseek_jax.recipes.kinds.paying import Paid
from deepseek_jax.recipes.kinds.pretrain import BaseCorpus, Pretrain
from deepseek_jax.recipes.origin import Origin
from deepseek_jax.recipes.settings import PolicyRun
from deepseek_jax.recipes.stage import Stage

BASE = "pretrain"  # the stage of a base
CHECKPOINT = "init_from"  # the stage of a checkpoint


def first_stage(
    s: PolicyRun,
    template: str,
    *,
    conversing: Any = None,
    waiting: tuple[Paid, ...] = (),
    name=BASE,
) -> Stage:
    """The stage that the others begin from. conversing: see Origin. waiting: rewards whose models are on the
    devices meanwhile. name: of a base.
    """
    tokenizer = None if s.base is None else s.base.corpus
    origin = Origin(
        s.model, template, s.init_from, tokenizer, trained=s.trains_whole(), conversing=conversing
    )
    if s.base is None:
        return Given(CHECKPOINT, None, origin=origin, path="", title="checkpoint")
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
