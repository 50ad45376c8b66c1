"""Mistakes in checkpoints, tokenizers and adapters; see bad_inputs.py."""

import json

from tests.reliability.goods import (
    both,
    copied,
    cut,
    empty,
    fields,
    lines,
    replaced,
    without,
    write,
)

TALK = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]

PACKED = "train pretrain_small --config.mesh={'data':4,'tensor':2}"

TUNE = (
    "train sft_small --config.model={} --config.base=None --config.init_from=model "
    "--config.data.template=chat --config.data.path=good.jsonl --config.data.num_held_out=2 "
    "--config.answers.num_prompts=2"
)

EVALUATE = "evaluate --checkpoint=model --data=questions.jsonl --max_completion_length=8"

CONVERT = "convert --from=model --to=out"

GOOD = lines(
    "good.jsonl",
    *({"messages": [{"role": "user", "content": f"{i} + 1?"}, TALK[1]]} for i in range(9)),
)

ASKED = lines("questions.jsonl", *({"question": f"{i}?", "answer": "#### 1"} for i in range(3)))


def tuned(*changes):
    """prepare: conversations, and a copy of the checkpoint with changes."""
    return both(GOOD, copied("model", *changes))


def asked(*changes):
    """prepare: questions, and a copy of the checkpoint with changes."""
    return both(ASKED, copied("model", *changes))


def run_of(recipe, stage=None, **record):
    """prepare: run/, a run that is for a stage of this name, or for none alone. record: of its stage.json."""
    marks = write("run/config.json", json.dumps({"recipe": recipe}))
    marks = both(marks, write("run/run.json", json.dumps({"stage": stage})))
    if stage is None:
        return marks
    return both(marks, write(f"run/{stage}/stage.json", json.dumps({"stage": stage} | record)))


# The work directories of runs from which nothing can be read
UNENDED = both(ASKED, GOOD, copied("model"), run_of("sft", "sft"))

R1_RUN = both(
    ASKED,
    GOOD,
    run_of("r1"),
    write("run/zero/params/config.json", "{}"),
    write("run/students/qwen/params/config.json", "{}"),
)

ADAPTED = both(
    ASKED,
    GOOD,
    copied("model"),
    run_of("sft", "sft", start="init_from"),
    write("run/sft/adapter/adapter_config.json", "{}"),
)

# Parameters that an earlier version left
WITHOUT_TOKENIZER = both(
    ASKED,
    GOOD,
    run_of("sft", "sft"),
    lambda good, here: copied("model", without("*token*"))(good, here / "run/sft"),
    lambda good, here: (here / "run/sft/model").rename(here / "run/sft/params"),
)

REWARDING = both(
    ASKED,
    run_of("reward_model", "reward_model"),
    write("run/reward_model/params/reward_model.json", "{}"),
)

EARLY = "run is the folder of a run; it has left no parameters yet"
LEFT = (
    "run is the folder of a run; give what it left there: run/students/qwen/params, run/zero/params"
)
BASELESS = "run/sft/adapter/adapter_config.json: base_model_name_or_path=None names no base"

RUNS = [
    (TUNE.replace("=model", "=run"), f"config.init_from: {EARLY}", UNENDED),
    (TUNE.replace("=model", "=run"), f"config.init_from: {LEFT}", R1_RUN),
    (
        TUNE.replace("=model", "=run"),
        f"config.init_from: {BASELESS}",
        ADAPTED,
    ),
    (
        TUNE.replace("=model", "=run"),
        "config.init_from: no tokenizer in run/sft/params: none of tokenizer.json",
        WITHOUT_TOKENIZER,
    ),
    (EVALUATE.replace("=model", "=run"), f"--checkpoint: {EARLY}", UNENDED),
    (EVALUATE.replace("=model", "=run"), f"--checkpoint: {LEFT}", R1_RUN),
    (EVALUATE.replace("=model", "=run"), f"--checkpoint: {BASELESS}", ADAPTED),
    (
        EVALUATE.replace("=model", "=run"),
        "--checkpoint: no tokenizer in run/sft/params: none of tokenizer.json",
        WITHOUT_TOKENIZER,
    ),
    (
        EVALUATE.replace("=model", "=run"),
        "--checkpoint: run/reward_model/params holds a reward model, which answers nothing",
        REWARDING,
    ),
    (
        EVALUATE + " --adapter=run",
        "--adapter: no adapter in run/sft/adapter: there is no adapter_model.safetensors",
        ADAPTED,
    ),
    ("generate generate_small:teacher=run", f"config.init_from: {EARLY}", UNENDED),
    (f"{PACKED} --config.init_from=run", f"config.init_from: {LEFT}", R1_RUN),
    (
        "train distill_small --config.teacher.path=run --config.teacher.base=None "
        "--config.teacher.fine_tune=None",
        f"config.teacher.path: {LEFT}",
        R1_RUN,
    ),
    (
        "train distill_small --config.starts.llama.init_from=run --config.starts.llama.base=None",
        f"config.starts.llama.init_from: {EARLY}",
        UNENDED,
    ),
    (CONVERT.replace("=model", "=run"), LEFT, R1_RUN),
    (CONVERT.replace("=model", "=run"), BASELESS, ADAPTED),
    (
        CONVERT + " --adapter=run",
        "--adapter: no adapter in run/sft/adapter: there is no adapter_model.safetensors",
        ADAPTED,
    ),
    (CONVERT + " --like=run", EARLY, UNENDED),
]

# A name on the hub, where conftest cuts the hub off
UNREACHABLE = (
    "there is nothing at org/model, the cache ... does not have all of it, and the Hugging Face hub cannot "
    "be reached (HF_HUB_OFFLINE is set): run `hf download org/model` where there is a network, with HF_HOME"
)

CHECKPOINTS = [
    (f"{TUNE} --config.init_from=org/model", f"config.init_from: {UNREACHABLE}", GOOD),
    (
        f"{PACKED} --config.model={{}} --config.init_from=org/model",
        f"config.init_from: {UNREACHABLE}",
    ),
    (f"{PACKED} --config.data.tokenizer=org/model", f"config.data.tokenizer: {UNREACHABLE}"),
    ("train distill_small:teacher=org/model", f"config.teacher.path: {UNREACHABLE}"),
    ("generate generate_small:teacher=org/model", f"config.init_from: {UNREACHABLE}"),
    ("evaluate --checkpoint=org/model --data=arithmetic", f"--checkpoint: {UNREACHABLE}"),
    (CONVERT.replace("=model", "=org/model"), UNREACHABLE),
    (f"{CONVERT} --like=org/model", UNREACHABLE, copied("model")),
    (
        TUNE,
        "config.init_from: there is nothing at model; give a Hugging Face folder, a .gguf file or",
        GOOD,
    ),
    (
        TUNE,
        (
            "config.init_from: model/config.json does not exist; give a Hugging Face folder: "
            "config.json and safetensors"
        ),
        both(GOOD, empty("model")),
    ),
    (
        TUNE,
        (
            "config.init_from: model/config.json does not exist; give a Hugging Face folder: "
            "config.json and safetensors"
        ),
        tuned(without("config.json")),
    ),
    (
        TUNE,
        (
            "config.init_from: model/config.json is not JSON: Expecting property name "
            "enclosed in double quotes: line 1 column 2 (char 1)"
        ),
        tuned(replaced("config.json", "{")),
    ),
    (
        TUNE,
        "config.init_from: model/config.json holds a list; it must be an object with fields",
        tuned(replaced("config.json", "[]")),
    ),
    (
        TUNE,
        (
            "config.init_from: model/config.json: model_type='gpt2' is not one of "
            "['deepseek_v2', 'deepseek_v3', 'deepseek_v32', 'llama', 'qwen2', 'qwen3']"
        ),
        tuned(fields("config.json", model_type="gpt2")),
    ),
    (
        TUNE,
        "config.init_from: model/config.json: a llama model lacks hidden_size; set them there",
        tuned(fields("config.json", hidden_size=None)),
    ),
    (
        TUNE,
        "config.init_from: model/config.json: config.json.hidden_size='16' (str) must be an int",
        tuned(fields("config.json", hidden_size="16")),
    ),
    (
        TUNE,
        "config.init_from: model/config.json: config.json.hidden_size=0 must be at least 1",
        tuned(fields("config.json", hidden_size=0)),
    ),
    (
        TUNE,
        (
            "config.init_from: lm_head.weight in model/model.safetensors has shape [261, 16];"
            " by config.json it is [261, 24]"
        ),
        tuned(fields("config.json", hidden_size=24)),
    ),
    (
        TUNE,
        (
            "config.init_from: model.layers.1.input_layernorm.weight is missing from "
            "model/model.safetensors, though by config.json the model has it, of shape [16]; complete "
            "the download or correct config.json"
        ),
        tuned(fields("config.json", num_hidden_layers=2)),
    ),
    (
        TUNE,
        (
            "config.init_from: model/config.json: config.json.num_attention_heads=3 is not a "
            "multiple of num_key_value_heads=2; change num_key_value_heads"
        ),
        tuned(fields("config.json", num_attention_heads=3)),
    ),
    (
        TUNE,
        "config.init_from: model/config.json: hidden_act='gelu' is not modelled, only 'silu'",
        tuned(fields("config.json", hidden_act="gelu")),
    ),
    (
        TUNE,
        (
            "config.init_from: model/config.json: the RoPE parameters of type 'su' lack "
            "factor; set it beside rope_type"
        ),
        tuned(fields("config.json", rope_scaling={"rope_type": "su"})),
    ),
    (
        TUNE,
        (
            "config.init_from: model/config.json: rope_scaling=3 must be an object with "
            "fields, or null"
        ),
        tuned(fields("config.json", rope_scaling=3)),
    ),
    (
        TUNE,
        (
            "config.init_from: model/config.json: quantization_config.quant_method='awq' is "
            "not read, only 'fp8'; dequantise the checkpoint first"
        ),
        tuned(fields("config.json", quantization_config={"quant_method": "awq"})),
    ),
    (
        TUNE,
        (
            "config.init_from: model/config.json: quantization_config='awq' must be an object"
            " with fields, or null"
        ),
        tuned(fields("config.json", quantization_config="awq")),
    ),
    (
        TUNE,
        "config.init_from: model/config.json: config.json.rms_norm_eps='x' (str) must be a float",
        tuned(fields("config.json", rms_norm_eps="x")),
    ),
    (
        TUNE,
        "config.init_from: model holds no readable safetensors checkpoint: ...; take another copy of it",
        tuned(without("*.safetensors")),
    ),
    (
        TUNE,
        (
            "config.init_from: model.embed_tokens.weight is truncated: "
            "model/model.safetensors ends 13620 bytes before it does"
        ),
        tuned(cut("*.safetensors", 0.5)),
    ),
    (
        TUNE,
        "config.init_from: model holds no readable safetensors checkpoint: ...; take another copy of it",
        tuned(cut("*.safetensors", 0.0)),
    ),
    (
        TUNE,
        "config.init_from: model holds no readable safetensors checkpoint: ...; take another copy of it",
        tuned(replaced("model.safetensors", "not tensors at all")),
    ),
    (
        TUNE,
        (
            "config.init_from: model/model.safetensors.index.json is damaged: it has no "
            "weight_map ..."
        ),
        tuned(replaced("model.safetensors.index.json", "{"), without("model.safetensors")),
    ),
    (
        TUNE,
        (
            "config.init_from: model/model.safetensors.index.json names '../a', which is not "
            "a file of its folder"
        ),
        tuned(
            replaced("model.safetensors.index.json", '{"weight_map": {"a": "../a"}}'),
            without("model.safetensors"),
        ),
    ),
    (
        TUNE,
        (
            "config.init_from: no tokenizer in model: none of tokenizer.json, "
            "tokenizer.model, vocab.json is there; copy the tokenizer's files there from the "
            "folder that the checkpoint comes from."
        ),
        tuned(without("tokenizer*")),
    ),
    (
        TUNE,
        (
            "config.init_from: cannot read the tokenizer of model: ...; copy its files from "
            "the folder that the checkpoint comes from"
        ),
        tuned(replaced("tokenizer.json", "{")),
    ),
    (
        TUNE,
        (
            "config.init_from: cannot read the tokenizer of model: ...; copy its files from "
            "the folder that the checkpoint comes from"
        ),
        tuned(replaced("tokenizer.json", "{}")),
    ),
    (
        TUNE,
        (
            "config.init_from: cannot read the tokenizer of model: ...; copy its files from "
            "the folder that the checkpoint comes from"
        ),
        tuned(replaced("tokenizer_config.json", "{")),
    ),
    (
        TUNE,
        (
            "config.init_from: tokenizer without eos: no completion could end. The tokenizer "
            "of model names no eos_token; set it in its tokenizer_config.json."
        ),
        tuned(fields("tokenizer_config.json", eos_token=None)),
    ),
    (
        TUNE,
        (
            "config.init_from: cannot read the tokenizer of model: ...; copy its files from "
            "the folder that the checkpoint comes from"
        ),
        tuned(
            fields(
                "tokenizer_config.json",
                tokenizer_class="NoTokenizer",
                auto_map={"AutoTokenizer": ["code.Mine", None]},
            ),
            replaced("code.py", "open('ran', 'w')"),
        ),
    ),
    *(
        (
            TUNE,
            "config.init_from: the...chat template...set template to",
            tuned(replaced("chat_template.jinja", text)),
        )
        for text in (
            "{% for m in messages %}",
            "{{ messages | nothing }}",
            "{{ nothing.field }}",
            "{{ raise_exception('no such role') }}",
            "hello",
        )
    ),
    (
        TUNE + " --config.data.template=ask",
        'config.data.template=\'ask\' must be "chat", "r1_zero" or a text with {question} in it',
        tuned(),
    ),
    (
        TUNE + " --config.model={'dtype':'float16'}",
        (
            "config.model.dtype='float16' is not allowed; did you mean bfloat16? allowed: "
            "float32, bfloat16"
        ),
        tuned(),
    ),
    (
        TUNE + " --config.model={'hidden_size':32}",
        "config.model.hidden_size is not a field; allowed: dtype...",
        tuned(),
    ),
    (
        TUNE + " --config.init_from=bad.gguf",
        "config.init_from: bad.gguf is not a whole GGUF file: ...; take another copy of it",
        both(GOOD, write("bad.gguf", "x")),
    ),
    (
        TUNE + " --config.init_from=bad.gguf",
        "config.init_from: bad.gguf is not a whole GGUF file: ...; take another copy of it",
        both(GOOD, write("bad.gguf", b"GGUF\x03\0\0\0" + b"\xff" * 64)),
    ),
    (
        TUNE + " --config.init_from=bad.gguf",
        "config.init_from: there is nothing at bad.gguf; give a Hugging Face folder, a .gguf",
        GOOD,
    ),
    (
        EVALUATE,
        "--data='questions.jsonl' is not a file; set it to a jsonl, json, csv or parquet file",
        copied("model"),
    ),
    (
        EVALUATE + " --adapter=none",
        "--adapter='none': there is nothing at this path; correct it",
        asked(),
    ),
    (
        EVALUATE + " --adapter=empty",
        "--adapter='empty': there is nothing at this path; correct it",
        both(asked(), empty("empty")),
    ),
    (
        EVALUATE + " --adapter=empty",
        (
            "--adapter: no adapter in empty: there is no adapter_model.safetensors; give the "
            "folder adapter of a run, or one of peft's"
        ),
        both(asked(), write("empty/adapter_config.json", "{")),
    ),
    (
        EVALUATE + " --adapter=odd",
        "--adapter: odd/adapter_config.json: r=None must be a number above 0",
        both(
            asked(),
            write("odd/adapter_config.json", "{}"),
            write("odd/adapter_model.safetensors", ""),
        ),
    ),
    (
        EVALUATE,
        "--checkpoint: model holds no readable safetensors checkpoint: ...; take another copy of it",
        asked(without("*.safetensors")),
    ),
    (
        EVALUATE,
        (
            "--checkpoint: the tokenizer's chat template fails in line 1: "
            "TemplateSyntaxError: ...; correct the field chat_template of its "
            'tokenizer_config.json, or its chat_template.jinja, or set template to "r1_zero" '
            "or to a text that contains {question}."
        ),
        asked(replaced("chat_template.jinja", "{% if %}")),
    ),
    (
        PACKED + " --config.model={} --config.init_from=none",
        (
            "config.init_from: none/config.json does not exist; give a Hugging Face folder: "
            "config.json and safetensors"
        ),
    ),
    (
        PACKED + " --config.data.tokenizer=none",
        "config.data.tokenizer: nothing at none; give a Hugging Face folder or a .gguf file.",
    ),
    (
        PACKED + " --config.data.tokenizer=model",
        (
            "config.data.tokenizer: cannot read the tokenizer of model: ...; copy its files "
            "from the folder that the checkpoint comes from"
        ),
        copied("model", replaced("tokenizer.json", "{")),
    ),
    (
        "train grpo_small --config.reward_models={'good':{'path':'none'}}",
        (
            "config.reward_models.good.path='none': no reward model in ...none: there is no "
            "reward_model.json"
        ),
    ),
    (
        "train distill_small:teacher=none",
        (
            "config.teacher.path: there is nothing at none; give a Hugging Face folder, a "
            ".gguf file or the folder of a run"
        ),
    ),
    (
        "generate generate_small:teacher=none",
        (
            "config.init_from: there is nothing at none; give a Hugging Face folder, a .gguf "
            "file or the folder of a run"
        ),
    ),
    (
        CONVERT,
        (
            "model/config.json does not exist; give a Hugging Face folder: config.json and "
            "safetensors"
        ),
    ),
    (
        CONVERT,
        "out is not empty; give a new folder, nothing is overwritten",
        both(copied("model"), write("out/x", "x")),
    ),
    (
        CONVERT + " --like=none",
        "none/config.json does not exist; give a Hugging Face folder: config.json and safetensors",
        copied("model"),
    ),
    (
        CONVERT + " --adapter=none",
        (
            "--adapter: no adapter in none: there is no adapter_config.json; give the folder adapter of "
            "a run, or one of peft's"
        ),
        copied("model"),
    ),
    (
        CONVERT + " --format=orbax --fp8",
        (
            "--like and --fp8 say how to write a Hugging Face folder; leave them out of "
            "--format=orbax"
        ),
        copied("model"),
    ),
    (
        CONVERT + " --format=pt",
        "flag --format=pt: value should be one of <hf|orbax>",
        copied("model"),
    ),
    (
        CONVERT,
        (
            "model.embed_tokens.weight is truncated: model/model.safetensors ends 13620 bytes"
            " before it does"
        ),
        copied("model", cut("*.safetensors", 0.5)),
    ),
    (
        CONVERT + " --from=bad.gguf",
        "bad.gguf is not a whole GGUF file: ...; take another copy of it",
        write("bad.gguf", "GGUF"),
    ),
    (
        "convert --from=model",
        "flag --to=None: Flag --to must have a value other than None.",
        copied("model"),
    ),
]

# Mistakes that show beside the parameters alone: reading them compiles a few copies to the devices
WEIGHTS = [
    (
        TUNE + " --config.sequence_length=512",
        "config.sequence_length=512 is beyond the model's max_position_embeddings=128; lower it",
        tuned(),
    ),
    (
        EVALUATE + " --max_completion_length=1000",
        (
            "--max_completion_length=1000 after the longest prompt's 91 tokens is beyond the "
            "model's max_position_embeddings=128; lower it to 37 or less, or leave out the "
            "longest prompts"
        ),
        asked(),
    ),
    (
        TUNE,
        (
            "config.data.template='chat', but this tokenizer has no chat template; set it to "
            '"r1_zero" or to a text that contains {question}.'
        ),
        tuned(replaced("chat_template.jinja", "")),
    ),
]
