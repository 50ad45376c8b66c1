import json
import re
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from deepseek_jax.files import as_path, staged
from deepseek_jax.training import metrics
from deepseek_jax.training.metrics import MetricsWriter, read_metrics


def logged(workdir, *spans):
    """A closed writer that started each (phase, first, last) and logged loss = step over it."""
    writer = MetricsWriter(workdir)
    for phase, first, last in spans:
        writer.start(phase, first)
        for step in range(first, last + 1):
            writer.write(step, {"loss": float(step)}, phase=phase)
    writer.close()
    return writer


def events(workdir, phase):
    """The events of a phase in order, out of records: length, its crc, bytes, their crc."""
    found = []
    # Their names begin with the time
    for path in sorted((workdir / "tensorboard" / phase).iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 12 + size + 4
    return found


def test_each_write_is_one_json_line_with_step_and_phase(tmp_path):
    """Oracle: the lines by hand, from Python, numpy and jax scalars."""
    writer = MetricsWriter(tmp_path)
    writer.start("grpo", 0)
    writer.write(0, {"loss": 0.5, "reward": np.float32(2)}, phase="grpo")
    writer.write(np.int32(1), {"loss": jnp.float32(0.25)}, phase="grpo")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == [
        '{"step": 0, "phase": "grpo", "loss": 0.5, "reward": 2.0}',
        '{"step": 1, "phase": "grpo", "loss": 0.25}',
    ]
    writer.close()


def test_resuming_cuts_the_lines_of_its_phase_from_the_first_step_on(tmp_path):
    """Oracle: the (phase, step) pairs of a run that never stopped."""
    logged(tmp_path, ("pretrain", 0, 5), ("grpo", 0, 7))
    logged(tmp_path, ("grpo", 4, 9))
    pairs = [(r["phase"], r["step"]) for r in map(json.loads, open(tmp_path / "metrics.jsonl"))]
    assert pairs == [("pretrain", s) for s in range(6)] + [("grpo", s) for s in range(10)]


def test_a_line_cut_short_by_a_kill_is_dropped_on_resume(tmp_path):
    """Oracle: the lines before it, byte for byte, then the new one."""
    path = logged(tmp_path, ("grpo", 0, 2)).path
    whole = path.read_text()
    path.write_text(whole + '{"step": 3, "pha')
    assert [r["step"] for r in read_metrics(path, "grpo")] == [0, 1, 2]
    logged(tmp_path, ("grpo", 3, 3))
    assert path.read_text() == whole + '{"step": 3, "phase": "grpo", "loss": 3.0}\n'


def test_a_writer_in_a_bucket_has_its_lines_and_boards_there_once_it_is_flushed(tmp_path, bucket):
    """Oracle: the same calls on a folder: the bytes of the lines, the steps and values of the boards; a
    process that is killed after the flush has closed nothing.
    """
    place, pairs = as_path(bucket.folder) / "run", (("pretrain", 0, 1), ("grpo", 0, 3))
    logged(tmp_path, *pairs, ("grpo", 2, 4))
    logged(place, *pairs)
    writer = MetricsWriter(place)
    writer.start("grpo", 2)
    for step in range(2, 5):
        writer.write(step, {"loss": float(step)}, phase="grpo")
    assert len(read_metrics(writer.path, "grpo")) == 2
    writer.flush()
    assert writer.path.read_bytes() == (tmp_path / "metrics.jsonl").read_bytes()
    copy = staged(place)
    for phase in ("pretrain", "grpo"):
        ours, theirs = (
            [(event.step, event.summary) for event in events(folder, phase) if event.summary.value]
            for folder in (copy, tmp_path)
        )
        assert ours == theirs
    writer.close()


def test_a_broken_line_elsewhere_is_an_error_that_names_it(tmp_path):
    """Oracle: the file and the line number, and the file unchanged."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "phase": "grpo"}\nnot json\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not JSON"):
        MetricsWriter(tmp_path).start("grpo", 0)
    assert path.read_text().endswith("not json\n")


def test_non_finite_values_become_null_and_the_console_says_so(tmp_path, capsys):
    """Oracle: strict JSON by hand, and the names on the console."""
    writer = MetricsWriter(tmp_path)
    writer.start("grpo", 0)
    writer.write(3, {"kl": jnp.nan, "loss": np.inf, "reward": 1.0}, phase="grpo")
    line = writer.path.read_text()
    assert line == '{"step": 3, "phase": "grpo", "kl": null, "loss": null, "reward": 1.0}\n'
    assert "grpo: step 3: not finite: kl (1 times), loss (1 times)\n" in capsys.readouterr().out
    writer.close()


def test_a_metric_that_stays_non_finite_is_said_at_doublings(tmp_path, capsys):
    """Oracle: the powers of two up to 9."""
    writer = MetricsWriter(tmp_path)
    writer.start("grpo", 0)
    for step in range(9):
        writer.write(step, {"kl": jnp.nan}, phase="grpo")
    said = re.findall(r"step (\d): not finite: kl \((\d) times\)", capsys.readouterr().out)
    assert said == [("0", "1"), ("1", "2"), ("3", "4"), ("7", "8")]
    writer.close()


def test_a_value_that_is_not_one_number_is_refused(tmp_path):
    """Oracle: TypeError, and no line written."""
    writer = MetricsWriter(tmp_path)
    writer.start("grpo", 0)
    with pytest.raises(TypeError):
        writer.write(0, {"loss": np.zeros(3)}, phase="grpo")
    assert not writer.path.exists()
    writer.close()


def test_tensorboard_holds_the_same_numbers_in_groups(tmp_path):
    """Oracle: the event file, decoded record by record: the group of a loss before its name."""
    logged(tmp_path, ("grpo", 0, 3))
    scalars = [
        (e.step, v.tag, v.simple_value) for e in events(tmp_path, "grpo") for v in e.summary.value
    ]
    assert scalars == [(step, "loss/loss", float(step)) for step in range(4)]


def test_tensorboard_is_told_what_a_resumed_run_repeats(tmp_path):
    """Oracle: TensorBoard's rule: START at step k hides the earlier events from step k on."""
    logged(tmp_path, ("grpo", 0, 5))
    logged(tmp_path, ("grpo", 3, 6))
    shown = []
    for event in events(tmp_path, "grpo"):
        if event.session_log.status == event.session_log.START:
            shown = [(step, value) for step, value in shown if step < event.step]
        shown += [(event.step, v.simple_value) for v in event.summary.value]
    assert shown == [(step, float(step)) for step in range(7)]


def test_the_console_shows_the_steps_of_a_phase(tmp_path, capsys):
    """Oracle: by hand: the last line comes when the phase ends, before another one begins."""
    writer = MetricsWriter(tmp_path)
    writer.start("grpo", 4, 7)
    for step in range(4, 7):
        writer.begin_step(step)
        writer.write(step, {"loss": float(step)}, phase="grpo")
    assert capsys.readouterr().out == "grpo  5/7  loss  4.000\n"
    writer.end()
    assert capsys.readouterr().out == "grpo  7/7  loss  6.000\n"
    writer.close()
    assert capsys.readouterr().out == ""


def test_nothing_is_created_before_a_phase_starts(tmp_path):
    """Oracle: an empty directory."""
    MetricsWriter(tmp_path / "run").close()
    assert not list(tmp_path.iterdir())


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    """Oracle: an empty directory, where this process believes it is number 1."""
    monkeypatch.setattr(metrics.jax, "process_index", lambda: 1)
    logged(tmp_path, ("grpo", 0, 2))
    assert not list(tmp_path.iterdir())
