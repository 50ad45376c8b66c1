"""Judgements to learn from."""

from deepseek_jax.data.messages import parse_conversation
from deepseek_jax.rewards.judge import verdict
from deepseek_jax.worlds.bilingual.examples import bilingual_examples
from deepseek_jax.worlds.bilingual.judgements import judge_conversations
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer


def test_a_judgement_by_hand():
    """Oracle: by hand, in both orders, which chance chooses."""
    pair = {"question": "Reverse: cat, dog", "chosen": "dog, cat", "rejected": "cat"}
    pair |= {"chosen_helpfulness": 1.0, "rejected_helpfulness": 1 / 3}
    said = {
        tuple(message["content"] for message in conversation["messages"])
        for conversation in judge_conversations([pair] * 20, seed=0)
    }
    asked = "Reverse: cat, dog\n1 = {}\n2 = {}"
    answer = "<think>1 = {}, 2 = {}</think><answer>{}</answer>"
    assert said == {
        (asked.format("dog, cat", "cat"), answer.format(3, 1, 1)),
        (asked.format("cat", "dog, cat"), answer.format(1, 3, 2)),
    }


def test_the_small_worlds_pairs_can_be_judged():
    """Oracle: parse_conversation's and the tokenizer's own checks, and the pair: the answer that the verdict
    names is the chosen one; either place has a good share of them.
    """
    examples = bilingual_examples("preferences", num_train=200, num_held_out=2, seed=0)
    places, tokenizer = [], bilingual_tokenizer()
    conversations = judge_conversations(examples.train, seed=0)
    for example, conversation in zip(examples.train, conversations, strict=True):
        assert parse_conversation("here", conversation) == conversation
        asked, judged = (message["content"] for message in conversation["messages"])
        tokenizer.encode(f"{asked}\n{judged}")
        places.append(verdict(judged))
        assert f"\n{places[-1]} = {example['chosen']}" in asked
    assert 70 < places.count(1) < 130
