"""What it takes to plan on a large dataset, beside reading and tokenizing all of it.

    python -m benchmarks.datasets

Two datasets are made: 2,000 Parquet shards (20,000 rows, 70 MB of text), and one text file of 50 MB. Each is
planned in a process of its own (`kvsweep plan`, reference-neox, 8 windows of 1,024 tokens), in every order.
All: every row, or every piece of a megabyte, goes through the same tokenizer once. The aim: seconds, and less
than a gigabyte, whatever the order.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROWS, WORDS = 10, 700
"""Of a shard, and of a row."""
PIECE = 1_000_000
VOCABULARY = [f"w{i}" for i in range(3000)]
SWEEP = """
name: datasets
models: [reference-neox]
datasets: [{{name: "{name}", sample: {sample}}}]
keep_ratios: [0.5]
perplexity: {{window: 1024, windows: {windows}}}
"""


def make_shards(folder: Path, count: int) -> Path:
    """So many shards of ten rows each."""
    rng = random.Random(0)
    folder.mkdir()
    for shard in range(count):
        texts = [" ".join(rng.choices(VOCABULARY, k=WORDS)) for _ in range(ROWS)]
        pq.write_table(pa.table({"text": texts}), folder / f"train-{shard:05d}-of-{count:05d}.parquet")
    return folder


def make_file(file: Path, size: int) -> Path:
    """At least so many bytes of lines of some sixty characters."""
    rng = random.Random(0)
    with file.open("w", encoding="utf-8") as stream:
        while stream.tell() < size:
            stream.writelines(" ".join(rng.choices(VOCABULARY, k=12)) + "\n" for _ in range(1000))
    return file


def texts(name: str) -> Iterator[str]:
    """All of a dataset, a row or a piece at a time."""
    if name.endswith(".txt"):
        with Path(name).open(encoding="utf-8") as stream:
            while piece := stream.read(PIECE):
                yield piece
        return
    for shard in sorted(Path(name).iterdir()):
        yield from pq.read_table(shard)["text"].to_pylist()


def tokenize_all(name: str) -> None:
    """Every token of a dataset, none of which is kept."""
    from workers.models.model_files import find_model
    from workers.texts.text_tokens import open_tokenizer

    tokenizer = open_tokenizer(find_model("reference-neox").tokenizer_file)
    for text in texts(name):
        tokenizer.encode(text)


def measured(*command: str) -> tuple[float, float]:
    """Seconds and peak GiB of a process."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - begin, usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--megabytes", type=float, default=50.0, help="of the text file")
    parser.add_argument("--windows", type=int, default=8, help="of 1,024 tokens, that are planned")
    parser.add_argument("--samples", nargs="+", default=["spread", "first", "random"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = {
            f"{args.shards:,} shards": make_shards(folder / "shards", args.shards),
            f"a file of {args.megabytes:g} MB": make_file(folder / "long.txt", int(1e6 * args.megabytes)),
        }
        for title, path in made.items():
            code = f"from benchmarks.datasets import tokenize_all; tokenize_all({str(path)!r})"
            whole, memory = measured("-c", code)
            print(f"{title}: all tokenized in {whole:.1f} s, {memory:.2f} GiB")
            for sample in args.samples:
                sweep = folder / "sweep.yaml"
                text = SWEEP.format(name=f"text:{path}", sample=sample, windows=args.windows)
                sweep.write_text(text, encoding="utf-8")
                seconds, memory = measured("-m", "pipeline.cli", "plan", str(sweep))
                times = f"{whole / seconds:.0f} times faster"
                print(
                    f"  planned, sample: {sample:6} {seconds:5.1f} s, {memory:.2f} GiB: {times}", flush=True
                )


if __name__ == "__main__":
    main()
