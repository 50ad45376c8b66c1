"""Fates of varied and rewritten questions, with a teacher's answers written by hand."""

import json

import pytest

from configs.generate_small import get_config
from deepseek_jax.recipes.generate.settings import GenerateSettings
from deepseek_jax.settings import build
from deepseek_jax.synthesis.augment import augmented
from deepseek_jax.synthesis.ngrams import Evaluation
from deepseek_jax.worlds.arithmetic.tasks import word_arithmetic_task
from deepseek_jax.worlds.bilingual.tasks import bilingual_puzzle_task

ENGLISH = {"question": "What is 4 + 5 + 6?", "answer": "15", "language": "en"}
CHINESE = {"question": "4 + 5 + 7等于多少？", "answer": "16", "language": "zh"}


def settings(**augment):
    config = get_config()
    config.augment = augment
    return build(GenerateSettings, config, "config")


def teacher(folder, replies):
    """ask() of a teacher that gives these replies, by question: text, or None for an unfinished one."""

    def ask(name, examples):
        rows = [
            {
                "example": example,
                "samples": [{"text": text or "", "finished": text is not None}],
            }
            for example in examples
            for text in [replies[example["question"]]]
        ]
        (folder / name).mkdir()
        path = folder / name / "00000-of-00001.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / name

    return ask


def test_paraphrases_keep_their_answer_and_bad_ones_are_counted(tmp_path):
    """Oracle: by hand, a reply for each fate."""
    questions = [
        ENGLISH | {"question": f"What is 4 + 5 + {x}?", "answer": str(9 + x)} for x in range(5)
    ]
    prompts = [f"{question['question']}, or " for question in questions]
    tagged = "<think>What is 1?</think><answer>Tell me 4 + 5 + 0.</answer>"
    replies = [tagged, "请说4 + 5 + 1。", None, questions[0]["question"], "Tell me 4 + 5 + 4."]
    ask = teacher(tmp_path, dict(zip(prompts, replies, strict=True)))
    examples, fates = augmented(
        settings(paraphrase={"en": "{question}, or "}), [*questions, CHINESE], None, ask
    )
    made = [example for example in examples if example["origin"] == "paraphrase"]
    assert [(e["question"], e["answer"], e["derived_from"]) for e in made] == [
        ("Tell me 4 + 5 + 0.", "9", questions[0]["question"]),
        ("Tell me 4 + 5 + 4.", "13", questions[4]["question"]),
    ]
    assert made[0]["messages"] == [{"role": "user", "content": "Tell me 4 + 5 + 0."}]
    assert fates["source"] == {"kept": 6}
    wanted = {"in another language": 1, "unfinished": 1, "repeated": 1, "kept": 2}
    assert +fates["paraphrase"] == wanted


def test_a_translation_changes_language_and_is_translated_back(tmp_path):
    """Oracle: by hand; a question that is translated back to itself is not new."""
    there = {
        "What is 4 + 5 + 6?": "4 + 5 + 6等于多少？",
        "4 + 5 + 7等于多少？": "What is 4 + 5 + 7?",
    }
    back = {
        "4 + 5 + 6等于多少？": "Tell me 4 + 5 + 6.",
        "What is 4 + 5 + 7?": "4 + 5 + 7等于多少？",
    }
    prompts = {"en": "Say in Chinese: {question}", "zh": "用英文说：{question}"}
    replies = {
        prompts["en" if "What" in question else "zh"].replace("{question}", question): reply
        for question, reply in (there | back).items()
    }
    made = settings(translate=prompts)
    examples, fates = augmented(made, [ENGLISH, CHINESE], None, teacher(tmp_path, replies))
    kept = [(e["origin"], e["question"], e["language"], e["answer"]) for e in examples[2:]]
    assert kept == [
        ("translation", "4 + 5 + 6等于多少？", "zh", "15"),
        ("translation", "What is 4 + 5 + 7?", "en", "16"),
        ("back_translation", "Tell me 4 + 5 + 6.", "en", "15"),
    ]
    assert +fates["back_translation"] == {"repeated": 1, "kept": 1}


def test_a_question_that_does_not_say_its_language_is_translated_back_all_the_same(tmp_path):
    """Oracle: as above: the script says in which language a question is."""
    replies = {
        "Say in Chinese: What is 4 + 5 + 6?": "4 + 5 + 6等于多少？",
        "用英文说：4 + 5 + 6等于多少？": "Tell me 4 + 5 + 6.",
    }
    made = settings(translate={"en": "Say in Chinese: {question}", "zh": "用英文说：{question}"})
    silent = {key: value for key, value in ENGLISH.items() if key != "language"}
    examples, _ = augmented(made, [silent], None, teacher(tmp_path, replies))
    kept = [(e["origin"], e["question"], e["language"]) for e in examples[1:]]
    assert kept == [
        ("translation", "4 + 5 + 6等于多少？", "zh"),
        ("back_translation", "Tell me 4 + 5 + 6.", "en"),
    ]


def test_variants_by_rule_are_new_answered_and_in_no_evaluation_set():
    """Oracle: sets of questions; the answers' own are in tests/data/test_augment.py."""
    questions = word_arithmetic_task(0).train[:60]
    evaluation = Evaluation([questions[0]["question"]], [], 10)
    made = settings(numbers=2, names=1)
    examples, fates = augmented(made, questions, evaluation, None)
    asked = [example["question"] for example in examples]
    assert len(set(asked)) == len(asked) and questions[0]["question"] not in asked
    assert fates["source"] == {"contaminated": 1, "kept": 59}
    assert sum(fates["numbers"].values()) == 2 * 59 and fates["names"]["nothing to change"] > 0
    again, _ = augmented(made, questions, evaluation, None)
    assert again == examples


def test_a_way_of_augmenting_that_makes_nothing_names_its_field():
    """Oracle: the message: puzzles and bare sums have no names."""
    bare = [x for x in word_arithmetic_task(0).train if x["question"].startswith("What")][:3]
    with pytest.raises(ValueError, match="^augment.names: gave no new question .3 nothing to"):
        augmented(settings(names=1), bare, None, None)
    with pytest.raises(
        ValueError, match="^augment.names: other names in .* supported are sums and differences"
    ):
        augmented(settings(names=1), bilingual_puzzle_task(0).train[:3], None, None)
    everything = Evaluation([ENGLISH["question"]], [], 10)
    with pytest.raises(ValueError, match="^keep.decontaminate=.* leaves none of 1 questions"):
        augmented(settings(), [ENGLISH], everything, None)
