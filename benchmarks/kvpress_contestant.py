"""kvpress as a contestant of benchmarks/generation.py, in its own environment and process.

First line on stdin: {"model", "prompt", "new_tokens", "prune_after", "threads"}, then a keep_ratio per line.
Each is answered by one JSON line: for a keep_ratio it is [seconds to the first token, seconds per later
token]. The sizes are those of kvsweep's cache: the prompt is pruned to the size after an event, and then
again whenever prune_after entries are reached.
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


class Stamps:
    """A streamer: when each token was known."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, _: Any) -> None:
        self.at.append(time.perf_counter())

    def end(self) -> None:
        """Part of a streamer; the last token was stamped already."""


def press_for(keep_ratio: float, prompt: int, prune_after: int) -> PrefillDecodingPress:
    size = math.ceil(keep_ratio * prune_after)
    sizes = {"compression_interval": prune_after - size, "target_size": size}
    decoding = DecodingPress(KnormPress(), **sizes, hidden_states_buffer_size=0)
    return PrefillDecodingPress(KnormPress(compression_ratio=1 - (size + 0.5) / prompt), decoding)


@torch.inference_mode()
def timed(
    model: Any, prompt: torch.Tensor, options: dict[str, Any], keep_ratio: float
) -> tuple[float, float]:
    new_tokens = options["new_tokens"]
    stamps = Stamps()
    gc.collect()
    gc.disable()
    with press_for(keep_ratio, prompt.shape[1], options["prune_after"])(model):
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=DynamicCache(),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            streamer=stamps,
        )
    gc.enable()
    return stamps.at[1] - stamps.at[0], (stamps.at[-1] - stamps.at[1]) / (len(stamps.at) - 2)


def main() -> None:
    logging.disable_progress_bar()
    options = json.loads(sys.stdin.readline())
    torch.set_num_threads(options["threads"])
    loaded = {"dtype": torch.float32, "attn_implementation": "sdpa"}
    model = AutoModelForCausalLM.from_pretrained(options["model"], **loaded).eval()
    prompt = torch.tensor([options["prompt"]])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(timed(model, prompt, options, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
