"""Classes of words around a number, English and Chinese: words that change it, words that do not.

As far as possible, these are classes that a language does not add to: numerals, prepositions,
pronouns, short units. Nouns and adjectives are not listed.

Tests: tests/rewards/test_quantity.py, tests/rewards/test_answer.py.
"""

import functools
import re

from deepseek_jax.rewards.number import tidy

# ½, ² and similar characters are not letters
LETTER = r"[^\W\d_¹²³¼-¾⁰-₉⅐-↉]"
WORD = rf"{LETTER}+(?:['’/-]{LETTER}+)*(?:(?<=s)['’])?"

CARDINALS = frozenset(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety tens sixes basis
    pi""".split()
)
# Numbers that serve as adjectives before a noun: "5 third graders", "5 double rooms"
ADJECTIVES = re.compile(
    r"half|negative|minus|once|twice|thrice|double|triple|quadruple|quarter|third|fourth|fifth|sixth|seventh"
    r"|eighth|ninth|tenth|eleventh|twelfth|[a-z]+(?:teenth|tieth)|(?:hundred|thousand|[a-z]+illion)th"
)
FRACTIONS = re.compile(
    rf"halves|(?:twen|thir|for|fif|six|seven|eigh|nine)ties|(?:{ADJECTIVES.pattern})s|[a-z]+fold|[a-z]+illions?"
)
# Words that multiply the number before them, here in the singular
SCALES = dict(hundred=10**2, thousand=10**3, lakh=10**5, crore=10**7, dozen=12, score=20, gross=144)
SCALES |= dict(grand=10**3, mln=10**6, mio=10**6, bn=10**9, bln=10**9, mrd=10**9)
SCALES |= {
    f"{name}illion": 1000**power
    for power, name in enumerate("m b tr quadr quint sext sept oct non dec".split(), start=2)
}
# The case of these letters counts: m is a metre, M is a million
LETTER_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
ABBREVIATIONS = frozenset(
    """c f g h j l m s v w cm mm km kg kgs mg lb lbs oz ft in yd ml dl cl cc hr hrs min mins sec am pm yr yrs
    wk wks mi mph kph kw kwh sq mb gb tb hz kb ms rpm cal kcal gal qt pt tsp tbsp usd eur gbp inr cad aud jpy
    cny""".split()
)
# Plurals without an s, and money
IRREGULAR = frozenset(
    """people children men women feet teeth geese mice sheep fish deer dice oxen percent yen yuan won euro
    baht rand""".split()
)
# Words with which a sentence continues after a number: prepositions, articles, pronouns, adverbs
# of quantity
FUNCTION = frozenset(
    """a an the this that these those each every all both any some such his her its their our your my of in
    on at to for from with without by per as than into onto during after before until since within across
    around about between among over under above below through via if when while where which who whom whose
    because so hence thus therefore then and but he she it they we you i there here more less fewer left
    remaining remain remains total altogether together overall combined extra additional away apart ago old
    long tall wide high deep short leftover out worth only too also again later still yet now today tomorrow
    yesterday""".split()
)
# Verbs after a number, as in "5 is the total". The content of a mark is no such sentence
VERBS = frozenset(
    """is are was were be been has have had do does did can could will would shall should may might must need
    needs makes gives equals""".split()
)
NEGATIONS = frozenset(
    "not never no nor neither cannot without hardly wrong incorrect false".split()
)
NEGATED = re.compile(r"[a-z]+n['’]t")
# Before a number, these words make it a part of a product or a comparison
JOINS = frozenset(
    """nor per than times plus mod modulo over under above below beyond exceeding versus vs least most
    twice but except unlike sqrt log ln exp""".split()
)
# These words do so only after another number: in "4 to 5", but not in "comes to 5"
LINKS = frozenset("and or to by through from minus".split())

# The first character of East Asian scripts in Unicode
FIRST_OF_CHINESE = "\u2e80"
HAN_SCALES = {
    "百": 10**2,
    "千": 10**3,
    "万": 10**4,
    "萬": 10**4,
    "亿": 10**8,
    "億": 10**8,
    "打": 12,
}
# Characters that change the number before them: numerals and arithmetic
HAN_CHANGES = frozenset(
    "〇零一二两兩三四五六七八九十百千万萬亿億兆佰仟几幾半打倍成折分点點又负加减乘除或不"
)
# Characters that make the number after them a part of something else: not, at least, above,
# the 5th, and the sign of a fraction
HAN_BEFORE = re.compile("[不非第]|至[少多]|超过|[大小多少高低]于|分之")
# One letter that touches a number is its unit only if the question has the unit's name
LETTER_UNITS = {
    "m": "meter metre minute",
    "g": "gram",
    "l": "liter litre",
    "h": "hour",
    "s": "second",
}
HAN_UNITS = ("千克", "千米")


def changes(word: str):
    """Return True if a word, in lower case, may change the number next to it."""
    if (
        {word, singular(word)} & CARDINALS
        or word in JOINS
        or singular(word) in SCALES
        or denies(word)
    ):
        return True
    return bool(ADJECTIVES.fullmatch(word) or FRACTIONS.fullmatch(word))


def denies(word: str):
    """Return True if a word, in lower case, denies a statement: "not", "wrong", "isn't"."""
    return word in NEGATIONS or bool(NEGATED.fullmatch(word))


def singular(word: str):
    """Return a word without the s of a plural."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


@functools.lru_cache(1024)
def words_of(question: str | None):
    """Return the words of a question, in lower case and in the singular: a set of str."""
    return {singular(word.lower()) for word in re.findall(WORD, tidy(str(question or "")))}
