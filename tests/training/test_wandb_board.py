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

from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.wandb_board import WandbRun

CONFIG = {"seed": 3, "model": {"hidden_size": 4}, "steps": [1, 2]}
# W&B writes LevelDB's log format: blocks of this size, in which a record's parts have a header each
BLOCK, HEADER = 32768, struct.Struct("<IHB")
WHOLE, LAST = 1, 4


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    # It reads the environment once a process; and its service is a process of its own
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


def test_the_run_of_a_work_directory_has_every_line_and_resumes(tmp_path):
    """Oracle: by hand: lines by phase and its own step, the config, and one id for both parts of the run."""
    logged(tmp_path, ("pretrain", 0, 2), ("grpo", 0, 1))
    # W&B names its files by the second
    time.sleep(1)
    logged(tmp_path, ("grpo", 2, 3))
    # Its service writes them, and has written all when it ends
    wandb.teardown()
    first, second = records(tmp_path)
    assert lines(first) == [{"pretrain/step": s, "pretrain/loss": s} for s in range(3)] + [
        {"grpo/step": s, "grpo/loss": s} for s in range(2)
    ]
    assert lines(second) == [{"grpo/step": s, "grpo/loss": s} for s in (2, 3)]
    (run,), (again,) = of_kind(first, "run"), of_kind(second, "run")
    assert run.run_id == again.run_id == (tmp_path / "wandb_id").read_text()
    for each in (run, again):
        config = {item.key: json.loads(item.value_json) for item in each.config.update}
        assert {key: config[key] for key in CONFIG} == CONFIG
        assert (each.entity, each.project, each.display_name) == ("us", "toys", tmp_path.name)
        assert each.resume
    axes = {m.glob_name: m.step_metric for m in of_kind(first, "metric") if m.glob_name}
    assert axes == {"pretrain/*": "pretrain/step", "grpo/*": "grpo/step"}


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
