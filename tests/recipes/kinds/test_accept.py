"""Rejection sampling as a stage: its file, its plan and its judge; a run of R1 has its answers."""

import dataclasses
import json

import jax

from deepseek_jax.recipes.kinds.accept import FILE, Accept, Prompts, Rule, TrainedJudge, accepted_by
from deepseek_jax.synthesis.settings import RejectionSettings
from tests.recipes.small import one_device
from tests.tiny import CONFIGS

CONFIG = dataclasses.replace(CONFIGS["gqa"], dtype="bfloat16")
SETTINGS = RejectionSettings(
    num_prompts=6, samples_per_prompt=3, max_per_prompt=2, max_completion_length=20, slots=4
)
JUDGE = TrainedJudge("judge", 24)


def accept(judge=None, trained=True):
    return Accept(
        "traces", SETTINGS, Prompts(), Rule("correct"), judge, trained, start="start", label=""
    )


def test_a_stage_is_left_with_its_file(tmp_path):
    """Oracle: an empty folder, and one with the file; two stages' files are read in the order of names."""
    assert not accept().is_left(tmp_path)
    for number, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE).write_text(json.dumps({"question": name, "number": number}) + "\n")
        assert accept().is_left(tmp_path / name)
    assert [e["number"] for e in accepted_by(tmp_path, ["second", "first"])] == [1, 0]


def test_parameters_that_were_trained_answer_in_float32():
    """Oracle: by hand: the dtype of the parameters in memory; six questions with three answers, four at a
    time, each of 20 tokens at most.
    """
    for trained, dtype in ((True, "float32"), (False, "bfloat16")):
        programs = accept(trained=trained).programs(CONFIG, one_device(), {})
        held = {held.name: held.tree for program in programs for held in program.beside}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(held["the parameters"])} == {dtype}
        steps = sum(program.token_steps for program in programs)
        assert -(-6 * 3 // 4) * 20 <= steps <= 6 * 3 * 20
        assert not any("judge" in program.name for program in programs)


def test_a_judge_compares_every_answer(tmp_path):
    """Oracle: by hand, the names of its programs and the folder that its stage leaves."""
    stage = accept(JUDGE)
    programs = stage.programs(CONFIG, one_device(), {})
    judging = [program for program in programs if program.name.startswith("judge: ")]
    assert 0 < len(judging) < len(programs)
    (model,) = JUDGE.models(tmp_path).values()
    assert (model.path, model.max_completion_length) == (str(tmp_path / "judge" / "params"), 24)
    assert stage.reads == ["judge"] and accept().reads == []
