"""Sweep files of about so many cells, each large along other axes."""

from __future__ import annotations

from pathlib import Path

TEXT = "The river ran under the bridge. " * 4000
COARSE = [f"{i / 101:.4f}" for i in range(1, 101)]
STEPS = list(range(1, 1001))
PERPLEXITY = "perplexity: {window: 128, windows: 2}"
POLICIES = "knorm, random, streaming, recent, knorm_high, h2o, snapkv, tova"


def one_window_each(cells: int) -> str:
    """A sweep file of about so many cells of one window each, 4,000 for each threshold."""
    thresholds = [16 * i for i in range(1, max(1, round(cells / 4000)) + 1)]
    ratios = [f"{i / 100:g}" for i in range(1, min(100, max(1, cells // 40)) + 1)]
    return grid_of(
        "perplexity: {window: 1024, stride: 1024, windows: 1}",
        policies=f"[{POLICIES}]",
        keep_ratios=ratios,
        prune_after=thresholds,
        skip_layers=[[], [0], [1], [0, 1], [2]],
    )


def grid_of(task: str = PERPLEXITY, **keys: object) -> str:
    """A sweep file; what is not given is one value."""
    one = {"models": "[reference-neox]", "datasets": "[pydocs]", "devices": "[cpu]", "keep_ratios": "[0.5]"}
    lines = [f"{key}: {_flow(value)}" for key, value in {**one, **keys}.items()]
    return "\n".join(["name: grid", *lines, task]) + "\n"


def _flow(value: object) -> str:
    if isinstance(value, str):
        return value
    return "[" + ", ".join(map(str, list(value))) + "]"  # pyright: ignore[reportArgumentType]


def grids(folder: Path, cells: int) -> dict[str, str]:
    """Grids of about so many cells: a square of two axes, or one axis beside a hundred ratios."""
    side = round(cells**0.5)
    ratios = [f"{i / (side + 1):.5f}" for i in range(1, side + 1)]
    fine = [f"{i / (cells + 1):.8f}" for i in range(1, min(cells, 100_000) + 1)]
    layers = [[layer for layer in range(6) if number >> layer & 1] for number in range(63)]
    protected = STEPS[: max(1, side // 10)]
    blocks = (f"{{keep_ratios: [{r}], prune_after: [{n}]}}" for r in ratios[::10] for n in STEPS[:side:10])
    prompts = list(range(10, 10 + max(1, cells // 2000)))
    depths = [i / 100 for i in range(100)]
    generation = f"{{prompt_tokens: {prompts}, batch_sizes: {list(range(1, 21))}, new_tokens: 16}}"
    retrieval = f"{{context_tokens: [512], depths: {depths}, distractors: {list(range(10))}}}"
    return {
        "keep_ratios x prune_after": grid_of(keep_ratios=ratios, prune_after=STEPS[:side]),
        "one axis, keep_ratios": grid_of(keep_ratios=fine),
        "policies of one module": grid_of(
            policies=_own_policies(folder, max(1, cells // 100)), keep_ratios=COARSE
        ),
        "skip_layers": grid_of(
            skip_layers=layers, keep_ratios=COARSE, prune_after=STEPS[: max(1, cells // 6300)]
        ),
        "protect_sink, protect_recent": grid_of(
            "perplexity: {window: 1024, windows: 2}",
            keep_ratios=COARSE,
            protect_sink=protected,
            protect_recent=protected,
            prune_after="[512]",
        ),
        "exclude, a block for each hundredth cell": grid_of(
            keep_ratios=ratios, prune_after=STEPS[:side], exclude=f"[{', '.join(blocks)}]"
        ),
        "datasets": grid_of(
            datasets=_texts(folder, max(1, cells // 5000)),
            keep_ratios=ratios,
            prune_after=STEPS[: max(1, round(5000 / side))],
        ),
        "prompts x batches of generation": grid_of(f"generation: {generation}", keep_ratios=COARSE),
        "depths x distractors of retrieval": grid_of(
            f"retrieval: {retrieval}", keep_ratios=ratios, prune_after=STEPS[:side]
        ),
    }


def _own_policies(folder: Path, count: int) -> list[str]:
    """A module of so many policies; their names."""
    functions = [f"def f{i}(view):\n    return view.positions.float()\n" for i in range(count)]
    (folder / "many.py").write_text("".join(functions))
    return [f"'many:f{i}'" for i in range(count)]


def _texts(folder: Path, count: int) -> list[str]:
    """So many text files; their names."""
    names = []
    for i in range(count):
        (folder / f"text{i}.txt").write_text(f"{i} {TEXT}")
        names.append(f"'text:{folder}/text{i}.txt'")
    return names
