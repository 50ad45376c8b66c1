import itertools
import json
import re
from types import SimpleNamespace

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax._src.array import ArrayImpl  # whose value is read on the host by this property alone

from deepseek_jax.checkpoint.store import Store
from deepseek_jax.files import as_path
from deepseek_jax.training import log, loop
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.optimizer import OptimizerSettings
from deepseek_jax.training.run import Run, leave_if_asked, stoppable
from deepseek_jax.training.settings import CheckpointSettings, FaultSettings, LoopSettings
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.update import make_train_step
from deepseek_jax.training.watch import Checks
from tests.processes import run_two
from tests.recipes.small import one_device

TX = optax.adam(0.1)


def loss_fn(params, batch, rng):
    """A noisy quadratic: depends on the parameters, the data's order and the random key."""
    error = params["x"] - batch["values"] + 0.1 * jax.random.normal(rng, (4,))
    return (error**2).mean(), {"error_max": jnp.abs(error).max()}


TRAIN_STEP = jax.jit(make_train_step(loss_fn, TX), donate_argnums=0)


class Numbers:
    """Shuffled numbers through Grain, `updates` batches a step, NaN in `poisoned` steps."""

    def __init__(self, updates=1, poisoned=()):
        dataset = grain.MapDataset.source(range(64)).shuffle(seed=0).repeat().batch(4)
        # By default Grain reads 500 batches ahead, and shuffling few numbers is slow
        in_turn = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        self.iterator = iter(dataset.to_iter_dataset(in_turn))
        self.updates, self.poisoned, self.seen = updates, poisoned, []

    def next(self, state, step):
        rows = [np.asarray(next(self.iterator), np.float32) for _ in range(self.updates)]
        self.seen += [row.tolist() for row in rows]
        if step in self.poisoned:
            rows = [row * np.nan for row in rows]
        return [{"values": row} for row in rows], {"tokens": 4.0 * self.updates}

    def get_state(self):
        return self.iterator.get_state()

    def set_state(self, state):
        self.iterator.set_state(state)


def train(workdir, source=None, **settings):
    """Six steps in workdir: (final state, source, metrics lines)."""
    source = source or Numbers()
    should_stop = settings.pop("should_stop", lambda: False)
    settings["checkpoints"] = CheckpointSettings(**settings.pop("checkpoints", {}))
    settings["faults"] = FaultSettings(**settings.pop("faults", {}))
    settings.setdefault("optimizer", OptimizerSettings(learning_rate=0.1))
    observers = {name: settings.pop(name, None) for name in ("profile", "watchdog")}
    checks, step = settings.pop("checks", None), settings.pop("train_step", TRAIN_STEP)
    mesh, needed = settings.pop("mesh", None), settings.pop("flops_per_token", None)
    numbers = LoopSettings(**(dict(num_steps=6, save_every=2, log_every=1) | settings))
    writer = MetricsWriter(workdir)
    run = Run(mesh, workdir / "checkpoints", writer, should_stop, "pretrain", **observers)
    state = TrainState.create({"x": jnp.zeros(4)}, TX)
    try:
        state = loop.train(numbers, state, step, source, run, 7, checks, flops_per_token=needed)
    finally:
        writer.close()
    return state, source, lines_of(workdir)


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def timeless(lines):
    """Metrics lines without times and memory."""
    measured = ("seconds", "tokens_per_second", "host_peak_gib")
    return [{k: v for k, v in line.items() if k not in measured} for line in lines]


def assert_equal(state, wanted):
    jax.tree.map(np.testing.assert_array_equal, state, wanted)


def test_state_is_that_of_the_updates_alone(tmp_path):
    """Oracle: the same jitted updates in a bare for loop, bit for bit."""
    state, source, _ = train(tmp_path)
    wanted = TrainState.create({"x": jnp.zeros(4)}, TX)
    again = Numbers()
    for step in range(6):
        (batch,), _ = again.next(wanted, step)
        wanted, _ = TRAIN_STEP(wanted, batch, jax.random.key(7))
    assert_equal(state, wanted)
    assert source.seen == again.seen


def test_each_line_has_the_learning_rate_of_its_last_update(tmp_path):
    """Oracle: by hand: a warm-up of four updates in quarters, two updates a step; skipped ones count, and so
    do those before a resumption.
    """
    calls = iter(range(9))
    fields = dict(optimizer=OptimizerSettings(learning_rate=0.1, warmup_steps=3), num_steps=4)
    source = Numbers(updates=2, poisoned=(0,))
    with pytest.raises(SystemExit):
        train(tmp_path, source, should_stop=lambda: next(calls) == 0, **fields)
    _, _, lines = train(tmp_path, Numbers(updates=2), **fields)
    rates = [line["learning_rate"] for line in lines]
    np.testing.assert_allclose(rates, [0.05, 0.1, 0.1, 0.1], rtol=1e-6)


def test_a_run_in_a_bucket_that_is_killed_after_a_checkpoint_lacks_no_line(
    tmp_path, bucket, monkeypatch
):
    """Oracle: the lines and the state of the uninterrupted run in a folder. The first writer closes nothing:
    its lines are in the bucket only because they were written before the checkpoint.
    """

    class Killed(Numbers):
        def next(self, state, step):
            if step == 3:
                raise KeyboardInterrupt
            return super().next(state, step)

    wanted, _, wanted_lines = train(tmp_path)
    place = as_path(bucket.folder) / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MetricsWriter, "close", lambda self: None)
        train(place, Killed())
    assert [line["step"] for line in lines_of(place)] == [0, 1]
    state, _, lines = train(place)
    assert_equal(state, wanted)
    assert timeless(lines) == timeless(wanted_lines)


@pytest.mark.parametrize("stop_after", [1, 2, 5])
def test_a_stopped_run_that_resumes_equals_an_uninterrupted_one(tmp_path, capsys, stop_after):
    """Oracle: the uninterrupted run: state, metrics and data, bit for bit; exit status 75."""
    wanted, whole, wanted_lines = train(tmp_path / "whole")
    asked = iter(range(1, 7))
    first = Numbers()
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "cut", first, should_stop=lambda: next(asked) == stop_after)
    assert stopped.value.code == 75
    state, second, lines = train(tmp_path / "cut")
    assert_equal(state, wanted)
    assert timeless(lines) == timeless(wanted_lines)
    assert first.seen + second.seen == whole.seen
    output = capsys.readouterr().out
    assert f"asked to stop; saved at step {stop_after} of 6" in output
    assert f"resuming at step {stop_after} of 6" in output


@pytest.mark.parametrize("stop_at", [0, 1, 2, 5])
def test_a_run_that_is_left_in_a_measurement_has_saved_the_steps_before_it(tmp_path, stop_at):
    """Oracle: the uninterrupted run: state, metrics and data, bit for bit; exit status 75. Step 2 begins with
    a checkpoint, the others do not.
    """

    class Measuring(Numbers):
        def next(self, state, step):
            for _ in range(3):
                leave_if_asked("the measurement")
            return super().next(state, step)

    wanted, whole, wanted_lines = train(tmp_path / "whole", Measuring())
    # The second batch of that step's measurement
    calls, first = iter(range(100)), Measuring()
    with pytest.raises(SystemExit) as left, stoppable(lambda: next(calls) == 3 * stop_at + 1):
        train(tmp_path / "cut", first)
    assert left.value.code == 75 and len(first.seen) == stop_at
    state, second, lines = train(tmp_path / "cut", Measuring())
    assert_equal(state, wanted)
    assert timeless(lines) == timeless(wanted_lines)
    assert first.seen + second.seen == whole.seen


def test_a_run_killed_between_saves_repeats_the_steps_since_the_last(tmp_path):
    """Oracle: the uninterrupted run, bit for bit, and no step logged twice."""

    class Dies(Numbers):
        def next(self, state, step):
            if step == 5:
                raise KeyboardInterrupt
            return super().next(state, step)

    wanted, _, wanted_lines = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", Dies())
    assert [line["step"] for line in lines_of(tmp_path / "cut")] == [0, 1, 2, 3, 4]
    state, source, lines = train(tmp_path / "cut")
    assert len(source.seen) == 2  # steps 4 and 5
    assert_equal(state, wanted)
    assert timeless(lines) == timeless(wanted_lines)


def test_a_complete_run_returns_its_state_and_touches_nothing(tmp_path, capsys):
    """Oracle: the first run's state, and its files' names and contents."""
    wanted, _, _ = train(tmp_path)

    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = files()
    state, source, _ = train(tmp_path)
    assert_equal(state, wanted)
    assert source.seen == [] and files() == before
    assert "already complete, 6 steps" in capsys.readouterr().out


def test_a_stop_in_the_last_step_is_a_complete_run(tmp_path):
    """Oracle: no SystemExit, and the last step saved."""
    state, _, _ = train(tmp_path, num_steps=1, should_stop=lambda: True)
    assert state.step == 1
    with Store(tmp_path / "checkpoints") as store:
        assert store.latest_step() == 1


def test_first_log_every_and_last_steps_are_written(tmp_path):
    """Oracle: 0, 3 and the last of 0 to 5, by hand; the same lines of a run that logs all."""
    _, _, every = train(tmp_path / "every")
    _, _, lines = train(tmp_path / "some", log_every=3)
    assert [line["step"] for line in lines] == [0, 3, 5]
    assert timeless(lines) == [timeless(every)[step] for step in (0, 3, 5)]
    assert all(line["host_peak_gib"] > 0 and line["seconds"] > 0 for line in lines)


def test_throughput_counts_all_tokens_since_the_line_before(tmp_path):
    """Oracle: tokens_per_second * seconds = 4 tokens a step, whatever the steps between lines."""
    _, _, lines = train(tmp_path, log_every=3)
    for line in lines:
        np.testing.assert_allclose(line["tokens_per_second"] * line["seconds"], 4, rtol=1e-6)


@pytest.mark.parametrize("row_tokens", [None, 10.0])
def test_mfu_counts_all_tokens_of_the_rows_since_the_line_before(tmp_path, monkeypatch, row_tokens):
    """Oracle: by hand: 4 tokens a step, or the 10 of its rows, at 50 FLOPs each, of a peak of 1000."""

    class Rows(Numbers):
        def next(self, state, step):
            batches, metrics = super().next(state, step)
            return batches, metrics | ({"row_tokens": row_tokens} if row_tokens else {})

    monkeypatch.setattr(loop, "peak_of", lambda devices: 1000.0)
    _, _, lines = train(tmp_path, Rows(), log_every=3, mesh=one_device(), flops_per_token=50.0)
    for line in lines:
        wanted = (row_tokens or 4.0) * 50 / 1000 / line["seconds"]
        np.testing.assert_allclose(line["mfu"], wanted, rtol=1e-6)


def test_a_source_reports_on_its_updates_when_they_have_ended(tmp_path):
    """Oracle: by hand: the step that each line is of, from a source that is asked at lines alone."""

    class Reports(Numbers):
        def next(self, state, step):
            self.step = step
            return super().next(state, step)

        def of_updates(self):
            return {"updated": float(self.step)}

    _, _, lines = train(tmp_path, Reports(), log_every=3)
    assert [line["updated"] for line in lines] == [0, 3, 5]


def test_metrics_of_several_updates_in_a_step_are_averaged_or_their_largest(tmp_path):
    """Oracle: one update a step over the same batches, averaged two by two with numpy."""
    _, _, single = train(tmp_path / "single")
    state, _, double = train(tmp_path / "double", Numbers(updates=2), num_steps=3)
    assert state.step == 6
    for name, merge in dict(loss=np.mean, grad_norm=np.mean, error_max=np.max).items():
        pairs = np.reshape([line[name] for line in single], (3, 2))
        wanted = [merge(pair) for pair in pairs]
        np.testing.assert_allclose([line[name] for line in double], wanted, rtol=1e-6)  # float32


def test_the_first_update_of_a_phase_is_looked_at_before_and_after(tmp_path):
    """Oracle: by hand: once, at update 0 of a step of two, and no more after a resumption."""
    seen, stops = [], iter([False, True])
    checks = Checks(
        before_first=lambda state, batch: seen.append(("before", int(state.step))),
        after_first=lambda metrics: seen.append(("after", float(metrics["loss"]))),
    )
    with pytest.raises(SystemExit):
        how = dict(should_stop=lambda: next(stops), checks=checks)
        train(tmp_path / "run", Numbers(updates=2), num_steps=3, **how)
    train(tmp_path / "run", Numbers(updates=2), num_steps=3, checks=checks)
    _, _, single = train(tmp_path / "single")
    assert seen == [("before", 0), ("after", pytest.approx(single[0]["loss"]))]


def test_an_update_weighs_as_much_as_its_means_are_over(tmp_path):
    """Oracle: numpy's weighted average: every second update is over three times as much, then over nothing,
    and a metric that is over nothing in all updates is their plain mean.
    """
    sizes = {"loss": itertools.cycle((100.0, 300.0, 1.0, 0.0)), "grad_norm": itertools.repeat(0.0)}
    checks = Checks(weights=lambda batch: {name: next(size) for name, size in sizes.items()})
    _, _, single = train(tmp_path / "single")
    _, _, double = train(tmp_path / "double", Numbers(updates=2), num_steps=3, checks=checks)
    pairs = np.reshape([line["loss"] for line in single], (3, 2))
    wanted = [pairs[0] @ (0.25, 0.75), pairs[1, 0], pairs[2] @ (0.25, 0.75)]
    np.testing.assert_allclose([line["loss"] for line in double], wanted, rtol=1e-6)  # float32
    pairs = np.reshape([line["grad_norm"] for line in single], (3, 2))
    np.testing.assert_allclose([line["grad_norm"] for line in double], pairs.mean(1), rtol=1e-6)
    assert log.merge("kl", [{"kl": 0.4}, {"kl": 0.1}], [{"kl": 100}, {"kl": 300}]) == 0.175


def test_a_skipped_update_is_counted_in_the_next_line(tmp_path):
    """Oracle: steps 1 and 2 poisoned, lines at 0, 3 and 5."""
    state, _, lines = train(tmp_path, Numbers(poisoned=(1, 2)), log_every=3)
    assert [line["nonfinite"] for line in lines] == [0, 2, 0]
    assert np.isfinite(state.params["x"]).all()


def test_overflows_of_experts_buffers_are_said_once(tmp_path, capsys):
    """Oracle: by hand: one in each of the updates 1, 2 and 5, lines at 0, 2, 4 and 5."""

    def step(state, batch, rng):
        overflows = jnp.isin(state.step, jnp.array([1, 2, 5])).astype(jnp.float32)
        state, metrics = TRAIN_STEP(state, batch, rng)
        return state, metrics | {"expert_overflows": overflows}

    _, _, lines = train(tmp_path, log_every=2, train_step=step)
    assert [line["expert_overflows"] for line in lines] == [0, 2, 0, 1]
    said = [line for line in capsys.readouterr().out.splitlines() if "expert_buffer" in line]
    assert len(said) == 1 and said[0].startswith("pretrain: up to step 2 ")
    assert "room for, 2 times" in said[0]


@pytest.mark.parametrize("log_every", [1, 10])
def test_three_skipped_updates_in_a_row_end_the_run(tmp_path, log_every):
    """Oracle: steps 1 to 3 poisoned; nothing is saved after them."""
    with pytest.raises(FloatingPointError, match="pretrain: gradients .* 3 updates in a row"):
        train(tmp_path, Numbers(poisoned=(1, 2, 3)), log_every=log_every)
    with Store(tmp_path / "checkpoints") as store:
        assert store.latest_step() == 2


def test_what_is_skipped_between_lines_is_located_too(tmp_path, monkeypatch, capsys):
    """Oracle: by hand: steps 2 and 3 of two updates each; the key of the last of them, its update 7. With no
    room for batches the step alone is named.
    """
    asked = []

    def locate(state, batch, rng):
        asked.append((int(state.step) - 1, bool(np.isnan(batch["values"]).all())))
        return "the place"

    for room, words in (
        (2**28, "At step 3 (with the parameters after step 5): the place"),
        (0, "step 3\n"),
    ):
        monkeypatch.setattr(log, "KEPT_BYTES", room)
        with pytest.raises(FloatingPointError, match="4 updates in a row") as error:
            train(
                tmp_path / str(room),
                Numbers(2, poisoned=(2, 3)),
                log_every=9,
                save_every=6,
                faults=dict(nonfinite=4),
                checks=Checks(locate=locate),
            )
        assert words in f"{error.value}\n"
    assert asked == [(7, True)]


def test_skipped_updates_that_are_not_in_a_row_go_on(tmp_path):
    """Oracle: steps 0, 1, 3 and 4 poisoned, two in a row at most."""
    _, _, lines = train(tmp_path, Numbers(poisoned=(0, 1, 3, 4)), log_every=6)
    assert sum(line["nonfinite"] for line in lines) == 4


def test_a_checkpoint_of_another_model_is_refused_and_stays(tmp_path):
    """Oracle: the message names the parameter; the old run still loads."""
    wanted, _, _ = train(tmp_path)
    other = TrainState.create({"y": jnp.zeros(4)}, TX)
    settings = dict(
        num_steps=9,
        save_every=1,
        log_every=1,
        checkpoints=CheckpointSettings(),
        faults=FaultSettings(),
        optimizer=OptimizerSettings(learning_rate=0.1),
    )
    writer = MetricsWriter(tmp_path / "other")
    run = Run(None, tmp_path / "checkpoints", writer, phase="pretrain")
    with pytest.raises(ValueError, match="params/x is float32.* there and missing here|mu/x"):
        loop.train(LoopSettings(**settings), other, TRAIN_STEP, Numbers(), run, 0)
    assert_equal(train(tmp_path)[0], wanted)


TWO_PROCESSES = """
import sys, time
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np, optax
process, port, workdir = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from jax.sharding import NamedSharding, PartitionSpec
from deepseek_jax.parallel import make_mesh, put_batch
from deepseek_jax.training.loop import train
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.optimizer import OptimizerSettings
from deepseek_jax.training.run import Run
from deepseek_jax.training.settings import CheckpointSettings, FaultSettings, LoopSettings
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.update import make_train_step
from deepseek_jax.training.watch import Checks

mesh, tx = make_mesh(), optax.sgd(0.1)
whole = NamedSharding(mesh, PartitionSpec())

class Rows:
    def next(self, state, step):
        time.sleep(0.05)  # as reading takes; without it a process could be through before the other begins
        rows = np.arange(8, dtype=np.float32) + 8 * process + step
        return [put_batch(mesh, {"rows": rows})], {}
    def get_state(self): return {}
    def set_state(self, state): pass

def loss_fn(params, batch, rng):
    return ((params["x"] - batch["rows"]) ** 2).mean(), {}

asked = iter(range(1, 99))
train_step = jax.jit(make_train_step(loss_fn, tx), donate_argnums=0, out_shardings=whole)
state = jax.jit(lambda: TrainState.create({"x": jnp.zeros(())}, tx), out_shardings=whole)()
def should_stop():
    return sys.argv[4:] == [str(process)] and next(asked) >= 5

run = Run(mesh, workdir / "checkpoints", MetricsWriter(workdir), should_stop, "pretrain")
blocks = dict(checkpoints=CheckpointSettings(), faults=FaultSettings())
blocks |= dict(optimizer=OptimizerSettings(learning_rate=0.1))
settings = dict(num_steps=40, save_every=99, log_every=39) | blocks
state = train(LoopSettings(**settings), state, train_step, Rows(), run, 0)
print("final", float(state.params["x"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_stop_on_one_process_stops_and_saves_on_all(tmp_path, asked):
    """Oracle: x <- x - 0.2 (x - mean of 16 rows), forty times, by hand in Python floats; exit status 75.

    One process may be some steps ahead of the other, which is asked at its fifth: none waits for the other.
    """
    codes, outputs = run_two(TWO_PROCESSES, tmp_path, asked)
    assert codes == [75, 75], outputs
    codes, outputs = run_two(TWO_PROCESSES, tmp_path)
    assert codes == [0, 0], outputs
    (saved,) = re.findall("resuming at step (.*) of 40", outputs[0])
    assert 5 <= int(saved) < 20
    x = 0.0
    for step in range(40):
        x -= 0.2 * (x - (7.5 + step))
    for output in outputs:
        final = float(output.split("final ")[1].split()[0])
        np.testing.assert_allclose(final, x, rtol=1e-6)  # float32
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 39]


def steps_in(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_the_newest_checkpoints_and_multiples_stay(tmp_path):
    """Oracle: by hand: of the saves at 1 to 6 the last one, and those at 2, 4, 6."""
    train(tmp_path, save_every=1, checkpoints=dict(keep=1, keep_every=2))
    assert steps_in(tmp_path) == [2, 4, 6]


def test_saves_by_time_come_at_logged_steps(tmp_path, monkeypatch):
    """Oracle: by hand, on a clock that moves a minute at each step: two minutes after a save one is due, and
    steps 0, 3 and 5 are logged.
    """
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock.now)

    class Slow(Numbers):
        def next(self, state, step):
            clock.now += 60.0
            return super().next(state, step)

    how = dict(save_every=100, log_every=3, checkpoints=dict(minutes=2, keep=9))
    train(tmp_path, Slow(), **how)
    # Step 0 is a minute after the start, step 3 four
    assert steps_in(tmp_path) == [4, 6]


@pytest.mark.parametrize("best_is, wanted", [("lowest", 4), ("highest", 2)])
def test_the_best_checkpoint_stays_and_is_the_result(tmp_path, best_is, wanted):
    """Oracle: the state that a bare run of so many steps ends with; a second start reads the same.

    By hand: saves after each second step, with the errors of steps 0, 2 and 4, which alone are evaluated.
    """

    class Evaluated(Numbers):
        def next(self, state, step):
            batches, metrics = super().next(state, step)
            errors = {0: 3.0, 2: 1.0, 4: 2.0}
            return batches, metrics | ({"reward": errors[step]} if step in errors else {})

    keeps = dict(keep=1, best="reward", best_is=best_is)
    found, _, _ = train(tmp_path / "best", Evaluated(), checkpoints=keeps)
    bare, _, _ = train(tmp_path / "bare", num_steps=wanted)
    assert_equal(found, bare)
    assert steps_in(tmp_path / "best") == [wanted, 6]
    assert_equal(train(tmp_path / "best", Evaluated(), checkpoints=keeps)[0], bare)


def test_a_metric_that_no_line_has_is_named_before_anything_is_saved(tmp_path):
    """Oracle: the field, and the name that was meant."""
    with pytest.raises(ValueError, match="checkpoints.best='kl' is not a metric of this phase"):
        train(tmp_path, checkpoints=dict(best="kl"))
    assert steps_in(tmp_path) == []


def test_between_logged_steps_nothing_waits_for_the_device(tmp_path, monkeypatch):
    """Oracle: by hand, the steps in which a number of a jax array is read on the host, which waits for it:
    those that are logged, and the last, after which the state is saved.
    """
    now, read_in, value = [None], set(), ArrayImpl._value.fget

    class Counted(Numbers):
        def next(self, state, step):
            now[0] = step
            return super().next(state, step)

    def read(array):
        read_in.add(now[0])
        return value(array)

    train(tmp_path / "warm")
    monkeypatch.setattr(ArrayImpl, "_value", property(read))
    train(tmp_path / "run", Counted(), num_steps=8, save_every=8, log_every=5)
    assert read_in - {None} == {0, 5, 7}
