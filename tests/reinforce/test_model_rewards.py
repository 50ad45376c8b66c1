"""Reward models and judges from their folders, which other recipes wrote."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import pytest

from deepseek_jax.errors import BrokenTerm
from deepseek_jax.parallel import make_mesh
from deepseek_jax.reinforce import model_rewards
from deepseek_jax.reinforce.model_rewards import (
    JUDGE,
    check_split,
    judge_length,
    judge_options,
    load_model_rewards,
    make_judge,
)
from deepseek_jax.reinforce.settings import ModelRewardSettings
from deepseek_jax.rewards.judge import Judge
from deepseek_jax.rollout import AnswerOptions
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from tests.tiny import CONFIGS
from tests.turns import turns

CONFIG = CONFIGS["gqa"]


def two_devices():
    return make_mesh(devices=jax.devices()[:2])


@pytest.mark.parametrize(
    "block, wrong",
    [
        (dict(path="/nowhere"), "^liked.path='/nowhere': no reward model"),
        (
            dict(path="/nowhere", batch_size=3),
            "^liked.batch_size=3 does not split over mesh.data=2",
        ),
        (
            dict(path="/nowhere", max_completion_length=8),
            "^liked.max_completion_length=8 is of a judge, and there is no judge.json in /nowhere",
        ),
    ],
)
def test_a_reward_model_that_is_not_there_is_named(block, wrong):
    """Oracle: by hand."""
    with pytest.raises(ValueError, match=wrong):
        load_model_rewards({"liked": ModelRewardSettings(**block)}, two_devices())


@pytest.mark.parametrize(
    "fields, wrong",
    [
        (
            dict(max_completion_length=9),
            "^judged.max_completion_length=9, and the judge in .* answers in 8 tokens; set it to 8",
        ),
        (
            dict(batch_size=3),
            "^judged.batch_size=3 does not split over the mesh's 2 devices",
        ),
    ],
)
def test_a_judge_that_is_otherwise_than_its_settings_is_named(tmp_path, fields, wrong):
    """Oracle: by hand, of a folder whose judge answers in 8 tokens, on two devices; before parameters are
    read, which are not there.
    """
    (tmp_path / JUDGE).write_text(json.dumps(dict(max_completion_length=8)))
    judged = {"judged": ModelRewardSettings(str(tmp_path), **fields)}
    with pytest.raises(ValueError, match=wrong):
        load_model_rewards(judged, two_devices())


def test_what_splits_over_the_mesh_and_is_of_the_folder_is_fine():
    """Oracle: by hand: a judge samples on each of four devices, a reward model's rows split over two."""
    mesh = make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
    rows = ModelRewardSettings("", batch_size=6)
    check_split(rows, mesh, judges=False)
    check_split(ModelRewardSettings("", batch_size=8), mesh, judges=True)
    with pytest.raises(ValueError, match="batch_size=6 does not split over the mesh's 4 devices"):
        check_split(rows, mesh, judges=True)
    about = {"max_completion_length": 8}
    for given in (None, 8):
        assert judge_length(ModelRewardSettings("", max_completion_length=given), about) == 8


def test_a_reward_model_is_computed_as_its_settings_and_the_run_say(tmp_path, monkeypatch):
    """Oracle: by hand: what its folder holds, in the dtype of the settings, with the run's buffer for
    experts; a text is rendered by the folder's tokenizer and template.
    """
    asked = []

    def load(*given):
        asked.append(given)
        return CONFIG, "params", {"kind": "safety"}

    tokenizer = arithmetic_tokenizer()
    monkeypatch.setattr(model_rewards, "load_reward_model", load)
    monkeypatch.setattr(model_rewards, "_read", lambda folder: (tokenizer, "{question}?\n"))
    mesh, settings = two_devices(), ModelRewardSettings(str(tmp_path), 6, dtype="bfloat16")
    model = load_model_rewards({"liked": settings}, mesh, expert_buffer=1.5)["liked"]
    ((folder, *rest),) = asked
    assert str(folder) == str(tmp_path) and rest == [mesh, "bfloat16"]
    assert model.config == dataclasses.replace(CONFIG, dtype="bfloat16", expert_buffer=1.5)
    assert (model.kind, model.batch_size, model.params) == ("safety", 6, "params")
    ids = [*tokenizer.encode("1 + 1?\n2"), tokenizer.eos_id]
    assert model.render({"question": "1 + 1"}, "2") == ids
    for texts in (("1 + 1",), ("1 + 1", "7")):
        assert model.render({"messages": turns(*texts)}, "2") == ids


def test_a_folder_that_is_damaged_keeps_its_exit_status(tmp_path, monkeypatch):
    """Oracle: by hand: a fault goes on as it is; other mistakes name the path."""

    def load(*given):
        raise error

    monkeypatch.setattr(model_rewards, "load_reward_model", load)
    liked = {"liked": ModelRewardSettings(str(tmp_path), 2)}
    for error, words in (
        (BrokenTerm("bad"), "^liked: bad"),
        (ValueError("bad"), "^liked.path=.*bad"),
    ):
        with pytest.raises(type(error), match=words):
            load_model_rewards(liked, two_devices())


def test_a_judge_answers_greedily_in_its_folders_length(tmp_path, monkeypatch):
    """Oracle: by hand."""
    (tmp_path / JUDGE).write_text(json.dumps(dict(max_completion_length=8)))
    asked = []

    def load(*given, **more):
        asked.append((given, more))
        return CONFIG, "params"

    monkeypatch.setattr(model_rewards, "load_orbax", load)
    monkeypatch.setattr(model_rewards, "_read", lambda folder: ("tokenizer", "template"))
    monkeypatch.setattr(model_rewards, "make_judge", lambda *given: given)
    mesh = two_devices()
    settings = ModelRewardSettings(str(tmp_path), 6, dtype="bfloat16")
    policy, options = load_model_rewards({"judged": settings}, mesh)["judged"]
    ((given, more),) = asked
    assert str(given[0]) == str(tmp_path) and more == dict(dtype="bfloat16", mesh=mesh)
    assert (policy.config, policy.params) == (CONFIG, "params")
    assert (policy.tokenizer, policy.template) == ("tokenizer", "template")
    assert options == AnswerOptions(max_completion_length=8, temperature=0.0, slots=6)


def test_a_folder_without_a_template_is_refused(tmp_path, monkeypatch):
    """Oracle: the words a reader needs; with one, both come."""
    monkeypatch.setattr(model_rewards, "carried_template", lambda folder: carried_template)
    monkeypatch.setattr(model_rewards, "load_tokenizer", lambda folder: "tokenizer")
    carried_template = "{question}"
    assert model_rewards._read(tmp_path) == ("tokenizer", "{question}")
    carried_template = None
    with pytest.raises(ValueError, match="the template of its texts"):
        model_rewards._read(tmp_path)


class Numbers:
    """A policy whose prompt of a question is as many tokens, and who answers with their number."""

    config = SimpleNamespace(max_position_embeddings=20)

    def __init__(self):
        self.asked = []

    def with_prompts(self, examples):
        return [example | {"prompt_ids": [1] * int(example["question"])} for example in examples]

    def answer(self, examples, options):
        self.asked.append(options)
        return SimpleNamespace(texts=[str(len(example["prompt_ids"])) for example in examples])


def test_a_judge_replies_to_what_fits_and_says_what_does_not():
    """Oracle: by hand: 12 of 20 positions are left to a prompt; an unreadable question and one too long get
    an error in their places, and without any other the policy is not asked.
    """
    policy, options = Numbers(), judge_options(8, 3)
    judge = make_judge(policy, options)
    assert isinstance(judge, Judge)
    first, unread, last, long = judge.ask(["5", "x", "12", "13"])
    assert (first, last) == ("5", "12") and policy.asked == [options]
    assert isinstance(unread, ValueError)
    assert str(long) == "the judge's prompt has 13 tokens, but its context fits only 12"
    assert all(isinstance(reply, ValueError) for reply in judge.ask(["x", "13"]))
    assert len(policy.asked) == 1
