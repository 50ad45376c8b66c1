"""Words of the bilingual world, and what its problems are held out by."""

from collections import Counter

from deepseek_jax.rewards.language import language_share
from deepseek_jax.worlds.bilingual import words as bilingual


def test_every_word_is_written_in_the_script_of_its_language():
    """Oracle: rewards.language, which counts by script."""
    for table in bilingual.WORD_TABLES:
        for row in table:
            assert [language_share(bilingual.word(row, x), x) for x in bilingual.LANGUAGES] == [
                1,
                1,
            ]


def test_a_connective_is_one_word_in_either_language():
    """Oracle: rewards.language on a text of that connective and a known word."""
    for role, english in bilingual.WORKING["en"].items():
        chinese = bilingual.WORKING["zh"][role]
        for language, share in (("en", 0.5), ("zh", 0.5)):
            assert language_share(f"{english} {chinese}", language) == share


def test_no_name_or_object_is_that_of_two_things():
    """Oracle: a count; else an answer could be right for the wrong question."""
    names = Counter(word for table in bilingual.WORD_TABLES for row in table for word in row)
    assert set(names.values()) == {1}
    for facts in (bilingual.KNOWN, bilingual.SECRETS):
        assert len(set(facts.values())) == len(facts)


def test_the_other_language_is_the_other_one():
    """Oracle: by hand."""
    assert [bilingual.other(x) for x in ("en", "zh")] == ["zh", "en"]


def test_held_out_is_the_same_on_every_machine():
    """Oracle: blake2b's first bytes, as once recorded."""
    kept = [n for n in range(40) if bilingual.held_out(f"secret {n}")]
    assert kept == [4, 6, 14, 15, 20, 21, 22, 33, 34, 38]
