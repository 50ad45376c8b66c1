"""Traces of a few steps of a run, for Perfetto and TensorBoard."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax

from deepseek_jax.parallel.processes import say


class Profile:
    """A tracer of the steps first to first + count - 1, in every phase that has them.

    Each process writes into folder/PHASE, or folder/PHASE/process_INDEX where there are several. In
    plugins/profile/TIME are the host's .xplane.pb, which TensorBoard opens with --logdir=folder (it
    needs the package xprof), and perfetto_trace.json.gz for ui.perfetto.dev. In a trace, a step has
    the name of its phase and its step_num. The host's work within a step has the name of the code
    that does it, such as "update".
    """

    def __init__(self, first: int, count: int, folder: Path):
        self.first, self.count, self.folder = first, count, folder
        # Phase -> its traced steps
        self.traced: dict[str, list[int]] = {}

    def over(self, steps: Iterable[int], phase: str, latest: Callable[[], object]) -> Iterator[int]:
        """Yield the steps of a phase, and trace the ones that this Profile names.

        Args:
            latest: latest() -> the arrays of the step that has just ended on the host.
        """
        wanted, traces = range(self.first, self.first + self.count), None
        try:
            for step in steps:
                if step not in wanted:
                    yield step
                    continue
                if traces is None:
                    # The devices may still be at earlier steps
                    jax.block_until_ready(latest())
                    traces = self._begin()
                with jax.profiler.StepTraceAnnotation(phase, step_num=step):
                    yield step
                self.traced.setdefault(phase, []).append(step)
                if step == wanted[-1]:
                    jax.block_until_ready(latest())
                    traces = self._end(traces, phase)
        finally:
            # A run that stops on the way still writes its trace
            if traces is not None:
                self._end(traces, phase)

    def report(self):
        """Print which steps were traced and where the traces are, from process 0."""
        for phase, steps in self.traced.items():
            say(
                f"profile: {phase}, steps {steps[0]} to {steps[-1]}, traced in {self.folder / phase}"
            )
        if not self.traced:
            last = self.first + self.count - 1
            say(f"profile: nothing was traced: this run took no step from {self.first} to {last}")

    def _begin(self):
        # JAX writes only local files, which _end copies to the run's folder
        traces, options = tempfile.mkdtemp(), jax.profiler.ProfileOptions()
        # A viewer shows a million events at most. Python's calls in a rollout would leave no room
        # for others
        options.python_tracer_level = 0
        jax.profiler.start_trace(traces, create_perfetto_trace=True, profiler_options=options)
        return traces

    def _end(self, traces, phase):
        jax.profiler.stop_trace()
        folder = self.folder / phase
        if jax.process_count() > 1:
            folder = folder / f"process_{jax.process_index()}"
        for path in sorted(Path(traces).rglob("*")):
            if path.is_file():
                copy = folder / path.relative_to(traces)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
        shutil.rmtree(traces)
