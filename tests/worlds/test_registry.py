"""Look-ups in the list of worlds."""

import pytest

from deepseek_jax.worlds.registry import (
    WORLDS,
    all_rules,
    corpus_names,
    find_corpus,
    find_questions,
    find_world,
    named_tokenizer,
    question_names,
)


@pytest.mark.parametrize("corpus", corpus_names())
def test_a_small_worlds_corpus_is_written_in_its_tokenizers_pieces(corpus):
    """Oracle: the round trip through the tokenizer, which refuses or loses other text."""
    world, make = find_corpus(corpus)
    tokenizer, documents = world.tokenizer(), make(num_documents=50, seed=0)
    turns = [document["text"] for document in documents]
    assert len(turns) == 50
    texts = [text for of in turns for text in ([of] if isinstance(of, str) else of)]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts


def test_names_are_of_one_world_each():
    """Oracle: the records themselves; a name that two worlds have would hide one."""
    for field in ("questions", "corpora", "tokenizers", "rewards"):
        names = [name for world in WORLDS.values() for name in getattr(world, field)]
        assert len(names) == len(set(names)), field


@pytest.mark.parametrize("name", question_names())
def test_a_worlds_questions_have_a_rule_and_a_working_that_it_pays(name):
    """Oracle: the rule itself, on the workings of held-out questions."""
    _, questions = find_questions(name)
    rule = all_rules()[questions.rule]
    for example in questions.make(0, 16).held_out:
        assert rule.score(questions.worked(example), example) == 1.0


def test_unknown_names_are_refused_with_the_nearest():
    """Oracle: the messages."""
    with pytest.raises(ValueError, match="world='bilingal' .* did you mean bilingual"):
        find_world("bilingal")
    with pytest.raises(ValueError, match="task='arithmetics' .* did you mean arithmetic"):
        find_questions("arithmetics")
    with pytest.raises(ValueError, match="corpus='bilingual_teachin' .* bilingual_teaching"):
        find_corpus("bilingual_teachin")


@pytest.mark.parametrize("name", ["arithmetic", "bilingual", "bilingual_teaching", "letters"])
def test_a_tokenizer_has_the_name_of_its_world_or_corpus(name):
    """Oracle: the special tokens of a closed vocabulary."""
    tokenizer = named_tokenizer(name)
    assert tokenizer.eos_id == tokenizer.vocab_size - 1
