"""The source of the base's batches, read by one process and by two."""

import json

import jax
import numpy as np
import pytest

from configs import models
from deepseek_jax.data.packing import pack
from deepseek_jax.data.tokenizer import arithmetic_tokenizer
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import ModelConfig
from deepseek_jax.recipes.blocks import random_params
from deepseek_jax.recipes.pretrain import PackedDocuments
from tests.processes import run_two
from tests.recipes.small import one_device

TOKENIZER = arithmetic_tokenizer()
CONFIG = ModelConfig(**models.deepseek_v3_tiny(vocab_size=TOKENIZER.vocab_size))
DOCUMENTS = [{"text": f"{a} + {b} = {a + b}"} for a in range(1, 10) for b in range(1, 10)]
PACKING = dict(sequence_length=16, batch_size=4, seed=0)

ONE_OF_TWO = """
import json, sys
import jax
process, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from deepseek_jax.data.packing import pack
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes.blocks import random_params
from deepseek_jax.recipes.pretrain import PackedDocuments
from tests.recipes.test_pretrain import CONFIG, DOCUMENTS, PACKING, TOKENIZER

mesh = make_mesh()
share = dict(process_index=process, process_count=2)
source = PackedDocuments(pack(DOCUMENTS, TOKENIZER, **PACKING, **share), mesh)
start = source.get_state()
(batch,), metrics = source.next(None, 0)
moved = source.get_state()
source.next(None, 1)
source.set_state(start)
(again,), _ = source.next(None, 0)
assert (jax.jit(lambda a, b: (a == b).all())(batch["tokens"], again["tokens"])).item()
assert len(moved["processes"]) == 2 and source.get_state() == moved
with jax.set_mesh(mesh):
    params, _ = random_params(CONFIG, mesh, 0)
    loss, _ = jax.jit(lambda params, batch: next_token_loss(CONFIG, params, batch))(params, batch)
print("result", json.dumps([float(loss), metrics["tokens"]]))
"""


def two_processes():
    """[loss, tokens] of the first batch, as each of two processes has them, with a device each."""
    statuses, outputs = run_two(ONE_OF_TWO, xla_flags="--xla_force_host_platform_device_count=1")
    assert statuses == [0, 0], outputs
    return [json.loads(output.split("result ")[1].splitlines()[0]) for output in outputs]


def test_two_processes_give_the_loss_that_one_has_of_both_shares():
    """Oracle: the rows of both shares, put together by numpy, on one device; both resume where they were."""
    shares = [
        next(iter(pack(DOCUMENTS, TOKENIZER, **PACKING, process_index=i, process_count=2)))
        for i in range(2)
    ]
    assert not np.array_equal(shares[0]["tokens"], shares[1]["tokens"])
    batch = {
        name: np.concatenate([s[name] for s in shares]) for name in shares[0] if name[0] != "n"
    }
    batch["normalizer"] = np.float32(batch["loss_mask"].sum())
    assert batch["tokens"].shape == (4, 16)
    params, _ = random_params(CONFIG, one_device(), 0)
    wanted = float(next_token_loss(CONFIG, params, batch)[0])
    for loss, tokens in two_processes():
        np.testing.assert_allclose(loss, wanted, rtol=1e-5)  # float32, summed in another order
        assert tokens == batch["normalizer"]


def test_the_place_of_another_number_of_processes_is_refused():
    """Oracle: the message names both numbers."""
    source = PackedDocuments(pack(DOCUMENTS, TOKENIZER, **PACKING), one_device())
    state = source.get_state()["processes"]
    assert len(state) == jax.process_count() == 1
    with pytest.raises(ValueError, match="by 2 processes, and now there are 1"):
        source.set_state({"processes": state * 2})
