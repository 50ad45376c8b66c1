"""The update of GRPO: replacements of the reference, also after an interruption, limits and the loss."""

import contextlib
import dataclasses
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from deepseek_jax.losses import grpo as losses
from deepseek_jax.losses.grpo import LARGE_GAP
from deepseek_jax.models import build_model, random_params
from deepseek_jax.models.adapters import AdaptedParams
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.reinforce import grpo, sampler, update
from deepseek_jax.reinforce import settings as settings_of_reinforce
from deepseek_jax.reinforce.grpo import GroupSource, reinforce
from deepseek_jax.rewards import Rewards, Rule, scoring
from deepseek_jax.rollout import Policy, decode, generate, policy
from deepseek_jax.rollout.sample_log import SampleLog
from deepseek_jax.settings import build
from deepseek_jax.training.metrics import read_metrics
from deepseek_jax.worlds.arithmetic.tasks import arithmetic_task
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from tests.losses.test_grpo import make_batch, torch_loss
from tests.quick import others_slow
from tests.recipes.small import make_run, small_config

TOKENIZER = arithmetic_tokenizer()
REFRESHED = dict(num_steps=5, reference_every=2, minibatches=2)


@pytest.fixture
def seen(monkeypatch):
    """[(step, policy, reference)] of every batch, as numpy trees."""
    found = []
    taken = GroupSource.next

    def recording(self, state, step):
        reference = state.reference if self.reference is None else self.reference
        found.append((step, *jax.device_get((state.params, reference))))
        return taken(self, state, step)

    monkeypatch.setattr(GroupSource, "next", recording)
    monkeypatch.setitem(scoring.RULES, "correct_reasoning", Rule(lambda text, _: len(text) / 10))
    return found


def train(workdir, should_stop=lambda: False, mesh=None, **fields):
    fields = dict(loss=dict(kl_coef=0.1), optimizer=dict(learning_rate=0.01)) | fields
    settings = build(GrpoSettings, small_config(**fields), "config")
    config, run = build_model(settings.model), make_run(workdir, should_stop, mesh, phase="rl")
    params = random_params(config, run.mesh, 0)
    policy = Policy(config, params, TOKENIZER, "{question}\n")
    task = arithmetic_task(0, 8)
    questions, held_out = policy.with_prompts(task.train), policy.with_prompts(task.held_out)
    with Rewards(settings.rewards) as rewards:
        run = run.within(workdir / "checkpoints")
        return reinforce(settings, policy, {"reasoning": questions}, rewards, run, held_out)


def assert_same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def same(tree, other):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b), tree, other)))


@pytest.mark.slow
def test_the_policy_becomes_the_reference_every_few_steps(tmp_path, seen):
    """Oracle: the earlier policies: at step s the reference is the policy of step s - s % 2, bit for bit."""
    train(tmp_path, **REFRESHED)
    policies = [policy for _, policy, _ in seen]
    assert len(seen) == 5 and not same(policies[0], policies[2])
    for step, _, reference in seen:
        assert_same(reference, policies[step - step % 2])


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", others_slow([2, 3], 3))
def test_a_run_that_was_stopped_goes_on_with_the_same_reference(tmp_path, seen, stop_after):
    """Oracle: the run that nothing stopped, bit for bit; once on a step that replaces it, once between."""
    end = train(tmp_path / "whole", **REFRESHED)
    whole, asked = list(seen), []
    del seen[:]

    def stop():
        asked.append(None)
        return len(asked) == stop_after

    with pytest.raises(SystemExit):
        train(tmp_path / "parts", stop, **REFRESHED)
    assert_same(train(tmp_path / "parts", **REFRESHED), end)
    assert [step for step, *_ in seen] == [0, 1, 2, 3, 4]
    for (_, *ours), (_, *theirs) in zip(seen, whole, strict=True):
        assert_same(ours, theirs)


@pytest.mark.slow
def test_without_an_interval_the_first_policy_stays_the_reference(tmp_path, seen):
    """Oracle: the policy of step 0, bit for bit."""
    train(tmp_path, num_steps=3)
    for _, _, reference in seen:
        assert_same(reference, seen[0][1])
    assert not same(seen[0][1], seen[2][1])


def test_an_interval_without_a_kl_is_refused():
    """Oracle: the words a reader needs."""
    with pytest.raises(
        ValueError, match="config.reference_every=2, but loss.kl_coef=0 reads no reference"
    ):
        build(GrpoSettings, small_config(reference_every=2), "config")


@pytest.mark.parametrize(
    "field, given", [("reference_dtype", "bfloat16"), ("reference_memory", "host")]
)
def test_a_place_for_a_reference_without_a_kl_is_refused(field, given):
    """Oracle: the words a reader needs; with a KL, and at its default, it is none."""
    words = f"config.{field}={given!r}, but loss.kl_coef=0 reads no reference"
    with pytest.raises(ValueError, match=words):
        build(GrpoSettings, small_config(**{field: given}), "config")
    build(GrpoSettings, small_config(**{field: given}, loss=dict(kl_coef=0.1)), "config")
    default = "float32" if field == "reference_dtype" else "device"
    build(GrpoSettings, small_config(**{field: default}), "config")


def rounded(params):
    """A copy of params, float32 on the device, with every number as near as bfloat16 comes, but for the
    biases that balance routers.
    """

    def round_leaf(path, leaf):
        leaf = np.array(leaf)
        return leaf if path[-1].key == "router_bias" else leaf.astype(ml_dtypes.bfloat16)

    copied = jax.tree.map_with_path(round_leaf, params)
    return jax.tree.map(lambda x, like: jnp.array(x, like.dtype), copied, params)


def kls(workdir):
    return [record["kl"] for record in read_metrics(workdir / "metrics.jsonl", "rl")]


@pytest.mark.slow
@pytest.mark.parametrize("every", [None, 2])
def test_a_reference_in_bfloat16_on_the_host_is_one_rounded_by_hand(
    tmp_path, monkeypatch, seen, every
):
    """Oracle: the KL of a run whose references were rounded by numpy, and stayed on the device in float32;
    the first one is not 0, as that of a reference in full is. The same after an interruption.
    """
    fields = dict(num_steps=3) | ({} if every is None else dict(reference_every=every))
    stored = fields | dict(reference_dtype="bfloat16", reference_memory="host")
    train(tmp_path / "stored", **stored)
    references = [reference for _, _, reference in seen]
    with monkeypatch.context() as patch:
        for module in (grpo, update):
            patch.setattr(module, "as_reference", lambda settings, params: rounded(params))
        train(tmp_path / "by hand", **fields)
    with pytest.raises(SystemExit):
        train(tmp_path / "stopped", should_stop=lambda: True, **stored)
    train(tmp_path / "stopped", **stored)
    by_hand = [reference for _, _, reference in seen[3:6]]
    for ours, theirs in zip(references, by_hand, strict=True):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(ours)} == {"bfloat16", "float32"}
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    np.testing.assert_allclose(kls(tmp_path / "stored"), kls(tmp_path / "by hand"), rtol=1e-4)
    assert kls(tmp_path / "stopped") == kls(tmp_path / "stored")
    assert kls(tmp_path / "stored")[0] > 0


def test_a_reference_lies_where_the_config_says():
    """Oracle: the kinds of memory of its arrays; the same sharding as the parameters; and a copy, which
    outlives them.
    """
    mesh = make_mesh(data=2, fsdp=2, expert=2)
    config = build_model(small_config().model.to_dict())
    params = random_params(config, mesh, 0)
    for memory, kind in (("device", "device"), ("host", "pinned_host")):
        fields = dict(reference_memory=memory, loss=dict(kl_coef=0.1))
        settings = build(GrpoSettings, small_config(**fields), "config")
        reference = update.as_reference(settings, params)
        for ours, theirs in zip(jax.tree.leaves(reference), jax.tree.leaves(params), strict=True):
            assert ours.sharding == theirs.sharding.with_memory_kind(kind)
    jax.tree.map(lambda x: x.delete(), params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(reference)))


@pytest.mark.slow
@pytest.mark.parametrize("first_wrong", others_slow([0, 1], 1))
def test_one_wrong_token_of_the_sampler_stops_a_run_at_any_step(tmp_path, monkeypatch, first_wrong):
    """Oracle: by hand: 0.05 nats planted in one of some hundred tokens, which their mean does not show.
    The run makes at most one step after the wrong one, and saves neither.
    """
    steps = itertools.count()

    def off_at_one_token(*arguments, **settings):
        rollout = generate(*arguments, **settings)
        if next(steps) >= first_wrong:
            rollout.sampler_logprobs[3, 0] -= 0.05
        assert 0.05 / rollout.completion_mask.sum() < update.LARGEST_MEAN_GAP["float32"]
        return rollout

    monkeypatch.setattr(policy, "generate", off_at_one_token)
    monkeypatch.setitem(scoring.RULES, "correct_reasoning", Rule(lambda text, _: len(text) / 10))
    words = f"at step {first_wrong} sampler_gap_share is .*, above 1.0e-03: at too many tokens"
    with pytest.raises(ValueError, match=words):
        train(tmp_path, num_steps=3, prompts_per_step=8, group_size=8, save_every=1, log_every=9)
    assert next(steps) <= first_wrong + 2
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved == list(range(1, first_wrong + 1))


def stale(params, first):
    return first


def corrupted(params, first):
    return params | {"final_norm": {"scale": params["final_norm"]["scale"] * 1.01}}


def noisy_in_one_bit(params, first):
    """The last bit of a single weight: log-probabilities differ by less than rounding explains."""
    embedding = params["embedding"]
    return params | {"embedding": embedding.at[0, 0].multiply(1 + 2**-23)}


def with_nan(params, first):
    return params | {"embedding": params["embedding"].at[:, 0].set(np.nan)}


FAULTS = [
    (stale, ValueError, "at step 1 stale_params is 1.0e[+]00, above 0.0e[+]00: other parameters"),
    (corrupted, ValueError, "at step 1 stale_params is 1.0e[+]00"),
    (noisy_in_one_bit, ValueError, "at step 1 stale_params is 1.0e[+]00"),
    (with_nan, FloatingPointError, "completion 0 has the log-probability nan, .* on cpu:0"),
]


@pytest.mark.parametrize("fault, error, words", others_slow(FAULTS, FAULTS[3]))
def test_a_sampler_with_other_weights_stops_a_run_at_its_step(
    tmp_path, monkeypatch, fault, error, words
):
    """Oracle: by hand: the fault is in the sampler's weights from step 1 on, and step 1 is not saved."""
    steps, first = itertools.count(), []
    with_params = Policy.with_params

    def faulty(self, params):
        # A copy: an update donates the state's own
        first.append(jax.tree.map(np.array, params))
        return with_params(self, fault(params, first[0]) if next(steps) else params)

    monkeypatch.setattr(Policy, "with_params", faulty)
    monkeypatch.setitem(scoring.RULES, "correct_reasoning", Rule(lambda text, _: len(text) / 10))
    with pytest.raises(error, match=words):
        train(tmp_path, num_steps=4, save_every=1, log_every=9)
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved == [1]


@pytest.mark.slow
def test_a_run_that_is_killed_in_a_rollout_resumes_in_it(tmp_path, monkeypatch):
    """Oracle: the run that nothing kills, bit for bit; completions that had ended are not sampled again."""
    monkeypatch.setattr(sampler, "SECONDS_BETWEEN_WRITES", 0)
    monkeypatch.setitem(scoring.RULES, "correct_reasoning", Rule(lambda text, _: len(text) / 10))
    fields = dict(num_steps=4, save_every=2, rollout=dict(slots=1, max_completion_length=12))
    wanted = train(tmp_path / "whole", **fields)
    assert not (tmp_path / "whole" / "checkpoints_rollouts").exists()
    ended, add = [], SampleLog.add

    def killed(self, rows, rollout):
        add(self, rows, rollout)
        ended.extend(rows)
        # Step 3 is the one after the checkpoint and one more: eight completions each
        if len(ended) == 3 * 8 + 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(SampleLog, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", **fields)
    assert ended[-5:] == [0, 1, 2, 3, 4]
    files = sorted((tmp_path / "killed" / "checkpoints_rollouts").iterdir())
    assert [len(file.read_text().splitlines()) for file in files] == [8, 5]
    del ended[:]
    assert_same(train(tmp_path / "killed", **fields), wanted)
    # Steps 2 and 3 run again from the checkpoint of step 1
    assert ended == [5, 6, 7]


def test_weights_that_are_corrupted_after_their_fingerprint_show_in_the_gap(tmp_path, monkeypatch):
    """Oracle: by hand: one scale of the decoding weights is off by a tenth at step 1."""
    steps, made = itertools.count(), decode.decoding_weights

    def faulty(how, params):
        weights = made(how, params)
        scale = 1.1 if next(steps) else 1.0
        return weights | {"final_norm": weights["final_norm"] * scale}

    monkeypatch.setattr(decode, "decoding_weights", faulty)
    monkeypatch.setitem(scoring.RULES, "correct_reasoning", Rule(lambda text, _: len(text) / 10))
    with pytest.raises(ValueError, match="at step 1 sampler_gap_m"):
        train(tmp_path, num_steps=4, save_every=1, log_every=9)


@pytest.mark.parametrize(
    "dtype, experts, gaps, allowed",
    [
        ("float32", 0, dict(mean=4e-7, max=3e-5), True),
        ("float32", 0, dict(mean=2e-4), False),
        ("float32", 0, dict(mean=7.5e-5, max=0.15), False),
        # One of 2,000 tokens goes to other experts
        ("float32", 8, dict(mean=7e-6, max=0.0148, share=1 / 2000), True),
        ("float32", 8, dict(mean=7.5e-5, max=0.15, share=1 / 100), False),
        ("bfloat16", 8, dict(mean=0.01, max=3.2, share=0.3), True),
        ("bfloat16", 8, dict(mean=0.06), False),
    ],
)
def test_gaps_of_real_runs_are_within_the_limits_and_larger_ones_are_not(
    dtype, experts, gaps, allowed
):
    """Oracle: by hand."""
    config = build_model(small_config().model.to_dict())
    config = dataclasses.replace(config, dtype=dtype)
    if not experts:
        config = dataclasses.replace(config, first_k_dense_replace=config.num_hidden_layers)
    found = {f"sampler_gap_{name}": value for name, value in gaps.items()}
    limits = update.sampler_limits(config)
    assert all(found.get(name, 0) <= limit.largest for name, limit in limits.items()) == allowed


@pytest.mark.slow
def test_micro_batches_make_the_update_of_the_whole_batch(tmp_path, monkeypatch):
    """Oracle: the loss and the gradient's norm of the step that is not cut, to float32's rounding; for dapo,
    whose mean over tokens is no mean of the two groups' means.
    """
    monkeypatch.setitem(scoring.RULES, "correct_reasoning", Rule(lambda text, _: len(text) / 10))
    lines = []
    for micro_batches in (1, 2):
        workdir = tmp_path / f"{micro_batches}"
        fields = dict(num_steps=1, loss=dict(loss_type="dapo"), micro_batches=micro_batches)
        train(workdir, **fields)
        lines += read_metrics(workdir / "metrics.jsonl", "rl")
    whole, cut = lines
    assert abs(whole["loss"]) > 1e-2 and whole["grad_norm"] > 1e-2
    for name in ("loss", "grad_norm", "entropy", "tokens"):
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [None, dict(data=1, fsdp=4, context=2)], ids=str)
def test_rows_of_one_completion_make_the_update_of_shared_rows(tmp_path, monkeypatch, sizes):
    """Oracle: the step whose rows share prompts, on one device: loss, KL and gradient norm to float32's
    rounding, in two updates with a reference.
    """
    monkeypatch.setitem(scoring.RULES, "correct_reasoning", Rule(lambda text, _: len(text) / 10))
    fields = dict(num_steps=1, minibatches=2, loss=dict(kl_coef=0.1))
    train(tmp_path / "shared", **fields)
    monkeypatch.setattr(settings_of_reinforce, "MOST_SHARED_SCORES", 0)
    mesh = None if sizes is None else make_mesh(**sizes)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        train(tmp_path / "own", mesh=mesh, **fields)
    shared, own = (
        read_metrics(tmp_path / name / "metrics.jsonl", "rl")[0] for name in ("shared", "own")
    )
    assert abs(shared["loss"]) > 1e-2 and shared["kl"] > 0
    for name in ("loss", "kl", "grad_norm", "entropy", "tokens"):
        np.testing.assert_allclose(own[name], shared[name], rtol=1e-4, atol=1e-7, err_msg=name)
    assert own["sampler_gap_max"] < 1e-4


@pytest.mark.parametrize(
    "loss",
    [
        dict(loss_type="dr_grpo"),
        dict(loss_type="gspo"),
        dict(loss_type="dapo", kl_coef=0.1),
        dict(clip_eps=0.5),
        dict(clip_eps_high=0.9),
        dict(importance_cap=1.1),
    ],
)
def test_what_the_config_says_of_the_loss_is_what_a_step_computes(loss, monkeypatch):
    """Oracle: the papers' sums in float64 torch, where dr_grpo divides by max_completion_length.
    The loss without the config's setting differs. The log-probabilities are torch's at the temperature of the
    batch alone.
    """
    logprobs, entropy, batch = make_batch()

    def scored(*_, temperature):
        return logprobs * temperature / 0.5, entropy, None

    monkeypatch.setattr(losses, "completion_logprobs", scored)

    def loss_of(**fields):
        settings = build(GrpoSettings, small_config(loss=fields), "config")
        loss_fn = losses.make_grpo_loss(None, settings.loss, max_completion_length=7)
        return float(loss_fn(None, batch | {"temperature": 0.5}, None)[0])

    plain = dict(loss_type="grpo", clip_eps=0.2, max_completion_length=7)
    wanted, _ = torch_loss(logprobs, batch, **(plain | loss))
    np.testing.assert_allclose(loss_of(**loss), wanted, rtol=1e-5)
    assert abs(loss_of() - wanted) > 1e-3


@pytest.mark.parametrize(
    "dtype, experts, metric, largest",
    [
        ("float32", 0, "sampler_gap_mean", 1e-4),
        ("float32", 0, "sampler_gap_max", LARGE_GAP),
        ("float32", 1, "sampler_gap_mean", 1e-4),
        ("float32", 1, "sampler_gap_share", 1e-3),
        ("bfloat16", 1, "sampler_gap_mean", 0.05),
        ("bfloat16", 1, "stale_params", 0.0),
    ],
)
def test_limits_of_the_samples_are_those_of_rounding(dtype, experts, metric, largest):
    """Oracle: by hand: the limits that the comments explain; in bfloat16 a single token says nothing."""
    config = SimpleNamespace(dtype=dtype, num_moe_layers=experts)
    limits = update.sampler_limits(config)
    assert limits[metric].largest == largest
    names = {"float32": {"sampler_gap_share" if experts else "sampler_gap_max"}}
    assert limits.keys() == {"stale_params", "sampler_gap_mean"} | names.get(dtype, set())


@pytest.mark.parametrize(
    "keeps, layers, pipeline, words",
    [
        (True, 1, 1, None),
        (False, 0, 2, None),
        (True, 0, 1, "has no routed experts"),
        (True, 1, 2, "mesh.pipeline=2"),
    ],
)
def test_experts_are_kept_where_there_are_any_and_no_stages(keeps, layers, pipeline, words):
    """Oracle: the words a reader needs."""
    settings = SimpleNamespace(keep_routing=keeps)
    config = SimpleNamespace(num_moe_layers=layers, model_type="toy")
    mesh = SimpleNamespace(shape={"pipeline": pipeline})
    if words is None:
        update.check_routing(settings, config, mesh)
        return
    with pytest.raises(ValueError, match=words):
        update.check_routing(settings, config, mesh)


@pytest.mark.parametrize(
    "prompts, per_prompt, minibatches, micro_batches, multiple",
    [(8, 1, 2, 1, None), (8, 4, 2, 4, None), (8, 1, 4, 1, 16), (8, 2, 2, 4, 16), (6, 3, 2, 2, 16)],
)
def test_rows_of_micro_batches_split_over_the_mesh(
    monkeypatch, prompts, per_prompt, minibatches, micro_batches, multiple
):
    """Oracle: by hand, over four parts: rows of a minibatch in as many parts as micro-batches times four; the
    multiple that the message names splits.
    """
    monkeypatch.setattr(update, "batch_parts", lambda mesh: 4)

    def settings(prompts):
        rows = prompts // minibatches * per_prompt
        fields = dict(prompts_per_step=prompts, micro_batches=micro_batches)
        return SimpleNamespace(rows=lambda: rows, minibatches=minibatches, **fields)

    if multiple is None:
        update.check_rows(settings(prompts), None)
        return
    words = (
        f"={prompts} in {minibatches * micro_batches} micro-.* 4 parts .* multiple of {multiple}$"
    )
    with pytest.raises(ValueError, match=words):
        update.check_rows(settings(prompts), None)
    update.check_rows(settings(multiple), None)


@pytest.mark.parametrize("every", [None, 3])
def test_an_update_replaces_its_reference_after_so_many_steps(monkeypatch, every):
    """Oracle: by hand: three steps of 2 x 5 updates; the longest completion of any step divides."""
    monkeypatch.setattr(update, "make_grpo_loss", lambda *given, **more: (given, more))
    monkeypatch.setattr(update, "create_update", lambda *given, **more: (given, more))
    monkeypatch.setattr(update, "reference_places", lambda settings, params: ("places", params))
    settings = SimpleNamespace(reference_every=every, minibatches=2, epochs=5, loss="options")
    settings.rollout = SimpleNamespace(longest=lambda: 12)
    given, more = update.jitted_update(settings, "config", "params", "mesh")
    loss = (("config", "options"), {"max_completion_length": 12})
    assert given == (settings, loss, "params", "mesh")
    reference = more.pop("beside").reference
    if every is None:
        assert reference is None
        return
    assert reference.every == 30 and reference.places == ("places", "params")
    monkeypatch.setattr(update, "as_reference", None)
    assert reference.of.args == (settings,)


def test_a_reference_is_a_copy_in_its_dtype_but_for_what_balances_routers():
    """Oracle: by hand: the policy's buffers may be donated afterwards."""
    settings = SimpleNamespace(reference_dtype="bfloat16", reference_memory="device")
    params = {"router": jnp.ones(3), "router_bias": jnp.full(3, 1 + 2**-20)}
    found = update.as_reference(settings, params)
    assert (found["router"].dtype, found["router_bias"].dtype) == (jnp.bfloat16, jnp.float32)
    settings.reference_dtype = "float32"
    found = update.as_reference(settings, params)
    wanted = jax.device_get(params)
    jax.tree.map(lambda leaf: leaf.delete(), params)
    assert_same(jax.device_get(found), wanted)


@pytest.mark.parametrize(
    "kl_coef, every, adapts, frozen, saved",
    [
        (0.0, None, False, False, False),
        (0.1, None, False, True, False),
        (0.1, 2, False, False, True),
        (0.1, None, True, False, False),
        (0.1, 2, True, False, False),
    ],
)
def test_what_the_loop_is_given(monkeypatch, tmp_path, kl_coef, every, adapts, frozen, saved):
    """Oracle: by hand: a fixed reference is the source's and one that follows the state's; an adapter needs
    none.
    """
    calls = {}
    params = AdaptedParams("base", {}, 1.0) if adapts else "params"
    step = SimpleNamespace(locate="locate")
    for name in ("check_routing", "IdleUpdates"):
        monkeypatch.setattr(
            grpo, name, lambda *given, name=name: calls.setdefault(name, Looking(given))
        )
    monkeypatch.setattr(grpo, "jitted_update", lambda *given: (Created, step))
    monkeypatch.setattr(grpo, "as_reference", lambda settings, params: ("reference", params))
    monkeypatch.setattr(grpo, "GroupSource", lambda *given: given)

    def fake_train(*given):
        calls["train"] = given
        return SimpleNamespace(model="trained")

    monkeypatch.setattr(grpo, "train", fake_train)
    settings = SimpleNamespace(loss=SimpleNamespace(kl_coef=kl_coef), reference_every=every, seed=3)
    config = SimpleNamespace(dtype="bfloat16", num_moe_layers=0)
    policy = SimpleNamespace(config=config, params=params)
    run = SimpleNamespace(mesh="mesh", folder=tmp_path / "run")
    questions = {"reasoning": ["q"], "general": ["g"]}
    assert grpo.reinforce(settings, policy, questions, "rewards", run, ["h"]) == "trained"
    given, state, update_, source, run_, seed, checks = calls["train"]
    reference = "reference", params
    folder = tmp_path / "run_rollouts"
    wanted = (
        policy,
        questions,
        "rewards",
        settings,
        "mesh",
        reference if frozen else None,
        ["h"],
        folder,
    )
    assert source == wanted and (given, update_, run_, seed) == (settings, step, run, 3)
    assert (state.params, state.reference) == (params, reference if saved else None)
    assert calls["check_routing"].given == (settings, config, "mesh")
    assert checks.limits == update.sampler_limits(config) and checks.locate == "locate"
    assert checks.of_line == "look" and calls["IdleUpdates"].given == (settings, source)
    assert checks.after_first.args == (settings, 0.05)
    assert checks.weights.keywords == {"options": settings.loss}
    checks.after_first({"kl": 0.0})


class Looking:
    look = "look"

    def __init__(self, given):
        self.given = given


class Created:
    def __init__(self, params):
        self.params, self.reference = params, "none yet"

    def replace(self, reference):
        self.reference = reference
        return self
