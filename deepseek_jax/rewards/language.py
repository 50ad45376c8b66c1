"""Rewards for a chain of thought in one language (R1, arXiv:2501.12948, section 3.2.1).

The reward is the number of words of the target language over the number of all words. The paper
does not say what a word is. Here it is:

- en: a run of Latin letters, apostrophes included. The script decides, not the vocabulary, so
  French passes for English.
- zh: one Han character. Chinese has no spaces between words. If a whole run were one word, one
  English word would outweigh a sentence; 10 characters are about 7 English words.
- Other scripts are foreign to both. In them a word is a run of letters, or one character where the
  script writes no spaces (kana, Thai, Lao, Burmese, Khmer).

A repeated word counts once: otherwise one word 500 times would outweigh a thought in another
language.

These are not words: LaTeX and $...$, code, tags, numbers, letters that touch a digit or underscore
(x1, 5km), single Latin or Greek letters, and function names such as sin.

But a sentence counts wherever it stands, or a policy would think there. So these count:

- within mathematics and code, four Latin words in a row, and every word of another script;
- four or more formulas or pieces of code of one word each;
- six or more letters that spaces or signs separate ("w e a d d i t");
- outside of the thought, four or more foreign words.
"""

import re
import unicodedata
from collections.abc import Mapping

from deepseek_jax.rewards.marks import INVISIBLE, TAGGED, TAGS

# Values of example["language"] -> their script
LANGUAGES = {"en": "latin", "zh": "han"}
IGNORED = re.compile(
    # Adjacent formulas are one match, so that $we$ $add$ $two$ $numbers$ is a sentence
    r"(?:(?:```.*?(?:```|\Z)|`[^`\n]+`"
    # A match may not cross another opening mark of its kind: unclosed marks then cost linear time
    r"|\$\$[^$]+\$\$|\\\[(?:(?!\\\[).)*?\\\]|\\\((?:(?!\\\().)*?\\\)"
    r"|\\begin\{(\w+\*?)\}(?:(?!\\begin\{).)*?\\end\{\1\}"
    # A dollar sign before a digit or after a space closes no formula: "$5 and then $6" is prose
    r"|\$(?![\s$])[^$\n]*(?<!\s)\$(?!\d)|\\[A-Za-z]+)[\s,.]*)+",
    re.S,
)
LATIN = r"A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u1e00-\u1eff"
HAN = r"\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff"
WORD = re.compile(
    rf"(?P<ignored>[{LATIN}]*[\d_][{LATIN}\d_]*)"
    rf"|(?P<latin>[{LATIN}]+(?:['\u2019][{LATIN}]+)*)|(?P<han>[{HAN}])"
    rf"|(?P<unspaced>[{UNSPACED}])|(?P<other>(?:(?![{LATIN}{HAN}{UNSPACED}])[^\W\d_])+)"
)
FORMULA = re.compile(r"`[^`\n]*`|\$([^$\n]*)\$|\\\((?:(?!\\\().)*?\\\)")
VARIABLE = re.compile(rf"[{LATIN}\u0370-\u03ff]")
# Fewer words in a row are names in a formula. Fewer foreign words outside of the thought are no
# thought
SENTENCE = 4
NAME = rf"[{LATIN}'\u2019]{{2,}}+"
IN_A_ROW = re.compile(rf"(?<![{LATIN}'\u2019]){NAME}(?:[\s,;:]+{NAME}){{{SENTENCE - 1},}}")
# Six or more single letters in a row
SPELLED = re.compile(
    rf"(?<![{LATIN}\d_'\u2019])[{LATIN}](?:(?:\s{{1,3}}|[.,|/_\u00b7-])[{LATIN}](?![{LATIN}\d_'\u2019])){{5,}}"
)
# A word of more than two letters. Words of capitals are points, as in the triangle ABC
ONE_WORD = re.compile(rf"(?=.*[a-z])[{LATIN}]{{3,}}")
COMBINING = re.compile("[\u0300-\u036f]")
# Letters of an average English word
WORD_LETTERS = 4
# Marks of formulas and code, and the end of one \text{...} before the next
MARKS = re.compile(r"(?:\}\s*)?\\(?:text|mathrm|mbox)[a-z]*\s*\{|[$`]|\\[()\[\]]")
# LaTeX commands and the keywords of programs end a row of words
KEYWORDS = re.compile(
    r"\\[A-Za-z]+|\b(?:from|import|for|in|if|is|not|and|or|return|def|class|while|else|elif|as|with)\b"
)
FUNCTIONS = frozenset("sin cos tan log ln exp lim max min mod gcd lcm sqrt".split())


def language_consistency(completion: str, example: Mapping):
    """Return the share of the thought's words that are in example["language"], from 0 to 1.

    Without words in the thought it is 0.0: a 1.0 would pay a policy for not thinking. Foreign text
    outside of the thought lowers the share, unless it is the answer: it is in <answer> tags without
    a box, or equals example["answer"].

    Raises:
        ValueError: If the language is absent or unknown.
    """
    check_language(example)
    return _consistency(completion, example, example["language"])


def language_consistency_en(completion: str, example: Mapping):
    """Return `language_consistency` for English, whatever the example's language is."""
    return _consistency(completion, example, "en")


def language_consistency_zh(completion: str, example: Mapping):
    """Return `language_consistency` for Chinese, whatever the example's language is."""
    return _consistency(completion, example, "zh")


def check_language(example: Mapping):
    """Raise ValueError unless example["language"] is one of LANGUAGES."""
    language = example.get("language")
    if language not in LANGUAGES:
        raise ValueError(
            f"every question needs a 'language', one of {list(LANGUAGES)}; "
            f"{example.get('question')!r} has {language!r}. Correct the data, "
            "or use a reward that names the language, such as language_consistency_en."
        )


def chain_of_thought(completion: str) -> str:
    """Return the text between <think> and </think>.

    Without <think> it begins at the start, because the prompt may have opened the tag. Without
    </think> it ends at the end, because a length limit may have cut the completion.
    """
    thought, close_tag, _ = completion.rpartition("</think>")
    thought = thought if close_tag else completion
    before, open_tag, inside = thought.partition("<think>")
    return inside if open_tag else before


def language_share(text: str, language: str) -> float:
    """Return the share of distinct words in `text` that belong to `language`.

    Without words it is 0.0.
    """
    return _share(_words(text), language)


def _consistency(completion, example, language):
    thought_words = _words(chain_of_thought(completion))
    foreign_words = {
        word for word in _words(_outside(completion, example)) if word[0] != LANGUAGES[language]
    }
    if not thought_words or len(foreign_words) < SENTENCE:
        return _share(thought_words, language)
    return _share(thought_words | foreign_words, language)


def _outside(completion, example):
    """Return the text before and after the thought, without the answer."""
    thought, close_tag, after = completion.rpartition("</think>")
    before, open_tag, _ = (thought if close_tag else after).partition("<think>")
    # If the answer is a box, the other words within the tags are text
    after = TAGGED.sub(lambda m: m[1] if "\\boxed" in m[1] else " ", after) if close_tag else ""
    answer = str(example.get("answer", ""))
    return (before if open_tag else "") + " " + (after.replace(answer, " ") if answer else after)


def _share(words, language):
    target_count = sum(script == LANGUAGES[language] for script, _ in words)
    return target_count / len(words) if words else 0.0


def _words(text):
    """Return the distinct words of `text`: a set of (script, word in lower case)."""
    # NFKC writes full-width letters as ordinary ones
    text = unicodedata.normalize("NFKC", INVISIBLE.sub("", text))
    text = TAGS.sub(" ", COMBINING.sub("", text))
    words = _one_word_formulas(text)
    text = SPELLED.sub(_joined, IGNORED.sub(_sentences, text))
    for match in WORD.finditer(text):
        word, script = match.group(), match.lastgroup
        if script != "ignored" and not VARIABLE.fullmatch(word) and word not in FUNCTIONS:
            words.add((script, word.casefold()))
    return words


def _one_word_formulas(text):
    """Return the words that each fill a formula or a piece of code, if they make a sentence.

    Returns:
        A set as _words returns it; empty for fewer than SENTENCE words.
    """
    formulas = (MARKS.sub(" ", match.group()).strip(" }") for match in FORMULA.finditer(text))
    words = {("latin", formula.casefold()) for formula in formulas if ONE_WORD.fullmatch(formula)}
    words = {word for word in words if word[1] not in FUNCTIONS}
    return words if len(words) >= SENTENCE else set()


def _joined(match):
    """Join letters that are written one by one into words of WORD_LETTERS letters."""
    letters = "".join(re.findall(rf"[{LATIN}]", match.group()))
    return f" {' '.join(re.findall(f'.{{1,{WORD_LETTERS}}}', letters))} "


def _sentences(ignored_match):
    """Return the part of mathematics and code that counts as words.

    These are words of other scripts, long rows of Latin words, and words that are spelled letter by
    letter.
    """
    text = ignored_match.group()
    foreign_words = [
        m.group() for m in WORD.finditer(text) if m.lastgroup not in ("latin", "ignored")
    ]
    bare_text = MARKS.sub(" ", text)
    word_rows = IN_A_ROW.findall(KEYWORDS.sub("|", bare_text))
    spelled_words = [match.group() for match in SPELLED.finditer(bare_text)]
    return f" {' '.join(foreign_words + word_rows + spelled_words)} "
