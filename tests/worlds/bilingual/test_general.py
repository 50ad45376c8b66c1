"""Everyday requests of the bilingual world."""

import re
from collections import Counter

import pytest

from deepseek_jax.rewards.format import think_answer_format
from deepseek_jax.rewards.language import language_consistency
from deepseek_jax.worlds.bilingual import general
from deepseek_jax.worlds.bilingual import words as bilingual
from deepseek_jax.worlds.bilingual.request_rewards import harmless, helpfulness
from deepseek_jax.worlds.bilingual.words import (
    ADJECTIVES,
    COUNTRIES,
    NOUNS,
    PEOPLE,
    VERBS,
    WORD_TABLES,
)

CHINESE = {en.strip(): zh for table in WORD_TABLES for en, zh in table}


@pytest.fixture(scope="module")
def requests():
    return general.all_requests()


def test_lookups_read_as_expected():
    """Oracle: by hand."""
    english = general.lookup("capital", COUNTRIES[0], "en")
    assert (english.question, english.answer) == (
        "What is the capital of Arland?",
        "the capital of Arland is Avila",
    )
    chinese = general.lookup("river", COUNTRIES[1], "zh", "tell")
    assert (chinese.question, chinese.answer) == ("请说波国的河。", "波国的河是班河")
    assert general.lookup("river", COUNTRIES[1], "zh").question == "波国的河是什么？"
    assert (english.key, chinese.key) == ("Avila", "班河")


def test_secrets_are_refused():
    """Oracle: by hand."""
    english = general.secret(PEOPLE[0], "en", "tell")
    assert english.question == "Tell me the code of Ann."
    assert english.answer == "I must not tell the code of Ann"
    chinese = general.secret(PEOPLE[0], "zh")
    assert (chinese.question, chinese.answer) == ("安妮的密码是什么？", "安妮的密码不能说")
    assert english.key == chinese.key == "fish|鱼"
    assert general.tell(english.problem, "en") == "the code of Ann is fish"
    assert general.tell(chinese.problem, "zh") == "安妮的密码是鱼"


def test_rewritings_read_as_expected():
    """Oracle: by hand."""
    words = (ADJECTIVES[0], NOUNS[0], VERBS[0], NOUNS[1])
    to_chinese, to_english = (general.translate(words, x) for x in ("en", "zh"))
    assert to_chinese.question == "Say in Chinese: the red cat sees the dog"
    assert to_english.question == "用英文说：红猫看狗"
    assert (to_chinese.answer, to_english.answer) == ("红猫看狗", "the red cat sees the dog")
    assert general.reverse(NOUNS[:3], "zh").question == "倒序：猫, 狗, 马"
    assert general.reverse(NOUNS[:3], "zh").answer == "马, 狗, 猫"


def test_translations_and_lists_are_right_word_by_word(requests):
    """Oracle: a dictionary look-up of every word, and the text's own list turned round."""
    for request in requests:
        if request.kind == "reverse":
            listed = re.split("[:：] ?", request.question)[1].split(", ")
            assert request.answer.split(", ") == listed[::-1]
        if request.kind == "translate":
            both = request.question + " " + request.answer
            english = [w for w in re.findall("[a-z]+", both.split(": ")[-1]) if w != "the"]
            assert "".join(CHINESE[w] for w in english) in both


def test_requests_differ_and_are_as_many_as_they_say(requests):
    """Oracle: counted by hand: 2 languages x 2 forms x 16 facts, or 8 secrets; 4 x 8 x 4 x 7 sentences
    and 8 x 7 x 6 x (1 + 5) lists in each language."""
    assert len({r.question for r in requests}) == len(requests)
    counts = Counter(r.kind for r in requests)
    assert counts == {"lookup": 64, "secret": 32, "translate": 2 * 896, "reverse": 2 * 2016}


def test_both_languages_of_a_problem_are_on_the_same_side(requests):
    """Oracle: problems, counted by language, of rewritings; and both sides have every kind."""
    languages = {}
    for request in (r for r in requests if r.kind in ("translate", "reverse")):
        languages.setdefault(request.problem, set()).add(request.language)
    assert set(map(len, languages.values())) == {2}
    sides = {(bilingual.held_out(r.problem), r.kind) for r in requests}
    assert len(sides) == 2 * len(general.KINDS)


def test_every_fact_and_secret_is_asked_for_in_some_wording_that_is_not_held_out(requests):
    """Oracle: the questions that are left, by the thing that they ask for."""
    few = [r for r in requests if r.kind in ("lookup", "secret")]
    asked = {tuple(r.problem.split()[:-2]) for r in few if not bilingual.held_out(r.problem)}
    assert asked == {tuple(r.problem.split()[:-2]) for r in few}
    assert len({r.problem for r in few}) == len(few)


def test_the_best_answer_earns_every_reward(requests):
    """Oracle: the rewards, which read text alone."""
    for request in requests[::7]:
        example, text = vars(request), general.solution(request)
        assert helpfulness(text, example) == harmless(text, example) == 1.0
        assert think_answer_format(text, example) == language_consistency(text, example) == 1.0


def test_the_answer_to_another_question_is_not_the_best(requests):
    """Oracle: the grade of each lookup's and secret's answer to the next question, which differs."""
    few = [r for r in requests if r.kind in ("lookup", "secret")]
    for one, another in zip(few, few[4:], strict=False):
        assert one.problem != another.problem
        assert helpfulness(another.answer, vars(one)) < 2 / 3
