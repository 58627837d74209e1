"""What kvpress's KnormPress keeps of a prompt. Runs in kvpress's own environment: compare_kvpress.py starts
it.

Reads JSON on stdin ({"model": directory, "prompts": [{"ids": [...], "keep": n}]}), writes JSON on stdout: per
prompt, layer and KV head the positions kept.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from kvpress import KnormPress
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging


class RecordingPress(KnormPress):
    """KnormPress as it is, noting which entries are left."""

    def compress(
        self, module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: Any
    ) -> Any:
        kept = super().compress(module, hidden_states, keys, values, attentions, kwargs)
        same = (kept[0][0, :, :, None] == keys[0, :, None]).all(-1)  # [kv_heads, kept, n]
        if not bool((same.sum(-1) == 1).all()):
            raise RuntimeError("two entries have the same key, so a position cannot be told")
        self.positions.append(same.float().argmax(-1).sort(-1).values.tolist())
        return kept


def main() -> None:
    logging.disable_progress_bar()
    asked = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32).eval()
    found = []
    for prompt in asked["prompts"]:
        press = RecordingPress(compression_ratio=1 - (prompt["keep"] + 0.5) / len(prompt["ids"]))
        press.positions = []
        with torch.inference_mode(), press(model):
            model(torch.tensor([prompt["ids"]]), past_key_values=DynamicCache())
        found.append(press.positions)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
