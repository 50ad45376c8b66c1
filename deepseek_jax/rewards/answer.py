"""Is the final answer right: extract it from the text, then compare numbers as fractions.

A text marks its answer with \boxed{...}, <answer> tags or "####", and may say "the answer is 5". Where two of
these differ there is no answer: a policy that states two would be paid for either.
"""

import re
from collections.abc import Mapping

from deepseek_jax.rewards.number import NUMERAL, SCALES, number, plain

# A minus after a digit, a period or a closing bracket subtracts; elsewhere it is a sign
SIGN = r"(?:(?<![\d.)])(?<![\d.)]\s)(?:[-−–]|(?:minus|negative)\s))?"
# A number with what changes it: "5 million", "5 or six", "5%", "5²", "5½" and "5万" are not 5
SCALED = rf"\s(?:(?:or|plus|minus|times|point)\s|and\sa\s)?(?:{'|'.join(sorted(SCALES))}|percent)\b"
GLUED = r"[⁰¹²³⁴-⁹¼-¾⅐-⅞]+|\^\{?\d+|\s?(?-i:[kKMB])\b|\s?(?:[百万亿]|千(?![克米]))"
CHANGED = rf"(?:\$?(?:\s?\\?[%‰]|{GLUED}|{SCALED}))?"
FRACTION = r"\\[dt]?frac\{\d+\}\{\d+\}"
STATED_NUMBER = rf"{SIGN}(?:{FRACTION}|(?:{NUMERAL})(?:/\d+)?){CHANGED}"
LAST_NUMBER = re.compile(STATED_NUMBER, re.I)
# What makes the number after it a part of something else: 2 + 3, 4 or 5, [4, 5], x_5, \sqrt{5}, not 5
BLANKS = r"[^\S\n]*"
OPERATION = rf"[\d)}}]\$?{BLANKS}(?:[-−–+*/×÷·^~x]|(?:or|and|to|plus|minus|times|over)\b){BLANKS}"
LIST = rf"[\[({{][^\n\[\](){{}}=a-z]+,{BLANKS}"
WORDS_BEFORE = r"(?:\b(?:not|minus|negative|than|twice|half of)|n['’]t)\s"
PART = re.compile(
    rf"(?:(?:{OPERATION}|{LIST}|{WORDS_BEFORE}|[≠≤≥±√]{BLANKS}|\\(?:neq?|pm){BLANKS})[$(\\]*"
    r"|\d(?:[:,]|\*\*)|[a-z_√^¼-¾⅐-⅞]\(?|[_^√]\{|\\sqrt(?:\[\d\])?\{)$",
    re.I,
)
# "The answer is 5", and not "the answer is 5x", "is 5 + 3" or "is 5 times 3"
ADVERBS = "now|actually|really|therefore|thus|simply|just|indeed|then|instead|exactly|clearly"
SAID = re.compile(
    rf"\banswer(?:\s(?:is|was|equals|should be|must be)|\s?[:=])[:*]{{0,3}}\s?(?:(?:{ADVERBS})[,:]?\s)?"
    rf"(?:[^=\n.]{{1,40}}=)?[\s$*\"'(\\]{{0,6}}({STATED_NUMBER})"
    r"(?![\w^_(\[{]|[.,]\d|\s*(?:[+/=^_×÷]|-\s*\d|\*(?!\*)|\\(?![)\]]))"
    r"|\s(?:times|plus|minus|over|divided|multiplied|and|or|to|by|[a-z])\b)",
    re.I,
)
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]+")
BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")
TAGS = re.compile(r"</?(?:think|answer)>")
TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.S)
HASHES = re.compile(r"####\s*([^\n]*)")
INTRODUCTION = re.compile(r"(?:so,? )?(?:the )?(?:final )?answer(?: is|:)\s*", re.I)
CHOICE = re.compile(r"\(\s*([a-z])\s*\)")
# What two spellings of one formula may differ by
LOOKS = re.compile(r"(?<=\\)[dt](?=frac)|[\s{}]")


def extract_answer(text: str):
    """The final answer that `text` states (str), or None if it states none, or two that differ.

    A marked answer, see `marked_answer`; else N where it says "the answer is N"; else the last number, unless
    that is a part of something else, as 5 is of "4 or 5", "10 - 5" and "[4, 5]". Text before a last
    `</think>` is working, and no answer is read from it.
    """
    text = final_text(text)
    stated = stated_answers(text)
    if stated:
        return None if _differ(stated) else stated[0]
    last = last_number(text)
    return None if last is None or is_part(text, last.start()) else last.group()


def stated_answers(text: str):
    """The marked answers of `text`, then the numbers N that it gives as "the answer is N"; a list of str."""
    return _marks(text) + [match[1] for match in SAID.finditer(text)]


def is_part(text: str, start: int):
    """Is what begins at `start` a part of something else, as the 5 of "10 - 5", "4 or 5" and "not 5" is?"""
    return PART.search(text[max(0, start - 40) : start]) is not None


def last_number(text: str):
    """The match of the last number in `text` with what changes it, such as a "million"; None without one."""
    last = None
    for last in LAST_NUMBER.finditer(text):  # noqa: B007
        pass
    return last


def final_text(text: str):
    """The text after the last `</think>` (all of it without one), up to a `<think>` that nothing closes,
    without zero-width characters.

    THE rule of every reward that reads an answer: an answer within the thinking earns nothing.
    """
    # Else the 5 of a 15 with a zero-width space in it were a number
    return INVISIBLE.sub("", text.rpartition("</think>")[2].partition("<think>")[0])


def closed_text(text: str):
    """The text without a thought that nothing closes: the length limit may have cut it."""
    thought, end, answer = text.rpartition("</think>")
    return thought + end + answer.partition("<think>")[0]


def marked_answer(text: str):
    r"""The answer that `text` marks as such (str), or None; None too where it states two that differ.

    In this order: the last complete \boxed{...}, the last <answer>...</answer>, and the rest of the
    line after the last "####" (GSM8K, arXiv:2110.14168). Linear in the length of the text.
    """
    text = final_text(text)
    marks = _marks(text)
    return marks[0] if marks and not _differ(stated_answers(text)) else None


def contradicts(text: str):
    """Does `text` state two different answers, marked or as "the answer is 5", outside of its thought?"""
    return _differ(stated_answers(final_text(text)))


def exact_answer(completion: str, example: Mapping):
    """1.0 if the final answer of `completion` equals that of example["answer"], else 0.0.

    Numbers are equal as fractions, other answers as text; see `same_answer`. Where the gold answer is a
    text and the completion marks nothing, all that follows its thought is the answer. An expression counts
    as its value: an answer of `2 + 3` is right where 5 is. `arithmetic.correct` asks for a number.
    """
    answer, gold = extract_answer(completion), gold_answer(example)
    text = final_text(completion)
    if number(plain(gold)) is None and not stated_answers(text):
        answer = text
    return float(answer is not None and same_answer(answer, gold, example.get("question")))


def gold_answer(example: Mapping):
    """example["answer"] (str), without the working that may precede a mark.

    Raises ValueError where it is absent or empty: every completion would be wrong.
    """
    gold = str(example.get("answer", ""))
    gold = next(iter(_marks(final_text(gold))), gold.strip())
    if not plain(gold):
        raise ValueError(f"{example.get('question')!r} has an empty answer; correct the data.")
    return gold


def same_answer(answer: str, gold: str, question: str | None = None):
    r"""Are two answers equal: as numbers if both are numbers, else as text, without regard to case, spaces,
    dollar signs, a final period, LaTeX's \text{...} and parentheses around a choice such as (A)?

    A % counts, so 5% is not 5, unless the question or the gold answer has one too.
    """
    if in_percent(gold, question):
        answer, gold = (plain(x).replace("%", "") for x in (answer, gold))
    key = answer_key(answer)
    # An empty answer equals nothing, not even another empty one
    return key == answer_key(gold) != ""


def in_percent(gold: str, question: str | None):
    """Does the gold answer or the question have a % or a "percent"?"""
    return "%" in plain(gold) or "%" in plain(str(question))


def answer_key(answer: str):
    """A Fraction or a str that equal answers share, see `same_answer`; to compare and to count."""
    text = plain(answer)
    value = number(text)
    if value is not None:
        return f"{value}%" if "%" in text else value
    choice = CHOICE.fullmatch(text)
    return choice[1] if choice else text


def _marks(text):
    """The marked answers of `text`, in the order of marked_answer, the last of each kind first."""
    boxed = [text[start:end] for start, end in _boxes(text)]
    # The answer of tags around a box is the box
    tagged = [tagged for tagged in TAGGED.findall(text) if not _boxes(tagged)]
    tagged = [INTRODUCTION.sub("", each.strip(), count=1) for each in tagged]
    lines = [(m[1].partition("</answer>")[0], m.end()) for m in HASHES.finditer(text)]
    # A heading of Markdown, "#### Step 1", is an answer only if there is no other mark
    end = len(text.rstrip())
    hashed = [line for line, place in lines if number(line) is not None or place >= end]
    marks = [mark.strip() for kind in (boxed, tagged, hashed) for mark in reversed(kind)]
    marks = [mark for mark in marks if mark]
    return marks or [line.strip() for line, _ in lines[-1:] if line.strip()]


def _differ(answers):
    """Are these more than one answer? x = 5 and 5 are one, and so are 5% and 5."""
    keys = {answer_key(answer.replace("%", "").rpartition("=")[2]) for answer in set(answers)}
    return len({LOOKS.sub("", key) if isinstance(key, str) else key for key in keys}) > 1


def _boxes(text):
    """(start, end) of the contents of each complete \\boxed{...} that is in no other one, in one pass."""
    open_braces, boxes = [], []
    for match in BRACES.finditer(text):
        token = match.group()
        # Escaped braces match too, so that they are passed over: they neither open nor close
        if token.startswith("\\boxed"):
            open_braces.append(match.end())
        elif token == "{":
            open_braces.append(None)
        elif token == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                while boxes and boxes[-1][0] > start:
                    boxes.pop()
                boxes.append((start, match.start()))
    return boxes
