"""What a plan describes is what a run passes: the first update of small runs against their Programs."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import r1_small
from configs.distill_small import made_teacher
from configs.r1_zero_small import VOCAB_SIZE
from deepseek_jax.checkpoint import save_orbax
from deepseek_jax.checkpoint.reward_params import save_reward_model
from deepseek_jax.costs.program import argument_bytes
from deepseek_jax.data.batches import summed
from deepseek_jax.data.carried import carried_files
from deepseek_jax.data.chat import PLAIN_TEMPLATE
from deepseek_jax.data.packing import Rows, pack
from deepseek_jax.distill import update as distill_update
from deepseek_jax.models import build_model, random_params
from deepseek_jax.models.reward import reward_config, reward_params
from deepseek_jax.parallel import make_mesh, put_batch
from deepseek_jax.recipes import driver
from deepseek_jax.recipes.distill import run as distill
from deepseek_jax.recipes.evaluate import run as evaluate
from deepseek_jax.recipes.generate import run as generate
from deepseek_jax.recipes.grpo import run as grpo
from deepseek_jax.recipes.judge import run as judge
from deepseek_jax.recipes.kinds import judge as kinds_judge
from deepseek_jax.recipes.kinds import prefer
from deepseek_jax.recipes.kinds import pretrain as pretrain_train
from deepseek_jax.recipes.kinds import reinforce as kinds_reinforce
from deepseek_jax.recipes.kinds.paying import planned_rewards
from deepseek_jax.recipes.pretrain import run as pretrain
from deepseek_jax.recipes.r1 import run as r1
from deepseek_jax.recipes.reward_model import run as reward_model
from deepseek_jax.recipes.sft import run as sft
from deepseek_jax.reinforce.model_rewards import JUDGE
from deepseek_jax.rewards import model
from deepseek_jax.rollout import decode
from deepseek_jax.settings import build
from deepseek_jax.training import update
from deepseek_jax.training.update import Update
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer
from deepseek_jax.worlds.registry import named_tokenizer
from tests.quick import others_slow
from tests.recipes import small, test_judge
from tests.recipes.distill import test_run as small_distill
from tests.recipes.generate import test_run as small_generate
from tests.recipes.pretrain import test_run as small_pretrain
from tests.recipes.reward_model import test_run as small_reward_model
from tests.recipes.sft import test_run as small_sft
from tests.tiny import save_tiny_model

WEIGHTS = decode.decoding_weights


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a process, of which a mesh needs no more."""

    id: int
    process_index: int


@pytest.mark.parametrize("processes, width", [(1, None), (2, 4), (8, 4)])
def test_completions_of_several_processes_are_planned_to_move(processes, width):
    """Oracle: by hand: 24 rows of 8 devices; ids and masks of 5 bytes a token, in a rollout and in batches of
    two minibatches. What the devices take is in test_owned_rows.py.
    """
    mesh = make_mesh(data=2, fsdp=4)
    chips = np.array([Chip(i, i * processes // 8) for i in range(8)]).reshape(mesh.devices.shape)
    mesh = jax.sharding.Mesh(chips, mesh.axis_names)
    ids = jax.ShapeDtypeStruct((24, 16), np.int32)
    batch = dict(completion_ids=ids, completion_mask=ids.update(dtype=bool), advantages=None)
    programs = kinds_reinforce._moved("x: ", SimpleNamespace(minibatches=2), mesh, batch)
    if width is None:
        assert programs == []
        return
    (program,) = programs
    count, places, rows = program.arguments
    assert count == 24 and places.shape == (8 * width,)
    assert rows.keys() == {"completion_ids", "completion_mask"}
    assert all(row.shape == (8 * width, 16) for row in rows.values())
    assert program.name == "x: rows" and program.times == 2
    assert program.host_bytes == 2 * 2 * 24 * 16 * 5 // processes


class FirstUpdate(Exception):
    """Ends a run at its first update."""


def first_update(recipe, config, workdir, of_base, mesh):
    """(state, batch, rng, ...) of the first call of a run's Update. A base stays as it is drawn, except where
    its own update is asked for.
    """

    class Recorder(Update):
        def __call__(self, *arguments, **named):
            raise FirstUpdate(arguments, named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update, "Update", Recorder)
        # Compiles every term, to look at the values
        patch.setattr(distill_update, "check_first", lambda *arguments: None)
        if not of_base:
            patch.setattr(pretrain_train, "train", lambda stage, state, *rest, **named: state)
        measure_nothing(patch, recipe)
        with pytest.raises(FirstUpdate) as stopped:
            small.run_recipe(recipe, config, workdir, mesh=mesh)
    arguments, named = stopped.value.args
    # The loop names the rng, a student's update does not
    return (*arguments, *named.values())


def measure_nothing(patch, recipe):
    """Leave out what samples and scores before a training."""
    every = recipe.stages
    patch.setattr(recipe, "stages", lambda s: [each for each in every(s) if not each.measures])
    for module in (prefer, kinds_judge):
        patch.setattr(module, "remembered", lambda path, measure: {})


def planned_updates(recipe, config, mesh):
    """{name: Program} of the programs that train."""
    planned = driver.plan(recipe, build(recipe.SETTINGS, config, "config"), mesh)
    return {p.name: p for p in planned if p.name.endswith(("update", "pretrain")) or not p.needs}


def assert_described(planned, real, shorter=False):
    """The trees are equal but for the numbers. shorter: one axis of real rows may be."""
    assert jax.tree.structure(planned) == jax.tree.structure(real)
    for (path, shape), array in zip(
        jax.tree.leaves_with_path(planned), jax.tree.leaves(real), strict=True
    ):
        where = jax.tree_util.keystr(path)
        assert shape.dtype == array.dtype, where
        assert shape.sharding.is_equivalent_to(array.sharding, array.ndim), where
        if shorter and array.ndim > 1:
            pairs = zip(shape.shape, array.shape, strict=True)
            differ = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
            assert len(differ) <= 1 and all(theirs < ours for ours, theirs in differ), where
        else:
            assert shape.shape == array.shape, where


def assert_planned(
    recipe, config, workdir, *, of_base=False, name="update", mesh=None, shorter=False
):
    """Compare one update of a run with the Program of this name: -> the real arguments."""
    mesh = mesh or small.one_device()
    planned = planned_updates(recipe, config, mesh)[name]
    real = first_update(recipe, config, workdir, of_base, mesh)
    assert len(planned.arguments) == len(real)
    for index, (ours, theirs) in enumerate(zip(planned.arguments, real, strict=True)):
        assert_described(ours, theirs, shorter and index == 1)
    return real


def eight_devices():
    return make_mesh(data=2, fsdp=2, expert=2)


@pytest.mark.parametrize("mesh", others_slow([small.one_device, eight_devices], small.one_device))
def test_fine_tuning(tmp_path, mesh):
    """Oracle: the arrays of a run, on one device and on eight."""
    assert_planned(sft, small_sft.small_config(), tmp_path, mesh=mesh())


@pytest.mark.parametrize("kind", others_slow(["helpfulness", "safety"]))
def test_a_reward_model(tmp_path, kind):
    """Oracle: the arrays of a run, whose rows are as long as its longest conversation, and planned as long as
    sequence_length.
    """
    config = small_reward_model.small_config(kind)
    assert_planned(reward_model, config, tmp_path, shorter=True)


@pytest.mark.slow
def test_a_judge(tmp_path):
    """Oracle: the arrays of a run."""
    config = test_judge.get_config()
    config.update(dict(num_steps=4, batch_size=4))
    config.base.update(dict(num_documents=200, batch_size=8, num_steps=2))
    config.base.optimizer.warmup_steps = 1
    config.optimizer.warmup_steps = 0
    config.data.update(test_judge.SIZES)
    assert_planned(judge, config, tmp_path)


@pytest.mark.parametrize(
    "mesh, fields",
    [
        (small.one_device, dict(loss=dict(kl_coef=0.0))),
        pytest.param(
            small.one_device,
            dict(
                loss=dict(kl_coef=0.1),
                kl_weights=dict(reasoning=0.5),
                keep_routing=True,
                rollout=dict(max_prompt_length=16, max_completion_length=12, top_k=4, slots=8),
                minibatches=2,
                reference_every=2,
                reference_dtype="bfloat16",
                reference_memory="host",
                optimizer=dict(moment_memory="host", moment_dtype="bfloat16"),
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            eight_devices,
            dict(prompts_per_step=8, loss=dict(kl_coef=0.1), keep_routing=True),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_reinforcement(tmp_path, mesh, fields):
    """Oracle: the arrays of a run, of which completions may end before the longest that is allowed; moments
    and the reference in the dtype and memory that the config says.
    """
    config = small.small_config(**fields)
    assert_planned(grpo, config, tmp_path, mesh=mesh(), shorter=True)


@pytest.mark.parametrize("mesh", others_slow([small.one_device, eight_devices], small.one_device))
def test_a_measurement_on_the_way(tmp_path, mesh):
    """Oracle: the arrays of a run when it first measures, and all that a device holds by then: training state
    and reference. By hand: eight slots of up to twelve tokens, and no such program where nothing is measured.
    """
    mesh = mesh()
    config = small.small_config(prompts_per_step=8, loss=dict(kl_coef=0.1), eval_every=1)
    planned = planned_programs(grpo, config, mesh)
    weights, slots = (planned[f"held-out: {name}"] for name in ("weights", "slots"))
    call = first_rollouts(grpo, config, tmp_path / "run", mesh)
    assert_described(weights.arguments[1], call.arguments[1])
    held = argument_bytes(weights.arguments) + weights.beside_bytes
    assert held == pytest.approx(call.held, rel=0.01)
    assert slots.arguments[1] == 8 and slots.arguments[3:] == (12, 12)
    config.eval_every = 0
    without = planned_programs(grpo, config, mesh).keys()
    assert without == {name for name in planned if not name.startswith("held-out: ")}


def reward_model_in(folder, config, mesh):
    """Write a reward model of random parameters, of the model that the config pre-trains: -> its path."""
    model = build_model(config.model)
    policy = random_params(model, mesh, 1)
    params = reward_params(model, policy, mesh, jax.random.key(2))
    files = carried_files(arithmetic_tokenizer(), PLAIN_TEMPLATE)
    save_reward_model(folder, reward_config(model), params, dict(kind="helpfulness"), files=files)
    return str(folder)


def judge_in(folder, config, mesh):
    """Write a judge of random parameters, of the model that the config pre-trains: -> its path."""
    model = build_model(config.model)
    files = carried_files(bilingual_tokenizer(), PLAIN_TEMPLATE)
    save_orbax(folder, model, random_params(model, mesh, 1), files)
    (folder / JUDGE).write_text(json.dumps(dict(max_completion_length=4)))
    return str(folder)


class Call:
    """What a run passes to a jitted function in its nth call, which ends the run. held: by then, the bytes of
    all arrays on the first device of the mesh that were not there before.
    """

    def __init__(self, mesh, nth=1):
        # Held, as a new array could take the id of one that is gone
        self.before = jax.live_arrays()
        self.device, self.nth = mesh.devices.flat[0], nth
        self.arguments, self.held = None, None

    def __call__(self, *arguments):
        self.nth -= 1
        if self.nth:
            return False
        before = {id(array) for array in self.before}
        new = [array for array in jax.live_arrays() if id(array) not in before]
        shards = [shard for array in new for shard in array.addressable_shards]
        self.held = sum(shard.data.nbytes for shard in shards if shard.device == self.device)
        self.arguments = arguments
        raise FirstUpdate


def called(recipe, config, workdir, mesh, patches):
    """Run a recipe, whose base stays as it is drawn and which measures nothing, until a Call ends it.
    patches: (module, name, value) to set meanwhile.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain_train, "train", lambda stage, state, *rest, **named: state)
        if recipe is grpo:
            measure_nothing(patch, recipe)
        for module, name, value in patches:
            patch.setattr(module, name, value)
        with pytest.raises(FirstUpdate):
            small.run_recipe(recipe, config, workdir, mesh=mesh)


def first_rollouts(recipe, config, workdir, mesh, nth=1):
    """The Call of decoding_weights in the nth rollout of a run."""
    call = Call(mesh, nth)

    def weights(*arguments):
        call(*arguments)
        return WEIGHTS(*arguments)

    called(recipe, config, workdir, mesh, [(decode, "decoding_weights", weights)])
    return call


def planned_programs(recipe, config, mesh):
    """{name: Program}."""
    planned = driver.plan(recipe, build(recipe.SETTINGS, config, "config"), mesh)
    return {program.name: program for program in planned}


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh, dtype, fields",
    [
        (small.one_device, "bfloat16", dict(reference_every=2)),
        pytest.param(small.one_device, "float32", {}, marks=pytest.mark.slow),
        pytest.param(
            eight_devices,
            "float32",
            dict(prompts_per_step=8, reference_dtype="bfloat16"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_reward_model_in_use(tmp_path, mesh, dtype, fields):
    """Oracle: the arrays of a run: those that the reward model scores, whose rows may end before the longest
    that is allowed; its config, with the run's room for experts' tokens; and all that a device holds by then:
    training state, reference and reward model. The plan leaves out what is below 1%. It is the same before
    the reward model's folder is there.
    """
    mesh, config = mesh(), small.small_config(loss=dict(kl_coef=0.1), **fields)
    config.model.expert_buffer = 2.0
    config.rewards.liked = 1.0
    config.reward_models = dict(liked=dict(path="nowhere", batch_size=8, dtype=dtype))
    before = planned_programs(grpo, config, mesh)["liked: score"]
    config.reward_models.liked.path = reward_model_in(tmp_path / "liked", config, mesh)
    planned = planned_programs(grpo, config, mesh)["liked: score"]
    assert before.arguments == planned.arguments and before.beside == planned.beside
    call, configs = Call(mesh), []

    def jitted(config, *_):
        configs.append(config)
        return call

    called(grpo, config, tmp_path / "run", mesh, [(model, "jitted_rewards", jitted)])
    settings = build(grpo.SETTINGS, config, "config")
    (paying,) = planned_rewards(settings.reward_models, build_model(config.model)).values()
    assert configs == [paying.config] and paying.config.expert_buffer == 2.0
    for index, (ours, theirs) in enumerate(zip(planned.arguments, call.arguments, strict=True)):
        assert_described(ours, theirs, shorter=index == 1)
    held = argument_bytes(planned.arguments) + planned.beside_bytes
    assert held == pytest.approx(call.held, rel=0.01)


@pytest.mark.slow
def test_a_judge_in_use(tmp_path):
    """Oracle: the arrays of a run: the judge's parameters when it answers, after the teacher, and all that
    the device holds by then, the teacher among it. The same before the judge's folder is there, where the
    config says how long a judgement gets.
    """
    mesh, config = small.one_device(), small_generate.small_config()
    # Questions that a judge's prompt can be written for
    config.model.vocab_size, config.base.corpus = VOCAB_SIZE, "bilingual_teaching"
    config.data.update(dict(task="bilingual_puzzles", template="r1_zero"))
    config.accuracy, config.rewards = "puzzle_answer", dict(puzzle_answer=1.0, judge=1.0)
    how = dict(batch_size=8, dtype="bfloat16", max_completion_length=4)
    config.reward_models = dict(judge=dict(path="nowhere", **how))
    before = planned_programs(generate, config, mesh)
    config.reward_models.judge.path = judge_in(tmp_path / "judge", config, mesh)
    planned = planned_programs(generate, config, mesh)
    assert before.keys() == planned.keys()
    weights, slots = (planned[f"samples: judge: {name}"] for name in ("weights", "slots"))
    assert before["samples: judge: weights"].arguments[1] == weights.arguments[1]
    call = first_rollouts(generate, config, tmp_path / "run", mesh, nth=2)
    assert call.arguments[0] == weights.arguments[0]
    assert_described(weights.arguments[1], call.arguments[1])
    held = argument_bytes(weights.arguments) + weights.beside_bytes
    assert held == pytest.approx(call.held, rel=0.01)
    # Eight slots of up to four tokens
    assert slots.arguments[1] == 8 and slots.arguments[3:] == (4, 4)


@pytest.mark.slow
def test_what_pays_or_teaches_a_stage_of_r1_lies_beside_it():
    """Oracle: by hand: the reward models pay the last reinforcement and its update, and not the first; the
    judge is there while answers are sampled; a teacher reads beside the student, its moments, and the hidden
    states [64 64 64] in float32 of two teachers, now and a step before.
    """
    planned = planned_programs(r1, r1_small.get_config("last=both"), small.one_device())
    beside = {name: {h.name: h.bytes for h in p.beside} for name, p in planned.items()}
    models = {f"reward model {kind}_model" for kind in ("helpfulness", "safety")}
    for name in ("weights", "decode", "update", "score"):
        assert models <= beside[f"scenarios: {name}"].keys(), name
        assert not models & beside[f"reasoning: {name}"].keys(), name
    scores = beside["scenarios: helpfulness_model: score"].keys()
    assert scores & models == {"reward model safety_model"} and "the policy's parameters" in scores
    assert "reward model judge" in beside["judged: decode"]
    assert not {"reward model judge"} & beside["rejection: decode"].keys()
    assert "the policy's parameters" in beside["judged: judge: decode"]
    hidden = [f"hidden states of {teacher}" for teacher in ("general", "reasoning")]
    reads, size = beside["distilled: general: hidden states"], 64 * 64 * 64 * 4
    assert {"the policy's parameters", "the optimizer's moments"} < reads.keys()
    assert [reads.get(name) for name in hidden] == [None, size]
    assert [reads[f"{name}, a step before"] for name in hidden] == [size, size]
    assert beside["distilled: general: gradient"] == {hidden[1]: size}
    assert beside["distilled: update"] == dict.fromkeys(hidden, size)


@pytest.mark.parametrize("fields", others_slow([dict(max_completion_length=12), {}], {}))
def test_an_evaluation(tmp_path, fields):
    """Oracle: the parameters of a run, and by hand its slots: four, of the completions that the config
    allows, or of what the model has room for beside the prompts.
    """
    mesh, (model, _) = small.one_device(), save_tiny_model(tmp_path / "params")
    sizes = dict(samples=3, num_problems=6, save_every=2, slots=4, dtype="bfloat16")
    config = ConfigDict(dict(recipe="evaluate", checkpoint=str(tmp_path / "params")) | sizes)
    config.update(dict(data=["arithmetic"]) | fields)
    planned = planned_programs(evaluate, config, mesh)
    weights, slots = (planned[f"answers: {name}"] for name in ("weights", "slots"))
    call = first_rollouts(evaluate, config, tmp_path / "run", mesh)
    assert call.arguments[0] == weights.arguments[0]
    assert_described(weights.arguments[1], call.arguments[1])
    longest = fields.get("max_completion_length") or max(1, model.max_position_embeddings - 1024)
    assert slots.arguments[1] == 4 and slots.arguments[3:] == (longest, longest)


LOSSES = {
    "every term": dict(weights=small_distill.TERMS, temperature=1.0),
    "top k": dict(weights=dict(soft=0.5, hard=0.5), top_k=8, temperature=1.0),
    "top k and features": dict(weights=dict(soft=0.5, hidden=0.5), top_k=8, temperature=1.0),
    "on-policy": dict(
        weights=dict(on_policy=1.0, hard=0.5),
        on_policy=dict(prompts=8, max_completion_length=8),
        temperature=1.0,
    ),
}


@pytest.mark.parametrize("loss", others_slow(LOSSES, "top k"))
def test_distillation(tmp_path, loss):
    """Oracle: the arrays of a run, the frozen teacher among them; {} where its cached top k are all that the
    loss reads of it.
    """
    teacher = build_model(made_teacher()["model"])
    files = carried_files(bilingual_tokenizer(), PLAIN_TEMPLATE)
    save_orbax(tmp_path / "teacher", teacher, random_params(teacher, small.one_device(), 1), files)
    config = small_distill.small_config(
        (tmp_path, small_distill.write_texts(tmp_path / "texts.jsonl"))
    )
    with config.students.qwen.ignore_type():
        config.students.qwen.loss = LOSSES[loss]
    *_, frozen = assert_planned(distill, config, tmp_path / "run", name="qwen: update")
    assert bool(frozen) == (loss != "top k")


@pytest.mark.slow
def test_the_base_of_a_recipe(tmp_path):
    """Oracle: the arrays of a run of the recipe up to its base's first update."""
    config = small.small_config()
    assert_planned(grpo, config, tmp_path, of_base=True, name="pretrain")


@pytest.mark.slow
def test_pre_training(tmp_path):
    """Oracle: the arrays of a run of one size of batch."""
    config = small_pretrain.small_config()
    config.stages.stage_1.batch_size = ((0, 4),)
    assert_planned(pretrain, config, tmp_path, of_base=True, name="stage_1")


def test_a_planned_batch_is_the_largest_of_a_stage():
    """Oracle: the batch that the loop gets when the rows have grown."""
    config, mesh = small_pretrain.small_config(micro_batch_size=8), eight_devices()
    config.stages.stage_1.batch_size = ((0, 8), (2, 16))
    config.stages.stage_2_long.batch_size = 8
    planned = planned_updates(pretrain, config, mesh)
    tokenizer = named_tokenizer(config.data.tokenizer)
    documents = [{"text": "0123456789" * 200}] * 50
    for name, rows in (("stage_1", 16), ("stage_2_long", 8)):
        sizes = Rows(sequence_length=config.stages[name].sequence_length, batch_size=rows)
        batch = next(iter(pack(documents, tokenizer, sizes, seed=0)))
        described = dict(planned[name].arguments[1])
        assert described.pop("mtp_weight").shape == ()
        assert_described(described, put_batch(mesh, summed(mesh, batch)))
