"""Held-out accuracy on the way: what it measures, and that the training does not depend on it."""

import pytest

from deepseek_jax.evaluation.held_out import evaluate
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.reinforce.sampler import Sampler
from deepseek_jax.rewards import Rule, scoring
from deepseek_jax.rollout import generate
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.settings import build
from deepseek_jax.training.metrics import read_metrics
from deepseek_jax.training.run import STOPPED, stoppable
from tests.compilations import compilations
from tests.quick import others_slow
from tests.recipes.small import CLOCKS, small_config
from tests.reinforce.test_grpo import EXAMPLES, POLICY, TOKENIZER, make_source, state  # noqa: F401
from tests.reinforce.test_update import assert_same, train

HELD_OUT = EXAMPLES[-8:]
# All that an update may take from the sampler, and a save that is not at every measurement
FIELDS = dict(num_steps=4, minibatches=2, keep_routing=True, save_every=2, log_every=1)


def is_odd(text, _):
    """A reward that about half of all answers earn, and about half of those of one length."""
    return float(len(set(text)) % 2)


@pytest.fixture(autouse=True)
def odd_is_right(monkeypatch):
    for name in ("correct", "correct_reasoning"):
        monkeypatch.setitem(scoring.RULES, name, Rule(is_odd))


def test_held_out_accuracy_is_the_share_of_right_greedy_answers(state):  # noqa: F811
    """Oracle: the engine's greedy completions, decoded, and the rule by hand; every second step has it."""
    source = make_source(held_out=HELD_OUT, eval_every=2)
    prompts = [example["prompt_ids"] for example in HELD_OUT]
    lengths = dict(max_completion_length=12, slots=8)
    end = TOKENIZER.eos_id
    rollout = generate(POLICY, state.params, prompts, temperature=0.0, eos_ids=(end,), **lengths)
    written = [[i for i in rollout.ids_of(row) if i != end] for row in range(8)]
    right = [len(set(TOKENIZER.decode(ids))) % 2 for ids in written]
    assert 0 < sum(right) < 8
    found = [source.next(state, step)[1].get("held_out_accuracy") for step in range(3)]
    assert found == [sum(right) / 8, None, sum(right) / 8]


def test_answers_that_nothing_scores_count_as_wrong(state, monkeypatch):  # noqa: F811
    """Oracle: by hand: the right ones of eight, one of which fails."""
    texts = []

    def first_fails(text, example):
        if example["question"] == HELD_OUT[0]["question"]:
            raise ValueError
        texts.append(text)
        return 1.0

    monkeypatch.setitem(scoring.RULES, "correct", Rule(first_fails))
    source = make_source(held_out=HELD_OUT, eval_every=1)
    assert source._measured(state.params, 0) == {"held_out_accuracy": 7 / 8}


def test_it_compiles_nothing_that_a_measurement_has_compiled(state):  # noqa: F811
    """Oracle: JAX's requests for compilations: none after the greedy answers of evaluation.held_out."""
    source = make_source(held_out=HELD_OUT, eval_every=1)
    options = AnswerOptions(max_completion_length=12, temperature=0.0, slots=8)
    policy = source.policy.with_params(state.params)
    measured = evaluate(policy, HELD_OUT, source.rewards, options, accuracy="correct")
    with compilations() as requests:
        found = source._measured(state.params, 0)
    assert not requests and found["held_out_accuracy"] == measured["scores"]["accuracy"][0]


def timeless(folder):
    """The lines of a run, without clocks, memory and held-out accuracy; {step: held-out accuracy}."""
    lines = read_metrics(folder / "metrics.jsonl", "rl")
    measured = {r["step"]: r["held_out_accuracy"] for r in lines if "held_out_accuracy" in r}
    rest = [{k: v for k, v in r.items() if not k.endswith((*CLOCKS, "accuracy"))} for r in lines]
    return rest, measured


def eight_devices():
    return make_mesh(data=2, fsdp=2, expert=2)


@pytest.mark.parametrize("mesh", others_slow([lambda: None, eight_devices]))
def test_a_training_is_the_same_with_and_without_it(tmp_path, mesh):
    """Oracle: the run that measures nothing, bit for bit: its parameters, metrics and kept completions."""
    fields = FIELDS | dict(prompts_per_step=16) if mesh() else FIELDS
    ends = [
        train(tmp_path / str(every), mesh=mesh(), eval_every=every, **fields) for every in (0, 1)
    ]
    assert_same(*ends)
    (plain, nothing), (measuring, measured) = (timeless(tmp_path / n) for n in "01")
    assert plain == measuring and not nothing and list(measured) == [0, 1, 2, 3]
    completions = [(tmp_path / n / "completions.jsonl").read_bytes() for n in "01"]
    assert completions[0] == completions[1]


@pytest.mark.slow
def test_eight_devices_measure_what_one_does(tmp_path):
    """Oracle: the accuracy of the same parameters on one device, before the first update."""
    fields = dict(num_steps=1, prompts_per_step=8, eval_every=1)
    for name, mesh in (("one", None), ("eight", eight_devices())):
        train(tmp_path / name, mesh=mesh, **fields)
    (_, one), (_, eight) = (timeless(tmp_path / name) for name in ("one", "eight"))
    assert one == eight and 0 < one[0] < 1


class Killed(BaseException):
    """What no recipe catches."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(the parameters, the lines) of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("correct", "correct_reasoning"):
            patch.setitem(scoring.RULES, name, Rule(is_odd))
        return train(folder, eval_every=2, **FIELDS), timeless(folder)


@pytest.mark.slow
@pytest.mark.parametrize("end, after", [(SystemExit, 1), (SystemExit, 2), (Killed, 3)])
def test_a_resumed_run_repeats_no_measurement_and_skips_none(tmp_path, whole, end, after):
    """Oracle: the run that nothing interrupted, bit for bit: stopped before a measurement and just after one,
    and killed with a measurement after its last checkpoint.
    """
    calls = []

    def stop():
        calls.append(None)
        if len(calls) == after and end is Killed:
            raise Killed
        return len(calls) == after

    with pytest.raises(end):
        train(tmp_path, stop, eval_every=2, **FIELDS)
    params = train(tmp_path, eval_every=2, **FIELDS)
    assert_same(params, whole[0])
    assert timeless(tmp_path) == whole[1] and list(whole[1][1]) == [0, 2]


@pytest.mark.slow
def test_a_run_that_is_stopped_in_a_measurement_saves_the_steps_before_it(
    tmp_path, whole, monkeypatch, capsys
):
    """Oracle: the run that nothing interrupted, bit for bit; the message, by hand."""
    real, asked = Sampler.answer_greedily, []

    def asking(self, params, examples):
        asked.append(None)
        return real(self, params, examples)

    monkeypatch.setattr(Sampler, "answer_greedily", asking)
    fields = FIELDS | dict(save_every=4)
    with stoppable(lambda: len(asked) == 2), pytest.raises(SystemExit) as stopped:
        train(tmp_path, eval_every=2, **fields)
    assert stopped.value.code == STOPPED and "the measurement is left" in capsys.readouterr().out
    assert_same(train(tmp_path, eval_every=2, **fields), whole[0])
    assert timeless(tmp_path) == whole[1]
    # Twice before the stop, the second one again, and no more
    assert len(asked) == 3


def test_a_run_that_measures_needs_questions_and_lines_to_write_it_on():
    """Oracle: the messages, by hand."""
    with pytest.raises(ValueError, match="eval_every=1 measures on held-out questions, and none"):
        make_source(eval_every=1)
    with pytest.raises(ValueError, match="eval_every=3 falls on steps that are not logged"):
        build(GrpoSettings, small_config(eval_every=3, log_every=2), "config")
