"""What runs leave is used by its path alone: loaded, measured, converted, trained further."""

import contextlib
import dataclasses
import json
import shutil

import pytest

import deepseek_jax as ds
from deepseek_jax.checkpoint import adapter, orbax_params
from deepseek_jax.checkpoint.folder import is_whole
from deepseek_jax.data.carried import carried_template
from deepseek_jax.recipes.began import find_start
from deepseek_jax.recipes.generate import run as generate
from deepseek_jax.recipes.grpo import run as grpo
from deepseek_jax.recipes.sft import run as sft
from deepseek_jax.settings import build
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from deepseek_jax.worlds.arithmetic.world import SUMS
from launch import colab
from tests.in_process import launched
from tests.quick import others_slow
from tests.recipes import cases
from tests.recipes.outcome import scores_in
from tests.recipes.sft import test_run as of_sft
from tests.recipes.small import LEARNS, longer_is_better, one_device, run_recipe, small_config
from tests.recipes.test_adapters import KL, LATENT
from tests.reliability.goods import flipped

RUNS = {
    "sft": lambda toys: toys.run(of_sft.small_config()),
    "grpo": lambda toys: toys.run(small_config(**LEARNS), longer_is_better),
    "sft with an adapter": lambda toys: toys.run(of_sft.small_config(adapter=LATENT)),
    "grpo with an adapter": lambda toys: toys.run(small_config(**KL), longer_is_better),
}
# What a run leaves -> its recipe, its name above and its config
RECIPES = {
    "params": (sft, "sft", of_sft.small_config()),
    "adapter": (grpo, "grpo with an adapter", small_config(**KL)),
}
OPTIONS = ds.AnswerOptions(max_completion_length=12, temperature=0.0, slots=2)


def texts(policy, questions):
    asked = policy.with_prompts([{"question": question} for question in questions])
    return list(policy.answer(asked, OPTIONS).texts)


@pytest.fixture
def runs(toys):
    """name -> (work directory, {question: greedy answer} of the policy that the run held at its end)."""

    def run(name):
        folder = RUNS[name](toys)
        after = scores_in(folder, "after")
        samples = after.get("answers", after)["greedy"]["samples"][:2]
        return folder, {sample["prompt"]: sample["completion"] for sample in samples}

    return run


@pytest.mark.parametrize("name", others_slow(RUNS, "grpo"))
def test_its_folder_alone_answers_as_the_run_did(runs, name):
    """Oracle: the greedy answers of the policy that the run held; the world's template and end; an argument
    wins.
    """
    folder, held = runs(name)
    stage = folder / name.split()[0]
    for path in (folder, stage, stage / ("adapter" if "adapter" in name else "params")):
        loaded = ds.load_policy(path)
        assert texts(loaded, held) == list(held.values())
        assert loaded.template == SUMS.template
        assert set(loaded.eos_ids) == {arithmetic_tokenizer().eos_id}
    assert ds.load_policy(folder, template="{question}!\n").template == "{question}!\n"


ADAPTED = "grpo with an adapter"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", ADAPTED])
def test_opening_what_a_run_left_runs_no_code_that_its_config_names(
    runs, name, tmp_path, monkeypatch, capsys
):
    """Oracle: a file that would leave a mark; what is opened is another's folder, whose config names that
    file, and which is there under the same name.
    """
    folder = tmp_path / "work" / "of_another"
    shutil.copytree(runs(name)[0], folder)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'mark')!r}, 'w')\ndef f(*_): return 1.0\n"
    )
    block = json.loads((folder / "config.json").read_text())
    block |= {"rewards": {"evil.py:f": 1.0}, "accuracy": "evil.py:f"}
    block |= {"data": {"task": "evil.py:f"}, "code": {"evil.py": "0123456789abcdef"}}
    (folder / "config.json").write_text(json.dumps(block))
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    ds.load_policy(folder)
    assert launched("convert", f"--from={folder}", "--to=out").status == 0
    end = launched(
        "evaluate", f"--checkpoint={folder}", "--data=arithmetic", "--check", "--num_problems=2"
    )
    assert end.status == 0, end.err
    shutil.rmtree(folder / "after")
    colab.resume(tmp_path / "work")
    assert (
        "names the code evil.py:f: resume it by ds.train(config, folder)" in capsys.readouterr().out
    )
    assert not (tmp_path / "mark").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", ADAPTED])
def test_its_folder_alone_is_measured_and_converted(runs, name, tmp_path, monkeypatch):
    """Oracle: the greedy answers of the policy that the run held; nothing but its path names the run."""
    folder, held = runs(name)
    monkeypatch.chdir(tmp_path)
    asked = "--data=arithmetic --samples=1 --temperature=0 --num_problems=2 --slots=8"
    end = launched(
        "evaluate",
        f"--checkpoint={folder}",
        *asked.split(),
        "--max_completion_length=12",
        "--mesh=data=8",
        "--workdir=measured",
    )
    assert end.status == 0, end.err
    problems = scores_in(tmp_path / "measured", "results")["problems"]
    answers = texts(ds.load_policy(folder), [problem["question"] for problem in problems])
    assert [problem["completions"] for problem in problems] == [[text] for text in answers]
    end = launched("convert", f"--from={folder}", "--to=hf")
    assert end.status == 0, end.err
    converted = ds.load_policy("hf")
    assert texts(converted, held) == list(held.values()) and converted.template == SUMS.template
    assert (tmp_path / "hf/tokenizer.json").is_file() and not isinstance(converted.params, tuple)
    end = launched("convert", "--from=hf", "--to=orbax", "--format=orbax")
    assert end.status == 0 and texts(ds.load_policy("orbax"), held) == list(held.values())


def test_a_run_starts_from_what_another_left(runs, tmp_path):
    """Oracle: the answers of the policy that the first run held, of the second before its first step; an
    adapter is refused by name.
    """
    folder, held = runs("sft")
    # Of the shapes of the run above, which are compiled
    config = small_config(**LEARNS)
    config.base, config.model, config.init_from = None, {}, str(folder)
    config.num_steps, config.data.template = 1, ds.load_policy(folder).template
    run_recipe(grpo, config, tmp_path / "second")
    assert texts(given(grpo, config), held) == list(held.values())
    assert (tmp_path / "second/grpo/params/carried.json").is_file()
    assert find_start(tmp_path / "second/grpo").checkpoint == str(folder)
    # It is not copied
    assert [path.name for path in (tmp_path / "second/init_from").iterdir()] == ["stage.json"]
    config.init_from = str(runs("grpo with an adapter")[0])
    with pytest.raises(ValueError, match="init_from: .*/adapter holds an adapter, .*convert"):
        run_recipe(grpo, config, tmp_path / "third")


def test_a_teacher_is_a_run(runs, tmp_path):
    """Oracle: the greedy answers of the policy that the run held, from generate's teacher."""
    folder, held = runs("sft")
    config = cases.generate(tmp_path)
    config.base, config.model, config.init_from = None, {}, str(folder)
    teacher = dataclasses.replace(given(generate, config), template=SUMS.template)
    assert texts(teacher, held) == list(held.values())


def given(recipe, config):
    """The Policy that the first stage of a config is given."""
    first, *_ = recipe.stages(build(recipe.SETTINGS, config, "config"))
    with contextlib.ExitStack() as opened:
        policy = first.origin.policy(opened)
        return policy.with_params(first.origin.load(one_device(), trained=False))


@pytest.mark.parametrize("what", ["params", "adapter"])
def test_a_kill_before_the_tokenizer_leaves_nothing_that_counts(what, runs, tmp_path, monkeypatch):
    """Oracle: by hand: no folder of that name, of a process that cleans nothing up; then the whole of it."""
    module = orbax_params if what == "params" else adapter
    real = module.write_files
    recipe, name, config = RECIPES[what]
    folder, held = runs(name)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    # All but what the stage saves at its end
    stage = tmp_path / name.split()[0]
    shutil.rmtree(stage / what)
    record = json.loads((stage / "stage.json").read_text())
    (stage / "stage.json").write_text(json.dumps(record | {"complete": False}))

    def killed(folder, files):
        if folder.name.startswith(f".{what}."):
            raise KeyboardInterrupt
        real(folder, files)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_files", killed)
        patch.setattr("deepseek_jax.checkpoint.folder.remove_folder", lambda folder: None)
        run_recipe(recipe, config, tmp_path)
    assert not is_whole(stage / what) and list(stage.glob(f".{what}.partial-*"))
    run_recipe(recipe, config, tmp_path)
    assert texts(ds.load_policy(tmp_path), held) == list(held.values())
    assert carried_template(stage / what) == SUMS.template


@pytest.mark.parametrize("program", ["evaluate", "convert"])
def test_a_damaged_tokenizer_ends_a_program_with_one_message(runs, program, tmp_path, monkeypatch):
    """Oracle: 7, in launch/README.md's table; the file's name; nothing is written."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs("sft")[0], tmp_path / "run")
    flipped("run/sft/params/tokenizer.json", 0.9)(tmp_path)
    given = dict(
        evaluate=["--checkpoint=run", "--data=arithmetic"], convert=["--from=run", "--to=hf"]
    )
    given["evaluate"] += ["--workdir=measured", "--max_completion_length=6", "--slots=8"]
    end = launched(program, *given[program])
    assert end.status == 7 and "Traceback" not in end.err
    assert end.err.count("error: ") == 1
    assert "run/sft/params is damaged: tokenizer.json is not what was saved" in end.err
    assert not (tmp_path / "hf").exists() and not list(tmp_path.glob("measured/*.json"))


def test_an_adapter_without_its_base_is_named(tmp_path):
    """Oracle: the words a reader needs: the path of the base that is not there, and none at all."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for text, words in (
        (
            {"base_model_name_or_path": "/nowhere"},
            "was trained beside /nowhere, which is not there",
        ),
        ({}, "base_model_name_or_path=None names no base"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(text))
        with pytest.raises(ValueError, match=words):
            ds.load_policy(folder)


def test_a_run_that_was_moved_finds_its_base(runs, tmp_path):
    """Oracle: the answers of the policy that the run held. Of a copy whose old place is not there."""
    folder, held = runs("grpo with an adapter")
    shutil.copytree(folder, tmp_path / "moved")
    config = tmp_path / "moved/grpo/adapter/adapter_config.json"
    text = config.read_text()
    assert str(folder) in text
    config.write_text(text.replace(str(folder), str(tmp_path / "left")))
    assert texts(ds.load_policy(tmp_path / "moved"), held) == list(held.values())
