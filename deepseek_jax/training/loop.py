"""The loop around the update: batches in, metrics and checkpoints out, and resuming from them."""

import contextlib
import functools
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from deepseek_jax.checkpoint.store import Store
from deepseek_jax.costs.chips import peak_of
from deepseek_jax.errors import suggest
from deepseek_jax.parallel.processes import StopTogether, from_first, say
from deepseek_jax.progress import waiting_for
from deepseek_jax.training.log import Log
from deepseek_jax.training.run import STOPPED, Run
from deepseek_jax.training.settings import LoopSettings
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.update import create_update
from deepseek_jax.training.watch import Checks, Idle, check_params
from deepseek_jax.trees import PyTree

# watch.Checks.terms for the losses of `fit`
LOSS_TERMS = {
    "loss": "no token or pair is left in the loss; look at the data",
    "grad_norm": "no trained parameter changes the loss; look at the data and at the adapter",
}


class Source(Protocol):
    """Where the batches of a phase come from, see `train`."""

    def next(self, state: TrainState, step: int, /) -> tuple[list, dict]:
        """Return the batches of a step, one for each of its updates, and floats by metric."""

    def get_state(self) -> object:
        """Return the position, anything that JSON can hold."""

    # Any: a source takes the form of its own get_state
    def set_state(self, position: Any, /) -> None:
        """Resume at a position of get_state."""


def train(
    settings: LoopSettings,
    state: TrainState,
    train_step: Callable,
    source: Source,
    run: Run,
    seed: int,
    checks: Checks | None = None,
    flops_per_token: float | None = None,
) -> TrainState:
    """Run the steps of a phase up to num_steps, from 0 or from its newest checkpoint.

    Steps 0, log_every, ... and the last one are logged. A line has:

    - that step's metrics, averaged over its updates; for names that end in _max, the largest;
    - learning_rate, of the step's last update;
    - seconds a step, since the line before;
    - nonfinite, the updates skipped since the line before, and expert_overflows, where buffers for
      experts are bounded;
    - tokens_per_second since the line before, where the source reports `tokens`;
    - mfu, with flops_per_token and on devices with a peak that costs.chips knows: the share of that
      peak that the tokens need. Where the source reports `row_tokens`, these count in place of
      `tokens`: they include tokens that are read and not learned;
    - memory.memory_metrics.

    Between lines the loop waits for the device only if there are limits or such buffers, and then
    only for an earlier step.

    It saves after every save_every steps, at the end, and as settings.checkpoints says.

    Args:
        state: the state before step 0, and the pattern (tree, dtypes, shardings) of a restored one.
            It may be donated.
        train_step: jitted, train_step(state, batch, rng) -> (state, metrics). It folds state.step
            into rng.
        source: a step makes one update for each of its batches. It may have two more methods:
            source.of_updates() -> a dict of floats about the updates of the latest step, once they
            have ended; and source.completions() -> the groups of completions that are kept of the
            latest step, for MetricsWriter.write.
        run: the Run of this phase; its folder holds the phase's checkpoints and nothing else.
        seed: the seed of rng.
        checks: see training.watch. A step beyond one of their limits ends the run, at the latest
            after the next step, and before anything is saved. The other checks are made at logged
            steps.
        flops_per_token: the FLOPs that the model needs for one of the source's tokens.

    Returns:
        The last TrainState, or the one of the best checkpoint where settings.checkpoints.best names
        a metric.

    Raises:
        ValueError: for a checkpoint of another run, and if no line has the metric checkpoints.best.
        SamplerApart: if a metric is above its limit.
        NotFinite: if a limited metric is NaN; after faults.nonfinite skipped updates in a row,
            where updates before a resumption count; and for parameters that are not finite, which
            are not saved.
        BrokenTerm: as watch.Idle does, and for faults.idle_lines or more steps in a row without a
            token to learn.
        SystemExit: with STOPPED, when run.should_stop() is true on any process and the state is
            saved.
    """
    checkpoint_settings, checks = settings.checkpoints, checks or Checks()
    with Store(
        run.folder,
        keep=checkpoint_settings.keep,
        keep_every=checkpoint_settings.keep_every,
        best_is=checkpoint_settings.best and checkpoint_settings.best_is,
        strict=run.strict,
    ) as store:
        state, first_step, skipped = _resume(state, source, store, settings.num_steps, run.phase)
        # Looked at before writer.start, which deletes lines: a complete phase must keep them
        if first_step < settings.num_steps:
            rng = jax.random.key(seed)
            update = functools.partial(train_step, rng=rng)
            update = jax.profiler.annotate_function(update, name="update")
            run.writer.start(run.phase, first_step, settings.num_steps)
            peak_tokens = None
            if flops_per_token and (peak_flops := peak_of(run.mesh.devices.ravel())):
                peak_tokens = peak_flops / flops_per_token
            log = Log(run.writer, run.phase, settings, checks, source, rng, peak_tokens)
            log.streak = skipped
            # Only from the start: after a resumption, a term that did its work before may have
            # nothing left to do
            if not first_step:
                idle_lines, warm_up = settings.faults.idle_lines, settings.optimizer.warm_up()
                log.idle = Idle(checks, run.phase, idle_lines, state.params, warm_up)
            steps = _observed(range(first_step, settings.num_steps), run, lambda: log.last)
            try:
                with contextlib.closing(steps), StopTogether(run.should_stop) as should_stop:
                    state = _train(steps, settings, state, update, source, should_stop, store, log)
            finally:
                run.writer.end()
        else:
            store.finish_deleting()
        return (
            _best(state, store, checkpoint_settings, run.phase)
            if checkpoint_settings.best
            else state
        )


def _observed(steps, run, latest):
    """Yield the steps, watched by the run's profile and watchdog.

    Args:
        latest: latest() -> the arrays of the latest step.
    """
    for observer in (run.profile, run.watchdog):
        steps = steps if observer is None else observer.over(steps, run.phase, latest)
    yield from steps


def _train(steps, settings, state, update, source, should_stop, store, log):
    num_steps, checkpoint_settings = settings.num_steps, settings.checkpoints
    saved_at, score, saved_step = time.monotonic(), store.latest_score(), None
    tracing = waiting_for(f"tracing the update of {log.phase}")
    for step in steps:
        log.writer.begin_step(step)
        # Nothing before this process's first step needs a save
        is_first_here = saved_step is None
        saved_step = step if saved_step is None else saved_step
        try:
            batches, source_metrics = source.next(state, step)
        except SystemExit:
            # The run was stopped within a measurement: save the steps before it
            if saved_step < step:
                _save(store, step, state, source, log, score)
                store.wait()
            raise
        updates: list[dict] = []
        for batch in batches:
            is_first = step == 0 and not updates
            if is_first:
                log.checks.before_first(state, batch)
            with tracing if is_first_here and not updates else contextlib.nullcontext():
                state, metrics = update(state, batch)
            if is_first:
                log.checks.after_first(metrics)
            updates.append(metrics)
        log.add(step, updates, source_metrics, batches, state)

        done = step + 1
        stopping = should_stop()
        is_save_due = done % settings.save_every == 0 or done == num_steps or stopping
        if settings.is_logged(step):
            line = log.write(step, state, last=done == num_steps)
            if checkpoint_settings.best is not None:
                score = _score(step, line, checkpoint_settings.best, score)
            is_save_due = is_save_due or _is_due(saved_at, checkpoint_settings.minutes)
        if is_save_due:
            _save(store, done, state, source, log, score)
            saved_step, saved_at = done, time.monotonic()
        if stopping and done < num_steps:
            # Saving runs in the background, so exit only when it is on disk
            store.wait()
            say(
                f"{log.phase}: asked to stop; saved at step {done} of {num_steps}. Run again to resume."
            )
            raise SystemExit(STOPPED)
    store.wait()
    return state


def _save(store, done, state, source, log, score):
    """Save the state after `done` steps.

    If gradients or parameters are not finite, raise NotFinite before anything is saved.
    """
    log.check(state)
    check_params(state, done - 1, log.phase)
    # A run that resumes from this checkpoint logs no earlier step again
    log.writer.flush()
    data = {"source": source.get_state(), "skipped_in_a_row": log.streak}
    store.save(done, {"state": state.saved(), "data": data}, score)


def _is_due(saved_at, minutes):
    """Return whether the last save was `minutes` ago or more, by the clock of process 0."""
    if minutes is None:
        return False
    return bool(from_first(np.asarray(time.monotonic() - saved_at >= 60 * minutes)))


def _score(step, line, best_metric, last_score):
    """Return a line's metric checkpoints.best, or `last_score` if it is missing or not finite."""
    # A metric that only some lines have is in the line of step 0
    if step == 0 and best_metric not in line:
        raise ValueError(
            f"checkpoints.best={best_metric!r} is not a metric of this phase; "
            f"{suggest(best_metric, sorted(line))}"
        )
    return line[best_metric] if math.isfinite(line.get(best_metric, math.nan)) else last_score


def _best(state, store, checkpoint_settings, phase):
    """Return the state of the best checkpoint, the newest among equals."""
    scores = store.scores()
    if not scores:
        return state
    pick = min if checkpoint_settings.best_is == "lowest" else max
    step = pick(reversed(scores), key=scores.get)
    say(
        f"{phase}: {checkpoint_settings.best} is {checkpoint_settings.best_is} at step {step}: "
        f"{scores[step]:.4g}"
    )
    checkpoint = store.restore(step, state.saved())
    return checkpoint["state"].replace(frozen=state.frozen)


def fit(
    settings: Any,
    loss_fn: Callable,
    params: PyTree,
    source: Any,
    run: Run,
    flops_per_token: float | None = None,
    trained_parts: tuple[str, ...] = (),
    untrained: tuple[str, ...] = (),
) -> Any:
    """Train params on loss_fn(params, batch, rng), resuming from run.folder, and return them.

    Where params have adapters (models.adapters.AdaptedParams), only the adapters are trained.

    Args:
        settings: as for `train`, with make_optimizer(), micro_batches and seed.
        params: are donated.
        source: as for `train`.
        flops_per_token: as for `train`.
        trained_parts: the models.layers.PARTS that the loss trains. The other parts and router biases do
            not change.
        untrained: as in watch.Checks.
    """
    create, step = create_update(settings, loss_fn, params, run.mesh, trained_parts=trained_parts)
    checks = Checks(terms=LOSS_TERMS, untrained=untrained, locate=step.locate)
    state = create(params)
    state = train(settings, state, step, source, run, settings.seed, checks, flops_per_token)
    return state.model


def _resume(state, source, store, num_steps, phase):
    """Return (state, steps done, updates skipped in a row) of the newest checkpoint.

    Without a checkpoint, return the given state and zeros.
    """
    with waiting_for(f"loading the newest checkpoint of {phase}"):
        done, checkpoint = store.newest(state.saved())
    if done is None:
        return state, 0, 0
    source.set_state(checkpoint["data"]["source"])
    skipped = checkpoint["data"]["skipped_in_a_row"]
    if done >= num_steps:
        say(f"{phase}: already complete, {done} steps in {store.folder}")
    else:
        say(f"{phase}: resuming at step {done} of {num_steps} from {store.folder}")
    return checkpoint["state"].replace(frozen=state.frozen), done, skipped
