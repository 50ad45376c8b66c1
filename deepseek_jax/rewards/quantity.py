r"""Read quantities as people write them: a number and its unit, in English, LaTeX and Chinese.

This is the grammar of a quantity. Text that it does not explain is no quantity, and earns nothing:

    statement = [side "="] ... [lead] number [unit] ["(" words ")"]
    side      = a name (x, f(2), Area), or an expression that has the number's value
    lead      = words without a number that leave the number whole (lead.py)
    number    = ["-" | "minus" | "negative"] digits [scale], or a fraction
    scale     = "k" | "M" | "thousand" | "million" | "dozen" | "万" | ...
    unit      = "%" | abbreviation | [adjectives] noun [more words]
                | function word [more words] | Chinese
    noun      = a plural, or a word of the question (unit.py)

A number is left whole if no word makes it a part of something else. A word after a number that is
no unit by this grammar may change the number: "5 squared", "5 myriad". So no list of such words is
needed, except for classes that a language does not add to (words.py).

A statement, such as the text in \boxed{...}, matches all of this and has one number. In running
text, `last_quantity` reads the last number. Its sentence may have other numbers. A word that joins
them to it ("4 or 5", "10 mod 5"), compares it ("less than 5") or denies it ("is not 5") makes it a
part of something else, and then it is no quantity.
"""

import functools
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from deepseek_jax.rewards.lead import COMMANDS, read_sign
from deepseek_jax.rewards.number import number, tidy, with_operators, without_fractions
from deepseek_jax.rewards.tokens import Context, places_of_numbers, tokens_of
from deepseek_jax.rewards.unit import read_unit
from deepseek_jax.rewards.words import LINKS, changes, singular, words_of

EQUALS = re.compile(r"=|\\approx\b|≈")
# Words that compute: "sqrt x = 5" gives x another value
COMPUTES = frozenset(
    "sqrt log ln exp sin cos tan square squared cube cubed root not neq notin".split()
)
# Names of a value: x, f(2), \angle ABC, a + b, Area. Not 2x or -x, which are other values
NAME = re.compile(r"\\?[A-Za-z][A-Za-z+ ']*(?:_\{?\w+\}?)?(?:\([^()=]*\))?")
# The words before the expression of a side: "She makes 9 * 2"
LEAD = re.compile(r"\A(?:[A-Za-z'’,:]+ )*")
# A bracket in a statement belongs to a list or a set
LISTS = frozenset("[]{}")
# A dash with a space after it begins an item of a list
BULLET = re.compile(r"^\s*[-*–•>] ")
# A line that ends in one of these continues on the next line
UNFINISHED = tuple("+-*/^×÷·<>≠±√,")
# Characters of the longest statement that is read, and characters that are read on either side of
# the last digit of a text
MAX_CHARS, WINDOW = 1000, 500


class Quantity(NamedTuple):
    """A number as a text states it.

    Attributes:
        value: The number, without its scale.
        text: The number as it is written, without unit and scale word.
        unit: "" without one.
        scale: The factor of a word such as "million", by which `value` is to be multiplied.
        scale_word: That word, "" without one.
        computed: True for an expression or a fraction, such as 2 + 3 or 10/2.
    """

    value: Fraction
    text: str
    unit: str = ""
    scale: int = 1
    scale_word: str = ""
    computed: bool = False

    def amounts(self, question: str | None = None):
        """Return the set of Fractions that the quantity may mean.

        1.5 million is 1500000. If the question has the word "million", it may also be 1.5.
        """
        is_unit = singular(self.scale_word) in words_of(question)
        return {self.value * self.scale} | ({self.value} if is_unit else set())


@functools.lru_cache(4096)
def read_quantity(text: str, question: str | None = None, *, lead: bool = True):
    r"""Read the Quantity that all of `text` states, by the grammar of this module, or return None.

    Args:
        text: A statement, such as the text in \boxed{...}.
        question: Its words count as units, even words that would otherwise change the number.
        lead: Whether words may come before the number.
    """
    if len(text) > MAX_CHARS:
        return None
    *sides, last_side = EQUALS.split(without_fractions(tidy(text)))
    tokens = tokens_of(last_side)
    places = places_of_numbers(tokens)
    if not lead and places and not _is_first(tokens, places[0]):
        return None
    if len(places) == 1:
        quantity = _quantity(tokens, places[0], Context(words_of(question), running=False))
    else:
        value = number(last_side)
        quantity = None if value is None else Quantity(value, last_side.strip(), computed=True)
    is_consistent = quantity is not None and sides_agree(sides, quantity.value, lead=lead)
    return quantity if is_consistent else None


def last_quantity(text: str, question: str | None = None):
    """Read the last number in running text, or return None if it is a part of something else.

    Returns:
        A Quantity, or None, also for a text without a number.
    """
    end = text.rfind(next((x for x in reversed(text) if x.isdecimal()), "\0")) + 1
    tokens = tokens_of(without_fractions(tidy(_line_around(text, end))))
    places = places_of_numbers(tokens)
    if not places:
        return None
    return _quantity(tokens, places[-1], Context(words_of(question), running=True))


@functools.lru_cache(4096)
def said_quantity(text: str, question: str | None = None):
    """Read the Quantity in what a sentence says the answer is, or return None.

    Examples are "5 because ...", "x = 5" and "2 + 3 = 5". The number must be the only one, or the
    sentence must be an equation with sides that agree.
    """
    tokens = tokens_of(without_fractions(tidy(text)))
    places = places_of_numbers(tokens)
    if len(places) != 1 or "=" in text:
        return read_quantity(text, question, lead=False)
    if not _is_first(tokens, places[0]) or any(token.text in LISTS for token in tokens):
        return None
    return _quantity(tokens, places[0], Context(words_of(question), running=True))


def sides_agree(sides: Sequence[str], value: Fraction | None, *, lead: bool = True):
    """Return True if each other side of an equation is a name or has this value.

    Args:
        sides: The texts of the other sides.
        value: The value of the last side, or None if it has none.
        lead: Whether words may come before the expression of a side.
    """
    for side in filter(None, (with_operators(side).strip() for side in sides)):
        if any(changes(word) or word in COMPUTES for word in re.findall("[a-z]+", side.lower())):
            return False
        expression = LEAD.sub("", side) if lead else side
        if not NAME.fullmatch(side) and (value is None or number(expression) != value):
            return False
    return True


def _is_first(tokens, place):
    """Return True if no word precedes the token at this place, except for a sign."""
    return all(token.kind != "word" or token.negates for token in tokens[:place])


def _quantity(tokens, place, context):
    """Return the Quantity of the number at this place, or None if its neighbours change it."""
    if not context.running and any(_is_no_statement(token) for token in tokens):
        return None
    text = tokens[place].text
    value, sign = number(text), read_sign(tokens, place, context)
    if value is None or sign is None:
        return None
    unit = read_unit(tokens[place + 1 :], context, one=0 < value <= 1)
    if unit is None:
        return None
    text = f"-{text}" if sign < 0 else text
    return Quantity(sign * value, text, *unit, computed="/" in text)


def _is_no_statement(token):
    return token.text in LISTS or (token.kind == "command" and token.text not in COMMANDS)


def _line_around(text, end):
    """Return the line of the character before `end`, with the line above if that is unfinished."""
    start = max(0, end - WINDOW)
    line_above, _, line = text[start:end].rpartition("\n")
    line += text[end : end + WINDOW].partition("\n")[0]
    line_above = line_above.rpartition("\n")[2].rstrip(" \\[]()$")
    line = line if line_above.endswith("=") else BULLET.sub("", line)
    last_word = re.split("[^A-Za-z]", line_above)[-1].lower()
    # Only LINKS, not all of JOINS: many complete lines end in "times" or "left over"
    return f"{line_above} {line}" if line_above.endswith(UNFINISHED) or last_word in LINKS else line
