"""The loop around the update: batches in, metrics and checkpoints out, and resuming from them."""

import contextlib
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from deepseek_jax.checkpoint.store import Store
from deepseek_jax.costs.chips import peak_of
from deepseek_jax.errors import suggest
from deepseek_jax.parallel.processes import StopTogether, from_first, say
from deepseek_jax.progress import FirstTime, waiting_for
from deepseek_jax.training.log import Log
from deepseek_jax.training.run import STOPPED, Run
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.update import create_update
from deepseek_jax.training.watch import Checks, Idle, check_params

# watch.Checks.terms of every loss of examples
LOSS_TERMS = {
    "loss": "no token or pair is left in the loss; look at the data",
    "grad_norm": "no trained parameter changes the loss; look at the data and at the adapter",
}


def train(
    settings,
    state: TrainState,
    train_step,
    source,
    run: Run,
    seed: int,
    checks: Checks | None = None,
    flops_per_token: float | None = None,
):
    """Run the steps up to num_steps, from 0 or from the newest checkpoint of the phase: -> TrainState.

    settings: a training.settings.LoopSettings. state: also the pattern (tree, dtypes, shardings) of what is
    restored; may be donated. train_step(state, batch, rng) -> (state, metrics), jitted: folds state.step into
    rng. source.next(state, step) -> (list of batches, dict of floats): a step makes one update for each
    batch. source.get_state() -> its position, as anything that JSON can hold; source.set_state(position)
    resumes there. source.of_updates(), if it has one: a dict of floats about the updates of the latest step,
    when they have ended. source.completions(), if it has one: the groups of completions that are kept of the
    latest step, for MetricsWriter.write. run: Run of this phase, whose folder holds its checkpoints and
    nothing else. seed: of the rng. checks: see training.watch. A step beyond one of their limits ends the
    run, at the latest after the next step, and before anything is saved; the rest is checked at logged steps.
    flops_per_token: what the model needs for one of the source's tokens.

    Steps 0, log_every, ... and the last one are logged: that step's metrics (averaged over its updates; for
    names ending in _max, the largest); the learning_rate of its last update; since the line before: seconds a
    step, nonfinite (updates skipped), expert_overflows (where buffers for experts are bounded), and, where
    the source reports `tokens`, tokens_per_second; with flops_per_token, and on devices whose speed
    costs.chips knows, mfu: the share of their peak that these tokens need, or, where the source reports it,
    its `row_tokens`: those that are read and not learned as well; and memory.memory_metrics. Between lines
    the loop waits for the device only if there are limits or such buffers, and then for an earlier step.
    Saves after each save_every steps, at the end, and as settings.checkpoints says; returns the best of these
    states where that names a metric.

    Raises ValueError for a checkpoint of another run and where no line has the metric checkpoints.best;
    SamplerApart beyond a limit; NotFinite for a limited metric that is NaN, after faults.nonfinite skipped
    updates in a row, those before a resumption counted, and for parameters that are not finite, which are not
    saved; BrokenTerm as watch.Idle, and for faults.idle_lines steps in a row or more without a token to
    learn; and SystemExit(STOPPED) when run.should_stop() is true on any process and the state is saved.
    """
    kept, checks = settings.checkpoints, checks or Checks()
    with Store(
        run.folder,
        keep=kept.keep,
        keep_every=kept.keep_every,
        best_is=kept.best and kept.best_is,
        strict=run.strict,
    ) as store:
        state, first_step, skipped = _resume(state, source, store, settings.num_steps, run.phase)
        # Before writer.start, which deletes lines: a complete phase is left as it is
        if first_step < settings.num_steps:
            rng = jax.random.key(seed)
            update = functools.partial(train_step, rng=rng)
            update = jax.profiler.annotate_function(update, name="update")
            run.writer.start(run.phase, first_step, settings.num_steps)
            peak = peak_of(run.mesh.devices.ravel()) if flops_per_token else None
            peak_tokens = peak and peak / flops_per_token
            log = Log(run.writer, run.phase, settings, checks, source, rng, peak_tokens)
            log.streak = skipped
            # After a resumption, a term that was at work before may have nothing left to do
            if not first_step:
                lines, warm_up = settings.faults.idle_lines, settings.optimizer.warm_up()
                log.idle = Idle(checks, run.phase, lines, state.params, warm_up)
            steps = _observed(range(first_step, settings.num_steps), run, lambda: log.last)
            try:
                with contextlib.closing(steps), StopTogether(run.should_stop) as should_stop:
                    state = _train(steps, settings, state, update, source, should_stop, store, log)
            finally:
                run.writer.end()
        else:
            store.finish_deleting()
        return _best(state, store, kept, run.phase) if kept.best else state


def _observed(steps, run, latest):
    """The steps, while the run's profile and watchdog look on. latest() -> arrays of the latest step."""
    for observer in (run.profile, run.watchdog):
        steps = steps if observer is None else observer.over(steps, run.phase, latest)
    yield from steps


def _train(steps, settings, state, update, source, should_stop, store, log):
    num_steps, kept = settings.num_steps, settings.checkpoints
    saved_at, score, saved = time.monotonic(), store.latest_score(), None
    updating = FirstTime(f"compiling the update of {log.phase}")
    for step in steps:
        log.writer.at(step)
        # What is there when the first step begins
        saved = step if saved is None else saved
        try:
            batches, source_metrics = source.next(state, step)
        except SystemExit:
            # It was left in a measurement: the steps before it are saved
            if saved < step:
                _save(store, step, state, source, log, score)
                store.wait()
            raise
        updates = []
        for batch in batches:
            is_first = step == 0 and not updates
            if is_first:
                log.checks.before_first(state, batch)
            with updating(tuple(x.shape for x in jax.tree.leaves(batch))):
                state, metrics = update(state, batch)
            if is_first:
                log.checks.after_first(metrics)
            updates.append(metrics)
        log.add(step, updates, source_metrics, batches, state)

        done = step + 1
        stopping = should_stop()
        saves = done % settings.save_every == 0 or done == num_steps or stopping
        if settings.is_logged(step):
            line = log.write(step, state, last=done == num_steps)
            if kept.best is not None:
                score = _score(step, line, kept.best, score)
            saves = saves or _is_due(saved_at, kept.minutes)
        if saves:
            _save(store, done, state, source, log, score)
            saved, saved_at = done, time.monotonic()
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
    """Save the state after `done` steps. Ends a run whose gradients or parameters are not finite before."""
    log.check(state)
    check_params(state, done - 1, log.phase)
    # A run that resumes from here logs no earlier step
    log.writer.flush()
    data = {"source": source.get_state(), "skipped_in_a_row": log.streak}
    store.save(done, {"state": state.saved(), "data": data}, score)


def _is_due(saved_at, minutes):
    """Whether the last save was `minutes` ago or more, by the clock of process 0."""
    if minutes is None:
        return False
    return bool(from_first(np.asarray(time.monotonic() - saved_at >= 60 * minutes)))


def _score(step, line, best, before):
    """The value of the metric checkpoints.best in a line; where it is not finite or not there, `before`."""
    # What is evaluated now and then is evaluated at step 0
    if step == 0 and best not in line:
        raise ValueError(
            f"checkpoints.best={best!r} is not a metric of this phase; {suggest(best, sorted(line))}"
        )
    return line[best] if math.isfinite(line.get(best, math.nan)) else before


def _best(state, store, kept, phase):
    """The state of the best checkpoint; of equals the newest."""
    scores = store.scores()
    if not scores:
        return state
    best = min if kept.best_is == "lowest" else max
    step = best(reversed(scores), key=scores.get)
    say(f"{phase}: {kept.best} is {kept.best_is} at step {step}: {scores[step]:.4g}")
    checkpoint = store.restore(step, state.saved())
    return checkpoint["state"].replace(frozen=state.frozen)


def fit(
    settings: Any,
    loss_fn: Callable,
    params: Any,
    source: Any,
    run: Run,
    flops_per_token: float | None = None,
    parts: tuple[str, ...] = (),
    untrained: tuple[str, ...] = (),
) -> Any:
    """Train params, which are donated, on loss_fn(params, batch, rng): -> params. Resumes from run.folder.
    Where they have adapters (models.adapters.Adapted), these alone are trained.

    settings: as for `train`, with make_optimizer(), micro_batches and seed. parts: those of
    models.layers.PARTS that the loss trains; the others and router biases stay as they are. untrained: of
    watch.Checks.
    """
    create, step = create_update(settings, loss_fn, params, run.mesh, parts=parts)
    checks = Checks(terms=LOSS_TERMS, untrained=untrained, locate=step.locate)
    state = create(params)
    state = train(settings, state, step, source, run, settings.seed, checks, flops_per_token)
    return state.model


def _resume(state, source, store, num_steps, phase):
    """(state, steps done, updates skipped in a row) of the newest checkpoint; without one, the given state
    and 0.
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
