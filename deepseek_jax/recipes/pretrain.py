"""Pre-train a base model on a corpus of packed documents."""

import dataclasses
import functools

import jax

from deepseek_jax.checkpoint.store import Store
from deepseek_jax.data.packing import pack
from deepseek_jax.data.sources import arithmetic_corpus
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.parallel import put_batch
from deepseek_jax.recipes.blocks import OptimizerSettings, random_params
from deepseek_jax.training.loop import run as run_loop
from deepseek_jax.training.state import TrainState, state_shardings
from deepseek_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """How the base is made. bias_update_speed moves the router's balancing bias each step."""

    num_documents: int
    sequence_length: int
    batch_size: int
    num_steps: int
    optimizer: OptimizerSettings
    bias_update_speed: float = 0.001
    micro_batches: int = 1
    save_every: int = 500
    log_every: int = 25


class PackedDocuments:
    """The loop's source of language-modelling batches: a Grain iterator whose place is saved."""

    def __init__(self, dataset, mesh):
        self.iterator, self.mesh = iter(dataset), mesh

    def next(self, state, step):
        """One batch on the mesh, and how many tokens it predicts."""
        batch = next(self.iterator)
        return [put_batch(self.mesh, batch)], {"tokens": float(batch["normalizer"])}

    def get_state(self):
        """Where the iterator stands."""
        return self.iterator.get_state()

    def set_state(self, state):
        """Go on from there."""
        self.iterator.set_state(state)


def train_base(config, settings, tokenizer, mesh, workdir, *, seed, writer, should_stop):
    """Pre-train `config` on the small world's corpus: -> params. Resumes from workdir/pretrain.

    config: ModelConfig. settings: PretrainSettings. The corpus is built in workdir/data.
    """
    corpus = arithmetic_corpus(workdir / "data", num_documents=settings.num_documents, seed=seed)
    batches = pack(
        corpus,
        tokenizer,
        sequence_length=settings.sequence_length,
        batch_size=settings.batch_size,
        seed=seed,
    )
    tx = settings.optimizer.make(settings.num_steps)
    params, places = random_params(config, mesh, seed)
    placed = state_shardings(mesh, places, params, tx)
    train_step = make_train_step(
        lambda params, batch, rng: next_token_loss(config, params, batch),
        tx,
        micro_batches=settings.micro_batches,
        bias_update_speed=settings.bias_update_speed,
    )
    with Store(workdir / "pretrain") as store:
        state = run_loop(
            jax.jit(functools.partial(TrainState.create, tx=tx), out_shardings=placed)(params),
            jax.jit(train_step, donate_argnums=0, out_shardings=(placed, None)),
            PackedDocuments(batches, mesh),
            num_steps=settings.num_steps,
            store=store,
            writer=writer,
            phase="pretrain",
            save_every=settings.save_every,
            log_every=settings.log_every,
            rng=jax.random.key(seed),
            should_stop=should_stop,
        )
    return state.params
