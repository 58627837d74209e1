"""A GGUF file -> an ordinary folder of float32 weights, configuration and tokenizer: ``python -m workers.gguf.convert FILE OUT``.

A process of its own, so that whoever plans a sweep needs no torch and gets back the memory. What is wrong is the last line on
stderr, and the exit status is 1.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

from workers.model_json import one_line


def convert(file: Path, out: Path) -> None:
    """Write ``out``. transformers reads a GGUF but will not save what it read, which it calls quantised: so the numbers that it
    made of the blocks go into a plain model of the same configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    read: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)

    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.generation_config = read.generation_config

    tokenizer.init_kwargs["local_files_only"] = False  # else the model's identity would follow whether the hub was allowed
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main(arguments: list[str]) -> int:
    """0, or 1 where the file cannot be converted, by whatever a library says of it."""
    file, out = map(Path, arguments)
    try:
        convert(file, out)
    except Exception as error:
        print(f"{type(error).__name__}: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
