"""A toy world in English and Chinese: its words, and its facts.

Puzzles with numbers (puzzles.py) and everyday requests (general.py) are in one of the two
languages, and their answers in a closed vocabulary: a number, a word with its spaces, a tag and
each half of the R1-Zero template are one piece. A connective of the working is one word in English
and one character in Chinese, so rewards.language gives the two languages equal weight.
"""

from hashlib import blake2b

from deepseek_jax.data.chat import R1_ZERO_TEMPLATE

LANGUAGES = ("en", "zh")
LARGEST_NUMBER = 49
HELD_OUT_PERCENT = 20

SYMBOLS = (" + ", " - ", " = ", ", ", "\n")
THINK, END_THINK, ANSWER, END_ANSWER = TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# Connectives of the working, by role
WORKING = {
    "en": {
        "first": "first ",
        "again": ", or ",
        "then": ", then ",
        "so": ", so ",
        "guess": "maybe ",
        "easy": "easy",
        "no": " no",
        "yes": " yes",
    },
    "zh": {
        "first": "先",
        "again": "，改",
        "then": "，再",
        "so": "，得",
        "guess": "猜",
        "easy": "易",
        "no": "错",
        "yes": "对",
    },
}

# Pieces of the questions, and of the answers to everyday requests
PHRASES = {
    "en": {
        "what": "What is ",
        "end": "?",
        "make": "Make ",
        "out_of": " of ",
        "stop": ".",
        "tell": "Tell me ",
        "capital": "the capital of ",
        "river": "the river of ",
        "code": "the code of ",
        "is": " is ",
        "translate": "Say in Chinese: ",
        "reverse": "Reverse: ",
        "refuse": "I must not tell ",
        "the": "the ",
    },
    "zh": {
        "equals_what": "等于多少？",
        "make": "凑出",
        "out_of": "，用",
        "stop": "。",
        "tell": "请说",
        "capital": "的首都",
        "river": "的河",
        "code": "的密码",
        "is": "是",
        "what": "什么？",
        "translate": "用英文说：",
        "reverse": "倒序：",
        "refuse": "不能说",
    },
}

# Each row is the same word in English and in Chinese
ADJECTIVES = (("red ", "红"), ("big ", "大"), ("small ", "小"), ("white ", "白"))
NOUNS = (
    ("cat", "猫"),
    ("dog", "狗"),
    ("horse", "马"),
    ("fish", "鱼"),
    ("bird", "鸟"),
    ("sheep", "羊"),
    ("tiger", "虎"),
    ("snake", "蛇"),
)
VERBS = ((" sees ", "看"), (" likes ", "爱"), (" hears ", "听"), (" seeks ", "找"))
COUNTRIES = (
    ("Arland", "安国"),
    ("Borland", "波国"),
    ("Corland", "科国"),
    ("Dorland", "多国"),
    ("Ferland", "菲国"),
    ("Garland", "加国"),
    ("Harland", "哈国"),
    ("Kerland", "克国"),
)
CAPITALS = (
    ("Avila", "阿城"),
    ("Bonna", "本城"),
    ("Cadix", "迪城"),
    ("Delos", "德城"),
    ("Fermo", "费城"),
    ("Genna", "金城"),
    ("Hamar", "海城"),
    ("Kells", "凯城"),
)
RIVERS = (
    ("Arno", "阿河"),
    ("Bann", "班河"),
    ("Cher", "谢河"),
    ("Doon", "顿河"),
    ("Fal", "法河"),
    ("Glen", "格河"),
    ("Havel", "维河"),
    ("Kama", "卡河"),
)
PEOPLE = (
    ("Ann", "安妮"),
    ("Ben", "本恩"),
    ("Cleo", "可丽"),
    ("Dan", "丹尼"),
    ("Eva", "伊娃"),
    ("Finn", "芬恩"),
    ("Gus", "古斯"),
    ("Hope", "霍普"),
)

# (relation, subject) -> object, as rows of the tables above. The codes are the secrets
KNOWN = {("capital", s): o for s, o in zip(COUNTRIES, CAPITALS, strict=True)}
KNOWN |= {("river", s): o for s, o in zip(COUNTRIES, RIVERS, strict=True)}
SECRETS = {("code", s): o for s, o in zip(PEOPLE, NOUNS[3:] + NOUNS[:3], strict=True)}

WORD_TABLES = (ADJECTIVES, NOUNS, VERBS, COUNTRIES, CAPITALS, RIVERS, PEOPLE)


def _pieces():
    numbers = map(str, range(LARGEST_NUMBER + 1))
    words = [word for table in WORD_TABLES for row in table for word in row]
    phrases = [
        piece
        for by_role in (WORKING, PHRASES)
        for code in LANGUAGES
        for piece in by_role[code].values()
    ]
    everything = [
        *numbers,
        *SYMBOLS,
        *TAGS,
        *R1_ZERO_TEMPLATE.split("{question}"),
        *phrases,
        *words,
    ]
    # A piece's place is its token id, so the order must be fixed: not a set
    return tuple(dict.fromkeys(everything))


# Every text of this world is a sequence of these pieces
PIECES = _pieces()


def word(row, language: str):
    """Return the word of a table's row in "en" or "zh"."""
    return row[LANGUAGES.index(language)]


def other(language: str):
    """Return the other language."""
    return LANGUAGES[1 - LANGUAGES.index(language)]


def held_out(problem: str):
    """Return whether this problem is held out for evaluation.

    It is true for 20% of them, the same on every machine. There are few facts and secrets, and all
    are trained on: there the problem includes the wording, and a held-out question asks for a thing
    that training questions ask for too.

    Args:
        problem: The kind and content that puzzles and requests write without a language, so that a
            problem is held out in both languages.
    """
    # Not hash(), which differs between processes for a str
    digest = blake2b(problem.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT
