"""R1's stages on a world that this file defines, and on a user's own files: nothing in them is bilingual."""

import json

import numpy as np
import pytest

from configs.r1_small import get_config
from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.data.tasks import Task
from deepseek_jax.data.tokenizer import closed_tokenizer
from deepseek_jax.recipes.r1 import run as r1
from deepseek_jax.recipes.r1.settings import OwnDataSettings
from deepseek_jax.recipes.r1.sources import WorldData
from deepseek_jax.rewards import Reading, Rule
from deepseek_jax.rewards.answer import marked_answer
from deepseek_jax.rewards.marks import final_text
from deepseek_jax.settings import build
from deepseek_jax.worlds import registry
from deepseek_jax.worlds.own import own_world
from deepseek_jax.worlds.world import Questions, World
from tests.recipes.small import one_device, run_recipe

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
PIECES = (*"abcdef", " ", ">", *TAGS)
STEPS = 2


def reverse(word):
    """The answer of this world to a word: its letters from the back."""
    return word[::-1]


def solved(word, answer):
    return f"<think>{' '.join(reverse(word))}</think><answer>{answer}</answer>"


def reversed_answer(completion, example):
    """1.0 for the right answer in tags; a hundredth for saying anything, which a beginner can."""
    right = marked_answer(completion) == example["answer"]
    return 1.0 if right else 0.01 * bool(completion)


def examples(seed, n):
    words = ["".join(w) for w in np.random.default_rng(seed).choice(list("abcdef"), (n, 3))]
    return [
        {"question": w, "answer": reverse(w), "solution": solved(w, reverse(w))}
        for w in dict.fromkeys(words)
    ]


def documents(*, num_documents, seed):
    """Half-right solutions, so that sampling finds both."""
    rng, answered = np.random.default_rng(seed), []
    for e in examples(seed, num_documents):
        answer = e["answer"] if rng.random() < 0.5 else e["question"]
        answered.append({"text": f"{e['question']}>{solved(e['question'], answer)}"})
    return answered


LETTERS = World(
    name="letters_reversed",
    template="{question}>",
    questions={
        "reversing": Questions(
            lambda seed, n: Task(examples(seed, 120), examples(seed + 1, n)), "reversed_answer"
        )
    },
    reasoning="reversing",
    corpora={"letters_reversed": documents},
    tokenizers={"letters_reversed": lambda: closed_tokenizer(PIECES)},
    rewards={
        "reversed_answer": Rule(
            reversed_answer,
            None,
            Reading(lambda text, word: marked_answer(text), lambda answer, word: answer.strip()),
        )
    },
)


def small_config():
    """Two steps of each stage, after enough pre-training to find something that is accepted."""
    config = get_config()
    for name in ("judge", "judged", "helpfulness_model", "safety_model"):
        del config[name]
    config.world = LETTERS.name
    config.model.vocab_size = 32
    base = dict(corpus=LETTERS.name, num_documents=400, batch_size=16, num_steps=150)
    config.base.update(base)
    config.base.sequence_length = 32
    config.base.optimizer.warmup_steps = 5
    del config.scenarios["general"]
    for name in ("zero", "reasoning", "scenarios"):
        stage = config[name]
        stage.update(dict(num_steps=STEPS, prompts_per_step=2, group_size=4, save_every=1))
        stage.accuracy, stage.rewards = "reversed_answer", dict(reversed_answer=1.0)
        stage.rollout.update(dict(max_completion_length=24, slots=8, temperature=1.0))
    for name in ("cold_start", "sft"):
        config[name].update(dict(num_steps=STEPS, batch_size=4, eval_every=1, log_every=1))
        config[name].sequence_length = 32
        config[name].data = dict(num_puzzles=20)
        config[name].optimizer.warmup_steps = 1
    for name in ("traces", "rejection"):
        sampled = dict(num_prompts=32, samples_per_prompt=4, max_completion_length=24, slots=32)
        config[name].update(sampled)
    evaluation = dict(num_puzzles=8, samples=2, max_completion_length=24, slots=8)
    config.evaluation.update(evaluation)
    return config


@pytest.fixture
def letters(monkeypatch):
    monkeypatch.setitem(registry.WORLDS, LETTERS.name, LETTERS)


@pytest.mark.slow
def test_a_world_that_the_project_does_not_know_goes_through_all_stages(letters, tmp_path):
    """Oracle: by hand: what each stage leaves; the scores, of which this world has no language and no
    requests; and what was accepted, checked by the rule again.
    """
    run_recipe(r1, small_config(), tmp_path)
    for name in ("base", "zero", "cold_start", "reasoning", "sft", "scenarios"):
        assert load_orbax(tmp_path / name / "params", mesh=one_device())[0].vocab_size == 32
        scores = json.loads((tmp_path / "measured" / name / "scores.json").read_text())["scores"]
        assert scores.keys() == {"pass@1", "cons@k", "format", "length"}
    for name in ("traces", "rejection"):
        lines = (tmp_path / name / "accepted.jsonl").read_text().splitlines()
        assert lines
        for line in map(json.loads, lines):
            assert final_text(line["solution"]) == f"<answer>{reverse(line['question'])}</answer>"
    assert not (tmp_path / "judge").exists() and (tmp_path / "report.html").exists()


def own_config(tmp_path):
    """A user's own questions, conversations and preferences, about the words of this file's world."""
    config, data = small_config(), examples(0, 120)
    files = {
        "reasoning": [
            {"question": e["question"], "answer": f"{' '.join(e['answer'])} #### {e['answer']}"}
            for e in data
        ],
        "general": [
            {"question": e["question"] + "a", "answer": e["answer"]} for e in examples(1, 40)
        ],
        "preferences": [
            {"prompt": e["question"], "chosen": e["answer"], "rejected": e["question"] + "a"}
            for e in data
        ],
    }
    paths = {}
    for name, lines in files.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        paths[name] = str(path)
    preferences = dict(path=paths.pop("preferences"), template="{question}>", num_held_out=8)
    config.data = dict(paths, rule="reversed_answer", template="{question}>")
    rows = dict(num_steps=STEPS, batch_size=4, sequence_length=32, log_every=1)
    config.helpfulness_model = dict(rows, kind="helpfulness", data=preferences)
    config.helpfulness_model.optimizer = dict(learning_rate=1e-3, warmup_steps=1)
    rewards = dict(helpfulness_model=1.0)
    config.scenarios.general = dict(num_steps=1, per_step=1, rewards=rewards)
    config.evaluation.num_requests = 4
    return config


@pytest.mark.slow
def test_own_data_with_own_preferences_goes_through_all_stages(letters, tmp_path):
    """Oracle: by hand: the reward model of the user's pairs, and the policy that it rewards."""
    run_recipe(r1, own_config(tmp_path), tmp_path / "run")
    for name in ("helpfulness_model", "scenarios"):
        assert (tmp_path / "run" / name / "params").exists()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (last,) = [m for m in map(json.loads, lines) if (m["phase"], m["step"]) == ("scenarios", 1)]
    assert np.isfinite(last["reward_helpfulness_model"])


def without_path(config):
    del config.helpfulness_model.data["path"]


def of_a_world(config):
    del config["data"]


def with_judge(config):
    small = get_config()
    config.judge, config.judged = small.judge, small.judged


@pytest.mark.parametrize(
    "change, words",
    [
        (without_path, "helpfulness_model.data.path=None: data replaces the world"),
        (of_a_world, "the preferences of world='letters_reversed' are learned; leave the path out"),
        (with_judge, "judge learns pairs of a world, and data replaces the world; leave out judge"),
    ],
)
def test_own_data_have_own_preferences_and_a_world_has_its_own(letters, tmp_path, change, words):
    """Oracle: by hand: the unchanged config builds, and each message names the one field that is wrong."""
    config = own_config(tmp_path)
    build(r1.SETTINGS, config, "config")
    change(config)
    with pytest.raises(ValueError, match=f"^config.*{words}"):
        build(r1.SETTINGS, config, "config")


def test_an_unknown_world_is_refused_with_the_nearest():
    """Oracle: the words a reader needs."""
    config = get_config()
    config.world = "bilingul"
    with pytest.raises(ValueError, match="^config.world='bilingul' .* did you mean bilingual"):
        build(r1.SETTINGS, config, "config")


def test_a_users_files_are_a_world(tmp_path):
    """Oracle: by hand: a question's working is thought and its answer stands in tags; a conversation's last
    message is the good answer, after all that was said before.
    """
    questions, conversations = tmp_path / "q.jsonl", tmp_path / "c.jsonl"
    lines = [
        {"question": f"{n} + 1?", "answer": f"{n} + 1 = {n + 1} #### {n + 1}"} for n in range(5)
    ]
    questions.write_text("\n".join(map(json.dumps, lines)))
    turns = ["hello", "Hi.", "my name?", "I do not know it."]
    roles = ("user", "assistant") * 2
    said = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
    conversations.write_text("\n".join(json.dumps({"messages": said[:n]}) for n in (2, 4)))
    world = own_world(str(questions), "exact_answer", str(conversations), template="chat")
    task = world.questions[world.reasoning].make(0, 2)
    assert len(task.train) == 3 and len(task.held_out) == 2
    for example in task.train:
        n = int(example["answer"]) - 1
        worked = f"<think>{n} + 1 = {n + 1}</think><answer>{n + 1}</answer>"
        assert world.questions["reasoning"].worked(example) == worked
    general = world.questions[world.general].make(0, 1)
    (long,) = [e for e in general.train + general.held_out if e["question"] == "my name?"]
    assert long["messages"] == said[:3] and long["solution"] == "I do not know it."
    assert world.tokenizer() is None


@pytest.mark.parametrize("field", ["reasoning", "general"])
def test_files_that_are_not_there_are_named_by_their_field(tmp_path, field):
    """Oracle: the field by hand, with the path of its block in a config of R1, and what may be given."""
    there = tmp_path / "q.jsonl"
    there.write_text(
        "".join(f'{{"question": "{n} + 1?", "answer": "1 + 1 = 2 #### 2"}}\n' for n in (1, 2))
    )
    files = {"reasoning": str(there), "general": str(there)} | {field: "no.jsonl"}
    world = own_world(files["reasoning"], "exact_answer", files["general"], template="chat")
    words = f"{field}='no.jsonl' is not a file; set it to a jsonl"
    with pytest.raises(ValueError, match=f"^{words}"):
        world.questions[field].make(0, 1)
    own = OwnDataSettings(rule="exact_answer", template="chat", **files)
    with pytest.raises(ValueError, match=rf"^config\.data\.{words}"):
        _ = WorldData("own", own, 0, {"reasoning": 1, "general": 1}).tasks
