"""The page deepseek_jax/minimal.py against the house that it is a page of."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax
import pytest

import deepseek_jax as ds
from configs import pretrain_v3
from deepseek_jax import minimal
from tests.tiny import MLA_MOE, VOCAB, kept, random_leaves

# The page takes any object with the names of its Config, so the house's too
CONFIG = ds.ModelConfig(**MLA_MOE | dict(num_hidden_layers=3, n_shared_experts=2))
# The lengths of texts that begin with prompts of PROMPT tokens, in rows of LONGEST; group of two
PROMPT, LONGEST, LENGTHS = 4, 11, (11, 5, 8, 7, 11, 9)
ROOT = Path(ds.__file__).parent
PAGE = (ROOT / "minimal.py").read_text()
forward, house_forward = (jax.jit(f, static_argnums=0) for f in (minimal.forward, ds.forward))
# What the page prints, and at its end has printed: how far it is, the loss, right answers in percent, answers
LINE = r"((?:Pre-training|GRPO) step \d+): loss (-?\d+\.\d{3}), (\d+)% right:((?: \S+)+)"


def house(config):
    """The house's ModelConfig of a page's sizes; all other fields have its defaults."""
    sizes = {name: getattr(config, name) for name in vars(minimal.Config) if name[0] != "_"}
    return ds.ModelConfig(model_type="deepseek_v3", **sizes)


@pytest.fixture(scope="module")
def params():
    """No scale is 1 and no bias 0, so that none can be forgotten."""
    make = jax.jit(lambda params: nn.unbox(random_leaves(params, jax.random.key(0))))
    return kept(f"{CONFIG} for the page", lambda: make(ds.random_params(CONFIG)))


def texts():
    """int32[b t] of random tokens, and END after each text's length."""
    rows = np.random.default_rng(0).integers(1, VOCAB, (len(LENGTHS), LONGEST))
    return jnp.asarray(np.where(np.arange(LONGEST) < np.array(LENGTHS)[:, None], rows, minimal.END))


def real():
    """bool[b t-1]: targets that follow a real token, the first END too."""
    return texts()[:, :-1] != minimal.END


def assert_near(ours, theirs):
    """Each leaf within 1e-5 of its largest number: float32 sums in another order."""

    def compare(path, a, b):
        error, size = np.abs(a - b).max(), np.abs(b).max()
        assert error <= 1e-5 * size, f"{jax.tree_util.keystr(path)}: {error} of {size}"

    jax.tree.map_with_path(compare, *jax.device_get((ours, theirs)))


def test_logits_are_those_of_the_house(params):
    """Oracle: ds.forward on a dense layer and two with experts in groups, within 1e-5 of the largest."""
    ours, chosen = forward(CONFIG, params, texts())
    assert_near(ours, house_forward(CONFIG, params, texts()))
    # Groups matter: some token's best experts by affinity alone lie elsewhere
    whole = dataclasses.replace(CONFIG, n_group=1, topk_group=1)
    assert (chosen != forward(whole, params, texts())[1]).any()


def test_the_page_has_every_size_that_the_house_needs():
    """Oracle: the ModelConfig that the tests compare the two with; its other fields have their defaults. The
    longest text is a limit of the house alone.
    """
    default = ds.ModelConfig.max_position_embeddings
    assert house(CONFIG) == dataclasses.replace(CONFIG, max_position_embeddings=default)


def test_the_comments_have_the_numbers_of_deepseek_v3():
    """Oracle: configs/pretrain_v3.py."""
    v3 = pretrain_v3.get_config().model
    whole = house(ds.ModelConfig(**{k: v3[k] for k in v3 if k not in ("rope_scaling", "fp8")}))
    body = PAGE.split("class Config:")[1].split("\n\n\n")[0]
    rows = re.findall(r"^    ([\w, ]+) = ([\d., ]+)  # ([\d., ]+)$", body, re.M)
    names, _, numbers = (", ".join(column).split(", ") for column in zip(*rows, strict=True))
    assert len(names) == len([name for name in vars(minimal.Config) if name[0] != "_"])
    assert {
        name: ast.literal_eval(number) for name, number in zip(names, numbers, strict=True)
    } == {name: getattr(whole, name) for name in names}


def test_parameters_begin_as_those_of_the_house():
    """Oracle: ds.random_params: the tree, shapes and dtypes, scales and biases exactly, and the standard
    deviation of each weight, which for n numbers errs by 1 in sqrt(2 n). No two weights are alike.
    """
    ours, theirs = minimal.init(CONFIG, jax.random.key(0)), nn.unbox(ds.random_params(CONFIG))
    first = []

    def compare(path, ours, theirs):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), path
        if path[-1].key in ("scale", "router_bias"):
            np.testing.assert_array_equal(ours, theirs)
        else:
            size = CONFIG.initializer_range
            assert np.std(ours) == pytest.approx(size, rel=5 / (2 * ours.size) ** 0.5), path
            assert abs(np.mean(ours)) < 5 * size / ours.size**0.5, path
            first.append(float(ours.ravel()[0]))

    jax.tree.map_with_path(compare, ours, theirs)
    assert len({*first}) == len(first) == 21


def test_greedy_text_is_that_of_the_engine(params, monkeypatch):
    """Oracle: ds.generate at temperature 0, which decodes from a cache of latents. The end token is one that
    the model writes.
    """
    prompts = texts()[:, :PROMPT]

    def generate(*eos_ids):
        given = dict(max_completion_length=12, temperature=0.0, eos_ids=eos_ids)
        return ds.generate(CONFIG, params, prompts.tolist(), **given)

    written = generate().completion_ids
    end = int(np.bincount(written[:, 1:-1].ravel()).argmax())
    monkeypatch.setattr(minimal, "END", end)
    theirs = generate(end)
    assert len(set(theirs.completion_mask.sum(1))) > 1
    rows = jnp.pad(prompts, ((0, 0), (0, 12)))
    ours = minimal.sample(CONFIG, params, rows, PROMPT, 0.0, jax.random.key(0))[:, PROMPT:]
    ids = np.where(theirs.completion_mask, theirs.completion_ids, end)
    np.testing.assert_array_equal(ours, ids)


def test_a_sample_is_drawn_from_the_softmax_at_its_temperature():
    """Oracle: the softmax of the logits of the first token; 4,000 draws, whose shares err by 0.8%."""
    params = minimal.init(minimal.Config, jax.random.key(1))
    prompts = minimal.encode(["1+2+3="] * 4000)
    rows = minimal.sample(minimal.Config, params, prompts[:, :7], 6, 0.5, jax.random.key(1))
    logits = forward(minimal.Config, params, prompts[:1, :6])[0][0, -1]
    shares = np.bincount(rows[:, 6], minlength=13) / len(rows)
    np.testing.assert_allclose(shares, jax.nn.softmax(logits / 0.5), atol=0.03)


def house_batch():
    """texts() as losses.next_token takes them."""
    tokens, mask = texts(), real()
    return dict(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        segment_ids=mask.astype(jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(LONGEST - 1), mask.shape),
        loss_mask=mask,
        normalizer=mask.sum().astype(float),
        num_tokens=mask.sum().astype(float),
    )


def test_an_update_and_its_balancing_step_are_those_of_training(params):
    """Oracle: ds.make_train_step of ds.next_token_loss with the same optimizer: every parameter after it, to
    1e-5 of the step of a learning rate of 1, and the biases exactly.
    """
    tx = optax.sgd(1.0)
    step = ds.make_train_step(
        lambda params, batch, rng: ds.next_token_loss(CONFIG, params, batch),
        tx,
        bias_update_speed=optax.constant_schedule(minimal.BIAS_SPEED),
    )
    state, metrics = jax.jit(step)(
        ds.TrainState.create(params, tx), house_batch(), jax.random.key(0)
    )
    batch = {"tokens": texts(), "mask": real()}
    ours, _, loss = minimal.update(
        CONFIG, tx, minimal.next_token_loss, params, tx.init(params), batch
    )
    assert loss == pytest.approx(float(metrics["loss"]), rel=1e-6)
    moved, theirs = (
        jax.tree.map(np.subtract, x, jax.device_get(params))
        for x in jax.device_get((ours, state.params))
    )
    biases = [x["moe_layers"]["ffn"].pop("router_bias") for x in (moved, theirs)]
    np.testing.assert_array_equal(*biases)
    assert set(np.sign(biases[0]).flat) >= {-1, 1}
    # Subtracting the parameters again costs digits: those of numbers below 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved, theirs)


def test_grpos_loss_and_gradient_are_those_of_the_house(params):
    """Oracle: ds.make_grpo_loss, clipping on both sides, a KL; within 1e-5 of each largest gradient."""
    rng = np.random.default_rng(1)
    tokens, mask = texts(), real() & (jnp.arange(LONGEST - 1) >= PROMPT - 1)
    logprobs = minimal.token_logprobs(CONFIG, params, tokens)[0]
    old, ref = (logprobs + rng.normal(0, 0.4, mask.shape).astype("float32") for _ in range(2))
    advantages = jnp.asarray(rng.normal(size=len(tokens)), jnp.float32)
    batch = dict(
        tokens=tokens, mask=mask, advantages=advantages, old_logprobs=old, ref_logprobs=ref
    )
    of_completion = slice(PROMPT - 1, None)
    house = dict(
        prompt_ids=tokens[:, :PROMPT],
        prompt_mask=jnp.ones((len(tokens), PROMPT), bool),
        completion_ids=tokens[:, PROMPT:],
        completion_mask=mask[:, of_completion],
        advantages=advantages,
        old_logprobs=old[:, of_completion],
        ref_logprobs=ref[:, of_completion],
        sampler_logprobs=old[:, of_completion],
        num_tokens=mask.sum().astype(float),
        num_completions=float(len(tokens)),
    )
    options = ds.GrpoOptions(clip_eps=minimal.CLIP, kl_coef=minimal.KL)
    loss_fn = ds.make_grpo_loss(CONFIG, options, max_completion_length=LONGEST - PROMPT)
    of_params = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (wanted, metrics), gradient = of_params(params, house, None)
    assert metrics["clip_fraction_low"] > 0 and metrics["clip_fraction_high"] > 0
    of_params = jax.jit(jax.value_and_grad(minimal.grpo_loss, 1, has_aux=True), static_argnums=0)
    (loss, _), ours = of_params(CONFIG, params, batch)
    assert loss == pytest.approx(float(wanted), rel=1e-5)
    assert_near(ours, gradient)


def test_advantages_are_those_of_the_house():
    """Oracle: ds.group_advantages, whose groups are adjacent; a group of equal rewards gets exactly 0."""
    rewards = np.random.default_rng(0).integers(0, 3, (5, 8)).astype("float32")
    rewards[2] = 1
    theirs = ds.group_advantages(jnp.asarray(rewards.reshape(-1)), group_size=8).reshape(5, 8)
    ours = minimal.group_advantages(jnp.asarray(rewards.T)).reshape(8, 5).T
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert not ours[2].any()


def test_every_function_names_the_real_one_and_the_page_is_one_page():
    """Oracle: the files; 280 lines of 100 columns, as ruff formats them; as many names as functions that are
    not within another, and Config.
    """
    names = re.findall(r"^(?:def|class) \w+.*:  # (\S+)$", PAGE, re.M)
    assert len(names) == len(re.findall(r"^(?:def|class) ", PAGE, re.M)) > 15
    assert [name for name in names if not (ROOT / name).is_file()] == []
    lines = PAGE.splitlines()
    assert len(lines) <= 280 and max(map(len, lines)) <= 100 and "fmt:" not in PAGE


PASTED = """
import importlib.util, sys
page, *sys.path[len(sys.path):] = sys.argv[1:]
assert importlib.util.find_spec("deepseek_jax") is None, "the package is in reach"
names = {}
exec(open(page).read(), names)
print(*names["learn"](steps=1, rounds=1))
assert not {"deepseek_jax", "flax"} & {*sys.modules}
"""


def test_the_page_runs_where_it_is_pasted():
    """Oracle: a fresh interpreter that executes the page's text in an empty namespace. It reads no .pth file,
    so that it does not find the package, and imports jax and optax; the last line is what `learn` returns.
    """
    # Each beside what it needs, numpy too
    packages = {str(Path(module.__file__).parents[1]) for module in (jax, jaxlib, optax, np)}
    command = [sys.executable, "-I", "-S", "-c", PASTED, str(ROOT / "minimal.py"), *packages]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, shares = done.stdout.splitlines()
    assert lines and all(re.fullmatch(LINE, line) for line in lines)
    assert [0 <= float(share) <= 1 for share in shares.split()] == [True, True]


def test_reinforcement_makes_rewarded_texts_likelier():
    """Oracle: by hand: log-probabilities of texts with a positive advantage rise, and of the others fall."""
    params = minimal.init(minimal.Config, jax.random.key(0))
    tokens = minimal.encode(["1+2+3=6", "1+2+3=3+3=6", "1+2+3=7", "1+2+3=2+3=5"])
    mask = (tokens[:, :-1] != minimal.END) & (jnp.arange(tokens.shape[1] - 1) >= 5)
    before = minimal.token_logprobs(minimal.Config, params, tokens)[0]
    batch = dict(tokens=tokens, mask=mask, old_logprobs=before, ref_logprobs=before)
    batch["advantages"] = minimal.group_advantages(jnp.array([[1.0], [1], [0], [0]]))
    tx = optax.adam(1e-3)
    state, after = tx.init(params), params
    for _ in range(3):
        after, state, _ = minimal.update(minimal.Config, tx, minimal.grpo_loss, after, state, batch)
    gain = minimal.token_logprobs(minimal.Config, after, tokens)[0] - before
    gain = jnp.where(mask, gain, 0).sum(-1)
    assert (gain[:2] > 0).all() and (gain[2:] < 0).all()


def recorded():
    """The lines of the run at the end of the page, without their marks of a comment."""
    text = PAGE.split("\n\n# ")[-1]
    return [line.removeprefix("# ") for line in text.splitlines()[1:]]


def questions_of(answers):
    """The questions that a line of the page's output answers."""
    return [answer.split("=")[0] for answer in answers.split()]


@pytest.mark.slow
def test_the_loop_learns_in_a_few_steps(capsys):
    """Oracle: its own lines: the loss of 60 steps falls by more than half from that of a uniform guess. The
    run at the page's end has lines of this form, with the same questions, and learns as the slow test asks.
    """
    before, after = minimal.learn(steps=60, rounds=1)
    printed = capsys.readouterr().out
    losses = [float(loss) for at, loss, *_ in re.findall(LINE, printed) if at[0] == "P"]
    assert losses[0] > np.log(13) - 0.5 and losses[-1] < losses[0] / 2
    assert 0 <= before <= 1 and 0 <= after <= 1
    first = questions_of(re.search(LINE, printed)[4])
    lines = [re.fullmatch(LINE, line) for line in recorded()]
    assert len(lines) == 6 and all(questions_of(line[4]) == first for line in lines)
    assert is_learned(*(int(lines[i][3]) / 100 for i in (2, 5)))


def is_learned(before, after):
    """Whether reinforcement teaches what pre-training does not: from about a third right to at least 80%."""
    return before < 0.55 and after > 0.8


@pytest.mark.slow
def test_reinforcement_teaches_it_to_work_sums_out():
    """Oracle: held-out sums, fresh samples: from about a third right to at least 80%."""
    assert is_learned(*minimal.learn())
