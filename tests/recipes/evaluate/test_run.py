"""The recipe on a tiny random model: what it leaves, and that being killed changes nothing."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from deepseek_jax import progress
from deepseek_jax.checkpoint import save_adapter
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.adapters import with_adapter
from deepseek_jax.recipes.evaluate import report as evaluate_report
from deepseek_jax.recipes.evaluate import run as evaluate
from deepseek_jax.recipes.workdir import claim_workdir
from deepseek_jax.rewards import Rule, scoring
from deepseek_jax.rollout import Policy, generate, policy
from deepseek_jax.rollout.answers import completion_texts
from deepseek_jax.worlds.arithmetic.tasks import arithmetic_task
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from deepseek_jax.worlds.arithmetic.world import SUMS
from tests.recipes.outcome import assert_names, scores_in, unlisted
from tests.recipes.pages import data_of, facts_of, parts_of
from tests.recipes.small import one_device, run_recipe
from tests.tiny import random_leaves, save_tiny_model

TOKENIZER = arithmetic_tokenizer()
EXAMPLES = arithmetic_task(0, 6).held_out


def even_length(completion, example):
    """A rule that random completions meet about half of the time."""
    return 1.0 - len(completion) % 2


@pytest.fixture(scope="module", autouse=True)
def a_rule_that_varies():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scoring.RULES, "even_length", Rule(even_length))
        asked = dataclasses.replace(SUMS.questions["arithmetic"], rule="even_length")
        patch.setitem(SUMS.questions, "arithmetic", asked)
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder, ModelConfig, params) of a random model."""
    folder = tmp_path_factory.mktemp("run") / "params"
    return folder, *save_tiny_model(folder)


@pytest.fixture(scope="module")
def checkpoint(saved):
    return saved[0]


def config_of(checkpoint, **fields):
    config = ConfigDict(dict(recipe="evaluate", checkpoint=str(checkpoint), data=["arithmetic"]))
    config.update(dict(samples=3, max_completion_length=12, num_problems=6, save_every=2, slots=4))
    config.update(fields)
    return config


def run(checkpoint, workdir, should_stop=lambda: False, redo=False, **fields):
    run_recipe(evaluate, config_of(checkpoint, **fields), workdir, should_stop, redo=redo)


def results(workdir):
    return scores_in(workdir, "results")


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    """The work directory of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished")
    run(checkpoint, workdir)
    return workdir


def test_the_guide_lists_every_file_of_the_run(finished):
    """Oracle: the files that the run left."""
    assert unlisted(finished) == []


def test_the_line_of_a_measurement_has_the_number_of_its_problems(
    checkpoint, tmp_path, monkeypatch, capsys
):
    """Oracle: by hand: six problems, of which two are saved at once."""
    monkeypatch.setattr(progress, "SOON_SECONDS", 0.0)
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.01)
    with progress.speaking():
        run(checkpoint, tmp_path)
    assert "measuring results: 6 questions\n" in capsys.readouterr().out


@pytest.mark.slow
def test_an_adapter_answers_as_the_policy_with_it(saved, tmp_path):
    """Oracle: generate from the params with the adapter; without it the completions are others."""
    folder, config, params = saved
    new = with_adapter(config, params, AdapterSettings(rank=2, alpha=4.0), one_device(), 0)
    adapted = dataclasses.replace(new, adapter=random_leaves(new.adapter, jax.random.key(0)))
    save_adapter(tmp_path / "adapter", config, adapted, folder)
    run(folder, tmp_path / "run", adapter=str(tmp_path / "adapter"))
    prompts = [TOKENIZER.encode(example["question"] + "\n") for example in EXAMPLES]
    sampling = dict(n=3, max_completion_length=12, temperature=0.6, top_p=0.95, seed=0, slots=4)
    texts = [
        list(completion_texts(TOKENIZER, prompts, rollout))
        for rollout in (
            generate(config, p, prompts, eos_ids=(TOKENIZER.eos_id,), **sampling)
            for p in (adapted, params)
        )
    ]
    found = [text for p in results(tmp_path / "run")["problems"] for text in p["completions"]]
    assert found == texts[0] != texts[1]
    with pytest.raises(ValueError, match="^config.adapter=.*there is nothing at this path"):
        run(folder, tmp_path / "other", adapter=str(tmp_path / "nowhere"))


def test_results_are_those_of_one_rollout_judged_by_hand(finished, saved):
    """Oracle: generate with the published temperature and top-p, all problems at once, and the rule."""
    prompts = [TOKENIZER.encode(example["question"] + "\n") for example in EXAMPLES]
    sampling = dict(n=3, max_completion_length=12, temperature=0.6, top_p=0.95, seed=0, slots=4)
    rollout = generate(*saved[1:], prompts, eos_ids=(TOKENIZER.eos_id,), **sampling)
    texts = completion_texts(TOKENIZER, prompts, rollout)
    problems = results(finished)["problems"]
    assert [text for p in problems for text in p["completions"]] == list(texts)
    right = [even_length(text, None) == 1 for text in texts]
    assert [correct for p in problems for correct in p["correct"]] == right
    assert 0 < sum(right) < 18
    assert [p["question"] for p in problems] == [e["question"] for e in EXAMPLES]
    assert [p["gold"] for p in problems] == [e["answer"] for e in EXAMPLES]
    assert problems[0]["prompt"] == EXAMPLES[0]["question"] + "\n"
    lengths = [length for p in problems for length in p["lengths"]]
    np.testing.assert_array_equal(lengths, rollout.completion_mask.sum(1))
    assert [t for p in problems for t in p["truncated"]] == rollout.truncated.tolist()
    left = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert {name for name in left if not name.startswith("tensorboard/")} == {
        "results/scores.json",
        "results/stage.json",
        "run.json",
        "stages.log",
        "report.html",
    }


def test_a_run_leaves_a_page(finished):
    """Oracle: the flags and the completions in the results."""
    parts = parts_of(finished)
    assert list(parts) == ["results", "samples", "lineage"]
    found = results(finished)
    right = [correct for p in found["problems"] for correct in p["correct"]]
    assert parts["results"].startswith(f"Results pass@1 {np.mean(right):.1%}")
    assert found["made_of"]["checkpoint"] in parts["lineage"]
    groups = data_of(finished, "samples")
    answers = [
        [(c, p["question"], text) for c, text in zip(p["correct"], p["completions"], strict=True)]
        for p in found["problems"]
    ]
    # Wrong answers first: of the problems, and of the answers to each; sorted is stable
    answers = sorted(
        (sorted(problem, key=lambda answer: answer[0]) for problem in answers),
        key=lambda problem: sum(answer[0] for answer in problem),
    )
    assert [
        [(c["right"], g["prompt"], c["text"]) for c in g["completions"]] for g in groups
    ] == answers
    assert not answers[0][0][0] and answers[-1][-1][0]


def test_the_page_says_what_was_measured(finished, saved):
    """Oracle: the config, and the sizes of the model's arrays."""
    num_params = sum(leaf.size for leaf in jax.tree.leaves(saved[2]))
    said = f"checkpoint {saved[0]} model {saved[1].model_type} with {num_params:,} parameters "
    said += "data arithmetic, 6 problems temperature 0.6 with top_p 0.95 samples 3 of each problem "
    assert facts_of(finished).startswith(said)


def test_a_run_prints_its_scores(finished, checkpoint, capsys):
    """Oracle: pass@1 by hand of the flags in the results."""
    run(checkpoint, finished)
    shown = capsys.readouterr().out
    share = np.mean([p["correct"] for p in results(finished)["problems"]])
    assert "pass@1" in shown and "pass@3" in shown and f"{share:.1%}" in shown


def test_a_finished_run_is_told_again_without_the_model(finished, checkpoint, monkeypatch):
    """Oracle: what the file said; nothing is loaded."""
    before = results(finished)
    monkeypatch.delattr(evaluate, "load_policy")
    run(checkpoint, finished)
    assert results(finished) == before


class Killed(BaseException):
    """What no recipe catches."""


def test_a_run_killed_between_parts_ends_like_one_that_was_not(
    finished, checkpoint, tmp_path, monkeypatch
):
    """Oracle: the bytes of the run that nothing interrupted; answers that were there are not given again."""
    asked, whole = [], policy.generate

    def dies_at_the_second(*arguments, **sampling):
        asked.append(len(arguments[2]))
        if len(asked) == 2:
            raise Killed
        return whole(*arguments, **sampling)

    monkeypatch.setattr(policy, "generate", dies_at_the_second)
    with pytest.raises(Killed):
        run(checkpoint, tmp_path)
    assert not (tmp_path / "results/scores.json").exists()
    run(checkpoint, tmp_path)
    assert asked == [2, 2, 2, 2]  # the first of three parts once
    assert results(tmp_path) == results(finished)


def test_a_run_told_to_stop_saves_and_goes_on(finished, checkpoint, tmp_path):
    """Oracle: the bytes of the run that nothing interrupted."""
    with pytest.raises(SystemExit) as stopped:
        run(checkpoint, tmp_path, lambda: True)
    assert stopped.value.code == 75
    assert len(list(tmp_path.glob("results/parts/*.json"))) == 1
    run(checkpoint, tmp_path)
    assert results(tmp_path) == results(finished)


def test_a_stopped_run_may_go_on_with_other_parts(finished, checkpoint, tmp_path):
    """Oracle: the problems of the run that nothing interrupted, all of them: save_every changes no result."""
    with pytest.raises(SystemExit):
        run(checkpoint, tmp_path, lambda: True)
    run(checkpoint, tmp_path, save_every=3)
    assert results(tmp_path) == results(finished)


def test_results_of_another_state_of_the_checkpoint_are_kept_until_they_are_measured_anew(
    finished, checkpoint, tmp_path
):
    """Oracle: the message, and the results; of a copy of the checkpoint whose file is another second's, whose
    answers are the same.
    """
    copy, workdir = tmp_path / "params", tmp_path / "w"
    shutil.copytree(checkpoint, copy)
    shutil.copytree(finished, workdir)
    os.utime(copy / "config.json", (1, 1))
    with pytest.raises(ValueError, match="is left as it is:\n  results .complete.: data"):
        run(copy, workdir)
    assert results(workdir) == results(finished)
    run(copy, workdir, redo=True)
    ours, theirs = results(workdir), results(finished)
    assert ours["problems"] == theirs["problems"] and ours["made_of"] != theirs["made_of"]


def test_the_default_length_is_what_room_the_model_has(saved, tmp_path, monkeypatch):
    """Oracle: by hand: max_position_embeddings less the longest prompt, four operands of 9 tokens."""
    monkeypatch.setattr(evaluate, "_answer", lambda settings, *rest: exit(str(settings)))
    room = saved[1].max_position_embeddings - 9
    with pytest.raises(SystemExit, match=f"max_completion_length={room},"):
        run(saved[0], tmp_path, max_completion_length=None)


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(checkpoint="nowhere"), "config.checkpoint: there is nothing at nowhere"),
        (dict(max_completion_length=5000), "config.max_completion_length=5000 after the longest"),
        (dict(template="Q: "), "config.template='Q: ' must be "),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing(checkpoint, tmp_path, fields, words):
    """Oracle: the words a reader needs, and an empty work directory."""
    config = config_of(**dict(checkpoint=checkpoint) | fields)
    with pytest.raises(ValueError) as error, claim_workdir(tmp_path, config):
        run_recipe(evaluate, config, tmp_path)
    assert_names(error, words)
    assert not list(tmp_path.iterdir())


def test_thinking_starts_the_completion_and_is_not_asked_for_twice():
    """Oracle: by hand, characters as tokens."""

    class Letters:
        bos_id = None

        @staticmethod
        def encode(text):
            return list(text)

    asker = Policy(None, None, Letters, "chat", opening=evaluate.THINK)
    for template in ("{question}", "{question}<think>\n"):
        problem = {"asked": {"question": "2 + 3?"}, "template": template}
        assert "".join(evaluate._prompt(asker, problem)) == "2 + 3?<think>\n"


@pytest.mark.parametrize("file", ["", "results/scores.json"])
def test_runs_on_other_problems_are_refused_before_anything_is_sampled(finished, checkpoint, file):
    """Oracle: the words a reader needs: four of the six questions, and a file that is no run's."""
    config = dict(recipe="evaluate", checkpoint=str(checkpoint), data=["arithmetic"])
    evaluate_report.check_against(config | dict(num_problems=6), finished / file)
    with pytest.raises(ValueError, match="not the same problems"):
        evaluate_report.check_against(config | dict(num_problems=4), finished / file)
    for place in (checkpoint / "config.json", checkpoint):
        with pytest.raises(ValueError, match="is not the results of an evaluation"):
            evaluate_report.check_against(config, place)


def test_two_runs_are_compared_problem_by_problem(finished, tmp_path, capsys):
    """Oracle: by hand: theirs has every answer wrong, ours some right of each problem or none."""
    theirs = results(finished)
    for problem in theirs["problems"]:
        problem["correct"] = [False] * 3
    (tmp_path / "results").mkdir()
    (tmp_path / "results/scores.json").write_text(json.dumps(theirs))
    evaluate_report.report_against(finished, tmp_path)
    shown = capsys.readouterr().out
    share = np.mean([p["correct"] for p in results(finished)["problems"]])
    assert f"+{share:.1%}" in shown
    evaluate_report.report_against(finished, finished)
    assert capsys.readouterr().out.count("no difference shown") == 2
