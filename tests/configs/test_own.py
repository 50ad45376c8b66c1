"""The guides of configs/own: each of their commands and their Python, with a tiny model."""

import ast
import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

import deepseek_jax as ds
from deepseek_jax.checkpoint.left import left_in_run
from deepseek_jax.recipes.experiment import find_recipe
from deepseek_jax.settings import build
from tests.test_readme import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
OWN = ROOT / "configs" / "own"
TASKS, TOOLS = ((OWN / name).read_text() for name in ("README.md", "tools.md"))


def commands_in(guide):
    """The commands of a guide, each a list of words."""
    return [
        shlex.split(command)
        for block in re.findall(r"```sh\n(.*?)```", guide, re.S)
        for command in block.replace("\\\n", " ").strip().split("\n")
    ]


def python_in(guide):
    return re.findall(r"```python\n(.*?)```", guide, re.S)


COMMANDS = [*commands_in(TASKS), *commands_in(TOOLS)]
MY_REWARDS, LOADED, TRAINED = python_in(TASKS)
TOOL, ENVIRONMENT, GAME, CALLED = python_in(TOOLS)
STEPS = {"num_steps": 1, "optimizer.warmup_steps": 0}
SMALL = STEPS | {"init_from": "tiny"}
SIZES = {"prompts_per_step": 2, "group_size": 2, "data.num_held_out": 4, "rollout.slots": 8}
GRPO = SMALL | SIZES | {"rollout.max_completion_length": 4}
CONVERSING = SMALL | SIZES | {"conversation.turn_length": 4}
BASE = {"base.num_documents": 200, "base.num_steps": 2, "base.optimizer.warmup_steps": 0}
WORLD = STEPS | SIZES | BASE
# Little to compile
DENSE = {"model.num_hidden_layers": 1, "base.bias_update_speed": 0.0}
DENSE |= {"base.optimizer.kind": "adamw"}
# Compiling is most of what a toy run takes
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
SFT = SMALL | {"sequence_length": 64, "answers.max_completion_length": 4, "eval_every": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with what the guides' commands read there, and what they leave."""
    folder = tmp_path_factory.mktemp("own")
    write_checkpoint(folder / "tiny", max_position_embeddings=1024)
    (folder / "my_rewards.py").write_text(MY_REWARDS)
    (folder / "configs").symlink_to(ROOT / "configs")
    with open(ROOT / "configs" / "own" / "questions.csv", newline="") as file:
        table = pyarrow.Table.from_pylist(list(csv.DictReader(file)))
    pyarrow.parquet.write_table(table, folder / "questions.parquet")
    return folder


def run(place, *arguments, packages="", flags=""):
    """The output of a program of a guide. packages: a folder of more of them. flags: of XLA."""
    path = os.pathsep.join(filter(None, (str(ROOT), str(packages))))
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trained(place, command, packages=""):
    """The folder of the run that a training command of a guide leaves, at toy sizes, and what it prints."""
    words = " ".join(command)
    small = SFT if "sft_" in words else GRPO
    if "tools=" in words or "environment=" in words or "tools_smollm2" in words:
        small = CONVERSING
    elif "_small" in words:
        small = WORLD
    given = {word.partition("=")[0] for word in command}
    flags = [f"--config.{name}={value}" for name, value in small.items()]
    flags = [flag for flag in flags if flag.partition("=")[0] not in given]
    printed = run(place, ROOT / command[1], *command[2:], *flags, packages=packages)
    named = [word.partition("=")[2] for word in command if word.startswith("--workdir=")]
    config = Path(command[2].partition("=")[2]).stem
    return place / (named[0] if named else f"runs/{config}"), printed


def command_of(words):
    """The guides' command that has these words."""
    (command,) = [command for command in COMMANDS if words in " ".join(command)]
    return command


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["runs/polite", "runs/shortest", "own_task.py", "runs/parquet", "own/tasks.py:diff"]
)
def test_a_task_or_reward_of_ones_own_is_trained_on(words, place):
    """Oracle: the rewards' names in the metrics, the columns in the samples, and the policy that is left."""
    command = command_of(words)
    folder, printed = trained(place, command)
    assert "complete: 4 of 4 stages" in printed and left_in_run(folder).name == "params"
    metrics = (folder / "metrics.jsonl").read_text()
    columns = json.loads((folder / "after" / "scores.json").read_text())["sampled"]["samples"][0][
        "columns"
    ]
    if words == "runs/polite":
        assert "reward_my_rewards.py:polite" in metrics and "logged/longest" in metrics
        assert isinstance(columns["tokens"], int)
    elif words == "runs/shortest":
        assert "reward_own/rewards.py:shortest" in metrics
    elif words == "own/tasks.py:diff":
        assert columns["target"] == columns["answer"]
    else:
        assert columns["topic"] in ("buy", "give", "boxes") and columns["target"]
        assert words != "own_task.py" or "reward_own/rewards.py:right" in metrics


@pytest.mark.slow
def test_chats_of_ones_own_are_learned_and_the_run_is_used_by_its_folder_alone(place):
    """Oracle: the programs' own last lines, the files that they leave, and the answer that Python prints."""
    folder, printed = trained(place, command_of("runs/plurals --config"))
    assert "held-out loss" in printed and left_in_run(folder) == folder / "sft" / "params"
    evaluate = command_of("--checkpoint=runs/plurals")
    convert = command_of("launch/convert.py")
    printed = run(place, ROOT / evaluate[1], *evaluate[2:])
    assert "pass@1" in printed
    run(place, ROOT / convert[1], *convert[2:])
    assert (place / "my_model" / "tokenizer.json").is_file()
    assert run(place, "-c", LOADED).endswith("\n")


# What stands in the place of these words at toy size
OTHERS = ['"grpo_smollm2", num_steps=3', f'"grpo_small", **{WORLD | DENSE}']


def test_the_guides_python_is_an_experiment_of_a_recipe(tmp_path, monkeypatch):
    """Oracle: by hand: the folder, and the values of both rewards, the own one's among them."""
    monkeypatch.chdir(tmp_path)
    Path("my_rewards.py").write_text(MY_REWARDS)
    given = []

    def train(config, folder):
        given.append((config, folder))
        return SimpleNamespace(scores={"after": {}})

    monkeypatch.setattr(ds, "train", train)
    exec(TRAINED, {})
    ((config, folder),) = given
    settings = build(find_recipe(config.recipe).SETTINGS, config, "config")
    assert (settings.num_steps, folder) == (3, "runs/from_python")
    with ds.Rewards(settings.rewards) as rewards:
        scores = rewards.score([{"question": "1 + 2?", "answer": "3"}], ["Sure, it is 3"])
    own = {name: float(values[0]) for name, values in scores.rewards_by_name.items()}
    assert own == {"correct": 1.0, "my_rewards.py:polite": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("others", [OTHERS, None])
def test_the_guides_python_trains_as_a_script(others, tmp_path):
    """Oracle: the scores that it prints, the own reward's among them, and the policy that is left. Every time
    with a toy model; the guide's own takes minutes.
    """
    (tmp_path / "my_rewards.py").write_text(MY_REWARDS)
    (tmp_path / "script.py").write_text(TRAINED.replace(*others) if others else TRAINED)
    assert others is None or TRAINED.count(others[0]) == 1
    *_, scores = run(tmp_path, "script.py", flags=QUICK if others else "").splitlines()
    assert {"accuracy", "my_rewards.py:polite"} <= ast.literal_eval(scores).keys()
    assert left_in_run(tmp_path / "runs" / "from_python").name == "params"


def lines_of(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("words", ["guess_small.py", "tools_smollm2.py", "own/tool.py", "Checked"])
def test_a_run_with_tools_or_an_environment_holds_conversations(words, place):
    """Oracle: the policy that is left, the metrics of conversations, and the reward by the class's name."""
    folder, printed = trained(place, command_of(words))
    assert "complete: 4 of 4 stages" in printed and left_in_run(folder).name == "params"
    (metrics,) = [line for line in lines_of(folder) if "turns" in line]
    assert metrics["turns"] >= 1 and metrics["truncated_turns"] >= 0
    assert "messages" in lines_of(folder, "completions.jsonl")[0]["completions"][0]
    assert words != "Checked" or "reward_Checked" in metrics


@pytest.mark.slow
def test_what_a_run_with_tools_left_is_measured_and_talked_to_with_them(place):
    """Oracle: the programs' own lines: the score, and the answer of a policy that may call."""
    folder, _ = trained(place, command_of("--config=configs/tools_small.py"))
    assert any("tool_calls" in line for line in lines_of(folder))
    for words in ("calculator.tools:add --conversation", "calculator.lying_tools"):
        evaluate = command_of(words)
        assert "pass@1" in run(place, ROOT / evaluate[1], *evaluate[2:])
    chat = command_of("launch/chat.py")
    assert run(place, ROOT / chat[1], *chat[2:]).strip()


@pytest.mark.slow
def test_a_game_that_pip_installs_is_trained_on(place, tmp_path):
    """Oracle: the reward of the game in the metrics."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path)]
    subprocess.run([*pip, "textarena==0.7.4"], check=True)
    (place / "textarena_guess.py").write_text(GAME)
    folder, _ = trained(place, command_of("textarena_guess.py"), packages=tmp_path)
    assert any("reward_GuessTheNumber" in line for line in lines_of(folder))


def test_the_tool_and_the_environment_answer_as_the_guide_calls_them(tmp_path):
    """Oracle: by hand: 6 times 7, which is right at the first check."""
    (tmp_path / "called.py").write_text(CALLED)
    (tmp_path / "tool.py").write_text(TOOL)
    (tmp_path / "environment.py").write_text(ENVIRONMENT)
    began, texts, reward = run(tmp_path, "called.py").splitlines()
    assert began == "{0: ' Check your answer before you give it.'}"
    assert (texts, reward) == ("['42.0', 'That is right.']", "1.0")


def test_every_command_of_the_guides_is_run_here():
    """Oracle: by hand: the words by which the tests above find them."""
    words = ["runs/polite", "runs/shortest", "own_task.py", "runs/parquet", "own/tasks.py:diff"]
    words += ["runs/plurals --config"]
    words += ["--checkpoint=runs/plurals", "launch/convert.py", "configs/tools_small.py"]
    words += ["guess_small.py", "tools_smollm2.py", "own/tool.py", "Checked", "textarena_guess.py"]
    words += ["calculator.tools:add --conversation", "calculator.lying_tools", "launch/chat.py"]
    assert sorted(map(command_of, words)) == sorted(COMMANDS)
