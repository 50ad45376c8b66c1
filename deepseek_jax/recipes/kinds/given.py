"""The first stages of a line that need no training: a checkpoint, or random parameters."""

import dataclasses

import jax
from typing_extensions import override

from deepseek_jax.models.params import random_params
from deepseek_jax.recipes.origin import Origin
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.rollout.weights import cast


@dataclasses.dataclass(frozen=True, eq=False)
class GivenPolicy(Stage):
    """A checkpoint that a line of stages begins from. It stays where it is."""

    # field() removes the default None that Stage gives
    origin: Origin = dataclasses.field(kw_only=True)

    @override
    def is_left(self, folder):
        return True

    @override
    def run(self, context):
        return None

    @override
    def path_of_params(self, folder):
        return self.origin.checkpoint

    @override
    def params(self, context, trained, mesh):
        return self.origin.load(mesh, trained)


@dataclasses.dataclass(frozen=True, eq=False)
class Random(Stage):
    """Random parameters that a line of stages begins from, drawn again whenever they are read.

    Attributes:
        is_saved: True to save them too: an adapter is useless without the parameters that it was
            trained with.
    """

    is_saved: bool = False

    @override
    def is_left(self, folder):
        return not self.is_saved or super().is_left(folder)

    @override
    def run(self, context):
        policy = context.policies[self.name]
        return policy.with_params(random_params(policy.config, context.mesh, self.seed))

    @override
    def params(self, context, trained, mesh):
        config = context.policies[self.name].config
        params = random_params(config, mesh, self.seed)
        return params if trained else jax.jit(cast, static_argnums=0)(config, params)
