"""configs/own/README.md: each of its commands and its Python, as they stand there, with a tiny model."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.test_readme import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "configs" / "own" / "README.md").read_text()
COMMANDS = [
    shlex.split(command)
    for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.S)
    for command in block.replace("\\\n", " ").strip().split("\n")
]
MY_REWARDS, LOADED, TRAINED = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
SMALL = {"num_steps": 1, "optimizer.warmup_steps": 0, "init_from": "tiny"}
GRPO = SMALL | {"prompts_per_step": 2, "group_size": 2, "data.num_held_out": 4}
GRPO |= {"rollout.max_completion_length": 4, "rollout.slots": 8}
SFT = SMALL | {"sequence_length": 64, "answers.max_completion_length": 4, "eval_every": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory after all of the guide's commands: folder, and what each printed."""
    folder = tmp_path_factory.mktemp("own")
    write_checkpoint(folder / "tiny")
    (folder / "my_rewards.py").write_text(MY_REWARDS)
    (folder / "configs").symlink_to(ROOT / "configs")
    with open(ROOT / "configs" / "own" / "questions.csv", newline="") as file:
        table = pyarrow.Table.from_pylist(list(csv.DictReader(file)))
    pyarrow.parquet.write_table(table, folder / "questions.parquet")
    return folder


def run(place, *arguments):
    """The output of a program of the guide."""
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trained(place, command):
    """The folder of the run that a training command of the guide leaves, at toy sizes, and what it prints."""
    small = SFT if any("sft_" in word for word in command) else GRPO
    given = {word.partition("=")[0] for word in command}
    flags = [f"--config.{name}={value}" for name, value in small.items()]
    flags = [flag for flag in flags if flag.partition("=")[0] not in given]
    printed = run(place, ROOT / command[1], *command[2:], *flags)
    named = [word.partition("=")[2] for word in command if word.startswith("--workdir=")]
    return place / (named[0] if named else "runs/own_task"), printed


def command_of(words):
    """The guide's command that has these words."""
    (command,) = [command for command in COMMANDS if words in " ".join(command)]
    return command


@pytest.mark.slow
@pytest.mark.parametrize("words", ["runs/polite", "own_task.py", "runs/parquet", "own/tasks.py"])
def test_a_task_or_reward_of_ones_own_is_trained_on(words, place):
    """Oracle: the rewards' names in the metrics, the columns in the samples, and the policy that is left."""
    command = command_of(words)
    folder, printed = trained(place, command)
    assert "complete; report.html, params" in printed and (folder / "params").is_dir()
    metrics = (folder / "metrics.jsonl").read_text()
    columns = json.loads((folder / "after.json").read_text())["sampled"]["samples"][0]["columns"]
    if words == "runs/polite":
        assert "reward_my_rewards.py:polite" in metrics and "logged/longest" in metrics
        assert isinstance(columns["tokens"], int)
    elif words == "own/tasks.py":
        assert columns["target"] == columns["answer"]
    else:
        assert columns["topic"] in ("buy", "give", "boxes") and columns["target"]
        assert words != "own_task.py" or "reward_own/rewards.py:right" in metrics


@pytest.mark.slow
def test_chats_of_ones_own_are_learned_and_the_run_is_used_by_its_folder_alone(place):
    """Oracle: the programs' own last lines, the files that they leave, and the answer that Python prints."""
    folder, printed = trained(place, command_of("runs/plurals --config"))
    assert "held-out loss" in printed and (folder / "params").is_dir()
    evaluate, convert = command_of("launch/evaluate.py"), command_of("launch/convert.py")
    printed = run(place, ROOT / evaluate[1], *evaluate[2:])
    assert "pass@1" in printed
    run(place, ROOT / convert[1], *convert[2:])
    assert (place / "my_model" / "tokenizer.json").is_file()
    assert run(place, "-c", LOADED).endswith("\n")


@pytest.mark.slow
def test_python_trains_the_same_config(place):
    """Oracle: the scores that it prints."""
    small = "".join(f"set_field(config, {name!r}, {value!r})\n" for name, value in GRPO.items())
    as_block = "from launch.config_file import set_field\nfrom ml_collections import ConfigDict\n"
    as_block += "config = ConfigDict(config, allow_dotted_keys=True)\n"
    code = TRAINED.replace("print(", f"{as_block}{small}print(")
    assert "'accuracy': [" in run(place, "-c", code)


def test_every_command_of_the_guide_is_run_here():
    """Oracle: by hand: the words by which the tests above find them."""
    words = ["runs/polite", "own_task.py", "runs/parquet", "own/tasks.py", "runs/plurals --config"]
    found = [command_of(each) for each in [*words, "launch/evaluate.py", "launch/convert.py"]]
    assert sorted(found) == sorted(COMMANDS)
