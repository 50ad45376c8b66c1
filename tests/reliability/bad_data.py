"""Mistakes in data, and files of data that are damaged; see bad_inputs.py."""

from tests.reliability.goods import copied, cut, flipped, lines, replaced, without, write

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

# A file that is not there, with a line of one
MISSING = "is not a file; set it to a jsonl, json, csv or parquet file..."
CONVERSATION = '{"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", '
QUESTION = '{"question": "2 + 3?", "answer": "2 + 3 = 5 #### 5"}'

DATA = [
    (TASKS, f"config.tasks.talks.path='bad.jsonl' {MISSING}{CONVERSATION}"),
    (SFT, f"config.data.path='bad.jsonl' {MISSING}{CONVERSATION}"),
    (
        SFT,
        "config.data.path='bad.jsonl' holds no records; give a jsonl, json, csv or parquet file",
        write("bad.jsonl", ""),
    ),
    (
        SFT,
        "config.data: bad.jsonl, line 2 is not JSON: ...; give {...} on each line.",
        lines("bad.jsonl", {"messages": TALK}, '{"messages": ['),
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
    (GRPO, f"config.data.path='bad.jsonl' {MISSING}{QUESTION}"),
    (
        "train grpo_small --config.general="
        "{'num_steps':1,'per_step':1,'rewards':{'correct':1.0},'path':'bad.jsonl'}",
        f"config.general.path='bad.jsonl' {MISSING}{QUESTION}",
    ),
    (
        "generate generate_small --config.data.task=None --config.keep.decontaminate=() "
        "--config.data.path=bad.jsonl",
        f"config.data.path='bad.jsonl' {MISSING}{QUESTION}",
    ),
    (
        "generate generate_small --config.keep.decontaminate=['bad.jsonl']",
        f"config.keep.decontaminate='bad.jsonl' {MISSING}{QUESTION}",
    ),
    (
        "evaluate --checkpoint=model --data=bad.jsonl",
        f"--data='bad.jsonl' {MISSING}{QUESTION}",
        copied("model"),
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
            "bad.jsonl", {"question": "1?", "answer": "#### 3"}, {"question": "2?", "answer": "3"}
        ),
    ),
    (
        GRPO,
        "config.data: bad.jsonl, line 1 has no text under 'answer': [3]",
        lines("bad.jsonl", {"question": "1?", "answer": [3], "test_cases": 3}),
    ),
    (
        GRPO + " --config.rewards={'language_consistency':1.0} --config.data.num_held_out=2",
        "config.rewards.language_consistency: every question needs a 'language', one of ['en', 'zh'];",
        lines(
            "bad.jsonl",
            *({"question": f"{i}?", "answer": "#### 3", "language": 3} for i in range(9)),
        ),
    ),
    (PREFERENCES, f'config.data.path=\'bad.jsonl\' {MISSING}"chosen": "5"'),
    (
        PREFERENCES,
        "config.data: bad.jsonl, line 1 has no 'chosen'; its columns are prompt, and a line has prompt",
        lines("bad.jsonl", {"prompt": "1?"}),
    ),
    (
        PREFERENCES,
        (
            "config.data.num_held_out=512 of 1 records about 1 prompts in bad.jsonl leaves "
            "none to train on; lower it"
        ),
        lines("bad.jsonl", PAIR),
    ),
    (PRETRAIN, f'config.data.sources=\'bad.jsonl\' {MISSING}{{"text": "A document."}}'),
    (
        PRETRAIN,
        "config.data.sources: bad.jsonl, line 2 has no text under 'text'; it has ['txt'].",
        lines("bad.jsonl", {"text": "a"}, {"txt": "b"}),
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
        (
            command,
            f"config.data.{field}='pages': {CUT}",
            copied("pages", cut("*.array_record*", 0.3)),
        )
        for command, field in ((PAGES, "sources"), (TALKS, "path"))
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
        TALKS + " --config.data.split=test",
        (
            "config.data.path='pages' has no records in split='test'; choose from train, or a"
            " slice: ..."
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
