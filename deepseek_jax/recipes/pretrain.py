"""Pre-train a base model on a corpus of packed documents."""

import dataclasses
import functools

import jax
import optax

from deepseek_jax.checkpoint.store import Store
from deepseek_jax.data.packing import pack
from deepseek_jax.data.sources import arithmetic_corpus
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.parallel import put_batch
from deepseek_jax.parallel.processes import from_each, total
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

    def __post_init__(self):
        if self.sequence_length < 2:
            raise ValueError(
                f"config.base.sequence_length={self.sequence_length} leaves nothing to predict; "
                "set it to at least 2"
            )
        if self.bias_update_speed < 0:
            raise ValueError(
                f"config.base.bias_update_speed={self.bias_update_speed} must be at least 0"
            )

    def make_optimizer(self):
        """The optax transformation of the whole pre-training."""
        return self.optimizer.make(self.num_steps, "config.base.optimizer")


class PackedDocuments:
    """The loop's source of language-modelling batches: a Grain iterator whose place is saved.

    dataset: data.packing.pack's, of this process's share of the documents.
    """

    def __init__(self, dataset, mesh):
        self.iterator, self.mesh = iter(dataset), mesh

    def next(self, state, step):
        """One batch on the mesh, and how many tokens it predicts."""
        batch = next(self.iterator)
        batch["normalizer"] = total(batch["normalizer"])
        return [put_batch(self.mesh, batch)], {"tokens": float(batch["normalizer"])}

    def get_state(self):
        """Where the iterator of each process stands."""
        return {"processes": from_each(self.iterator.get_state())}

    def set_state(self, state):
        """Go on from there. Raises ValueError for the state of another number of processes."""
        places = state["processes"]
        if len(places) != jax.process_count():
            raise ValueError(
                f"the base was being pre-trained by {len(places)} processes, and now there are "
                f"{jax.process_count()}; start as many as before, or give another --workdir"
            )
        self.iterator.set_state(places[jax.process_index()])


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
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    tx = settings.make_optimizer()
    params, places = random_params(config, mesh, seed)
    placed = state_shardings(mesh, places, params, tx)
    train_step = make_train_step(
        lambda params, batch, rng: next_token_loss(config, params, batch),
        tx,
        micro_batches=settings.micro_batches,
        bias_update_speed=optax.constant_schedule(settings.bias_update_speed)
        if settings.bias_update_speed
        else None,
    )
    create = functools.partial(TrainState.create, tx=tx)
    create = jax.jit(
        create, out_shardings=placed, donate_argnums=0
    )  # the state's are the only weights
    with Store(workdir / "pretrain") as store:
        state = run_loop(
            create(params),
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
