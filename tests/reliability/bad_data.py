"""Mistakes in data, and files of data that are damaged; see bad_inputs.py."""

from tests.reliability.goods import (
    copied,
    cut,
    empty,
    fields,
    flipped,
    lines,
    replaced,
    without,
    write,
)

TALK = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]

PAIR = {"prompt": "2 + 3?", "chosen": "5", "rejected": "6"}

SFT = "train sft_small --config.data.path=bad.jsonl"

GRPO = "train grpo_small --config.data.path=bad.jsonl"

PREFERENCES = "train reward_model_small --config.data.path=bad.jsonl"

PACKED = "train pretrain_small --config.mesh={'data':4,'tensor':2}"

PRETRAIN = PACKED + " --config.data.sources=['bad.jsonl'] --config.data.weights=[1.0]"

PAGES = PACKED + " --config.data.sources=['pages'] --config.data.weights=[1.0]"

TALKS = "train sft_small --config.data.path=pages"

CUT = (
    "pages/pages-train.array_record-00001-of-00002 is cut short or damaged: "
    "0 of its 20 records can be read... copy or prepare the dataset anew"
)

TASKS = "train distill_small --config.tasks={'talks':{'path':'bad.jsonl','num_held_out':4}}"

DATA = [
    (
        TASKS,
        "config.tasks.talks.path='bad.jsonl' is not a file; set it to a jsonl, json, csv or parquet file",
    ),
    (
        TASKS,
        "config.tasks.talks.path='bad.jsonl' holds no records; give a jsonl, json, csv or parquet file",
        write("bad.jsonl", ""),
    ),
    (
        SFT,
        "config.data.path='bad.jsonl' is not a file; set it to a jsonl, json, csv or parquet file",
    ),
    (
        SFT,
        "config.data.path='bad.jsonl' holds no records; give a jsonl, json, csv or parquet file",
        write("bad.jsonl", ""),
    ),
    (
        SFT,
        "config.data.path='bad.jsonl' is a folder without state.json and dataset_info.json",
        empty("bad.jsonl"),
    ),
    (
        SFT,
        "config.data: bad.jsonl, line 2 is not JSON: ...; give {...} on each line.",
        lines("bad.jsonl", {"messages": TALK}, '{"messages": ['),
    ),
    (
        SFT,
        "config.data: bad.jsonl, line 2 is not a JSON object; give {...} on each line.",
        lines("bad.jsonl", {"messages": TALK}, "[]"),
    ),
    (
        SFT,
        "config.data: bad.jsonl, line 2 is no conversation; its columns are message, and a line has",
        lines("bad.jsonl", {"messages": TALK}, {"message": TALK}),
    ),
    (
        SFT,
        "config.data: bad.jsonl, line 1 has no list under 'messages'; it has ['messages'].",
        lines("bad.jsonl", {"messages": []}),
    ),
    (
        SFT,
        "config.data: bad.jsonl, line 1, message 1 is no object with role and content: hello",
        lines("bad.jsonl", {"messages": ["hello"]}),
    ),
    (
        SFT,
        (
            "config.data: bad.jsonl, line 1, message 1 has the role 'human'; allowed: system,"
            " user, assistant."
        ),
        lines("bad.jsonl", {"messages": [{"role": "human", "content": "x"}]}),
    ),
    (
        SFT,
        (
            "config.data: bad.jsonl, line 1 has the roles assistant, user; after a system "
            "message, if there is one, user and assistant must take turns, the assistant "
            "last."
        ),
        lines("bad.jsonl", {"messages": TALK[::-1]}),
    ),
    (
        SFT,
        (
            "config.data: bad.jsonl, line 1 has the roles user; after a system message, if "
            "there is one, user and assistant must take turns, the assistant last."
        ),
        lines("bad.jsonl", {"messages": TALK[:1]}),
    ),
    (
        SFT,
        "config.data: bad.jsonl, line 1, message 2 has no text under 'content'.",
        lines("bad.jsonl", {"messages": [TALK[0], {"role": "assistant", "content": " "}]}),
    ),
    (
        SFT,
        "config.data: bad.jsonl, line 1 has weight=0; set a finite number above 0.",
        lines("bad.jsonl", {"messages": TALK, "weight": 0}),
    ),
    (
        SFT,
        "config.data: bad.jsonl, line 1 has weight=None; set a finite number above 0.",
        lines("bad.jsonl", {"messages": TALK, "weight": float("nan")}),
    ),
    (
        SFT,
        "config.data: bad.jsonl, line 1 has weight=True; set a finite number above 0.",
        lines("bad.jsonl", {"messages": TALK, "weight": True}),
    ),
    (
        SFT,
        (
            "config.data: bad.jsonl, line 1, message 2 has half of a surrogate pair, which is"
            " no character; remove it."
        ),
        lines("bad.jsonl", {"messages": [TALK[0], {"role": "assistant", "content": "\ud800"}]}),
    ),
    (
        SFT,
        "config.data: bad.jsonl, line 1 is not JSON: ...; give {...} on each line.",
        write("bad.jsonl", b'{"messages": "\xff"}\n'),
    ),
    (
        SFT,
        "config.data: bad.jsonl, line 1 is not JSON: ...; give {...} on each line.",
        write("bad.jsonl", b"\x1f\x8b\x08\x00packed\n"),
    ),
    (
        SFT,
        (
            "config.data.num_held_out=256 of 3 documents leaves nothing on one side; set it "
            "within 1..2"
        ),
        lines("bad.jsonl", *[{"messages": TALK}] * 3),
    ),
    (
        SFT + " --config.data.split=test",
        "config.data.path='bad.jsonl' is a file, which has no split='test'; set split to 'train'",
        lines("bad.jsonl", {"messages": TALK}),
    ),
    (
        SFT + " --config.data.num_held_out=2 --config.answers.num_prompts=2",
        (
            "config: conversation 0 of the data: cannot encode ...: it goes beyond this "
            "tokenizer's vocabulary ..."
        ),
        lines(
            "bad.jsonl",
            *({"messages": [{"role": "user", "content": f"{i} €?"}, TALK[1]]} for i in range(9)),
        ),
    ),
    (
        GRPO,
        "config.data.path='bad.jsonl' is not a file; set it to a jsonl, json, csv or parquet file",
    ),
    (
        GRPO,
        "config.data.path='bad.jsonl' holds no records; give a jsonl, json, csv or parquet file",
        write("bad.jsonl", "\n\n"),
    ),
    (
        GRPO,
        "config.data: bad.jsonl, line 1 has no text under 'question'; its columns are answer, and",
        lines("bad.jsonl", {"answer": "#### 3"}),
    ),
    (
        GRPO,
        "config.data: bad.jsonl, line 1 has no text under 'answer', and bad.jsonl, line 2 has",
        lines("bad.jsonl", {"question": "1?"}, {"question": "2?", "answer": "3"}),
    ),
    (
        GRPO,
        "config.data: bad.jsonl, line 2: the answer has no final '#### <answer>', and that of bad",
        lines(
            "bad.jsonl",
            {"question": "1?", "answer": "#### 3"},
            {"question": "2?", "answer": "3"},
        ),
    ),
    (
        GRPO,
        "config.data: bad.jsonl, line 1 has no text under 'question'; its columns are question, answer",
        lines("bad.jsonl", {"question": 1, "answer": "#### 3"}),
    ),
    (
        GRPO,
        "config.data: bad.jsonl, line 1 has no text under 'answer': [3]",
        lines("bad.jsonl", {"question": "1?", "answer": [3], "test_cases": 3}),
    ),
    (
        GRPO,
        "config.data.num_held_out=256 leaves nothing of 1 questions to train on; lower it",
        lines("bad.jsonl", {"question": "1?", "answer": "#### 3"}),
    ),
    (
        GRPO + " --config.rewards={'language_consistency':1.0} --config.data.num_held_out=2",
        "config.rewards.language_consistency: every question needs a 'language', one of ['en', 'zh'];",
        lines(
            "bad.jsonl",
            *({"question": f"{i}?", "answer": "#### 3", "language": 3} for i in range(9)),
        ),
    ),
    (
        PREFERENCES,
        "config.data.path='bad.jsonl' is not a file; set it to a jsonl, json, csv or parquet file",
    ),
    (
        PREFERENCES,
        "config.data: bad.jsonl, line 1 has no 'chosen'; its columns are prompt, and a line has prompt",
        lines("bad.jsonl", {"prompt": "1?"}),
    ),
    (
        PREFERENCES,
        (
            "config.data: bad.jsonl, line 1 chooses '5' over itself; leave the pair out, or "
            "correct one of the two."
        ),
        lines("bad.jsonl", PAIR | {"rejected": "5"}),
    ),
    (
        PREFERENCES,
        "config.data: bad.jsonl, line 1 has no prompt; a line has prompt, chosen and rejected",
        lines("bad.jsonl", {"chosen": "5", "rejected": "6"}),
    ),
    (
        PREFERENCES,
        "config.data: bad.jsonl, line 1: the messages before 'chosen' are not its prompt",
        lines("bad.jsonl", PAIR | {"chosen": [TALK[0] | {"content": "Hi"}, TALK[1]]}),
    ),
    (
        PREFERENCES,
        "config.data: bad.jsonl, line 1 has no prompt; a line has prompt, chosen and rejected",
        lines("bad.jsonl", PAIR | {"prompt": 3}),
    ),
    (
        PREFERENCES,
        "config.data: bad.jsonl, line 1 has no prompt; a line has prompt, chosen and rejected",
        lines("bad.jsonl", {"messages": 3, "chosen": "5", "rejected": "6"}),
    ),
    (
        PREFERENCES + " --config.kind=safety",
        "config.data: bad.jsonl, line 1 has safe='yes'; set true or false.",
        lines("bad.jsonl", {"prompt": "1?", "response": "5", "safe": "yes"}),
    ),
    (
        PREFERENCES,
        (
            "config.data.num_held_out=512 of 1 records about 1 prompts in bad.jsonl leaves "
            "none to train on; lower it"
        ),
        lines("bad.jsonl", PAIR),
    ),
    (
        PRETRAIN,
        "config.data.sources='bad.jsonl' is not a file; set it to a jsonl, json, csv or parquet file",
    ),
    (
        PRETRAIN,
        "config.data.sources='bad.jsonl' holds no records; give a jsonl, json, csv or parquet file",
        write("bad.jsonl", ""),
    ),
    (
        PRETRAIN,
        "config.data.sources: bad.jsonl, line 2 has no text under 'text'; it has ['txt'].",
        lines("bad.jsonl", {"text": "a"}, {"txt": "b"}),
    ),
    (
        PRETRAIN,
        "config.data.sources: bad.jsonl, line 1 has no text under 'text'; it has ['text'].",
        lines("bad.jsonl", {"text": 3}),
    ),
    (
        PRETRAIN,
        "config.data.sources: bad.jsonl, line 2 is not JSON: ...; give {...} on each line.",
        lines("bad.jsonl", {"text": "a"}, "{"),
    ),
    (
        PRETRAIN.replace(
            "['bad.jsonl']", "['arithmetic','bad.jsonl'] --config.data.num_documents=99"
        ),
        "config.data.sources: bad.jsonl, line 2 is not JSON: ...; give {...} on each line.",
        lines("bad.jsonl", {"text": "a"}, "{"),
    ),
    (
        PRETRAIN,
        (
            "config.data.num_held_out=32 of 9 documents leaves nothing on one side; set it "
            "within 1..8"
        ),
        lines("bad.jsonl", *({"text": f"{i}"} for i in range(9))),
    ),
    (
        PRETRAIN.replace("bad.jsonl", "arithmetik"),
        "config.data.sources='arithmetik' is not a file; set it to a jsonl, json, csv or parquet file",
    ),
    *(
        (words[0], words[1], copied("pages", cut("*.array_record*", share)))
        for share in (0.0, 0.3, 0.9, 0.999)
        for words in (
            (PAGES, f"config.data.sources='pages': {CUT}"),
            (TALKS, f"config.data.path='pages': {CUT}"),
        )
    ),
    (
        PAGES,
        (
            "config.data.sources='pages': pages/pages-train.array_record-00001-of-00002 is "
            "missing; copy or prepare the dataset anew"
        ),
        copied("pages", without("*array_record*1-of*")),
    ),
    (
        TALKS + " --config.data.num_held_out=2 --config.answers.num_prompts=2",
        (
            "config.data.path='pages': pages/pages-train.array_record-00000-of-00002 or "
            "pages/pages-train.array_record-00001-of-00002 is damaged (...); copy or prepare "
            "the dataset anew"
        ),
        copied("pages", flipped("*.array_record*", 0.01)),
    ),
    (
        PAGES,
        (
            "config.data.sources='pages' is a damaged TFDS dataset: ...; copy or prepare the "
            "dataset anew"
        ),
        copied("pages", without("features.json")),
    ),
    (
        PAGES,
        (
            "config.data.sources='pages' is a damaged TFDS dataset: ...; copy or prepare the "
            "dataset anew"
        ),
        copied("pages", replaced("features.json", "{")),
    ),
    (
        PAGES,
        (
            "config.data.sources='pages' is a damaged TFDS dataset: ...; copy or prepare the "
            "dataset anew"
        ),
        copied("pages", replaced("dataset_info.json", "{")),
    ),
    (
        PAGES,
        (
            "config.data.sources='pages' is a damaged TFDS dataset: ...; copy or prepare the "
            "dataset anew"
        ),
        copied("pages", replaced("dataset_info.json", "{}")),
    ),
    (
        PAGES,
        "config.data.sources='pages' is a folder without state.json and dataset_info.json",
        copied("pages", without("dataset_info.json")),
    ),
    (
        PAGES,
        (
            "config.data.sources='pages': features.json names the class this.Feature, which "
            "would be imported; prepare the dataset with features of tensorflow_datasets "
            "alone"
        ),
        copied("pages", fields("features.json", pythonClassName="this.Feature")),
    ),
    (
        TALKS + " --config.data.split=test",
        (
            "config.data.path='pages' has no records in split='test'; choose from train, or a"
            " slice: ..."
        ),
        copied("pages"),
    ),
    (
        TALKS + " --config.data.split=train[5:5]",
        (
            "config.data.path='pages' has no records in split='train[5:5]'; choose from "
            "train, or a slice: ..."
        ),
        copied("pages"),
    ),
    (
        TALKS + " --config.data.split=train[",
        (
            "config.data.path='pages' has no records in split='train['; choose from train, or"
            " a slice: ..."
        ),
        copied("pages"),
    ),
    (
        TALKS,
        (
            "config.data.num_held_out=256 of 40 documents leaves nothing on one side; set it "
            "within 1..39"
        ),
        copied("pages"),
    ),
    (
        GRPO.replace("bad.jsonl", "pages"),
        "config.data.num_held_out=256 leaves nothing of 40 questions to train on; lower it",
        copied("pages"),
    ),
    (
        (
            "generate generate_small --config.data.task=None --config.data.path=pages "
            "--config.keep.decontaminate=() --config.data.split=train[50:]"
        ),
        (
            "config.data.path='pages' has no records in split='train[50:]'; choose from "
            "train, or a slice: ..."
        ),
        copied("pages"),
    ),
    (
        "generate generate_small --config.keep.decontaminate=['pages@test']",
        (
            "config.keep.decontaminate='pages' has no records in split='test'; choose from "
            "train, or a slice: ..."
        ),
        copied("pages"),
    ),
    (
        "train sft_small --config.data.path=s3://b/x.jsonl",
        "config.data: s3://b/x.jsonl is neither a local path nor an address gs://BUCKET/NAME",
    ),
]
