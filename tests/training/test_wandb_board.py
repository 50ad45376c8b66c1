"""Weights & Biases offline: what MetricsWriter sends there, read back from W&B's own file."""

import contextlib
import importlib.util
import json
import struct
import time

import jax
import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from deepseek_jax.training.boards import OTHER
from deepseek_jax.training.completions import COLUMNS
from deepseek_jax.training.metric_names import GROUPS
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.wandb_board import WandbRun
from tests.training.test_completions import GROUP

CONFIG = {"seed": 3, "model": {"hidden_size": 4}, "steps": [1, 2]}
# W&B writes LevelDB's log format: blocks of this size, in which a record's parts have a header each
BLOCK, HEADER = 32768, struct.Struct("<IHB")
WHOLE, LAST = 1, 4


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    # It reads the environment once a process, which another test may have had it do
    wandb.teardown()
    yield
    # Its service is a process of its own
    wandb.teardown()


def logged(workdir, *spans):
    """A closed writer that started each (phase, first, last) and logged loss = step over it."""
    writer = MetricsWriter(workdir, wandb=WandbRun("us/toys", workdir, CONFIG))
    for phase, first, last in spans:
        writer.start(phase, first)
        for step in range(first, last + 1):
            writer.write(step, {"loss": float(step), "kl": float("nan")}, phase=phase)
    writer.close()


def records(workdir):
    """The records of each W&B file in a work directory, the oldest file first."""
    found = []
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        data, at, record = path.read_bytes(), 7, b""
        found.append([])
        while at < len(data):
            if BLOCK - at % BLOCK < HEADER.size:
                at += BLOCK - at % BLOCK
                continue
            _, size, kind = HEADER.unpack_from(data, at)
            at += HEADER.size + size
            record += data[at - size : at]
            if kind in (WHOLE, LAST):
                found[-1].append(Record.FromString(record))
                record = b""
    return found


def of_kind(records, kind):
    return [getattr(r, kind) for r in records if r.WhichOneof("record_type") == kind]


def lines(records):
    """What was logged, without W&B's own clocks and counters."""
    return [
        {
            key: json.loads(item.value_json)
            for item in history.item
            if not (key := item.key or item.nested_key[0]).startswith("_")
        }
        for history in of_kind(records, "history")
    ]


def written(workdir):
    """The records of a work directory's only W&B file, once W&B's service has ended and so written all."""
    wandb.teardown()
    (found,) = records(workdir)
    return found


def losses(*steps):
    """What is logged of (phase, step) pairs."""
    return [{f"{phase}/step": step, f"loss/{phase}/loss": step} for phase, step in steps]


def test_a_run_has_every_line_its_config_and_an_axis_for_each_phase(tmp_path):
    """Oracle: by hand: lines by group, phase and its own step."""
    logged(tmp_path, ("pretrain", 0, 2), ("grpo", 0, 1))
    found = written(tmp_path)
    pairs = [("pretrain", 0), ("pretrain", 1), ("pretrain", 2), ("grpo", 0), ("grpo", 1)]
    assert lines(found) == losses(*pairs)
    (run,) = of_kind(found, "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert (run.entity, run.project, run.display_name) == ("us", "toys", tmp_path.name)
    assert run.resume
    axes = {m.glob_name: m.step_metric for m in of_kind(found, "metric") if m.glob_name}
    groups = (*GROUPS, OTHER)
    phases = ("pretrain", "grpo")
    assert axes == {f"{g}/{phase}/*": f"{phase}/step" for g in groups for phase in phases}


def test_a_run_that_resumes_offline_is_one_run_with_every_line_once(tmp_path):
    """Oracle: the lines of a run that never stopped, in one file with the id of the first start: `wandb sync`
    replaces what it has of an id by the latest file. A process that is killed closes nothing.
    """
    writer = MetricsWriter(tmp_path, wandb=WandbRun("us/toys", tmp_path, CONFIG))
    for phase, steps in (("pretrain", 2), ("grpo", 5)):
        writer.start(phase, 0)
        for step in range(steps):
            writer.write(step, {"loss": float(step)}, phase=phase, completions=[GROUP])
    del writer
    wandb.teardown()
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    name = (tmp_path / "wandb_id").read_text()
    # W&B names its files by the second
    time.sleep(1)
    # The last checkpoint was made after three steps
    logged(tmp_path, ("grpo", 3, 6))
    found = written(tmp_path)
    pairs = [*(("pretrain", step) for step in range(2)), *(("grpo", step) for step in range(7))]
    got = [
        {k: v for k, v in line.items() if not k.startswith("completions")} for line in lines(found)
    ]
    assert got == losses(*pairs)
    with_tables = [line for line in lines(found) if any(k.startswith("completions") for k in line)]
    assert [line.get("grpo/step") for line in with_tables] == [None, None, 0, 1, 2]
    (run,) = of_kind(found, "run")
    assert run.run_id == name and name in folder.name and not folder.exists()


def test_a_phase_that_one_process_redoes_is_there_once(tmp_path):
    """Oracle: by hand, in the order of the lines: the second start of a phase replaces its lines."""
    writer = MetricsWriter(tmp_path, wandb=WandbRun("us/toys", tmp_path, CONFIG))
    for phase, loss in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        time.sleep(1)
        writer.start(phase, 0)
        writer.write(0, {"loss": loss}, phase=phase)
    writer.close()
    assert lines(written(tmp_path)) == [
        {"b/step": 0, "loss/b/loss": 2.0},
        {"a/step": 0, "loss/a/loss": 3.0},
    ]


def test_scores_are_the_summary_of_the_run(tmp_path):
    """Oracle: by hand: a mean and its interval by measurement and score; some have no interval."""
    writer = MetricsWriter(tmp_path, wandb=WandbRun("us/toys", tmp_path, CONFIG))
    before, after = {"accuracy": [0.25, 0.125, 0.5]}, {"accuracy": [1.0, None, None]}
    writer.write_scores({"before": before})
    writer.start("grpo", 0)
    writer.write_scores({"before": before, "after": after})
    writer.close()
    summary = {}
    for record in of_kind(written(tmp_path), "summary"):
        for item in record.update:
            key = item.key or "/".join(item.nested_key)
            summary[key] = json.loads(item.value_json)
    own = {key: value for key, value in summary.items() if key.startswith("held_out")}
    assert own == {
        "held_out/before/accuracy": 0.25,
        "held_out/before/accuracy/low": 0.125,
        "held_out/before/accuracy/high": 0.5,
        "held_out/after/accuracy": 1.0,
    }


def test_kept_completions_are_a_table(tmp_path):
    """Oracle: by hand: the rows of W&B's own file of the table."""
    writer = MetricsWriter(tmp_path, wandb=WandbRun("us/toys", tmp_path, CONFIG))
    writer.start("grpo", 0)
    writer.write(0, {"loss": 0.5}, phase="grpo", completions=[GROUP])
    writer.close()
    (line,) = lines(written(tmp_path))
    assert "completions/grpo" in line
    (path,) = tmp_path.glob("wandb/offline-run-*/files/media/table/**/*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"] == COLUMNS
    assert table["data"] == [["1 + 1?", "2", "2 !", 1.0, "correct 1", 0.5, 3, False]]


def test_a_run_that_fails_is_shown_as_failed(tmp_path):
    """Oracle: the exit code in W&B's record: 1 where an exception closes the writer, else 0."""
    logged(tmp_path / "whole", ("grpo", 0, 0))
    writer = MetricsWriter(tmp_path, wandb=WandbRun("toys", tmp_path, CONFIG))
    with pytest.raises(FloatingPointError), contextlib.closing(writer):
        writer.start("grpo", 0)
        raise FloatingPointError
    wandb.teardown()
    ends = [of_kind(records(folder)[0], "exit")[0] for folder in (tmp_path / "whole", tmp_path)]
    assert [end.exit_code for end in ends] == [0, 1]


def test_two_work_directories_are_two_runs(tmp_path):
    """Oracle: by hand: folders of one name, as two machines may have them, must not write into one run."""
    for name in ("a", "b"):
        logged(tmp_path / name / "same", ("grpo", 0, 0))
    ids = {(tmp_path / name / "same" / "wandb_id").read_text() for name in ("a", "b")}
    assert len(ids) == 2


def test_process_0_alone_has_a_run(tmp_path, monkeypatch):
    """Oracle: an empty directory, where this process believes it is number 1."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    logged(tmp_path, ("grpo", 0, 1))
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_named_before_the_run_starts(tmp_path, monkeypatch):
    """Oracle: the flag, the package and what to do, in the message."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--wandb=toys: .* wandb is not installed; pip install"):
        WandbRun("toys", tmp_path, CONFIG)


def test_a_key_that_is_missing_is_one_message(tmp_path, monkeypatch):
    """Oracle: W&B's own words after the flag, and both ways out."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    # Where a key could be
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    writer = MetricsWriter(tmp_path, wandb=WandbRun("toys", tmp_path, CONFIG))
    with pytest.raises(
        ValueError, match="--wandb=toys: No API key.*wandb login.*WANDB_MODE=offline"
    ):
        writer.start("grpo", 0)
