"""kvpress as a contestant of benchmarks/generation.py, in its own environment and process.

First line on stdin: {"model", "prompt", "new_tokens", "threads"}; then a keep_ratio per line. Each is answered by one JSON line;
for a keep_ratio it is [seconds to the first token, seconds per later token]. The sizes are those that kvsweep's cache has at
prune_after 512: the prompt is pruned to the size after an event, and then again whenever 512 entries are reached.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from typing import Any

import torch
from kvpress import DecodingPress, KnormPress, PrefillDecodingPress
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

PRUNE_AFTER = 512


class Stamps:
    """A streamer: when each token was known."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, _: Any) -> None:
        self.at.append(time.perf_counter())

    def end(self) -> None:
        """Part of a streamer; the last token was stamped already."""


def press_for(keep_ratio: float, prompt: int) -> PrefillDecodingPress:
    size = math.ceil(keep_ratio * PRUNE_AFTER)
    decoding = DecodingPress(KnormPress(), compression_interval=PRUNE_AFTER - size, target_size=size, hidden_states_buffer_size=0)
    return PrefillDecodingPress(KnormPress(compression_ratio=1 - (size + 0.5) / prompt), decoding)


@torch.inference_mode()
def timed(model: Any, prompt: torch.Tensor, new_tokens: int, keep_ratio: float) -> tuple[float, float]:
    stamps = Stamps()
    gc.collect()
    gc.disable()
    with press_for(keep_ratio, prompt.shape[1])(model):
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), past_key_values=DynamicCache(), max_new_tokens=new_tokens,
            min_new_tokens=new_tokens, do_sample=False, pad_token_id=0, streamer=stamps,
        )  # fmt: skip
    gc.enable()
    return stamps.at[1] - stamps.at[0], (stamps.at[-1] - stamps.at[1]) / (len(stamps.at) - 2)


def main() -> None:
    logging.disable_progress_bar()
    options = json.loads(sys.stdin.readline())
    torch.set_num_threads(options["threads"])
    model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.float32, attn_implementation="sdpa").eval()
    prompt = torch.tensor([options["prompt"]])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(timed(model, prompt, options["new_tokens"], json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
