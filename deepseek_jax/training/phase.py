"""A phase of training, whatever its loss: parameters and a source of batches to trained parameters."""

import functools

import jax

from deepseek_jax.checkpoint.store import Store
from deepseek_jax.training.loop import run as run_loop
from deepseek_jax.training.state import TrainState, state_shardings
from deepseek_jax.training.step import make_train_step


def state_maker(params, tx, mesh):
    """(create, placed): create(params), jitted, uses params up and gives the TrainState, lying as placed.

    params: arrays, or ShapeDtypeStructs with shardings. tx: an optax transformation.
    """
    placed = state_shardings(mesh, jax.tree.map(lambda leaf: leaf.sharding, params), params, tx)
    create = functools.partial(TrainState.create, tx=tx)
    # Donated: no second copy of the weights
    return jax.jit(create, out_shardings=placed, donate_argnums=0), placed


def jitted_step(train_step, placed):
    """A step of make_train_step, jitted once for a state that lies as placed, which it uses up."""
    return jax.jit(train_step, donate_argnums=0, out_shardings=(placed, None))


def run_phase(settings, state, step, source, folder, *, phase, seed, writer, should_stop):
    """Run the loop over num_steps of settings: -> params. Resumes from folder.

    settings: LoopSettings. step(state, batch, rng), source: as in training.loop.
    """
    with Store(folder) as store:
        state = run_loop(
            state,
            step,
            source,
            num_steps=settings.num_steps,
            store=store,
            writer=writer,
            phase=phase,
            save_every=settings.save_every,
            log_every=settings.log_every,
            rng=jax.random.key(seed),
            should_stop=should_stop,
        )
    return state.params


def fit(settings, loss_fn, params, source, mesh, folder, *, phase, writer, should_stop):
    """Train params, which are used up, on loss_fn(params, batch, rng): -> params. Resumes from folder.

    settings: FitSettings. What no gradient moves stays as it is.
    """
    tx = settings.make_optimizer()
    create, placed = state_maker(params, tx, mesh)
    step = make_train_step(loss_fn, tx, micro_batches=settings.micro_batches)
    return run_phase(
        settings,
        create(params),
        jitted_step(step, placed),
        source,
        folder,
        phase=phase,
        seed=settings.seed,
        writer=writer,
        should_stop=should_stop,
    )
