"""What the attention kernels of a GPU ask for and give back, tried on a CPU: they read a mask as what the
queries are, or refuse it, and lay their result out in another order. Measured on a GPU:
``benchmarks/results/rounding_cuda.txt``.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.support.tiny import repetitive_tokens, tiny_model
from workers.perplexity.evaluation import evaluate
from workers.policies.settings import PruneSettings

CELLS = [
    PruneSettings(policy, ratio, 8)
    for policy, ratio in (("knorm", 0.9), ("random", 0.5), ("streaming", 0.9), ("h2o", 0.9))
]


@pytest.fixture
def kernel(monkeypatch):
    """A list of (type of queries, type of mask), filled by every call of the kernel, whose result lies in
    another order."""
    seen = []
    stock = functional.scaled_dot_product_attention

    def strict(query, key, value, attn_mask=None, **others):
        seen.append((query.dtype, None if attn_mask is None else attn_mask.dtype))
        out = stock(query, key, value, attn_mask=attn_mask, **others)
        return out.transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", strict)
    return seen


@pytest.mark.parametrize("architecture", ["neox", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_mask_has_the_queries_type_and_no_order_of_the_result_is_relied_on(kernel, architecture, dtype):
    model, tokens = tiny_model(architecture).to(dtype), repetitive_tokens(2, 40)
    _, outcomes = evaluate(model, tokens, CELLS, [0, 1])
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert dtype in {mask for _, mask in kernel} <= {None, torch.bool, dtype}
    assert {query for query, _ in kernel} == {dtype}
