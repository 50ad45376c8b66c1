r"""Find what a text marks as its answer: \boxed{...}, <answer> tags, "####", "the answer is".

Tests: tests/rewards/test_answer.py.
"""

import re
from typing import NamedTuple

from deepseek_jax.rewards.quantity import read_quantity

INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]+")
# Text that a web page or LaTeX does not show
COMMENT = re.compile(r"<!--.*?(?:-->|\Z)|^[ \t]*%[^\n]*|<<[^<>\n]*>>", re.S | re.M)
BRACES = re.compile(r"\\f?box(?:ed)?\s*\{|\\[{}]|[{}]")
# Signs and words around a box that change its number: -\boxed{5}, \boxed{5} million
BEFORE_BOX = re.compile(
    r"(?:[-−–+]|[\d)}]\s?[-−–+*/^]\s*|(?<![\w/\"'=-])[<>]=?\s*|≠\s*|\\(?:neq?|sqrt|pm)\b\s*"
    r"|\bnot[ \t]+|n['’]t[ \t]+|\d|[_√^])[$({]*\Z"
)
AFTER_BOX = re.compile(
    r"[$)]?(?:[\^_]|,?\d)|[ \t$)]*(?:hundred|thousand|[a-z]+illion|squared|cubed|is\s(?:wrong|not|false))\b"
)
TAGS = re.compile(r"</?(?:think|answer)>")
TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.S)
ANSWER_TAG = re.compile(r"<(/?)answer>")
HASHES = re.compile(r"####\s*([^\n]*)")
# Matches "2. Check" and "**Step 1**", but not "-x = 3"
HEADING = re.compile(r"[*_\s]*(?:\d+[.)]\s|[^\W\d_]{2,})")
INTRODUCTION = re.compile(r"\A(?:so,? )?(?:the )?(?:final )?answer(?: is|:)\s*", re.I)
# The beginning of "the answer is ...", and the end of such a statement
SAID = re.compile(
    r"(?:(?:\b(?P<partial>first|partial|intermediate)\s)?\banswer"
    r"(?:[ \t](?:is|was|equals|should be|must be)|[ \t]?(?P<colon>[:=]))|答案[是为：:])[:*]{0,3}[ \t]*"
    r"(?:(?!hardly|nearly)(?:[a-z]+ly|now|therefore|thus|just|indeed|then|instead|about)[,:]?\s)?",
    re.I,
)
SAID_END = re.compile(r"\n|[.;!?](?=\s|$)|,\s(?!\d)|\s\(|。|，")
# Most characters that are read after "the answer is", and most statements of a kind that are read
MAX_SAID, MOST = 300, 100


class Mark(NamedTuple):
    """A marked answer.

    Attributes:
        kind: "box", "tags", "hashes" or "said".
        text: The answer as it is written.
        start: Where in the text it begins.
    """

    kind: str
    text: str
    start: int


def final_text(text: str) -> str:
    """Return the part of a completion that may state the answer: the text after its thought.

    It begins after the last `</think>`, or at the start without one, and ends before a `<think>`
    that nothing closes. Zero-width characters and comments are removed.

    Every reward that reads an answer must use this function: an answer within the thinking earns
    nothing.
    """
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    # Otherwise a 5 would be read in a 15 that has a zero-width space between its digits
    return COMMENT.sub("", INVISIBLE.sub("", text))


def closed_text(text: str):
    """Return the text without a thought that nothing closes: the length limit may have cut it."""
    thought, end, answer = text.rpartition("</think>")
    return thought + end + answer.partition("<think>")[0]


def find_marks(text: str):
    r"""List the Marks of a final text, the last of each kind first.

    The kinds, in this order: complete \boxed{...}, <answer> tags, and what follows "####" in its
    line (GSM8K, arXiv:2110.14168). It takes linear time in the length of the text.
    """
    box_spans, tag_spans, hash_matches = _boxes(text), _tagged(text), list(HASHES.finditer(text))
    # If the text in tags or after #### has a box, the box is the answer
    box_marks = [Mark("box", _with_context(text, start, end), start) for start, end in box_spans]
    tag_marks = [
        Mark("tags", text[start:end], start)
        for start, end in tag_spans
        if not _boxes(text[start:end])
    ]
    line_marks = [
        Mark("hashes", m[1].partition("</answer>")[0], m.start(1))
        for m in hash_matches
        if not _boxes(m[1])
    ]
    box_marks, tag_marks, line_marks = (
        _clean(marks) for marks in (box_marks, tag_marks, line_marks)
    )
    # A heading in Markdown, such as "#### Step 1", is no answer
    last_line = text.rstrip().rfind("\n")
    hash_marks = [
        mark
        for mark in line_marks
        if mark.start > last_line
        or not HEADING.match(mark.text)
        or read_quantity(mark.text, lead=False) is not None
    ]
    return [*box_marks, *tag_marks, *hash_marks]


def find_said(text: str, marks: list[Mark]):
    """List the Marks of what a text says the answer is, up to the sentence's end or a comma.

    An answer that the text calls first, partial or intermediate is skipped if one of `marks`
    follows. "Answer:" before an equation may be the heading of a solution. It is skipped if another
    digit follows.
    """
    marks_by_text, last_mark_start = {}, max((mark.start for mark in marks), default=0)
    last_digit = text.rfind(next((c for c in reversed(text) if c.isdecimal()), "\0"))
    for match in SAID.finditer(text):
        sentence = _sentence(text[match.end() : match.end() + MAX_SAID])
        is_heading = (
            match["colon"] and "=" in sentence and match.end() + len(sentence) + 2 < last_digit
        )
        if not is_heading and not (match["partial"] and match.start() < last_mark_start):
            marks_by_text[sentence] = Mark("said", sentence, match.start())
    return list(marks_by_text.values())[-MOST:]


def _sentence(text):
    """Return the first sentence of `text`. The sentence does not end within brackets."""
    for end_match in SAID_END.finditer(text):
        prefix = text[: end_match.start()]
        if prefix.count("(") <= prefix.count(")") and prefix.count("[") <= prefix.count("]"):
            break
    else:
        prefix = text
    return prefix.strip(" \t*\"'")


def _with_context(text, start, end):
    """Return the content of a box, with the signs and words around it that change its number."""
    command_start = text.rfind("\\", 0, start)
    prefix = BEFORE_BOX.search(text[max(0, command_start - 20) : command_start])
    suffix = AFTER_BOX.match(text[end + 1 : end + 40])
    # The space suits both "5 ^2" and "5 million"
    return f"{prefix[0] if prefix else ''}{text[start:end]} {suffix[0] if suffix else ''}"


def _clean(marks):
    """Drop empty Marks, repeated ones and an introduction, "The answer is".

    The last Mark comes first.
    """
    texts = (INTRODUCTION.sub("", mark.text.strip(), count=1).strip() for mark in marks)
    # The last of equal Marks remains
    marks_by_text = {
        text: mark._replace(text=text) for mark, text in zip(marks, texts, strict=True) if text
    }
    return sorted(marks_by_text.values(), key=lambda mark: -mark.start)[:MOST]


def _tagged(text):
    """List where the content of each outermost <answer> tag starts and ends."""
    depth, spans, start = 0, [], 0
    for match in ANSWER_TAG.finditer(text):
        if not match[1]:
            start, depth = (match.end() if depth == 0 else start), depth + 1
        elif depth:
            depth -= 1
            if depth == 0:
                spans.append((start, match.start()))
    return spans


def _boxes(text):
    r"""List (start, end) of the content of each complete \boxed{...} that is in no other one.

    It takes one pass over the text.
    """
    open_braces: list[int | None] = []
    boxes: list[tuple[int, int]] = []
    for match in BRACES.finditer(text):
        token = match.group()
        # The pattern also matches escaped braces, to skip them: they neither open nor close
        if "box" in token:
            open_braces.append(match.end())
        elif token == "{":
            open_braces.append(None)
        elif token == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                while boxes and boxes[-1][0] > start:
                    boxes.pop()
                boxes.append((start, match.start()))
    # A box within a box that nothing closes does not count
    unclosed_start = min((start for start in open_braces if start is not None), default=len(text))
    return [box for box in boxes if box[0] < unclosed_start]
