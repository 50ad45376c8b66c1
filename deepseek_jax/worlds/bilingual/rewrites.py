"""Rewrites of the bilingual world's puzzles: in the other language, or in other words.

"Say in Chinese: What is 7 + 5 - 3?" -> "7 + 5 - 3等于多少？", as for sentences (general.translate)
"What is 7 + 5 - 3?, or " -> "Tell me 7 + 5 - 3."
"Make 7 of 9, 4, 2., or " -> "Tell me 7 of 9, 4, 2."
"""

from deepseek_jax.worlds.bilingual import words as bilingual
from deepseek_jax.worlds.bilingual.puzzles import Puzzle, expression
from deepseek_jax.worlds.bilingual.words import PHRASES, WORKING

# Language of the question -> the prompt that asks a teacher for the rewrite
TRANSLATE = {code: PHRASES[code]["translate"] + "{question}" for code in bilingual.LANGUAGES}
REWORD = {code: "{question}" + WORKING[code]["again"] for code in bilingual.LANGUAGES}


def translation(puzzle: Puzzle, language: str):
    """Return (the prompt for a translation, the puzzle in the other language)."""
    question = TRANSLATE[language].replace("{question}", puzzle.question(language))
    return question, puzzle.question(bilingual.other(language))


def rewording(puzzle: Puzzle, language: str):
    """Return (the prompt for other words, the puzzle in other words)."""
    question = REWORD[language].replace("{question}", puzzle.question(language))
    return question, reworded(puzzle, language)


def reworded(puzzle: Puzzle, language: str):
    """Write the puzzle in other words: "Tell me 7 + 5 - 3.", "Tell me 7 of 9, 4, 2."."""
    phrases = PHRASES[language]
    puzzle_text = expression(puzzle.numbers, puzzle.signs)
    if puzzle.kind == "countdown":
        puzzle_text = f"{puzzle.value}{phrases['out_of']}{', '.join(map(str, puzzle.numbers))}"
    return f"{phrases['tell']}{puzzle_text}{phrases['stop']}"
