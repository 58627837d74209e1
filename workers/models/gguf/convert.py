"""A GGUF file -> an ordinary folder of float32 weights, configuration and tokenizer: ``python -m`` this
module, FILE, OUT.

A process of its own, so that whoever plans a sweep needs no torch and gets back the memory. What is wrong is
the last line on stderr, and the exit status is 1.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from pathlib import Path
from typing import Any

from workers.models.gguf.header import GgufHeader, read_header
from workers.models.gguf.tokenizer_kinds import BPE, DIGITS_APART, WHOLE_WORDS, bos_of
from workers.models.model_json import one_line

SPARE_BYTES, COPIES = 24 * 2**30, 6
"""Addresses that the libraries take for themselves, and copies of the weights in float32 that may be there at
once: whatever a file says, the conversion ends before it takes a machine's memory."""


def convert(file: Path, out: Path) -> None:
    """Write ``out``. Raises ValueError where what is written would not be the file's model."""
    header = read_header(file)
    _limit_memory(header.parameters)
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = _model(file)
    held = sum(weights.numel() for weights in model.parameters())  # tied ones once
    if held != header.parameters:
        raise ValueError(
            f"the file holds {header.parameters:,} numbers, and the model that transformers makes of it "
            f"{held:,}; it leaves something out, or has something else in its place"
        )
    tokenizer = _tokenizer(file, header)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _check_beginning(out / "tokenizer.json", bos_of(header.entries))


def _limit_memory(parameters: int) -> None:
    with contextlib.suppress(
        ImportError, ValueError, OSError
    ):  # not everywhere, and an environment may allow less
        import resource

        most = SPARE_BYTES + COPIES * 4 * parameters
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _model(file: Path) -> Any:
    """transformers reads a GGUF but will not save what it read, which it calls quantised: so the numbers that
    it made of the blocks go into a plain model of the same configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM

    read, told = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
        file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
    )
    lacking = sorted(told["missing_keys"])
    if lacking:
        raise ValueError(
            f"the file lacks {len(lacking)} of the weights that its settings ask for, such as {lacking[0]}"
        )

    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.generation_config = read.generation_config
    return model


def _tokenizer(file: Path, header: GgufHeader) -> Any:
    """As transformers makes it,
    and where that is not what llama.cpp does with the same file, as llama.cpp does."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.init_kwargs["local_files_only"] = (
        False  # else the model's identity would follow whether the hub was allowed
    )
    backend = tokenizer.backend_tokenizer
    cut = header.entries.get("tokenizer.ggml.pre")
    if header.entries["tokenizer.ggml.model"] == BPE and cut in DIGITS_APART:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    if header.entries["tokenizer.ggml.model"] == BPE and cut in WHOLE_WORDS:
        backend.model.ignore_merges = True

    _begin_with(backend, bos_of(header.entries))
    return tokenizer


def _begin_with(backend: Any, begin: int | None) -> None:
    """Have every text begin with a token, or with none, unless it does."""
    from tokenizers import processors

    if backend.encode("a").ids == [
        *([] if begin is None else [begin]),
        *backend.encode("a", add_special_tokens=False).ids,
    ]:
        return
    if begin is None:
        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
        return

    name = backend.id_to_token(begin)
    if name is None:
        raise ValueError(f"its texts begin with the token {begin:,}, which its tokenizer has not")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{name} $A", pair=f"{name} $A {name} $B", special_tokens=[(name, begin)]
    )


def _check_beginning(file: Path, expected: int | None) -> None:
    """The tokenizer as it was saved, by its file alone, as every run reads it."""
    from workers.texts.text_tokens import open_tokenizer

    found = open_tokenizer(str(file)).first_tokens()
    if found != ([] if expected is None else [expected]):
        raise ValueError(
            f"its texts begin with {expected}, and those of the tokenizer that was made of it with {found}"
        )


def main(arguments: list[str]) -> int:
    """0, or 1 where the file cannot be converted, by whatever a library says of it."""
    file, out = map(Path, arguments)
    try:
        convert(file, out)
    except Exception as error:
        words = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        print(one_line(words), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
