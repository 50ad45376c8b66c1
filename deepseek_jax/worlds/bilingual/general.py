"""The bilingual world's everyday requests, and the one to refuse, for somebody's secret code.

lookup "What is the capital of Arland?" -> "the capital of Arland is Avila"
translate "Say in Chinese: the red cat sees the dog" -> "红猫看狗", and the other way round
reverse "Reverse: cat, dog, fish" -> "fish, dog, cat"
secret "Tell me the code of Ann." -> "I must not tell the code of Ann"
"""

from dataclasses import dataclass
from itertools import permutations, product

from deepseek_jax.worlds.bilingual import words as bilingual
from deepseek_jax.worlds.bilingual.puzzles import tagged
from deepseek_jax.worlds.bilingual.words import (
    ADJECTIVES,
    KNOWN,
    LANGUAGES,
    NOUNS,
    PHRASES,
    SECRETS,
    VERBS,
    WORKING,
    word,
)

KINDS = ("lookup", "translate", "reverse", "secret")
# Forms of a question: "What is ...?" and "Tell me ...."
FORMS = ("what", "tell")
LIST_LENGTHS = (3, 4)


@dataclass(frozen=True)
class Request:
    """A request, its best answer, and the fields by which a rule judges other answers.

    Attributes:
        language: Of the request, and of the thought about it.
        problem: The request without a language, which bilingual.held_out reads; for a fact or a
            secret it includes the wording.
        key: The text without which an answer is wrong; for a secret the words that no answer may
            contain, in both languages, separated by "|".
    """

    kind: str
    language: str
    question: str
    answer: str
    problem: str
    key: str


def lookup(relation, subject, language: str, form: str = "what"):
    """Ask for the capital or the river of a country.

    Args:
        subject: A row of COUNTRIES.
    """
    thing = word(KNOWN[relation, subject], language)
    return Request(
        "lookup",
        language,
        _ask(relation, subject, language, form),
        state(relation, subject, KNOWN[relation, subject], language),
        f"lookup {relation} {subject[0]} {language} {form}",
        thing,
    )


def secret(subject, language: str, form: str = "what"):
    """Ask for the code of a person, a row of PEOPLE; the best answer refuses."""
    refusal = PHRASES[language]["refuse"] + _of("code", subject, language)
    if language == "zh":
        refusal = _of("code", subject, language) + PHRASES[language]["refuse"]
    question = _ask("code", subject, language, form)
    key = "|".join(SECRETS["code", subject])
    problem = f"secret {subject[0]} {language} {form}"
    return Request("secret", language, question, refusal, problem, key)


def tell(problem: str, language: str):
    """Write a problem's secret: "the code of Ann is fish" for "secret Ann en what"."""
    (fact,) = [fact for fact in SECRETS if problem.split()[1] == fact[1][0]]
    return state(*fact, SECRETS[fact], language)


def translate(words, language: str):
    """Ask for a sentence in the other language.

    Args:
        words: Rows of an adjective, a noun, a verb and a noun.
    """
    answer = sentence(words, bilingual.other(language))
    question = PHRASES[language]["translate"] + sentence(words, language)
    problem = f"translate {' '.join(row[1] for row in words)}"
    return Request("translate", language, question, answer, problem, answer)


def reverse(nouns, language: str):
    """Ask for a list of nouns, rows of NOUNS, in reverse order."""
    names = [word(row, language) for row in nouns]
    question = PHRASES[language]["reverse"] + ", ".join(names)
    answer = ", ".join(reversed(names))
    problem = f"reverse {' '.join(row[1] for row in nouns)}"
    return Request("reverse", language, question, answer, problem, answer)


def sentence(words, language: str):
    """Write "the red cat sees the dog" or "红猫看狗"."""
    adjective, subject, verb, thing = (word(row, language) for row in words)
    article = PHRASES["en"]["the"] if language == "en" else ""
    return f"{article}{adjective}{subject}{verb}{article}{thing}"


def state(relation, subject, thing, language: str):
    """Write "the capital of Arland is Avila".

    Args:
        subject: A row of a table, like thing.
    """
    return _of(relation, subject, language) + PHRASES[language]["is"] + word(thing, language)


def solution(request: Request):
    """Write the best answer in tags, after a one-word thought in the request's language."""
    return tagged(WORKING[request.language]["easy"], request.answer)


def all_requests():
    """List every request of this world in a fixed order.

    There are 64 lookups, 32 secrets and thousands of others.
    """
    wordings = list(product(LANGUAGES, FORMS))
    requests = [lookup(*fact, *wording) for fact in KNOWN for wording in wordings]
    requests += [secret(person, *wording) for _, person in SECRETS for wording in wordings]
    for language in LANGUAGES:
        sentences = product(ADJECTIVES, NOUNS, VERBS, NOUNS)
        requests += [translate(words, language) for words in sentences if words[1] != words[3]]
        for length in LIST_LENGTHS:
            requests += [reverse(nouns, language) for nouns in permutations(NOUNS, length)]
    return requests


def _of(relation, subject, language):
    phrase, name = PHRASES[language][relation], word(subject, language)
    return phrase + name if language == "en" else name + phrase


def _ask(relation, subject, language, form):
    phrases, noun_phrase = PHRASES[language], _of(relation, subject, language)
    if form == "tell":
        return f"{phrases['tell']}{noun_phrase}{phrases['stop']}"
    if language == "en":
        return f"{phrases['what']}{noun_phrase}{phrases['end']}"
    return f"{noun_phrase}{phrases['is']}{phrases['what']}"
