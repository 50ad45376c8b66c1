"""The filters of a teacher's answers, on samples written by hand."""

import json

import pytest

from configs.generate_small import get_config
from deepseek_jax.data.messages import read_conversations
from deepseek_jax.recipes.generate.settings import GenerateSettings
from deepseek_jax.settings import build
from deepseek_jax.synthesis.ngrams import Evaluation
from deepseek_jax.synthesis.sift import Sift, majority_is_right, write_sifted

EXAMPLE = {"question": "What is 4 + 5?", "answer": "9", "language": "en", "derived_from": ""}


def settings(at_least=None, **keep):
    config = get_config()
    config.keep = dict(max_per_prompt=2, at_least=at_least or {"puzzle_answer": 1.0}) | keep
    return build(GenerateSettings, config, "config")


def sample(text, right=1.0, reward=3.0, finished=True):
    parts = {"puzzle_answer": right, "think_answer_format": 1.0, "language_consistency": 1.0}
    return {"text": text, "tokens": 3, "finished": finished, "reward": reward, "parts": parts}


def written(folder, *rows):
    """A folder of two chunks with these (origin, samples)."""
    folder.mkdir()
    lines = [
        json.dumps({"example": EXAMPLE | {"question": f"{i}?", "origin": o}, "samples": samples})
        for i, (o, samples) in enumerate(rows)
    ]
    (folder / "00000-of-00002.jsonl").write_text(lines[0] + "\n")
    (folder / "00001-of-00002.jsonl").write_text("".join(line + "\n" for line in lines[1:]))
    return folder


def test_each_filter_removes_what_it_should(tmp_path):
    """Oracle: by hand, a sample for each fate."""
    told = "a b c d e f g h i j"
    rows = [
        sample("9 kept"),
        sample("9 broke off", finished=False),
        sample(" \n"),
        sample("9 unscored", reward=None, right=None),
        sample("10", right=0.0),
        sample("9 kept"),
        sample(f"9 {told}"),
        sample(f"9 {told.replace('e', 'no')} one two three four five six seven"),
        sample(f"9 {told.replace('e', 'no')} one two three four five six eight"),
        sample("9 too many"),
    ]
    made = settings(near_duplicates=0.5, shingle=2, decontaminate=("held_out",))
    sift = Sift(made, Evaluation([told], [], 10))
    records = list(sift.records(written(tmp_path / "s", ("source", rows), ("names", rows[:1]))))
    assert [record["messages"][1]["content"] for record in records] == [
        rows[0]["text"],
        rows[7]["text"],
        rows[0]["text"],
    ]
    fates = [
        "unfinished",
        "empty",
        "unscored",
        "puzzle_answer below 1.0",
        "repeated",
        "contaminated",
    ]
    wanted = dict.fromkeys(fates, 1) | {"kept": 2, "more than enough": 2}
    assert sift.sieves["source"].fates == wanted
    assert sift.sieves["names"].fates == {"kept": 1}


def test_a_reward_that_scores_none_of_a_sample_is_below_its_limit(tmp_path):
    """Oracle: by hand: a user's function may return None, not scored by me, and the others score."""
    rows = [sample("9 kept"), sample("9 unscored", right=None)]
    sift = Sift(settings(), None)
    texts = [
        r["messages"][1]["content"] for r in sift.records(written(tmp_path / "s", ("source", rows)))
    ]
    assert texts == ["9 kept"]
    assert sift.sieves["source"].fates == {"kept": 1, "puzzle_answer below 1.0": 1}


def test_near_duplicates_of_other_questions_are_removed(tmp_path):
    """Oracle: by hand; the second question differs in one of many words."""
    text = sample(" ".join(map(str, range(60))))
    made = settings(near_duplicates=0.8, shingle=2)
    sift = Sift(made, None)
    list(sift.records(written(tmp_path / "s", ("source", [text]), ("numbers", [text]))))
    assert sift.sieves["numbers"].fates == {"near-duplicate": 1}


def test_a_paraphrase_that_most_samples_answer_otherwise_is_dropped_whole(tmp_path):
    """Oracle: by hand: three of four say 8, where the original's answer is 9; other origins keep the one."""
    wrong = [sample(f"<think>{i}</think><answer>8</answer>", right=0.0) for i in range(3)]
    right = [sample(f"<think>{i}</think><answer>9</answer>") for i in range(2)]
    rows = [("source", wrong + right[:1]), ("paraphrase", wrong + right[:1])]
    rows += [("paraphrase", wrong[:1] + right)]
    sift = Sift(settings(), None)
    kept = list(sift.records(written(tmp_path / "s", *rows)))
    assert [(record["origin"], record["question"]) for record in kept] == [
        ("source", "0?"),
        ("paraphrase", "2?"),
        ("paraphrase", "2?"),
    ]
    assert sift.sieves["paraphrase"].fates["inconsistent"] == 1
    assert not majority_is_right([sample("9", finished=False)], "puzzle_answer")


def test_two_spellings_of_an_answer_vote_together():
    """Oracle: by hand: two samples say one half in two spellings and outvote the first sample."""
    halves = [sample(f"<answer>{x}</answer>") for x in ("0.5", "1/2")]
    wrong = sample("<answer>2</answer>", right=0.0)
    assert majority_is_right([wrong, *halves], "puzzle_answer") is False
    for each in (*halves, wrong):
        each["parts"]["math_verify"] = each["parts"]["puzzle_answer"]
    assert majority_is_right([wrong, *halves], "math_verify")


@pytest.mark.parametrize(
    ("samples", "keep", "field"),
    [
        ([sample("8", right=0.0)], {}, "keep.at_least.puzzle_answer=1.0"),
        ([sample("9", finished=False)], {}, "sampling.max_completion_length"),
        (
            [sample("9", reward=2.0)],
            {"at_least": {"reward": 2.5}},
            "keep.at_least.reward=2.5",
        ),
        ([sample("9")], {"decontaminate": ("held_out",)}, "keep.decontaminate"),
    ],
)
def test_a_filter_that_rejects_everything_names_its_field_and_writes_nothing(
    tmp_path, samples, keep, field
):
    """Oracle: the message, and the folder."""
    folder = written(tmp_path / "samples", ("source", samples))
    with pytest.raises(ValueError, match=f"^{field}: nothing is left of 1 completions: 1 "):
        write_sifted(settings(**keep), folder, Evaluation(["0?"], [], 10), tmp_path / "dataset")
    assert not list((tmp_path / "dataset").rglob("dataset_info.json"))


def test_what_is_written_is_what_fine_tuning_reads(tmp_path):
    """Oracle: the samples, by read_conversations, and fates.json."""
    texts = [sample("<think>4 + 5 = 9</think>\n9"), sample("猫 9")]
    folder = written(tmp_path / "samples", ("source", texts[:1]), ("numbers", texts[1:]))
    write_sifted(settings(), folder, None, tmp_path / "dataset")
    path = tmp_path / "dataset" / "teacher_conversations" / "1.0.0"
    source = read_conversations(path, None)
    read = sorted((source[i]["messages"] for i in range(len(source))), key=repr)
    assert read == [
        [{"role": "user", "content": q}, {"role": "assistant", "content": s["text"]}]
        for q, s in zip(("0?", "1?"), texts, strict=True)
    ]
    fates = json.loads((tmp_path / "dataset" / "fates.json").read_text())
    assert fates == {"source": {"kept": 1}, "numbers": {"kept": 1}}
