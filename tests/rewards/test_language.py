"""The share of words in the target language, by cases that a reader can count."""

import pytest

from deepseek_jax.rewards.language import (
    IGNORED,
    chain_of_thought,
    language_consistency,
    language_consistency_en,
    language_consistency_zh,
    language_share,
)
from tests.linear import copies, is_linear


@pytest.mark.parametrize(
    "text, en, zh",
    [
        ("we add two numbers", 1.0, 0.0),
        ("我们把两个数相加", 0.0, 1.0),
        ("we 相加 two numbers", 3 / 5, 2 / 5),  # three words, two characters
        ("我们 add 两个数", 1 / 6, 5 / 6),
        ("So x = 3，所以 y = 4", 1 / 3, 2 / 3),  # single letters and digits are mathematics
        ("don't, isn’t", 1.0, 0.0),
        ("мы add числа", 1 / 3, 0.0),
        ("これは test です", 1 / 6, 0.0),  # 5 kana, a character each
        ("これは漢字", 0.0, 2 / 5),  # 2 of the 5 are Han
        ("더하면 five", 1 / 2, 0.0),
        ("naïve café", 1.0, 0.0),
        ("𝑥 plus 𝒚", 1.0, 0.0),
        ("x1 and f_n and 5km and 2nd", 1.0, 0.0),
        ("取 sin 和 log", 0.0, 1.0),
        ("a I α", 0.0, 0.0),
    ],
)
def test_words_are_counted_by_script(text, en, zh):
    """Oracle: counted by hand."""
    assert language_share(text, "en") == pytest.approx(en)
    assert language_share(text, "zh") == pytest.approx(zh)


@pytest.mark.parametrize(
    "ignored",
    [
        r"$\frac{apples}{trees}$",
        r"$$ total = price $$",
        r"\( speed \)",
        "\\[ speed\n\\times time \\]",
        r"\begin{align} speed &= way \end{align}",
        r"\sqrt{4} \cdot \alpha",
        "`print(total)`",
        "```python\nprint(total)\n```",
        "```\nnever closed",
        "12 + 30.5 = 42,5",
        "<think>",
        "<answer></answer>",
    ],
)
def test_mathematics_code_and_tags_are_not_words(ignored):
    """Oracle: by hand; two characters of Chinese are left, before it."""
    assert language_share(f"所以 {ignored}", "zh") == 1.0
    assert language_share(f"所以 {ignored}", "en") == 0.0


def test_prices_are_prose():
    """Oracle: 7 English words and 2 characters; as one formula only "each" would be left."""
    text = "it costs $5 and then 所以 another $6 each"
    assert language_share(text, "en") == pytest.approx(6 / 8)
    assert IGNORED.sub("", text) == text


@pytest.mark.parametrize(
    "completion, thought",
    [
        ("<think>a</think>b", "a"),
        ("a</think>b", "a"),
        ("<think>a", "a"),
        ("x<think>a</think>b", "a"),
        ("<think></think>b", ""),
        ("a b", "a b"),
        ("", ""),
    ],
)
def test_the_chain_of_thought_is_what_the_tags_hold(completion, thought):
    """Oracle: by hand."""
    assert chain_of_thought(completion) == thought


@pytest.mark.parametrize(
    "completion", ["", "<think></think>所以", "<think>$x$ 2 + 3</think>", "```"]
)
@pytest.mark.parametrize("reward", [language_consistency_en, language_consistency_zh])
def test_a_thought_without_words_earns_nothing(reward, completion):
    """Oracle: the docstring: no 1.0 for not thinking."""
    assert reward(completion, {}) == 0.0


def test_the_answer_is_not_the_thought():
    """Oracle: by hand."""
    assert language_consistency_en("<think>we add</think> 所以", {}) == 1.0


ENGLISH = (
    "we add both numbers then take ten from that sum so nine stays which was asked for here now ok"
)
ENGLISH = ENGLISH.split()
CHINESE = list("先把两个数相加再从和里去掉十就得到九这是")


@pytest.mark.parametrize(
    "language, words, foreign", [("en", ENGLISH, CHINESE), ("zh", CHINESE, ENGLISH)]
)
def test_each_foreign_word_lowers_the_share(language, words, foreign):
    """Oracle: (20 - n) / 20 when n of 20 words are replaced. All differ: one that repeats counts once."""
    assert len(set(words)) == len(set(foreign)) == 20
    for n in range(21):
        text = " ".join(foreign[:n] + words[n:])
        assert language_share(text, language) == pytest.approx((20 - n) / 20)


@pytest.mark.parametrize("count", [1, 2, 500])
def test_one_word_many_times_is_one_word(count):
    """Oracle: by hand: one English word and five characters, in any case and in whatever order."""
    for padding in ("word " * count, "Word word, " * count):
        assert language_share(padding + "我们相加数", "en") == pytest.approx(1 / 6)
        assert language_share("我们相加数" * count + " word", "zh") == pytest.approx(5 / 6)


FORMULAS = [
    "$%s$",
    "$$ %s $$",
    r"\[ x = %s \]",
    r"\( %s \)",
    r"\begin{align} %s \end{align}",
    "`%s`",
]
FORMULAS += ["```\n# %s\nx = 1\n```", "```\n%s", r"$\text{%s}$", r"\text{%s}"]
SENTENCES = {"zh": "我们把两个数相加", "en": "we simply add these two numbers now"}


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_sentence_in_a_formula_or_in_code_counts(formula):
    """Oracle: a thought in one language, all of whose foreign words stand in a formula."""
    for language, other in (("en", "zh"), ("zh", "en")):
        thought = {"en": "so ten", "zh": "得十"}[language]
        text = f"<think>{thought} {formula % SENTENCES[other]}</think>5"
        assert language_consistency(text, {"language": language}) < 0.35
        assert language_consistency(text, {"language": other}) > 0.65


@pytest.mark.parametrize(
    "text",
    [" ".join(f"${word}$" for word in "we simply add these two numbers".split())]
    + [" ".join(f"${x}$" for x in "我们把两个数相加")]
    + [
        r"$\text{we simply} \text{add these} \text{two numbers}$",
        "`we simply` `add these` `numbers`",
    ],
)
def test_a_sentence_cut_into_formulas_counts(text):
    """Oracle: by hand: there are words, and without them there would be no share."""
    assert max(language_share(text, "en"), language_share(text, "zh")) == 1


@pytest.mark.parametrize(
    "code",
    [
        "```python\nfrom math import sqrt\nfor word in words:\n    print(word, end)\n```",
        "$speed = way / time$",
    ]
    + [
        r"$\frac{total price}{number}$",
        "`if x is not None and y:`",
        r"\[ \sin x + \max(a, b) = \alpha \]",
    ],
)
def test_names_and_what_programs_say_in_words_do_not_count(code):
    """Oracle: by hand; two characters stand before it."""
    assert language_share(f"所以 {code}", "zh") == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "%s<think>we add</think>5",
        "%s <think>we add",
        "<think>we add</think> %s so 5",
        "<think>we add</think>%s",
    ]
    + [
        r"<think>we add</think><answer>%s \boxed{5}</answer>",
        "<think>we add</think>$%s$",
        "<think>we add</think><answer>5</answer>%s",
    ]
    + ["%s<think>we</think> and <think>we add</think>5"],
)
def test_a_foreign_sentence_outside_of_the_thought_counts(completion):
    """Oracle: by hand: of 10 words 2 are English; of those outside, English ones do not raise the share."""
    text = completion % SENTENCES["zh"]
    assert language_consistency_en(text, {}) < 0.5
    padded = text.replace("5", "then all of these words follow the thought")
    assert language_consistency_en(padded, {}) <= language_consistency_en(text, {})


@pytest.mark.parametrize(
    "completion, answer",
    [
        ("<think>we add</think><answer>红猫看狗</answer>", "red"),
        ("<think>we add</think>红猫看狗", "红猫看狗"),
        ("<think>we add</think>So 所以, 5", "5"),
    ],
)
def test_the_answer_may_be_in_another_language(completion, answer):
    """Oracle: by hand: in tags, as the gold answer, or less than a sentence."""
    assert language_consistency_en(completion, {"answer": answer}) == 1.0


def test_a_sentence_after_an_empty_thought_earns_nothing():
    """Oracle: by hand: not thinking is not paid, whatever follows."""
    for text in ("<think></think>%s", "%s<think></think>5", "<think>$x$</think>%s"):
        assert language_consistency_en(text % SENTENCES["en"], {}) == 0.0
        assert language_consistency_zh(text % SENTENCES["zh"], {}) == 0.0


@pytest.mark.parametrize(
    "thought",
    [
        "w e f i r s t a d d t h e s e t w o n u m b e r s 得",
        "w-e f-i-r-s-t a-d-d t-h-e-s-e n-u-m-b-e-r-s 得",
        "$we$ 得 $first$ 得 $add$ 得 $these$ 得 $numbers$ 得",
        r"\(we\) 得 \(first\) 得 \(\text{add}\) 得 \(these\) 得 $numbers$ 得",
        "$w$ $e$ $a$ $d$ $d$ $u$ $p$ $t$ $w$ $o$ 得",
    ],
)
def test_letter_by_letter_and_one_word_a_formula_are_words(thought):
    """Oracle: by hand: of its words one is Chinese."""
    assert language_consistency(f"<think>{thought}</think>5", {"language": "zh"}) <= 0.25


@pytest.mark.parametrize(
    "thought",
    [
        "我们用 a, b, c, d, e, f 表示",
        "三角形 $ABC$ 和 $DEF$ 与 $PQR$ 及 $XYZ$ 相等",
        "我们求 $sin$ 与 $cos$ 再求 $log$ 和 $max$",
        "我们得 $a$ 与 $b$",
    ],
)
def test_variables_points_and_functions_are_no_words(thought):
    """Oracle: by hand: all words are Chinese."""
    assert language_consistency(f"<think>{thought}</think>5", {"language": "zh"}) == 1.0


def test_the_example_names_the_language():
    """Oracle: the two rewards that name theirs."""
    text = "<think>we 相加 two numbers</think>"
    for language, reward in (("en", language_consistency_en), ("zh", language_consistency_zh)):
        assert language_consistency(text, {"language": language}) == reward(text, {}) > 0


@pytest.mark.parametrize("example, shown", [({}, "None"), ({"language": "English"}, "'English'")])
def test_an_unknown_language_is_an_error(example, shown):
    """Oracle: the message."""
    with pytest.raises(ValueError, match=rf"one of \['en', 'zh'\].* has {shown}"):
        language_consistency("we add", example)


PIECES = ["$a", r"\[", r"\(", "```", "`", r"\begin{a}", "$$", "a'", "a1", "é"]
PIECES += ["$a$ ", "`ab ab ab|`", r"\text{ab}", "$} "]
HOSTILE = {piece: copies(piece) for piece in PIECES} | {
    f"` and {fill!r}": lambda length, fill=fill: 4 * ("`" + fill * (length // 4)) for fill in "a "
}


@pytest.mark.parametrize("name", HOSTILE)
def test_time_is_linear_in_hostile_text(name):
    """Oracle: a text a sixteenth as long."""
    assert is_linear(lambda text: language_share(text, "en"), HOSTILE[name])
