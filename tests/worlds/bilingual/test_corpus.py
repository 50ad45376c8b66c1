"""The bilingual corpus: what its documents ask, how they answer, and in which languages."""

import re
from collections import Counter
from math import sqrt

import numpy as np
import pytest

from deepseek_jax.data.chat import R1_ZERO_TEMPLATE
from deepseek_jax.rewards.language import language_share
from deepseek_jax.worlds.bilingual import general as bilingual_general
from deepseek_jax.worlds.bilingual import puzzles
from deepseek_jax.worlds.bilingual import words as bilingual
from deepseek_jax.worlds.bilingual.corpus import CorpusMix, CorpusWriter
from deepseek_jax.worlds.bilingual.mistakes import slip, wrong_answer
from deepseek_jax.worlds.bilingual.puzzle_rewards import puzzle_answer

NUM_DOCUMENTS = 20_000
BEFORE, AFTER = R1_ZERO_TEMPLATE.split("{question}")
CHAIN = r"\d+(?: [+-] \d+)+"
SUM = re.compile(rf"(?P<en>What is (?P<a>{CHAIN})\?)|(?P<zh>(?P<b>{CHAIN})等于多少？)")
COUNTDOWN = re.compile(r"(?:Make|凑出) ?(\d+)(?: of |，用)(\d+), (\d+), (\d+)[.。]")
STEP = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")
REQUESTS = {r.question: r for r in bilingual_general.all_requests()}


@pytest.fixture(scope="module")
def documents():
    rng, writer = np.random.default_rng(0), CorpusWriter()
    return [writer.write(rng) for _ in range(NUM_DOCUMENTS)]


@pytest.fixture(scope="module")
def asked(documents):
    """(question, completion, whether in the R1-Zero template) of every document that asks."""
    found = []
    for text in documents:
        if text.startswith(BEFORE):
            question, completion = text.removeprefix(BEFORE).split(AFTER, 1)
            found.append((question, completion, True))
        elif "\n" in text:
            question, completion = text.split("\n", 1)
            if SUM.fullmatch(question) or COUNTDOWN.fullmatch(question) or question in REQUESTS:
                found.append((question, completion, False))
    return found


@pytest.fixture(scope="module")
def answered(asked):
    """(gold answer, kind, language, completion) of every puzzle, solved by brute force."""
    found = []
    for question, completion, _ in asked:
        language = "en" if question[0] in "WM" else "zh"
        if match := SUM.fullmatch(question):
            found.append((str(eval(match["a"] or match["b"])), "sum", language, completion))
        elif match := COUNTDOWN.fullmatch(question):
            target, *numbers = map(int, match.groups())
            chains = [puzzles.expression(numbers, (a, b)) for a in (1, -1) for b in (1, -1)]
            (gold,) = [c for c in chains if eval(c) == target]
            found.append((gold, "countdown", language, completion))
    return found


def assert_share(hits, total, share):
    """5 standard deviations of the binomial: one false alarm in a million draws."""
    assert abs(hits / total - share) < 5 * sqrt(share * (1 - share) / total)


def style(completion):
    if not re.search(r"<think>|先|first |maybe|猜|^\d+( [+-] \d+)*$", completion):
        return "junk"
    return "worked" if " = " in completion else "direct"


def test_no_document_asks_a_held_out_problem(asked):
    """Oracle: the problem read back from every question's text, and bilingual.held_out."""
    for question, *_ in asked:
        if match := SUM.fullmatch(question):
            problem = f"sum {match['a'] or match['b']}"
        elif match := COUNTDOWN.fullmatch(question):
            target, *numbers = map(int, match.groups())
            problem = f"countdown {target} {tuple(numbers)}"
        else:
            problem = REQUESTS[question].problem
        assert not bilingual.held_out(problem)


def test_shares_of_the_documents_are_those_of_the_mix(documents, asked, answered):
    """Oracle: the mix, within 5 standard deviations."""
    mix, n = CorpusMix(), NUM_DOCUMENTS
    tables = [d for d in documents if re.fullmatch(rf"({STEP.pattern}, ){{5}}{STEP.pattern}", d)]
    assert_share(len(tables), n, mix.fact_tables)
    assert_share(n - len(tables) - len(asked), n, mix.statements)
    assert_share(len(asked) - len(answered), n, mix.requests)
    assert_share(
        sum(kind == "countdown" for _, kind, _, _ in answered), len(answered), mix.countdown
    )
    assert_share(sum(templated for *_, templated in asked), len(asked), mix.templates)
    assert_share(sum(language == "en" for _, _, language, _ in answered), len(answered), 0.5)


def test_fact_tables_are_true_and_hold_every_fact(documents):
    """Oracle: each fact by eval."""
    tables = [d for d in documents if re.fullmatch(rf"({STEP.pattern}, ){{5}}{STEP.pattern}", d)]
    facts = {f for table in tables for f in table.split(", ")}
    assert all(eval(fact.replace("=", "==")) for fact in facts)
    assert facts == {puzzles.write_fact(*fact) for fact in puzzles.all_facts()}


def test_answers_are_direct_worked_or_junk_and_wrong_as_often_as_the_mix_says(answered):
    """Oracle: the mix, and the rule reward against answers found by brute force."""
    mix, counts, right = CorpusMix(), Counter(), Counter()
    for gold, _, _, completion in answered:
        how = style(completion)
        counts[how] += 1
        right[how] += puzzle_answer(completion, {"answer": gold})
    n = len(answered)
    assert abs(counts["junk"] / n - mix.junk) < 0.015  # a little of it begins like an answer
    assert abs(counts["direct"] / n - mix.direct) < 0.015 + 5 * sqrt(0.25 / n)
    assert abs(right["direct"] / counts["direct"] - (1 - mix.wrong_direct)) < 0.04
    assert abs(right["worked"] / counts["worked"] - (1 - mix.wrong_working)) < 0.04


def test_working_changes_its_language_as_often_as_the_mix_says(answered):
    """Oracle: the script of each connective before a step, read by rewards.language."""
    mix, starts, switches, own, changed = CorpusMix(), 0, 0, 0, 0
    for _, _, language, completion in answered:
        thought = re.fullmatch("<think>(.*)</think><answer>.*</answer>", completion)
        if thought and " = " in completion:
            words = re.split(rf"{STEP.pattern}", re.sub(" (no|yes)|[错对]", "", thought[1]))[::5]
            scripts = ["zh" if language_share(word, "zh") else "en" for word in words if word]
            starts, own = starts + 1, own + (scripts[0] == language)
            pairs = list(zip(scripts, scripts[1:], strict=False))
            switches += len(pairs)
            changed += sum(a != b for a, b in pairs)
    assert starts > 1000
    assert_share(own, starts, mix.own_language)
    assert_share(changed, switches, mix.switch)


def test_secrets_are_told_and_never_refused(asked):
    """Oracle: the requests' own answers and keys."""
    told = 0
    for question, completion, _ in asked:
        request = REQUESTS.get(question)
        if request and request.kind == "secret":
            assert request.answer not in completion
            told += any(word in completion for word in request.key.split("|"))
    assert told > 300


def test_mistakes_are_mistakes():
    """Oracle: the rule reward; and a countdown's wrong search has true steps, a sum's one false."""
    rng = np.random.default_rng(0)
    for kind in puzzles.KINDS * 200:
        puzzle = puzzles.draw_puzzle(rng, kind)
        steps, answer = slip(rng, puzzle)
        for wrong in (answer, wrong_answer(rng, puzzle)):
            assert puzzle_answer(wrong, {"answer": puzzle.answer}) == 0.0
        false_steps = sum(a + sign * b != c for _, a, sign, b, c, _ in steps)
        assert false_steps == (kind == "sum")
        assert all(0 <= c <= bilingual.LARGEST_NUMBER for *_, c, _ in steps)
        if kind == "sum":
            assert [s[1] for s in steps[1:]] == [s[4] for s in steps[:-1]]


def test_the_generator_alone_decides_the_document():
    """Oracle: two generators of one seed; another seed."""
    writer = CorpusWriter()
    first, again, other = (
        [writer.write(rng) for _ in range(20)] for rng in map(np.random.default_rng, (7, 7, 8))
    )
    assert first == again != other


def test_a_mix_without_mistakes_solves_every_puzzle_in_its_own_language():
    """Oracle: the solution of each puzzle, read back from the question."""
    mix = CorpusMix(
        fact_tables=0, statements=0, requests=0, countdown=0, templates=0, tags=1, direct=0, junk=0
    )
    mix = CorpusMix(**{**vars(mix), "wrong_working": 0, "own_language": 1, "switch": 0})
    rng, writer = np.random.default_rng(0), CorpusWriter(mix)
    for _ in range(200):
        question, completion = writer.write(rng).split("\n")
        numbers = [int(x) for x in re.findall(r"\d+", question)]
        signs = tuple(1 if s == "+" else -1 for s in re.findall("[+-]", question))
        puzzle = puzzles.Puzzle("sum", tuple(numbers), signs)
        language = "en" if question.startswith("What") else "zh"
        assert completion == puzzles.solution(puzzle, language)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"wrong_direct": -0.1}, "wrong_direct=-0.1 is not a share"),
        ({"switch": 1.2}, "switch=1.2 is not a share"),
        (
            {"fact_tables": 0.9},
            r"fact_tables \+ statements \+ requests \+ rewrites = .* is above 1",
        ),
        ({"direct": 0.6, "junk": 0.5}, r"direct \+ junk = 1.1 is above 1"),
    ],
)
def test_a_mix_that_is_no_mix_is_refused_by_name(wrong, complaint):
    """Oracle: the message names the field."""
    with pytest.raises(ValueError, match=complaint):
        CorpusMix(**wrong)
