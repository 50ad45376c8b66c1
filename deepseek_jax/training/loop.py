"""The loop around the update: batches in, metrics and checkpoints out, and resuming from them."""

import functools
import resource
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from deepseek_jax.checkpoint.store import Store
from deepseek_jax.costs.chips import peak_of
from deepseek_jax.parallel.processes import say
from deepseek_jax.training.run import Run
from deepseek_jax.training.state import TrainState, state_maker
from deepseek_jax.training.step import jitted_step, make_train_step

# Exit status of a run that was asked to stop and has saved: start it again to resume. The number is
# EX_TEMPFAIL of sysexits.h
STOPPED = 75
# So many updates in a row with gradients that are not finite end the run
MAX_NONFINITE = 3
GIB = 2**30


class Limit(NamedTuple):
    """The largest value that a metric may have, and what a larger one, or NaN, means."""

    largest: float
    meaning: str


def train(
    settings,
    state: TrainState,
    train_step,
    source,
    run: Run,
    seed: int,
    limits: Mapping[str, Limit] | None = None,
    flops_per_token: float | None = None,
):
    """Run the steps up to num_steps, from 0 or from the newest checkpoint of the phase: -> TrainState.

    settings: has num_steps, save_every and log_every. state: also the pattern (tree, dtypes, shardings) of
    what is restored; may be donated. train_step(state, batch, rng) -> (state, metrics), jitted: folds
    state.step into rng. source.next(state, step) -> (list of batches, dict of floats): a step makes one
    update for each batch. source.get_state() -> its position, as anything that JSON can hold;
    source.set_state(position) resumes there. run: Run of this phase, whose folder holds its checkpoints and
    nothing else. seed: of the rng. limits: metric of train_step -> its Limit. A step beyond one ends the run,
    at the latest after the next step, and before anything is saved. flops_per_token: what the model needs for
    one of the source's tokens.

    Steps 0, log_every, ... and the last one are logged: that step's metrics (averaged over its updates; for
    names ending in _max, the largest); since the line before: seconds a step, nonfinite (updates skipped),
    expert_overflows (where buffers for experts are bounded), and, where the source reports `tokens`,
    tokens_per_second; with flops_per_token, and on devices whose speed costs.chips knows, mfu: the share of
    their peak that these tokens need; and peak memory. Between lines the loop waits for the device only if
    there are limits or such buffers, and then for an earlier step. Saves after each save_every steps and at
    the end.

    Raises ValueError for a checkpoint of another run and beyond a limit, FloatingPointError after
    MAX_NONFINITE skipped updates in a row, and SystemExit(STOPPED) when run.should_stop() is true on any
    process and the state is saved.
    """
    with Store(run.folder) as store:
        state, first_step = _resume(state, source, store, settings.num_steps, run.phase)
        # Before writer.start, which deletes lines: a complete phase is left as it is
        if first_step >= settings.num_steps:
            return state
        update = functools.partial(train_step, rng=jax.random.key(seed))
        run.writer.start(run.phase, first_step)
        peak = peak_of(run.mesh.devices.ravel()) if flops_per_token else None
        log = _Log(run.writer, run.phase, limits or {}, peak and peak / flops_per_token)
        return _train_from(first_step, settings, state, update, source, run, store, log)


def _train_from(first_step, settings, state, update, source, run, store, log):
    num_steps = settings.num_steps
    for step in range(first_step, num_steps):
        batches, source_metrics = source.next(state, step)
        updates = []
        for batch in batches:
            state, metrics = update(state, batch)
            updates.append(metrics)
        log.add(step, updates, source_metrics)

        done = step + 1
        stopping = _any_process(run.should_stop())
        if step % settings.log_every == 0 or done == num_steps:
            log.write(step)
        if done % settings.save_every == 0 or done == num_steps or stopping:
            # Ends a run whose gradients stay non-finite before it saves
            log.check()
            run.writer.flush()
            store.save(done, {"state": state.saved(), "data": {"source": source.get_state()}})
        if stopping and done < num_steps:
            # Saving runs in the background, so exit only when it is on disk
            store.wait()
            say(
                f"{run.phase}: asked to stop; saved at step {done} of {num_steps}. Run again to resume."
            )
            raise SystemExit(STOPPED)
    store.wait()
    return state


def fit(settings, loss_fn, params, source, run: Run, flops_per_token: float | None = None):
    """Train params, which are donated, on loss_fn(params, batch, rng): -> params. Resumes from run.folder.
    Where they have adapters (models.adapters.Adapted), these alone are trained.

    settings: as for `train`, with make_optimizer(), micro_batches and seed. Router biases and multi-token
    prediction modules stay as they are.
    """
    create, step = jitted_fit(settings, loss_fn, params, run.mesh)
    state, work = create(params), dict(flops_per_token=flops_per_token)
    return train(settings, state, step, source, run, settings.seed, **work).model


def jitted_fit(settings, loss_fn, params, mesh: Mesh):
    """The two jitted functions of `fit`: create(params), which donates them, -> TrainState, and
    step(state, batch, rng). params: arrays, or ShapeDtypeStructs with shardings.
    """
    tx = settings.make_optimizer()
    create, placed = state_maker(params, tx, mesh, settings.optimizer.moment_memory)
    step = make_train_step(loss_fn, tx, micro_batches=settings.micro_batches)
    return create, jitted_step(step, placed)


def _resume(state, source, store, num_steps, phase):
    """(state, steps done) of the newest checkpoint; without one, the given state and 0."""
    done = store.latest_step()
    if done is None:
        return state, 0
    checkpoint = store.restore(done, state.saved())
    source.set_state(checkpoint["data"]["source"])
    if done >= num_steps:
        say(f"{phase}: already complete, {done} steps in {store.folder}")
    else:
        say(f"{phase}: resuming at step {done} of {num_steps} from {store.folder}")
    return checkpoint["state"].replace(frozen=state.frozen), done


class _Log:
    """Collects the metrics of steps, on the device, and writes them a line at a time."""

    def __init__(self, writer, phase, limits, peak_tokens=None):
        self.writer, self.phase, self.limits = writer, phase, limits
        # A second, of devices that do nothing but the model's products
        self.peak_tokens = peak_tokens
        # Metrics still on the device, which _count has not read
        self.updates = []
        # (updates, source metrics) of the latest step
        self.last = None
        # The latest step and its updates, whose limits are not checked yet
        self.unread = None, []
        # Skipped updates in a row. Stays at MAX_NONFINITE, which a later finite update must not hide
        self.streak = 0
        self._begin_line()

    def _begin_line(self):
        self.began = time.perf_counter()
        self.steps = self.tokens = self.nonfinite = self.overflows = 0

    def add(self, step, updates, source_metrics):
        """Add a step's updates; check the limits of the step before, whose metrics the device has by now."""
        self._check_limits()
        self.unread = step, updates
        self.updates += updates
        self.last = (updates, source_metrics)
        self.steps += 1
        self.tokens += source_metrics.get("tokens", 0)

    def check(self):
        """Wait for the updates so far; end a run beyond its limits or whose gradients stay non-finite."""
        self._check_limits()
        self._count()
        if self.streak >= MAX_NONFINITE:
            raise FloatingPointError(
                f"{self.phase}: gradients were not finite in {self.streak} updates in a row, which "
                "were skipped; lower the learning rate, or look at the data of these steps"
            )

    def write(self, step):
        """Write the latest step's line."""
        # Waits for the device, so that the seconds below include all updates of the line
        self._count()
        updates, source_metrics = self.last
        updates = jax.device_get(updates)
        line = {name: _merge(name, [u[name] for u in updates]) for name in (updates or [{}])[0]}
        shared = line.keys() & source_metrics.keys()
        assert not shared, f"both the loss and the source report {shared}"
        line |= source_metrics | {"nonfinite": float(self.nonfinite)} | _memory()
        if "expert_overflows" in line:
            line["expert_overflows"] = float(self.overflows)
        seconds = time.perf_counter() - self.began
        line["seconds"] = seconds / self.steps
        if "tokens" in source_metrics:
            line["tokens_per_second"] = self.tokens / seconds
            if self.peak_tokens is not None:
                line["mfu"] = line["tokens_per_second"] / self.peak_tokens
        self.writer.write(step, line, phase=self.phase)
        # After the line is written, so that it shows the numbers for which the run ends
        self.check()
        self._begin_line()

    def _check_limits(self):
        step, updates = self.unread
        for metrics in updates:
            for name, (largest, meaning) in self.limits.items():
                value = float(metrics[name])
                # Not value > largest, which NaN is not
                if not value <= largest:
                    raise ValueError(
                        f"{self.phase}: at step {step} {name} is {value:.1e}, above {largest:.1e}: "
                        f"{meaning}; this step is not saved"
                    )
        self.unread = step, []

    def _count(self):
        for metrics in jax.device_get(self.updates):
            skipped = metrics["nonfinite"] > 0
            self.nonfinite += int(skipped)
            self.overflows += int(metrics.get("expert_overflows", 0))
            if self.streak < MAX_NONFINITE:
                self.streak = self.streak + 1 if skipped else 0
        self.updates = []


def _merge(name, values):
    return float(np.max(values) if name.endswith("_max") else np.mean(values))


def _memory():
    """Peak memory so far, in GiB: of this process, and of its first device where that reports it."""
    # ru_maxrss counts bytes on macOS and KiB elsewhere
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    memory = {"host_peak_gib": peak / GIB}
    # None on CPU
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        memory["device_peak_gib"] = stats["peak_bytes_in_use"] / GIB
    return memory


def _any_process(flag):
    """Whether the flag is set on any process: all must save, and stop, at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())
