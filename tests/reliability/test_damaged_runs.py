"""A run whose newest checkpoint is damaged, started again by launch/train.py."""

import shutil

import pytest

from tests.checkpoint.test_store import flip, largest
from tests.in_process import launched
from tests.recipes.outcome import assert_equal
from tests.reliability.test_full_disk import ROOT, SMALL


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_and_a_strict_one_ends_with_seven(tmp_path):
    """Oracle: launch/README.md's table; the run that nothing damaged, bit for bit."""
    name, *fields = (*SMALL.split(), "save_every=1", "eval_every=1")
    command = [f"--config={ROOT / name}", *(f"--config.{field}" for field in fields)]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert launched("train", *command, f"--workdir={whole}").status == 0
    shutil.copytree(whole, cut)
    # As a kill after its last save leaves it
    shutil.rmtree(cut / "after")
    shutil.rmtree(cut / "sft" / "params")
    record = cut / "sft" / "stage.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))
    newest = cut / "sft" / "checkpoints" / "2"
    flip(largest(newest / "state" / "ocdbt.process_0"))
    end = launched("train", *command, f"--workdir={cut}", "--strict")
    assert end.status == 7 and end.err.startswith(f"error: {newest} is damaged: "), end.err
    assert newest.exists()
    end = launched("train", *command, f"--workdir={cut}")
    assert end.status == 0 and f"{newest} is damaged" in end.out, end.err
    shutil.rmtree(newest.with_name("2.damaged"))
    assert_equal(cut, whole)
