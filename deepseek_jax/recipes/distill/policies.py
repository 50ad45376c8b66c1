"""The policies of a distillation: where each stage's parameters, model, tokenizer and positions come from."""

import dataclasses
import functools

from deepseek_jax.checkpoint import is_adapter, save_adapter
from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.checkpoint.locate import check_checkpoint
from deepseek_jax.errors import at
from deepseek_jax.files import as_path
from deepseek_jax.models import check_architecture, how_to_run
from deepseek_jax.models.adapters import Adapted, with_adapter
from deepseek_jax.recipes.distill.settings import DistillSettings, StartSettings, TeacherSettings
from deepseek_jax.recipes.job import LineageJob, Work
from deepseek_jax.recipes.kinds.pretrain import GIVEN
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.recipes.start import frozen, planned_model
from deepseek_jax.rollout.policy import Policy, check_vocabulary, load_policy
from deepseek_jax.worlds.registry import named_tokenizer

# Stages that begin a line, or the beginnings of their names
STARTS, TEACHER, TEACHER_BASE = "starts/", "teacher", "teacher_base"


class DistillPolicies(LineageJob):
    """The stages of a line, such as a student and its start, have one model, tokenizer and template."""

    settings: DistillSettings

    def begin(self):
        if self.run is not None:
            self._check_starts()
        return [self.config_of(stage) for stage in self.stages]

    def block_of(self, stage: Stage) -> StartSettings | TeacherSettings:
        """The block of the config that names the model of a stage's line."""
        root = self.root_of(stage)
        if root.name in (TEACHER, TEACHER_BASE):
            return self.settings.teacher
        return self.settings.starts[root.name.removeprefix(STARTS)]

    def root_of(self, stage: Stage):
        """The first stage of a line."""
        return stage if not stage.start else self.root_of(self._stage(stage.start))

    def _stage(self, name: str):
        return next(stage for stage in self.stages if stage.name == name)

    def checkpoint_of(self, work: Work):
        """(path, block of the model) of a given checkpoint."""
        block = self.block_of(work.stage)
        return _path(block), block.model

    def given(self, work: Work):
        """Stays where it is."""

    def read_with(self, work: Work):
        block = self.block_of(work.stage)
        positions = getattr(block, "max_position_embeddings", None)
        # A checkpoint has its own
        tokenizer = block.tokenizer if _path(block) is None else None
        return {"tokenizer": tokenizer, "max_position_embeddings": positions}

    @functools.cached_property
    def _configs(self):
        return {}

    def config_of(self, stage: Stage):
        root = self.root_of(stage)
        if root.name not in self._configs:
            block = self.block_of(stage)
            field = _path_field(root)
            with at(self.path_of_block(root)):
                self._configs[root.name] = planned_model(block.model, _path(block), field)
        config = self._configs[root.name]
        positions = getattr(self.block_of(stage), "max_position_embeddings", None)
        # They are for what is learned; answers have the checkpoint's own
        if positions is None or stage.kind.is_measure:
            return config
        return dataclasses.replace(config, max_position_embeddings=positions)

    def path_of_block(self, root: Stage):
        """The dotted path of the block that names the model of a line."""
        return "teacher" if root.name in (TEACHER, TEACHER_BASE) else root.name.replace("/", ".")

    def _check_starts(self):
        """Raise ValueError for a checkpoint that is not there, and for a tokenizer of other tokens."""
        for stage in self.stages:
            if stage.start:
                continue
            block = self.block_of(stage)
            path, field = _path(block), _path_field(stage)
            with at(self.path_of_block(stage)):
                if path is not None:
                    with at(field):
                        check_checkpoint(path)
                        stored = read_any_config(path)
                    check_architecture(block.model, stored, path)
                else:
                    with at("tokenizer"):
                        tokenizer = named_tokenizer(block.tokenizer)
                    check_vocabulary(self.config_of(stage), tokenizer)

    def load(self, name: str, *, trained: bool = True, learns: bool | None = None, mesh=None):
        """The Policy that a stage left. trained: all of its parameters, see load_policy. learns: whether the
        policy is trained at all, at its start's own positions; default trained. Beside an adapter it learns
        and is not trained. mesh: in place of the run's.
        """
        stage = self._stage(name)
        block, adapter = self.block_of(stage), self.run.folder / name / "adapter"
        path = self.path_of_params(name)
        if is_adapter(adapter):
            policy = self.load(stage.start, trained=trained, learns=learns, mesh=mesh)
            return policy.with_adapter_of(adapter, mesh or self.mesh)
        policy = load_policy(
            str(path),
            # A saved model is read with RunSettings, which have only some fields of its block
            block.model if _path(block) else how_to_run(block.model),
            mesh or self.mesh,
            template=self.settings.template,
            trained=trained,
        )
        positions = getattr(block, "max_position_embeddings", None)
        if positions is None or not (trained if learns is None else learns):
            return policy
        config = dataclasses.replace(policy.config, max_position_embeddings=positions)
        return dataclasses.replace(policy, config=config)

    def load_to_answer(self, name: str):
        """The Policy that a stage left, in its model's dtype."""
        return self.load(name, trained=False)

    def load_learner(self, work: Work):
        """The policy that a student starts from, as it trains it: all of it, or an adapter beside it."""
        adapter, start = work.settings.adapter, work.stage.start
        if adapter is None:
            return self.load(start)

        def read(mesh):
            return self.load(start, trained=False, learns=True, mesh=mesh)

        with work.at(), at("adapter"):
            policy = frozen(read, adapter, self.mesh)
            params = with_adapter(
                policy.config, policy.params, adapter, self.mesh, work.settings.seed
            )
        return policy.at(params)

    def save(self, work: Work, policy: Policy):
        if isinstance(policy.params, Adapted):
            base, target = self.path_of_params(work.stage.start), work.folder / "adapter"
            save_adapter(target, policy.config, policy.params, base, policy.files())
        else:
            super().save(work, policy)

    def path_of_params(self, name: str):
        """The path of the parameters that a stage left or stays at; beside an adapter, those of its start."""
        stage = self._stage(name)
        if stage.kind is GIVEN:
            return as_path(_path(self.block_of(stage)))
        folder = self.run.folder / name
        return (
            self.path_of_params(stage.start)
            if is_adapter(folder / "adapter")
            else folder / "params"
        )

    def policy_of(self, work: Work, params):
        policy = self._without_params(work.stage)
        return dataclasses.replace(policy, config=work.config, params=params)

    def _without_params(self, stage: Stage):
        block = self.block_of(stage)
        return Policy(self.config_of(stage), None, self._tokenizer(block), self.settings.template)

    @staticmethod
    def _tokenizer(block):
        return named_tokenizer(_path(block) or block.tokenizer)


def _path(block: StartSettings | TeacherSettings):
    """The path of the checkpoint that a block names, or None."""
    return block.path if isinstance(block, TeacherSettings) else block.init_from


def _path_field(stage: Stage):
    """The field of a first stage's block that names its checkpoint."""
    return "path" if stage.name == TEACHER else "init_from"
