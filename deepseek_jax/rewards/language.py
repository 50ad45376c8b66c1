"""Is the chain of thought in one language: the language-consistency reward of R1
(arXiv:2501.12948, section 3.2.1): words of the target language / all words.

The paper does not say what a word is. Here it is:
- en: a run of Latin letters, apostrophes included. The script decides, not the vocabulary, so
  French passes for English.
- zh: one Han character. Chinese has no spaces between words. If a whole run were one word, one
  English word would outweigh a sentence; 10 characters are about 7 English words.
- other scripts are foreign to both: a run of letters is a word, or a character where the script
  writes no spaces (kana, Thai, Lao, Burmese, Khmer).
Not words: LaTeX and $...$, code, tags, numbers and letters that touch a digit or underscore (x1, 5km),
single Latin or Greek letters, and function names such as sin.
"""

import re
import unicodedata
from collections.abc import Mapping

# Values of example["language"] -> their script
LANGUAGES = {"en": "latin", "zh": "han"}
TAGS = re.compile(r"</?(?:think|answer)>")
IGNORED = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`"
    # A match may not cross another opening mark of its kind: unclosed marks then cost linear time
    r"|\$\$[^$]+\$\$|\\\[(?:(?!\\\[).)*?\\\]|\\\((?:(?!\\\().)*?\\\)"
    r"|\\begin\{(\w+\*?)\}(?:(?!\\begin\{).)*?\\end\{\1\}"
    # A dollar sign before a digit or after a space closes no formula: "$5 and then $6" is prose
    r"|\$(?![\s$])[^$\n]*(?<!\s)\$(?!\d)|\\[A-Za-z]+",
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
VARIABLE = re.compile(rf"[{LATIN}\u0370-\u03ff]")
FUNCTIONS = frozenset("sin cos tan log ln exp lim max min mod gcd lcm sqrt".split())


def language_consistency(completion: str, example: Mapping):
    """Share of the words of the chain of thought that are in example["language"], in [0, 1].

    0.0 where it has no words: a 1.0 would pay a policy for not thinking, or for thinking in code.
    Raises ValueError where the language is absent or unknown.
    """
    check_language(example)
    return language_share(chain_of_thought(completion), example["language"])


def language_consistency_en(completion: str, example: Mapping):
    """`language_consistency` with English as the target; the example's language is not read."""
    return language_share(chain_of_thought(completion), "en")


def language_consistency_zh(completion: str, example: Mapping):
    """`language_consistency` with Chinese as the target; the example's language is not read."""
    return language_share(chain_of_thought(completion), "zh")


def check_language(example: Mapping):
    """Raise ValueError unless example["language"] is one of LANGUAGES."""
    language = example.get("language")
    if language not in LANGUAGES:
        raise ValueError(
            f"every question needs a 'language', one of {list(LANGUAGES)}; "
            f"{example.get('question')!r} has {language!r}. Correct the data, "
            "or use a reward that names the language, such as language_consistency_en."
        )


def chain_of_thought(completion: str):
    """The text between <think> and </think>.

    Without <think> it begins at the start: the prompt may have opened the tag. Without </think> it ends at
    the end: a length limit may have cut the completion.
    """
    thought, closed, _ = completion.rpartition("</think>")
    thought = thought if closed else completion
    before, opened, inside = thought.partition("<think>")
    return inside if opened else before


def language_share(text: str, language: str):
    """Words of `language`, a key of LANGUAGES, over all words of `text`; 0.0 without words."""
    # NFKC writes full-width letters as ordinary ones
    text = IGNORED.sub(" ", TAGS.sub(" ", unicodedata.normalize("NFKC", text)))
    target = total = 0
    for match in WORD.finditer(text):
        word, script = match.group(), match.lastgroup
        if script == "ignored" or VARIABLE.fullmatch(word) or word in FUNCTIONS:
            continue
        total += 1
        target += script == LANGUAGES[language]
    return target / total if total else 0.0
