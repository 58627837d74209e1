"""What tests share: a tiny model on disk with its tokenizer, a text, sweep files over both. No network, no
embedded weights."""

from __future__ import annotations

import atexit
import os
import random
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_AUTH_TOKEN": secrets.token_hex(
        32
    ),  # no test writes a token to the home directory or uses the one there
    "XDG_CACHE_HOME": tempfile.mkdtemp(prefix="kvcache"),  # passed self-checks
    "COLUMNS": "160",  # width of printed tables
}
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # threads of processes side by side must not wait for one another by spinning
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
    os.environ.pop(name, None)

LAYERS, CONTEXT = 2, 256
WORDS = (
    "river stone lamp quiet window seven under green copper never again follows because morning paper small"
    " bridge against letter winter garden silver market thunder island every second almost yellow engine"
    " harbour wooden answer"
)


hypothesis.settings.register_profile("tests", deadline=None)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("tests")

LONG = ("test_golden", "chaos", "measuring", "cluster", "harness", "test_faults")
"""What takes longest begins first, so that no worker of pytest-xdist is left with it alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files; the tests of a file keep theirs."""

    def place(item: pytest.Item) -> int:
        named = [index for index, name in enumerate(LONG) if name in item.nodeid]
        return min(named, default=len(LONG))

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sockets: their paths have a limit, so the folder's is short."""
    folder = tempfile.mkdtemp(prefix="kv", dir="/tmp" if Path("/tmp").is_dir() else None)
    os.environ["RAY_TMPDIR"] = folder
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer Llama of 4 heads over 2 KV heads and a byte tokenizer, saved as a user's own model
    would be."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model") / "tiny"
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=256,
        eos_token_id=256,
        initializer_range=0.4,  # large, so that attention is far from uniform and dropping an entry shows
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    save_byte_tokenizer(folder / "tokenizer.json")
    return folder


def save_byte_tokenizer(file: Path) -> None:
    """One token per byte and an end of text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    tokenizer.save(str(file))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 3,000 characters (as many tokens of the tiny model) of varied text."""
    rng = random.Random(0)
    sentences = (
        " ".join(rng.choices(WORDS.split(), k=rng.randint(4, 12))).capitalize() + rng.choice(".?!")
        for _ in range(60)
    )
    text = ""
    for sentence in sentences:
        if len(text) > 3000:
            break
        text += sentence + rng.choice((" ", " ", "\n\n"))
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture
def sweep_file(tmp_path: Path, tiny_model_dir: Path, text_file: Path) -> Callable[..., Path]:
    """``sweep_file(key="YAML", ...)``: a small valid sweep with these keys replaced or added; None takes a
    key out."""

    def write(**changes: str | None) -> Path:
        keys: dict[str, str | None] = {
            "name": "tiny",
            "models": f"[{tiny_model_dir}]",
            "datasets": f'["text:{text_file}"]',
            "devices": "[cpu]",
            "keep_ratios": "[0.9, 0.5]",
            "prune_after": "[16]",
            "perplexity": "{window: 64, stride: 64, windows: 3}",
        }
        lines = [f"{key}: {value}" for key, value in {**keys, **changes}.items() if value is not None]
        file = tmp_path / "sweep.yaml"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return file

    return write


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a run goes."""
    return tmp_path / "out"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of one node (RayHead) for the whole module."""
    from tests.support.private_machine import PrivateMachine, needs
    from tests.support.ray_head import RayHead

    needs()
    folder = tmp_path_factory.mktemp("head")
    with PrivateMachine(folder) as machine:
        yield RayHead(machine, folder)


@pytest.fixture
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``run_of(perplexity=rows, ...)``: results of a run with these tables."""
    from analysis.load import load
    from tests.support.rows import write_run

    return lambda **tables: load([write_run(str(tmp_path_factory.mktemp("run")), tables)])


@pytest.fixture
def tables_of(run_of: Callable[..., Any]) -> Callable[..., Any]:
    """``tables_of(perplexity=rows, ...)``: the report's tables of them."""
    from analysis.tables import Tables

    return lambda **tables: Tables.of(run_of(**tables))


@pytest.fixture
def page_of(run_of: Callable[..., Any]) -> Callable[..., Any]:
    """``page_of(perplexity=rows, ...)``: everything that a page shows of them."""
    from analysis.page.page import contents

    return lambda **tables: contents(run_of(**tables), 0.01)


@pytest.fixture
def summarise(tables_of: Callable[..., Any]) -> Callable[..., Any]:
    """Perplexity rows -> the summary table of a run that holds them."""
    return lambda rows: tables_of(perplexity=rows).perplexity
