"""The check of a model on a text as long as what is measured: our attention and caches against the model
itself, a pruned cell against one token per pass.

A model may treat long texts in another way (windows, frequencies chosen by length), so what passed is
remembered with its length, per model revision, dtype, kind of device, library versions and the code of this
package, in the user's cache directory: a large model is not checked by every actor of a sweep. It is also
remembered by its text, for the figures that say how much is rounding: those are of the text that is measured,
whatever was checked before.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional

from workers.cache.attention import NAME as OWN_ATTENTION
from workers.footprint.worker import CHECK_LOGITS_BYTES, CHECK_RATIOS, check_prune_after
from workers.loaded.reference_pass import reference_nll
from workers.loaded.rounding import Distance, distances
from workers.machine.cache_folder import cache_folder
from workers.machine.code_digest import code_digest
from workers.messages.out_of_memory import is_out_of_memory
from workers.models.model_files import ModelError, ModelFacts
from workers.perplexity.evaluation import evaluate
from workers.policies.settings import PruneSettings

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
"""Largest difference of a token's NLL from the stock model's that is rounding and not a fault; beside it what
rounding its own logits to 16 bits may have done. For one token per pass and for a pruned cell it holds for
the mean: an expert, or a key at a cut, that rounding tips changes single tokens by more."""
DRAWS = 3
"""Texts tried: a norm on the edge between two rounded values can differ once;
a wrong cache differs on every text."""
SHORT = 48
"""The beginning of a text is compared by itself:
there passes are short, and entries lie in slots (``slot_layer``)."""
SHORTEST = 5
"""Tokens of a text that can be pruned and scored afterwards."""


@dataclass(frozen=True)
class Passed:
    """What the check found on texts of ``tokens`` tokens, and how far figures are from exact there."""

    tokens: int
    from_reference: float
    """Of one pass per event from one token per pass, in pruned cells:
    nats per token, the mean of absolute differences."""
    from_company: float
    """Of pruned cells from the same cells in the company of others, which share their passes."""
    ppl_from_reference: float
    """As ``from_reference``, the relative difference of the perplexities."""
    ppl_from_company: float
    texts: int = 1
    """How many of those ``tokens`` tokens were compared."""

    @property
    def rounding_nats(self) -> float | None:
        """What rounding alone makes of a token's NLL: the larger distance; None on too short texts."""
        return max(self.from_reference, self.from_company) if self.tokens >= SHORTEST else None

    @property
    def rounding_ppl(self) -> float | None:
        """What rounding alone makes of a perplexity, as a share of it."""
        return max(self.ppl_from_reference, self.ppl_from_company) if self.tokens >= SHORTEST else None


def rounding_note(model: str, dtype: str, passed: Passed) -> str:
    """How far figures in 16 bits are from exact, in words."""
    texts = "a text" if passed.texts == 1 else f"{passed.texts} texts"
    return (
        f"{model} in {dtype}: on {texts} of {passed.tokens} tokens pruned cells in one pass per event differ "
        f"from one token per pass by {passed.from_reference:.3g} nats a token "
        f"({passed.ppl_from_reference:.2g} of PPL), and by {passed.from_company:.3g} "
        f"({passed.ppl_from_company:.2g} of PPL) with the cells that share their passes; smaller differences "
        "between cells say nothing, and only float32 is exact"
    )


def use_own_attention(model: Any, name: str) -> None:
    """Put the model under our attention. Raises ModelError where it computes attention in its own code."""
    model.kvsweep_stock_attention = model.config._attn_implementation
    model.set_attn_implementation(OWN_ATTENTION)
    if model.config._attn_implementation != OWN_ATTENTION:
        raise ModelError(
            f"model {name!r}: {type(model).__name__} computes attention in its own code instead of calling "
            "it by name (transformers' AttentionInterface), so what a pruned layer holds cannot be attended "
            "to; use another architecture"
        )


def check_once(
    model: Any, facts: ModelFacts, dtype: str, tokens: Tensor, *, own_text: bool = False
) -> Passed:
    """``check`` unless a text as long as ``tokens`` [texts, length] passed before,
    or with ``own_text`` that very one.

    With ``own_text`` rounding in 16 bits is measured over texts (``over_texts``). Raises ModelError.
    """
    key = _key(facts, dtype, model.device.type)
    text = hashlib.sha256(tokens.cpu().numpy().tobytes()).hexdigest()[:16]
    any_text, this_text = _marks() / f"{key}.json", _marks() / f"{key}-{text}.json"
    before = _read(this_text if own_text else any_text)
    if before is not None and before.tokens >= tokens.shape[1]:
        return before

    passed = check(model, facts.name, dtype, tokens)
    longest = _read(any_text)
    if own_text:
        passed = passed if dtype == "float32" else over_texts(model, tokens, passed)
        _write(this_text, passed)
    if longest is None or longest.tokens < passed.tokens:
        _write(any_text, passed)
    return passed


def _marks() -> Path:
    return cache_folder() / "self-checks"


def _write(mark: Path, passed: Passed) -> None:
    with contextlib.suppress(OSError):  # a read-only home only means that the check runs again
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps(asdict(passed)), encoding="utf-8")


def _read(mark: Path) -> Passed | None:
    """None where there is none, or one that was cut off."""
    try:
        return Passed(**json.loads(mark.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _key(facts: ModelFacts, dtype: str, device: str) -> str:
    versions = f"{torch.__version__} {transformers.__version__} {code_digest(('workers',))}"
    return hashlib.sha256(f"{facts.revision} {dtype} {device} {versions}".encode()).hexdigest()[:32]


def check(model: Any, name: str, dtype: str, tokens: Tensor | None = None) -> Passed:
    """Compare on texts, [texts, length] ids, random short ones where left out;
    the model is under our attention afterwards.

    Raises ModelError with what differs, or why it cannot work.
    """
    if model.config._attn_implementation != OWN_ATTENTION:
        use_own_attention(model, name)
    faults = []
    for text in _texts(model, tokens):
        try:
            outcome = _compare(model, text[:, :SHORT], dtype)
            if isinstance(outcome, Passed) and text.shape[1] > SHORT:
                outcome = _compare(model, text, dtype)
        except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"model {name!r}: its architecture does not work with the pruned cache ({error})"
            ) from error
        if isinstance(outcome, Passed):
            return outcome
        faults.append(outcome)
    raise ModelError(f"model {name!r}: self-check failed: {faults[0]}; its figures would be wrong")


def over_texts(model: Any, tokens: Tensor, passed: Passed) -> Passed:
    """In 16 bits one text and one cut say little: distances over texts, and of a cell that prunes often too.

    tokens: [texts, length], of which DRAWS at most are compared; ``passed`` as it is where memory cannot hold
    them.
    """
    tokens = torch.cat(_texts(model, tokens))
    cells = _cells(tokens.shape[1])
    if not cells:
        return passed
    try:
        reference, company, count = distances(model, tokens, cells)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return passed
    return Passed(passed.tokens, reference.nats, company.nats, reference.ppl, company.ppl, count)


def _texts(model: Any, tokens: Tensor | None) -> list[Tensor]:
    """[1, length] each, at most DRAWS."""
    if tokens is None:
        vocabulary = model.get_output_embeddings().weight.shape[0]
        drawn = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, vocabulary, (DRAWS, SHORT), generator=drawn)
    return [tokens[i : i + 1].to(model.device) for i in range(min(DRAWS, len(tokens)))]


@contextlib.contextmanager
def _stock_attention(model: Any) -> Iterator[None]:
    """The model as transformers runs it."""
    model.set_attn_implementation(model.kvsweep_stock_attention)
    try:
        yield
    finally:
        model.set_attn_implementation(OWN_ATTENTION)


@torch.inference_mode()
def _stock_nll(model: Any, tokens: Tensor) -> tuple[Tensor, float]:
    """[1, length - 1] on the CPU, of tokens [1, length], from the model's own logits: for so many tokens at a
    time as memory may hold of a large vocabulary, where the model's code can leave out the others. And by how
    much rounding of the largest logit to the model's dtype may have moved one."""
    steps = tokens.shape[1] - 1
    at_once = steps
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        vocabulary = model.get_output_embeddings().weight.shape[0]
        at_once = max(1, CHECK_LOGITS_BYTES // (4 * vocabulary))

    parts = []
    rounding = 0.0
    with _stock_attention(model):
        for places in torch.arange(steps, device=tokens.device).split(at_once):
            kept = {"logits_to_keep": places} if len(places) < steps else {}
            logits = model(tokens[:, :-1], use_cache=False, **kept).logits[0]
            if logits.dtype.itemsize < 4:
                # half a unit in the last place of the wanted logit, and as much of the largest
                rounding = max(
                    rounding, float(max(logits.max(), -logits.min())) * torch.finfo(logits.dtype).eps
                )
            logits = logits.float()  # the model's own are gone before the next ones of their size are made
            parts.append(functional.cross_entropy(logits, tokens[0, places + 1], reduction="none").cpu())
            del logits
    return torch.cat(parts)[None], rounding


def _compare(model: Any, tokens: Tensor, dtype: str) -> Passed | str:
    """What passed on one text, or what differs."""
    length = tokens.shape[1]
    stock, rounding = _stock_nll(model, tokens)
    tolerance = TOLERANCE[dtype] + rounding
    cells = _cells(length)
    dense, outcomes = evaluate(model, tokens, cells, [0])
    worst = float((dense.nll - stock).abs().max())
    if not worst <= tolerance:
        return (
            f"NLLs of one dense pass over {length} tokens through our attention and cache differ from the "
            f"stock model's by up to {worst:.3g} (at most {tolerance:.3g} is rounding in {dtype})"
        )
    if not cells:
        return Passed(length, 0.0, 0.0, 0.0, 0.0)
    pruned = outcomes[0]
    if pruned is None or isinstance(pruned, Exception):
        return f"a pruned cell failed ({pruned})"

    reference = reference_nll(model, tokens, cells[0])
    before = cells[0].prune_after
    away = Distance.between(reference[:, :before], stock[:, :before]).nats
    if not away <= tolerance:
        return (
            f"NLLs of {length} tokens, one per pass, through our attention and cache differ from the stock "
            f"model's by {away:.3g} on average before anything is pruned ({tolerance:.3g} is rounding in "
            f"{dtype})"
        )
    exact = Distance.between(pruned.nll[:, before:], reference[:, before:])
    if not exact.nats <= TOLERANCE[dtype]:
        allowed = f"{TOLERANCE[dtype]:g} is rounding"
        return (
            f"a pruned cell of {length} tokens differs from one token per pass by {exact.nats:.3g} nats a "
            f"token ({allowed})"
        )
    alone = evaluate(model, tokens, cells[:1], [0])[1][0]
    company = Distance.between(pruned.nll[:, before:], getattr(alone, "nll", reference)[:, before:])
    return Passed(length, exact.nats, company.nats, exact.ppl, company.ppl)


def _cells(length: int) -> list[PruneSettings]:
    """The cell that is judged, first pruned where half of a short text or CHECK_LATE tokens of a long one are
    to come, and others that share its passes; none for a text that is too short to prune."""
    if length < SHORTEST:
        return []
    return [PruneSettings("knorm", ratio, check_prune_after(length)) for ratio in CHECK_RATIOS]
