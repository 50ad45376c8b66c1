"""A student that learns from many teachers: its update and its samples, what it refuses, and resuming."""

import dataclasses
import functools
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.distill import taught, teachers
from deepseek_jax.distill.taught import jitted_update, learn_from_teachers
from deepseek_jax.distill.teacher_checks import check_questions, check_rows, check_teacher
from deepseek_jax.distill.teacher_settings import TaughtSettings, TeacherSettings
from deepseek_jax.distill.teachers import HIDDEN, Teacher, TeacherSource, by_teacher
from deepseek_jax.errors import BrokenTerm, SamplerApart
from deepseek_jax.models import forward, random_params
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.shard import on_device, put_share
from deepseek_jax.reinforce.batch import completion_batch, totals
from deepseek_jax.reinforce.sampler import Sampler
from deepseek_jax.rollout import Policy
from deepseek_jax.settings import build
from deepseek_jax.training.metrics import read_metrics
from deepseek_jax.worlds.arithmetic.tasks import arithmetic_task
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer
from tests.recipes.small import make_run, one_device
from tests.reinforce.rollouts import rollout_of
from tests.tiny import CONFIGS

TOKENIZER = arithmetic_tokenizer()
# The tokenizer's 21 tokens, and more, until they split over the mesh of eight
VOCAB = 24
STUDENT, ROUTED = (
    dataclasses.replace(CONFIGS[kind], vocab_size=VOCAB, initializer_range=0.3, **layers)
    for kind, layers in (("gqa", dict(num_hidden_layers=1)), ("mla_moe", {}))
)
# The head of its own, and another width: it shares nothing but the vocabulary
NARROW = dataclasses.replace(STUDENT, hidden_size=16, tie_word_embeddings=False)
TEMPERATURE = 0.7
EIGHT = dict(data=2, fsdp=2, tensor=2)


def config_of(**fields):
    """The block of two teachers: `sums` for task x, `words` for task y at a weight of 0.3."""
    config = dict(num_steps=2, log_every=1, save_every=1, group_size=2)
    config["teachers"] = dict(sums=dict(task="x"), words=dict(task="y", weight=0.3))
    config["prompts_per_step"] = dict(x=4, y=8)
    config["optimizer"] = dict(learning_rate=0.01)
    rollout = dict(max_prompt_length=16, max_completion_length=8, slots=8, temperature=TEMPERATURE)
    return config | dict(rollout=rollout) | fields


def settings_of(**fields):
    return build(TaughtSettings, config_of(**fields), "config")


TAUGHT = settings_of().teachers


def policy(config, seed, mesh=None):
    return Policy(
        config, random_params(config, mesh or one_device(), seed), TOKENIZER, "{question}\n"
    )


def two_teachers(mesh=None, narrow=NARROW):
    return {
        "sums": Teacher.waiting(policy(narrow, 1, mesh)),
        "words": Teacher.waiting(policy(STUDENT, 2, mesh)),
    }


@functools.cache
def questions():
    asked = policy(STUDENT, 0).with_prompts(arithmetic_task(0, 8).train)
    return {"x": asked[:30], "y": asked[30:60]}


def groups_of(seed=0, n=2):
    """Groups of completions of the student's vocabulary, of both tasks in any order, with made-up tokens."""
    rng = np.random.default_rng(seed)
    groups = []
    for task in "yxyyxyxyyxyy":
        mask = np.arange(8) < rng.integers(1, 9, size=(n, 1))
        group = dict(task=task, prompt_ids=rng.integers(0, VOCAB, rng.integers(2, 9)).tolist())
        ids = np.where(mask, rng.integers(0, VOCAB, (n, 8)), 0).astype(np.int32)
        groups.append(group | dict(rollout=rollout_of(ids, mask, truncated=mask.all(1))))
    return groups


def batch_of(groups, its, mesh, shared=True):
    """{teacher's name: batch} of groups, each with the hidden states that its teacher reads off them."""
    batch = {}
    for name, own in by_teacher(groups, TAUGHT).items():
        rows = completion_batch(own, shared=shared)
        scalars = {
            "temperature": np.float32(TEMPERATURE),
            "weight": np.float32(TAUGHT[name].weight),
        }
        part = put_share(mesh, rows | totals(rows["completion_mask"].sum(1)) | scalars)
        config = its[name].policy.config
        states = teachers.jitted_states(config, mesh)
        batch[name] = part | {HIDDEN: states(its[name].body(), teachers.for_teacher(part))}
    return batch


def updated(student, groups, mesh=None, settings=None, shared=True):
    """(loss and metrics, gradient) of one update, with the gradient as what SGD at rate 1 takes away."""
    mesh, settings = mesh or one_device(), settings or settings_of()
    with jax.set_mesh(mesh):
        its = two_teachers(mesh)
        params = random_params(student, mesh, 0)
        create, update = jitted_update(settings, student, params, mesh, its)
        state, total = create(params), None
        for name, part in batch_of(groups, its, mesh, shared).items():
            total = update.zeros(state.params) if total is None else total
            total, _ = update.add(total, state, part, jax.random.key(0), its[name].head())
        state, metrics = update(state, batch_of(groups, its, mesh, shared), jax.random.key(0))
        return jax.device_get((metrics, total))


def by_full_logits(student, groups):
    """(loss, gradient) through models.forward: each [prompt, completion] a row of its own, with full logits
    of student and teacher, no cache, no chunks.
    """
    its = two_teachers()

    def logprobs(config, params, own):
        """float32[n v] of all completions' tokens of these groups."""
        rows, at = np.zeros((2 * len(own), 16), np.int32), []
        completions = [
            (group["prompt_ids"], ids) for group in own for ids in group["rollout"].tokens()
        ]
        for row, (prompt, ids) in enumerate(completions):
            rows[row, : len(prompt) + len(ids)] = [*prompt, *ids]
            at += [(row, len(prompt) - 1 + t) for t in range(len(ids))]
        # What comes after a row's tokens does not reach them
        logits = forward(config, params, rows) / TEMPERATURE
        return jax.nn.log_softmax(logits[tuple(np.transpose(at))])

    @jax.jit
    def loss(params, teachers_params):
        total = 0.0
        for name, own in by_teacher(groups, TAUGHT).items():
            q = logprobs(student, params, own)
            p = logprobs(its[name].policy.config, teachers_params[name], own)
            total += TAUGHT[name].weight * (jnp.exp(q) * (q - p)).sum(-1).mean()
        return total

    params = {name: on_device(teacher.policy.params) for name, teacher in its.items()}
    return jax.value_and_grad(loss)(random_params(student, one_device(), 0), params)


def assert_near(gradient, wanted):
    """Within 1e-5 of each tensor's largest gradient: float32 sums in another order."""

    def compare(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max() + 1e-9)

    jax.tree.map(compare, gradient, wanted)


@pytest.mark.parametrize(
    "student, shared",
    [
        (STUDENT, True),
        pytest.param(STUDENT, False, marks=pytest.mark.slow),
        pytest.param(ROUTED, True, marks=pytest.mark.slow),
    ],
)
def test_an_update_adds_up_the_kl_of_full_logits(student, shared):
    """Oracle: models.forward and full softmaxes of every row alone, with autodiff; teachers of two widths,
    and micro-batches of unequal lengths.
    """
    groups = groups_of()
    halves = settings_of(micro_batches=2)
    metrics, gradient = updated(student, groups, settings=halves, shared=shared)
    loss, wanted = by_full_logits(student, groups)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["loss"], metrics["kl_sums"] + 0.3 * metrics["kl_words"], rtol=1e-6
    )
    assert_near(gradient, jax.device_get(wanted))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["eight devices", "micro-batches", "another order"])
def test_neither_devices_nor_parts_nor_the_order_of_rows_change_an_update(form):
    """Oracle: the update of one device, all rows at once, in their first order."""
    groups = groups_of()
    metrics, gradient = updated(ROUTED, groups)
    how = {"eight devices": dict(mesh=make_mesh(**EIGHT))}
    how["micro-batches"] = dict(settings=settings_of(micro_batches=4))
    how["another order"] = {}
    if form == "another order":
        groups = [groups[i] for i in np.random.default_rng(1).permutation(len(groups))]
    found, ours = updated(ROUTED, groups, **how[form])
    for name in ("loss", "kl_sums", "kl_words", "entropy_sums", "max_vio", "grad_norm"):
        np.testing.assert_allclose(found[name], metrics[name], rtol=1e-5)
    assert_near(ours, gradient)


def test_samples_are_sorted_by_teacher():
    """Oracle: by hand."""
    groups = [dict(task=task, number=i) for i, task in enumerate("yxyx")]
    found = by_teacher(groups, dict(a=TeacherSettings(task="x"), b=TeacherSettings(task="y")))
    assert {n: [group["number"] for group in own] for n, own in found.items()} == {
        "a": [1, 3],
        "b": [0, 2],
    }


@pytest.mark.slow
def test_teachers_wait_in_the_hosts_memory_and_come_one_after_another(tmp_path, monkeypatch):
    """Oracle: the memory that jax says an array is in; weak references to every body and head that came: none
    is alive when another comes, nor after the last. The cache is in the config's dtype.
    """
    came = []

    def coming(method):
        def take(self):
            assert not any(reference() for reference in came), "another is still on the devices"
            assert all(
                leaf.sharding.memory_kind == "pinned_host"
                for leaf in jax.tree.leaves(self.policy.params)
            )
            tree = method(self)
            assert jax.tree.leaves(tree)[0].sharding.memory_kind != "pinned_host"
            came.extend(weakref.ref(leaf) for leaf in jax.tree.leaves(tree))
            return tree

        return take

    for name in ("body", "head"):
        monkeypatch.setattr(Teacher, name, coming(getattr(Teacher, name)))
    half = dataclasses.replace(NARROW, dtype="bfloat16")
    run = make_run(tmp_path, phase="taught")
    settings, its = settings_of(num_steps=1), two_teachers(narrow=half)
    seen = []
    taken = TeacherSource.next

    def next_batch(self, state, step):
        batches, metrics = taken(self, state, step)
        seen.append({name: part[HIDDEN].dtype for name, part in batches[0].items()})
        return batches, metrics

    monkeypatch.setattr(TeacherSource, "next", next_batch)
    with jax.set_mesh(run.mesh):
        student = policy(STUDENT, 0)
        learn_from_teachers(
            settings, student, its, questions(), run.within(tmp_path / "checkpoints")
        )
    bodies = [len(jax.tree.leaves(t.policy.params)) for t in its.values()]
    # The narrow one's head is no part of its body, the tied one's embedding is both
    assert len(came) == bodies[0] - 1 + bodies[1] + 2
    assert not any(reference() for reference in came)
    assert seen == [dict(sums=jnp.bfloat16, words=jnp.float32)]


def trained(workdir, should_stop=lambda: False, its=None, **fields):
    run = make_run(workdir, should_stop, phase="taught")
    settings = settings_of(**fields)
    with jax.set_mesh(run.mesh):
        its = its or two_teachers()
        folder = run.within(workdir / "checkpoints")
        params = learn_from_teachers(settings, policy(STUDENT, 0), its, questions(), folder)
    run.writer.close()
    return jax.device_get(params)


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path, stop_after):
    """Oracle: the run that nothing stopped, bit for bit: parameters and metrics, but for the clock's."""
    fields, asked = dict(num_steps=4, save_every=2), []
    wanted = trained(tmp_path / "whole", **fields)

    def stop():
        asked.append(None)
        return len(asked) == stop_after

    with pytest.raises(SystemExit):
        trained(tmp_path / "parts", stop, **fields)
    jax.tree.map(np.testing.assert_array_equal, trained(tmp_path / "parts", **fields), wanted)
    ours, theirs = (
        read_metrics(tmp_path / n / "metrics.jsonl", "taught") for n in ("parts", "whole")
    )
    names = ("loss", "kl_sums", "kl_words", "entropy_words", "completion_length_sums", "tokens")
    assert [[line[n] for n in names] for line in ours] == [
        [line[n] for n in names] for line in theirs
    ]
    assert len(ours) == 4 and not (tmp_path / "whole" / "checkpoints_rollouts").exists()


@pytest.mark.slow
def test_a_student_comes_nearer_to_its_teachers(tmp_path):
    """Oracle: the first step's loss and the KL of both: far lower after 60."""
    trained(tmp_path, num_steps=60, log_every=59, save_every=60)
    first, last = read_metrics(tmp_path / "metrics.jsonl", "taught")
    assert last["loss"] < 0.6 * first["loss"]
    assert all(last[name] < 0.8 * first[name] for name in ("kl_sums", "kl_words"))


@pytest.mark.slow
def test_a_teacher_that_is_the_student_is_named(tmp_path):
    """Oracle: the words a reader needs: with itself as every teacher nothing moves and no KL is there."""
    its = {name: Teacher.waiting(policy(STUDENT, 0)) for name in TAUGHT}
    with pytest.raises(BrokenTerm, match="kl_sums is exactly 0.*teachers.sums teaches nothing"):
        trained(tmp_path, its=its, num_steps=3, optimizer=dict(learning_rate=1e-30))


@pytest.mark.slow
def test_samples_of_another_policy_end_the_run(tmp_path, monkeypatch):
    """Oracle: the limit of rounding; the sampler has other parameters than the student."""
    answer, other = Sampler.answer, policy(STUDENT, 5).params

    def elsewhere(self, params, *arguments):
        return answer(self, other, *arguments)

    monkeypatch.setattr(Sampler, "answer", elsewhere)
    with pytest.raises(SamplerApart, match="sampler_gap_mean"):
        trained(tmp_path)


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(teachers={}), "config.teachers={} leaves nobody to learn from"),
        (
            dict(prompts_per_step=dict(x=4, y=8, z=2)),
            "config.prompts_per_step.z=2 is a task without a teacher",
        ),
        (
            dict(prompts_per_step=dict(x=4)),
            "config.teachers.words.task='y' is a task without questions; set prompts_per_step.y",
        ),
        (
            dict(teachers=dict(a=dict(task="x"), b=dict(task="x")), prompts_per_step=dict(x=4)),
            "config.teachers.b.task='x' is the task of teachers.a too",
        ),
        (
            dict(micro_batches=3),
            "config.micro_batches=3 does not divide the 4 rows of prompts_per_step.x",
        ),
        (
            dict(rollout=dict(max_prompt_length=9, max_completion_length=8, top_k=5)),
            "config.rollout.top_p=1.0, top_k=5: the KL is over the full vocabulary",
        ),
    ],
)
def test_a_mistake_is_named(fields, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError) as error:
        settings_of(**fields)
    assert words in str(error.value)


def test_a_teacher_of_another_vocabulary_is_named():
    """Oracle: the words a reader needs; one of another width and depth is welcome."""
    check_teacher(STUDENT, TOKENIZER, NARROW, TOKENIZER)
    larger = dataclasses.replace(STUDENT, vocab_size=VOCAB + 1)
    with pytest.raises(
        ValueError, match=f"the teacher's vocab_size={VOCAB + 1} is not the student's {VOCAB}"
    ):
        check_teacher(STUDENT, TOKENIZER, larger, TOKENIZER)
    with pytest.raises(
        ValueError, match="the teacher's tokenizer has another vocabulary: .* is token"
    ):
        check_teacher(STUDENT, TOKENIZER, NARROW, bilingual_tokenizer())


def test_questions_and_rows_that_do_not_fit_are_named():
    """Oracle: the words a reader needs."""
    settings, its = settings_of(), dict(sums=NARROW, words=STUDENT)
    with pytest.raises(
        ValueError, match="prompts_per_step.y=8: there are no questions.*there are: x"
    ):
        check_questions(settings, its, {"x": questions()["x"], "y": []})
    short = its | {"sums": dataclasses.replace(NARROW, max_position_embeddings=10)}
    with pytest.raises(ValueError, match="teachers.sums.*max_position_embeddings=10"):
        check_questions(settings, short, questions())
    check_questions(settings, its, questions())
    with pytest.raises(ValueError, match="prompts_per_step.x=4 makes 4 rows, which do not split"):
        check_rows(settings, make_mesh(data=8))
    check_rows(settings, make_mesh(**EIGHT))


def test_the_terms_that_are_watched_are_those_of_every_teacher():
    """Oracle: by hand."""
    assert list(taught.terms_of(settings_of())) == ["kl_sums", "kl_words", "grad_norm"]
