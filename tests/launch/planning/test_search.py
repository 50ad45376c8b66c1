"""launch/plan.py --search as a user starts it: a small experiment compiled for TPUs that are not there."""

import re

import pytest

from tests.launch.test_plan import planned

CONFIG = """
from configs import pretrain_small

def get_config():
    config = pretrain_small.get_config("fp8=False")
    sizes = dict(hidden_size=256, q_lora_rank=128, kv_lora_rank=128, moe_intermediate_size=128)
    sizes |= dict(qk_nope_head_dim=128, qk_rope_head_dim=128, v_head_dim=128, num_attention_heads=4)
    sizes |= dict(num_hidden_layers=2, intermediate_size=512, scan_layers=True)
    config.model.update(sizes | dict(num_nextn_predict_layers=0))
    del config.stages["stage_2_long"]
    with config.ignore_type():
        config.stages.stage_1.update(dict(batch_size=256, mtp_weight=0.0))
    config.mesh = dict(data=1, fsdp=4)
    return config
"""


def searched(folder, *args):
    """(exit status, stdout, stderr) of one launch."""
    (folder / "small.py").write_text(CONFIG)
    return planned(folder, *args, config="small.py")


@pytest.mark.slow
def test_a_search_compiles_the_best_and_prints_their_flags(tmp_path):
    """Oracle: the compiler's own count of the memory, to which the estimate comes within a factor of 2; the
    printed flags, which a plan takes and compiles, from the cache, to the memory in the search's table.
    """
    status, out, err = searched(tmp_path, "--topology=v5e:2x2", "--search=2")
    assert status == 0, err
    rows = re.findall(r"^ +(\w+=.*?) +(\d+) +(\w+) +yes +([\d.]+) +([\d.]+) +", out, re.M)
    assert len(rows) == 2, out
    for *_, estimated, compiled in rows:
        assert 0.5 < float(estimated) / float(compiled) < 2
    (flags,) = re.findall("the best of them: (.*)", out)
    status, out, err = searched(tmp_path, "--topology=v5e:2x2", *flags.split())
    assert status == 0, err
    assert any(f" {compiled} GiB" in out for *_, compiled in rows)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--topology=v5e:2x2 --search=0", "0 is not a positive number of layouts"),
        ("--topology=h100:8 --search", "--search compiles for TPUs; --topology=h100:8 has none"),
        ("--search", "Flag --topology must have a value other than None"),
    ],
)
def test_a_mistake_is_one_message_and_exit_status_two(tmp_path, args, words):
    """Oracle: the words a reader needs, no traceback."""
    status, _, err = searched(tmp_path, *args.split())
    assert status == 2 and words in err and "Traceback" not in err, err
