"""Metrics of a run's steps: collected on the device, checked, and written one line at a time.

Tests: tests/training/test_loop.py.
"""

import collections
import math
import time

import jax
import numpy as np

from deepseek_jax.errors import BrokenTerm, NotFinite, SamplerApart
from deepseek_jax.parallel.processes import say
from deepseek_jax.training.memory import memory_metrics
from deepseek_jax.training.watch import Idle

# Most bytes a device for the batches since the last check. They are kept to find where an update
# was not finite
KEPT_BYTES = 2**28


class Log:
    """The metrics of a phase's steps, from the device to the lines of metrics.jsonl.

    Args:
        peak_tokens: the tokens a second that the devices' peak FLOPs allow; None leaves out `mfu`.
    """

    def __init__(self, writer, phase, settings, checks, source, rng, peak_tokens=None):
        self.writer, self.phase, self.settings, self.source = writer, phase, settings, source
        self.faults, self.checks, self.rng = settings.faults, checks, rng
        self.peak_tokens = peak_tokens
        # Updates that _count has not read: (step, index within it, metrics still on the device)
        self.updates: list[tuple[int, int, dict]] = []
        # The latest step: (updates, their weights, source metrics)
        self.last: tuple[list[dict], list[dict], dict] = [], [], {}
        # The steps since the last check: (step, batches, bytes)
        self.batches: collections.deque[tuple[int, list[dict], int]] = collections.deque()
        # The latest step and its updates; their limits are checked one step later
        self.unread: tuple[int | None, list[dict]] = None, []
        # Updates skipped in a row, all updates that this process skipped, and how many there were at
        # the last message. The streak stays at faults.nonfinite: a later finite update must not hide it
        self.streak, self.all_skipped, self.said = 0, 0, 0
        # The latest skipped update: (step, index within it)
        self.skipped: tuple[int, int] | None = None
        # Whether the message about overflows of the experts' buffers was printed
        self.said_overflows = False
        # Steps in a row without a token to learn
        self.without_tokens = 0
        self.idle: Idle | None = None
        self._begin_line()

    def _begin_line(self):
        self.line_start = time.perf_counter()
        self.steps = self.tokens = self.row_tokens = self.nonfinite = self.overflows = 0
        # Updates that had a gradient
        self.learning = 0

    def add(self, step, updates, source_metrics, batches, state):
        """Add a step's updates, and check the limits of the step before.

        By now the device has computed the metrics of that earlier step.

        Args:
            updates: the metrics of each update of the step, on the device.
            state: the TrainState after the step.

        Raises:
            NotFinite: if a limited metric of the step before is NaN or infinite.
            SamplerApart: if one is above its limit.
        """
        self.updates += [(step, index, metrics) for index, metrics in enumerate(updates)]
        self.last = updates, [self.checks.weights(batch) for batch in batches], source_metrics
        self.batches.append((step, batches, sum(x.nbytes for x in jax.tree.leaves(batches))))
        max_bytes = KEPT_BYTES * jax.device_count()
        while len(self.batches) > 1 and sum(size for *_, size in self.batches) > max_bytes:
            self.batches.popleft()
        self._check_limits(state)
        self.unread = step, updates
        self.steps += 1
        tokens = source_metrics.get("tokens", 0)
        self.tokens += tokens
        self.row_tokens += source_metrics.get("row_tokens", tokens)

    def check(self, state):
        """Wait for the updates so far, and check their limits and their gradients.

        Args:
            state: the TrainState after the latest step.

        Raises:
            NotFinite: if a limited metric is NaN or infinite, or faults.nonfinite updates in a row
                were skipped.
            SamplerApart: if a metric is above its limit.
        """
        self._check_limits(state)
        self._count()
        if self.streak >= self.faults.nonfinite:
            raise NotFinite(
                f"{self.phase}: gradients were not finite in {self.streak} updates in a row, which were "
                f"skipped. {self._about_skipped(state)}"
            )
        # At the first skipped update, and each time their number has doubled
        if self.all_skipped.bit_length() > self.said.bit_length():
            self.said = self.all_skipped
            say(
                f"{self.phase}: updates skipped, because gradients were not finite: {self.said}. "
                f"{self._about_skipped(state)}"
            )
        while len(self.batches) > 1:
            self.batches.popleft()

    def write(self, step, state, last):
        """Write the latest step's line, check it, and return its metrics.

        Args:
            state: the TrainState after the step.
            last: whether it is the phase's last line.

        Raises:
            Fault: NotFinite, SamplerApart or BrokenTerm, as `check`, watch.Idle and Checks.of_line
                do, and BrokenTerm for steps in a row without a token to learn.
        """
        # Waits for the device, so that the seconds below include all updates of the line
        self._count()
        updates, weights, source_metrics = self.last
        update_metrics: dict = getattr(self.source, "of_updates", dict)()
        arrays = updates, weights, source_metrics | update_metrics
        updates, weights, source_metrics = jax.device_get(arrays)
        line = {name: merge(name, updates, weights) for name in (updates or [{}])[0]}
        shared_names = line.keys() & source_metrics.keys()
        assert not shared_names, f"both the loss and the source report {shared_names}"
        line |= source_metrics | {"nonfinite": float(self.nonfinite)} | memory_metrics()
        line["learning_rate"] = self.settings.learning_rate(state)
        if "expert_overflows" in line:
            line["expert_overflows"] = float(self.overflows)
            self._say_overflows(step)
        self.tokens, self.row_tokens = jax.device_get((self.tokens, self.row_tokens))
        seconds = time.perf_counter() - self.line_start
        line["seconds"] = seconds / self.steps
        if "tokens" in source_metrics:
            line["tokens_per_second"] = self.tokens / seconds
            if self.peak_tokens is not None:
                line["mfu"] = self.row_tokens / seconds / self.peak_tokens
        completions: list[dict] = getattr(self.source, "completions", list)()
        self.writer.write(step, line, phase=self.phase, completions=completions)
        # After the line is written, so that the file has the numbers that end the run
        self.check(state)
        if "tokens" in source_metrics:
            self._check_tokens(step)
        if self.idle is not None:
            self.idle.look(step, line, state, self.learning, last)
        if self.checks.of_line is not None:
            self.checks.of_line(step, line)
        self._begin_line()
        return line

    def _say_overflows(self, step):
        if self.overflows and not self.said_overflows:
            self.said_overflows = True
            say(
                f"{self.phase}: up to step {step} experts got more tokens than expert_buffer has room for, "
                f"{self.overflows} times; such updates are right, and slow. Raise it if expert_overflows in "
                "metrics.jsonl stays above 0"
            )

    def _check_limits(self, state):
        step, updates = self.unread
        for index, metrics in enumerate(updates):
            for name, (largest, meaning) in self.checks.limits.items():
                value = float(metrics[name])
                if not math.isfinite(value):
                    raise NotFinite(
                        f"{self.phase}: at step {step} {name} is {value}; this step is not saved. "
                        f"{self._about(step, index, state)}"
                    )
                if value > largest:
                    raise SamplerApart(
                        f"{self.phase}: at step {step} {name} is {value:.1e}, above {largest:.1e}: "
                        f"{meaning}; this step is not saved"
                    )
        self.unread = step, []

    def _count(self):
        for step, index, metrics in jax.device_get(self.updates):
            is_skipped = metrics["nonfinite"] > 0
            self.nonfinite += int(is_skipped)
            self.learning += int(not is_skipped and metrics["grad_norm"] > 0)
            self.overflows += int(metrics.get("expert_overflows", 0))
            if is_skipped:
                self.all_skipped, self.skipped = self.all_skipped + 1, (step, index)
            if self.streak < self.faults.nonfinite:
                self.streak = self.streak + 1 if is_skipped else 0
        self.updates = []

    def _about_skipped(self, state):
        """Say in words where the latest skipped update is not finite."""
        if self.skipped is None:
            return "All of them came before this process"
        return self._about(*self.skipped, state)

    def _about(self, step, index, state):
        """Say in words where an update is not finite.

        Args:
            index: the number of the update within its step.
            state: the TrainState after the latest step.
        """
        batches_by_step, last_step = (
            {kept_step: batches for kept_step, batches, _ in self.batches},
            self.batches[-1][0],
        )
        if step not in batches_by_step or self.checks.locate is None:
            return f"The latest was at step {step}"
        batch = batches_by_step[step][index]
        num_later = (
            sum(len(batches_by_step[later_step]) for later_step in range(step, last_step + 1))
            - index
            - 1
        )
        note = f" (with the parameters after step {last_step})" if step != last_step else ""
        try:
            state_before = state.replace(step=state.step - num_later)
            where = self.checks.locate(state_before, batch, self.rng)
        # The search may fail, such as for lack of memory; that must not end a run that could go on
        except jax.errors.JaxRuntimeError as error:
            where = f"looking for the place failed: {str(error).partition(chr(10))[0]}"
        return f"At step {step}{note}: {where}"

    def _check_tokens(self, step):
        """Raise BrokenTerm if the loss masks of several steps in a row are all zeros.

        Then there is nothing to learn. The check is once a line, not once a step, because the
        number of a step's tokens is on the device.
        """
        steps_before = self.without_tokens
        self.without_tokens = steps_before + self.steps if self.tokens == 0 else 0
        message = (
            f"{self.phase}: the loss mask is all zeros in {self.without_tokens} steps in a row up to step "
            f"{step}: no token is learned"
        )
        if self.without_tokens >= self.faults.idle_lines:
            raise BrokenTerm(f"{message}; look at the data and at sequence_length")
        if self.without_tokens.bit_length() > steps_before.bit_length():
            say(message)


def merge(name, updates, weights):
    """Combine a metric of a step's updates into one number.

    For a name that ends in _max this is the largest value. Otherwise it is the mean, each value
    weighted by the amount (tokens, completions) that it is itself a mean over.

    Args:
        updates: {metric: value} of each update.
        weights: {metric: weight} of each update; a metric that is not in it has weight 1.
    """
    values, shares = (
        [by_name.get(name, 1.0) for by_name in update_dicts] for update_dicts in (updates, weights)
    )
    if name.endswith("_max"):
        return float(np.max(values))
    # Weights that are all 0 give the plain mean
    return float(np.average(values, weights=shares if np.sum(shares) else None))
