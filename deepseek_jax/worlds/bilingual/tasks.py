"""The bilingual world's questions: training sets and held-out sets.

An example is a dict of str: question, answer, language ("en" or "zh"), kind, problem (the question
without a language), and solution: a good completion in tags, with its thought only in the
question's language. A request also has its key, which request_rewards reads. Held-out problems are
the problems for which words.held_out is true; no corpus document contains them.
"""

from dataclasses import asdict

import numpy as np

from deepseek_jax.data.tasks import Task
from deepseek_jax.worlds.bilingual import general as bilingual_general
from deepseek_jax.worlds.bilingual import puzzles as bilingual_puzzles
from deepseek_jax.worlds.bilingual import words as bilingual
from deepseek_jax.worlds.bilingual.words import LANGUAGES

# Questions to train on, out of tens of thousands
NUM_PUZZLES = 4096
NUM_REQUESTS = 2048
# Number of repeated draws in a row after which no new puzzle is expected
MAX_MISSES = 2000


def bilingual_puzzle_task(seed: int, num_held_out: int = 256):
    """Make sums and countdowns, equally many of each in each language.

    `seed` chooses among them.

    Raises:
        ValueError: If there are fewer held-out puzzles than num_held_out.
    """
    return Task(
        puzzle_examples(seed, NUM_PUZZLES), puzzle_examples(seed, num_held_out, held_out=True)
    )


def bilingual_request_task(seed: int, num_held_out: int = 256):
    """Make requests: lookups, translations, lists to reverse and secrets to refuse.

    Their proportions are as in request_examples.

    Raises:
        ValueError: If there are fewer held-out requests than num_held_out.
    """
    return Task(
        request_examples(seed, NUM_REQUESTS), request_examples(seed, num_held_out, held_out=True)
    )


def puzzle_examples(seed: int, n: int, *, held_out: bool = False):
    """Make n puzzles that differ in problem or language, as many of each kind in each language."""
    rng = np.random.default_rng(seed)
    examples: list[dict] = []
    sorts = [(kind, language) for kind in bilingual_puzzles.KINDS for language in LANGUAGES]
    for (kind, language), share in zip(sorts, _shares(n, len(sorts)), strict=True):
        example_by_problem: dict[str, dict] = {}
        misses = 0
        while len(example_by_problem) < share:
            puzzle = bilingual_puzzles.draw_puzzle(rng, kind, held_out=held_out)
            misses = misses + 1 if puzzle.problem in example_by_problem else 0
            if misses == MAX_MISSES:
                _too_many(
                    n, "puzzles", f"{share} of {kind}, but there are only {len(example_by_problem)}"
                )
            example_by_problem[puzzle.problem] = _puzzle_example(puzzle, language)
        examples += example_by_problem.values()
    return [examples[i] for i in rng.permutation(n)]


def request_examples(seed: int, n: int, *, held_out: bool = False):
    """Make n distinct requests.

    They are all lookups and secrets, or n / 2 of them if there are more; the rest are half
    translations and half lists.
    """
    rng = np.random.default_rng(seed)
    requests = [
        r for r in bilingual_general.all_requests() if bilingual.held_out(r.problem) == held_out
    ]
    few_requests = [r for r in requests if r.kind in ("lookup", "secret")]
    chosen_requests = _draw(rng, few_requests, min(len(few_requests), n // 2))
    shares = _shares(n - len(chosen_requests), 2)
    for kind, share in zip(("translate", "reverse"), shares, strict=True):
        kind_requests = [r for r in requests if r.kind == kind]
        if len(kind_requests) < share:
            _too_many(n, "requests", f"{share} of {kind}, but there are only {len(kind_requests)}")
        chosen_requests += _draw(rng, kind_requests, share)
    return [_request_example(chosen_requests[i]) for i in rng.permutation(n)]


def _puzzle_example(puzzle, language):
    return {
        "question": puzzle.question(language),
        "answer": puzzle.answer,
        "language": language,
        "kind": puzzle.kind,
        "problem": puzzle.problem,
        "solution": bilingual_puzzles.solution(puzzle, language),
    }


def _request_example(request):
    return asdict(request) | {"solution": bilingual_general.solution(request)}


def _shares(n, num_shares):
    return np.diff(np.linspace(0, n, num_shares + 1).astype(int)).tolist()


def _draw(rng, items, n):
    return [items[i] for i in rng.choice(len(items), size=n, replace=False)]


def _too_many(n, name, shortage):
    raise ValueError(f"{n} different {name} need {shortage}; lower num_held_out.")
