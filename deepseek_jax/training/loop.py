"""The loop around the update: batches in, metrics and checkpoints out, and resuming from them."""

import functools
import resource
import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from deepseek_jax.checkpoint.store import Store
from deepseek_jax.parallel.processes import say
from deepseek_jax.training.state import state_maker
from deepseek_jax.training.step import jitted_step, make_train_step

STOPPED = 75  # exit status of a run that was told to stop, saved, and wants to be started again
MAX_NONFINITE = 3  # updates in a row whose gradients are not finite before the run gives up
GIB = 2**30


def train(settings, state, train_step, source, run, seed):
    """Run steps 0 to num_steps - 1, or what the newest checkpoint of the phase leaves of them: -> TrainState.

    settings: has num_steps, save_every and log_every. state: TrainState, also the pattern (tree, dtypes,
    shardings) of what is restored; may be donated. train_step(state, batch, rng) -> (state, metrics), jitted:
    folds state.step into rng. source.next(state, step) -> (list of batches, dict of floats): a step makes one
    update a batch. source.get_state() -> what JSON can say, source.set_state(it): where the source stands.
    run: Run of this phase, whose folder holds its checkpoints and nothing else. seed: of the rng.

    Steps 0, log_every, ... and the last one are written: that step's metrics (averaged over its updates;
    names ending in _max: the largest); since the line before: seconds a step, nonfinite (updates skipped)
    and, where the source gives `tokens`, tokens_per_second; and peak memory. Between lines nothing waits
    for the device. Saves after each save_every steps and at the end.

    Raises ValueError for a checkpoint of another run, FloatingPointError after MAX_NONFINITE skipped updates
    in a row, and, once run.should_stop says so on any process and the state is saved, SystemExit(STOPPED).
    """
    with Store(run.folder) as store:
        state, first_step = _resume(state, source, store, settings.num_steps, run.phase)
        if first_step >= settings.num_steps:
            return state
        update = functools.partial(train_step, rng=jax.random.key(seed))
        return _train_from(first_step, settings, state, update, source, run, store)


def _train_from(first_step, settings, state, update, source, run, store):
    num_steps = settings.num_steps
    run.writer.start(run.phase, first_step)
    log = _Log(run.writer, run.phase)
    for step in range(first_step, num_steps):
        batches, source_metrics = source.next(state, step)
        updates = []
        for batch in batches:
            state, metrics = update(state, batch)
            updates.append(metrics)
        log.add(updates, source_metrics)

        done = step + 1
        stopping = _any_process(run.should_stop())
        if step % settings.log_every == 0 or done == num_steps:
            log.write(step)
        if done % settings.save_every == 0 or done == num_steps or stopping:
            log.check()
            store.save(done, {"state": state, "data": {"source": source.get_state()}})
        if stopping and done < num_steps:
            store.wait()
            say(
                f"{run.phase}: told to stop; saved at step {done} of {num_steps}. Run again to go on."
            )
            raise SystemExit(STOPPED)
    store.wait()
    return state


def fit(settings, loss_fn, params, source, run):
    """Train params, which are used up, on loss_fn(params, batch, rng): -> params. Resumes from run.folder.

    settings: as of `train`, with make_optimizer(), micro_batches and seed. What no gradient moves stays as
    it is.
    """
    tx = settings.make_optimizer()
    create, placed = state_maker(params, tx, run.mesh)
    step = jitted_step(make_train_step(loss_fn, tx, micro_batches=settings.micro_batches), placed)
    return train(settings, create(params), step, source, run, settings.seed).params


def _resume(state, source, store, num_steps, phase):
    """(state, steps done) of the newest checkpoint; the given state and 0 where there is none."""
    done = store.latest_step()
    if done is None:
        return state, 0
    checkpoint = store.restore(done, state)
    source.set_state(checkpoint["data"]["source"])
    if done >= num_steps:
        say(f"{phase}: already complete, {done} steps in {store.folder}")
    else:
        say(f"{phase}: resuming at step {done} of {num_steps} from {store.folder}")
    return checkpoint["state"], done


class _Log:
    """Metrics on their way from the device to the writer."""

    def __init__(self, writer, phase):
        self.writer, self.phase = writer, phase
        self.updates = []  # metrics still on the device, of the steps that _count has not seen
        self.last = None  # the latest step's
        self.streak = 0  # updates in a row that were skipped; stays once it is too long
        self._begin_line()

    def _begin_line(self):
        self.began = time.perf_counter()
        self.steps = self.tokens = self.nonfinite = 0

    def add(self, updates, source_metrics):
        self.updates += updates
        self.last = (updates, source_metrics)
        self.steps += 1
        self.tokens += source_metrics.get("tokens", 0)

    def check(self):
        """Wait for the updates so far; give up on a run whose gradients stay non-finite."""
        self._count()
        if self.streak >= MAX_NONFINITE:
            raise FloatingPointError(
                f"{self.phase}: gradients were not finite in {self.streak} updates in a row, which "
                "were skipped; lower the learning rate, or look at the data of these steps"
            )

    def write(self, step):
        """Write the latest step's line."""
        self._count()
        updates, source_metrics = self.last
        updates = jax.device_get(updates)
        line = {name: _merge(name, [u[name] for u in updates]) for name in (updates or [{}])[0]}
        shared = line.keys() & source_metrics.keys()
        assert not shared, f"both the loss and the source report {shared}"
        line |= source_metrics | {"nonfinite": float(self.nonfinite)} | _memory()
        seconds = time.perf_counter() - self.began
        line["seconds"] = seconds / self.steps
        if "tokens" in source_metrics:
            line["tokens_per_second"] = self.tokens / seconds
        self.writer.write(step, line, phase=self.phase)
        self.check()
        self._begin_line()

    def _count(self):
        for metrics in jax.device_get(self.updates):
            skipped = metrics["nonfinite"] > 0
            self.nonfinite += int(skipped)
            if self.streak < MAX_NONFINITE:
                self.streak = self.streak + 1 if skipped else 0
        self.updates = []


def _merge(name, values):
    return float(np.max(values) if name.endswith("_max") else np.mean(values))


def _memory():
    """Peaks so far, in GiB: of this process, and of its first device where the device tells."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    memory = {"host_peak_gib": peak / GIB}
    stats = jax.local_devices()[0].memory_stats()  # None on CPU
    if stats and "peak_bytes_in_use" in stats:
        memory["device_peak_gib"] = stats["peak_bytes_in_use"] / GIB
    return memory


def _any_process(flag):
    """Whether the flag is set on any process: all must save, and stop, at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())
