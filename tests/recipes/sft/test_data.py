"""The held-out prompts of one's own conversations, as rewards see them."""

import json

from configs.sft_small import get_config
from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.models import build_model
from deepseek_jax.recipes.sft.data import held_out_prompts, load_conversations
from deepseek_jax.recipes.sft.settings import SftSettings
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.settings import build
from deepseek_jax.worlds.registry import open_rewards
from tests.turns import turns

REWARD = """
def topical(prompts, completions, topic, answer, **columns):
    assert all(prompt[-1]["role"] == "user" for prompt in prompts), prompts
    return [float(t["name"] in c[-1]["content"]) + len(a) for c, t, a in zip(completions, topic, answer)]
"""


def test_every_column_of_a_line_reaches_a_reward_of_trls_form(tmp_path):
    """Oracle: by hand: the topic is a column of each line, the answer a column of some, in place of the last
    message; the prompt ends before the reply.
    """
    lines = [
        {"messages": turns(f"Say {k}", f"It is {k}."), "topic": {"name": f"{k}"}} for k in range(8)
    ]
    for line in lines:
        line["answer"] = 7 if line["topic"]["name"] < "4" else None
    path, reward = tmp_path / "chats.jsonl", tmp_path / "reward.py"
    path.write_text("\n".join(map(json.dumps, lines)))
    reward.write_text(REWARD)
    config = get_config()
    config.data.update(dict(path=str(path), num_held_out=6))
    config.answers.num_prompts = 6
    config.model.vocab_size = 384
    settings = build(SftSettings, config, "config")
    policy = Policy(build_model(settings.model), None, byte_tokenizer(), settings.data.template)
    asked = held_out_prompts(settings, policy, load_conversations(settings, tmp_path / "data")[1])
    names = [example["topic"]["name"] for example in asked]
    wanted = ["7" if name < "4" else f"It is {name}." for name in names]
    assert len(set(map(len, wanted))) == 2
    assert [example["answer"] for example in asked] == wanted
    with open_rewards({f"{reward}:topical": 1.0}) as rewards:
        rewards.check(asked)
        texts = [f"the topic {name}" for name in names]
        scores = rewards.score_together(asked, texts, [[0]] * len(asked))
    assert scores.total.tolist() == [1 + len(answer) for answer in wanted]
