"""A run on a disk that is full, then closed, then has room: a real file system of a few kilobytes."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from deepseek_jax.data.messages import worked_conversations
from deepseek_jax.worlds.registry import find_questions
from tests.in_process import launched
from tests.recipes.outcome import scores_in

ROOT = Path(__file__).resolve().parents[2] / "configs"
SMALL = """
sft_small.py num_steps=2 log_every=1 optimizer.warmup_steps=1 base.num_documents=200 base.num_steps=2
base.optimizer.warmup_steps=1 data.num_held_out=8 answers.num_prompts=8 answers.max_completion_length=8
answers.slots=8
"""


def trained(workdir, texts):
    """The End of a small fine-tuning on a file of conversations, of which it builds a dataset."""
    name, *fields = *SMALL.split(), f"data.path={texts}"
    arguments = [f"--config={ROOT / name}", *(f"--config.{field}" for field in fields)]
    return launched("train", *arguments, f"--workdir={workdir}")


@pytest.fixture
def texts(tmp_path):
    """A file of the arithmetic world's conversations."""
    _, questions = find_questions("arithmetic")
    task = questions.task(0, 64)
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "\n".join(map(json.dumps, worked_conversations(task.held_out, questions.worked)))
    )
    return path


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", folder):
        pytest.skip("this account may not mount a file system")
    yield folder
    # Lazily: a save that failed has left files open in this process
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_run_on_a_full_or_closed_disk_is_one_message_and_goes_on_where_there_is_room(
    disk, texts, tmp_path
):
    """Oracle: the sizes by hand: too small for the dataset, for the base's checkpoint, for the policy's; then
    the measurements of a run that had room from the start.
    """
    too_small = (
        ("64k", "w/data/"),
        ("400k", "pretrain/checkpoints/2"),
        ("4m", "sft/checkpoints/2"),
    )
    for size, what in too_small:
        assert mount("-o", f"remount,size={size}", disk)
        end = trained(disk / "w", texts)
        assert end.status == 2 and end.err.count("error: ") == 1, end.err
        assert what in end.err and "No space left on device" in end.err
        assert "free space on that disk, and start the same command again" in end.err
    assert mount("-o", "remount,ro", disk)
    end = trained(disk / "w", texts)
    assert end.status == 2 and f"error: --workdir={disk / 'w'} cannot be written" in end.err
    assert "Read-only file system" in end.err and "give another --workdir" in end.err
    assert mount("-o", "remount,rw,size=64m", disk)
    assert trained(disk / "w", texts).status == 0
    assert trained(tmp_path / "w", texts).status == 0
    for stage in ("before", "after"):
        left, right = (scores_in(folder / "w", stage) for folder in (disk, tmp_path))
        assert left["loss"] == right["loss"] and left["answers"] == right["answers"]
    assert not list(disk.glob("w/data/**/incomplete*"))
    assert os.path.isdir(disk / "w" / "sft" / "params")
