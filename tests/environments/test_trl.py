"""One file of tools and one with an environment, in TRL's trainer and here.

TRL calls environment_factory experimental: VERSION is the one whose interface was read. A tool that returns a
list has other texts there: TRL takes the list for images and texts, and here it is str() of it.
"""

import importlib.metadata
import json

import pytest

from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.environments import Environments
from tests.environments.calls import FILES, Call
from tests.environments.files.basket import Basket
from tests.environments.files.shop_tools import price, words
from tests.trl_config import grpo_config

VERSION = "1.16"
TURNS = [
    [("put", {"thing": "pen"}), ("count", {})],
    [("put", {"thing": "ink"}), ("price", {"item": "pen", "pieces": 3})],
    [("words", {"text": "a b c", "most": 2})],
]
ROWS = [
    {"prompt": [{"role": "user", "content": f"Fill the basket {i}."}], "room": 2} for i in range(4)
]


def written(calls):
    """A turn of the model that makes these calls, as the template of Qwen3 writes it."""
    texts = (json.dumps({"name": name, "arguments": arguments}) for name, arguments in calls)
    return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)


def tokenizer_of_qwen3():
    """Bytes, the marks of the template, and one token for each of TURNS."""
    import transformers
    from trl.chat_template_utils import qwen3_chat_template

    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=qwen3_chat_template,
    )
    made.add_tokens([written(calls) for calls in TURNS])
    return made


def model_that_calls(tokenizer):
    """A tiny Qwen3 with random weights, which a few updates teach to answer by one of TURNS."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, head_dim=16)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    model = transformers.Qwen3ForCausalLM(config)
    head = tokenizer("<|im_start|>assistant\n")["input_ids"]
    turns = [tokenizer(written(calls))["input_ids"] for calls in TURNS]
    assert all(len(ids) == 1 for ids in turns)
    ids = torch.tensor([[*head, *turn, tokenizer.eos_token_id] for turn in turns])
    labels = ids.clone()
    labels[:, : len(head)] = -100
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def trained(folder):
    """Two steps of TRL: (the schemas that the model read, [(row's room, messages, reward)])."""
    import datasets
    import trl

    tokenizer = tokenizer_of_qwen3()
    model, shown, seen = model_that_calls(tokenizer), [], []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: shown.append(args[0][0].tolist())
    )

    def calls_made(completions, room, environments, **columns):
        for row in zip(room, completions, environments, strict=True):
            seen.append((row[0], row[1], row[2].get_reward()))
        return [float(len(messages)) for messages in completions]

    args = grpo_config(
        folder, max_completion_length=512, max_tool_calling_iterations=2, max_steps=2
    )
    trainer = trl.GRPOTrainer(
        model=model,
        args=args,
        reward_funcs=calls_made,
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=tokenizer,
        tools=[price, words],
        environment_factory=Basket,
    )
    trainer.train()
    prompt = tokenizer.decode(shown[0])
    assert "It has room for 2." in prompt
    tools = prompt.partition("<tools>\n")[2].partition("\n</tools>")[0]
    return [json.loads(line) for line in tools.splitlines()], seen


def turns_of(messages):
    """[(calls, texts)] of TRL's messages of one conversation."""
    turns = []
    for message in messages:
        if message["role"] == "tool":
            turns[-1][1].append(message["content"])
        else:
            found = [call["function"] for call in message.get("tool_calls") or ()]
            turns.append(([Call(each["name"], each["arguments"]) for each in found], []))
    return turns


def by_name(schemas):
    return sorted(schemas, key=lambda schema: schema["function"]["name"])


@pytest.mark.slow
def test_the_same_files_run_in_trl_and_here(tmp_path):
    """Oracle: TRL's GRPOTrainer: the schemas in the prompt that its model read, which it sorts by name among
    an environment's, the texts of each call, and the environment's reward.
    """
    assert importlib.metadata.version("trl").startswith(f"{VERSION}."), "read its interface anew"
    schemas, conversations = trained(tmp_path)
    tools = [f"{FILES}/shop_tools.py:{name}" for name in ("price", "words")]
    with Environments(tools, f"{FILES}/basket.py:Basket", workers=2) as made:
        assert by_name(made.schemas) == by_name(schemas)
        assert made.schemas[:2] == schemas[:2] and made.reward_name == "Basket"
        made.begin({key: ({"room": row[0]}, key) for key, row in enumerate(conversations)})
        compared = 0
        for key, (_, messages, reward) in enumerate(conversations):
            for calls, texts in turns_of(messages):
                # The turn after TRL's last call of tools
                if not calls or not texts:
                    continue
                made.act(key, calls)
                assert made.acted(key).texts == texts
                compared += len(texts)
            made.end(key)
            assert made.reward(key) == (key, reward)
    assert len(conversations) == 8 and compared >= 16
