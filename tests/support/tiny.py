"""Small randomly initialised models on which attention matters, so that a wrong cache shows."""

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

VOCABULARY = 97
ARCHITECTURES = ("neox", "llama")


def tiny_model(architecture: str, attention: str = "kvsweep", seed: int = 0):
    """3 layers, hidden 32, 4 heads (llama: 2 KV heads), context 512, weights large enough for sharp
    attention."""
    torch.manual_seed(seed)
    shape = dict(  # noqa: C408 - keyword arguments of two configurations
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        attn_implementation=attention,
        bos_token_id=0,
        eos_token_id=None,
    )
    if architecture == "neox":
        rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
        model = GPTNeoXForCausalLM(GPTNeoXConfig(rope_parameters=rope, **shape))
    else:
        model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **shape))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.25)
    return model.eval().requires_grad_(False)


def repetitive_tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """[rows, length] ids with many repetitions, so that key norms tie; never 0, which tests use as
    padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 40, (rows, length), generator=generator)
