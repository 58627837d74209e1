"""Train the embedded reference models from scratch: ``python -m tools.train_reference neox --texts DIR --out
DIR``.

Tokens per step and sequence length grow with progress (short retrieval documents first: retrieval forms on
them long before it forms at 2,048 tokens); bfloat16 autocast; Muon for hidden matrices, AdamW for the rest;
warm-up, constant rate, linear decay. A checkpoint is written every few minutes and ``--resume`` goes on from
it, so a cut run loses little.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.optim import _muon
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tools.training_text import Mixture, books, encoded, held_out, module_documentation

END = "<|endoftext|>"
VOCABULARY, CONTEXT, HIDDEN = 4096, 2048, 256
STAGES = ((0.0, 128, 4096), (0.12, 256, 4096), (0.35, 512, 8192), (0.6, 1024, 8192), (0.75, 2048, 8192))
"""(from this share of the run on, sequence length, tokens per step)."""


@dataclass(frozen=True)
class Settings:
    architecture: str
    tokens: int
    learning_rate: float
    seed: int
    retrieval_share: float
    answer_weight: float
    warmup_tokens: int = 300_000
    decay_from: float = 0.6
    shortest: int = 128
    """Sequences are at least this long, whatever the stage says."""
    longest: int = CONTEXT
    """Sequences are at most this long, whatever the stage says."""
    copy_share: float = 0.0
    """Share of sequences in which spans of earlier text come again (training_text.Mixture)."""
    bfloat16: bool = True
    """Autocast; only faster where the processor multiplies bfloat16 in hardware."""
    rope_theta: float = 10_000.0
    start_from: str | None = None
    """Name of the trained model whose weights were the start, instead of random ones."""


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 4,096 entries in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, bos_token=END, model_max_length=CONTEXT
    )


def make_model(architecture: str, rope_theta: float) -> GPTNeoXForCausalLM | LlamaForCausalLM:
    """The two shapes of the embedded models, randomly initialised."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
        "attn_implementation": "sdpa",
    }
    if architecture == "neox":
        config = GPTNeoXConfig(
            intermediate_size=4 * HIDDEN,
            use_parallel_residual=True,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta, "partial_rotary_factor": 0.25},
            **shape,
        )
        return GPTNeoXForCausalLM(config)
    rotary = {"rope_type": "default", "rope_theta": rope_theta}
    return LlamaForCausalLM(
        LlamaConfig(intermediate_size=768, num_key_value_heads=2, rope_parameters=rotary, **shape)
    )


class HeadLoss(torch.autograd.Function):
    """Weighted cross-entropy of the output layer in slices, so that no [tokens, vocabulary] tensor is ever
    held."""

    @staticmethod
    def forward(ctx, hidden, head, targets, weights):  # noqa: ANN001, ANN205
        """hidden [n, width], head [vocabulary, width], targets [n], weights [n] -> mean loss."""
        into_hidden, into_head, total = (
            torch.empty_like(hidden),
            torch.zeros_like(head, dtype=torch.float32),
            0.0,
        )
        narrow, scale = head.to(hidden.dtype), 1 / weights.sum()
        for start in range(0, len(hidden), 1024):
            part = slice(start, start + 1024)
            log_probability = torch.log_softmax((hidden[part] @ narrow.T).float(), -1)
            weight, target = weights[part, None] * scale, targets[part, None]
            total = total - (log_probability.gather(1, target) * weight).sum()
            gradient = (
                log_probability.exp_()
                .scatter_add_(1, target, -torch.ones_like(weight))
                .mul_(weight)
                .to(hidden.dtype)
            )
            into_hidden[part] = gradient @ narrow
            into_head += (gradient.T @ hidden[part]).float()
        ctx.save_for_backward(into_hidden, into_head)
        return total

    @staticmethod
    def backward(ctx, grad):  # noqa: ANN001, ANN205  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of hidden and head; targets and weights have none."""
        into_hidden, into_head = ctx.saved_tensors
        return into_hidden * grad, into_head * grad, None, None


def optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, output layer, norms and biases."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    ids = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [
        torch.optim.Muon(inner, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def orthogonalised(grad: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Muon's Newton-Schulz iteration in float32: torch's own is in bfloat16, four times slower where that is
    not in hardware."""
    tall = grad.shape[0] > grad.shape[1]
    x = grad.T if tall else grad
    x = x / x.norm().clamp(min=eps)
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def rate_at(seen: int, settings: Settings) -> float:
    """Warm-up, constant, linear decay to 2 %."""
    warm = min(1.0, (seen + 4096) / settings.warmup_tokens)
    left = (1 - seen / settings.tokens) / (1 - settings.decay_from)
    return settings.learning_rate * warm * min(1.0, max(0.02, left))


@torch.no_grad()
def digit_accuracy(model: Any, body: nn.Module, mixture: Mixture, length: int, documents: int = 8) -> float:
    """Share of answer tokens that the model predicts best, teacher-forced, on fresh retrieval documents."""
    right = total = 0
    for _ in range(documents):
        ids, weights = (torch.tensor(x) for x in mixture.document(length, 100.0))
        guess = model.get_output_embeddings()(body(input_ids=ids[None, :-1]).last_hidden_state[0]).argmax(-1)
        asked = weights[1:] == 100.0
        right += int((guess == ids[1:])[asked].sum())
        total += int(asked.sum())
    return right / max(1, total)


@torch.no_grad()
def validation_loss(
    model: Any, body: nn.Module, streams: dict[str, Tensor], length: int = 1024
) -> dict[str, float]:
    """Mean NLL per stream over at most 8 windows."""
    losses = {}
    for name, ids in streams.items():
        size = min(length, len(ids))
        windows = ids[: len(ids) // size * size].view(-1, size)[:8]
        logits = model.get_output_embeddings()(body(input_ids=windows).last_hidden_state)
        losses[name] = float(
            nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), windows[:, 1:].flatten())
        )
    return losses


def load_text(folder: Path, tokenizer_dir: Path) -> tuple[PreTrainedTokenizerFast, dict[str, list[str]]]:
    """The training texts, and the tokenizer made from them unless it is already there."""
    texts = {"books": books(folder), "documentation": module_documentation()}
    if not (tokenizer_dir / "tokenizer.json").exists():
        make_tokenizer([t for group in texts.values() for t in group]).save_pretrained(tokenizer_dir)
    return PreTrainedTokenizerFast.from_pretrained(tokenizer_dir), texts


def train(
    settings: Settings,
    out: Path,
    tokenizer: PreTrainedTokenizerFast,
    texts: dict[str, list[str]],
    start_from: Path | None,
    resume: bool,
) -> None:
    """Run the whole schedule; checkpoints and the loss curve go to ``out``."""
    torch.manual_seed(settings.seed)
    model: Any = make_model(settings.architecture, settings.rope_theta)
    if start_from:
        model.load_state_dict(type(model).from_pretrained(start_from, dtype=torch.float32).state_dict())
    body = model.base_model
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    split = {name: held_out(torch.cat(list(encoded(group, encode, 0)))) for name, group in texts.items()}
    shares = {"books": 0.65, "documentation": 0.35}
    mixture = Mixture({name: (split[name][0], shares[name]) for name in split}, encode, 0, settings.seed)
    print({name: len(part[0]) for name, part in split.items()}, "tokens of training text", flush=True)
    opts, seen, curve, spent = optimizers(model, settings.learning_rate), 0, [], 0.0
    if resume and (out / "checkpoint.pt").exists():
        seen, curve, spent = restore(out, model, opts)
        mixture.rng.seed(settings.seed + seen)
    begin, last_save, running = time.monotonic(), time.monotonic(), 0.0
    step = 0
    while seen < settings.tokens:
        _, length, per_step = [s for s in STAGES if s[0] <= seen / settings.tokens][-1]
        length = min(max(length, settings.shortest), settings.longest)
        ids, weights = mixture.batch(
            per_step // length, length, settings.retrieval_share, settings.answer_weight, settings.copy_share
        )
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = rate_at(seen, settings)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
            hidden = body(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            loss = HeadLoss.apply(
                hidden.flatten(0, 1).to(torch.bfloat16 if settings.bfloat16 else torch.float32),
                model.get_output_embeddings().weight,
                ids[:, 1:].flatten(),
                weights[:, 1:].flatten(),
            )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        seen, step, running = seen + per_step, step + 1, 0.95 * running + 0.05 * loss.item()
        if step % 50 == 0 or seen >= settings.tokens:
            seconds = spent + time.monotonic() - begin
            point = {
                "tokens": seen,
                "seconds": round(seconds),
                "train": round(running / (1 - 0.95 ** min(step, 500)), 4),
            }
            if step % 200 == 0 or seen >= settings.tokens:
                valid = validation_loss(model, body, {name: part[1] for name, part in split.items()})
                point |= {name: round(value, 4) for name, value in valid.items()}
                point |= {
                    f"answers_{n}": round(digit_accuracy(model, body, mixture, n), 3)
                    for n in (128, 512, 1024)
                }
                curve.append(point)
            print(json.dumps(point), flush=True)
        if time.monotonic() - last_save > 120 or seen >= settings.tokens:
            last_save = time.monotonic()
            save(out, model, opts, seen, curve, spent + time.monotonic() - begin)
    export(
        model,
        tokenizer,
        out,
        [*earlier_runs(start_from), {"settings": asdict(settings), "curve": curve, "notes": []}],
    )


def save(
    out: Path,
    model: nn.Module,
    opts: list[torch.optim.Optimizer],
    seen: int,
    curve: list[dict],
    seconds: float,
) -> None:
    """A checkpoint, whole or not at all."""
    state = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in opts],
        "seen": seen,
        "curve": curve,
    }
    torch.save(state | {"seconds": seconds}, out / "checkpoint.tmp")
    (out / "checkpoint.tmp").replace(out / "checkpoint.pt")


def restore(out: Path, model: nn.Module, opts: list[torch.optim.Optimizer]) -> tuple[int, list[dict], float]:
    """Load the checkpoint; returns tokens seen, the curve and the seconds spent so far."""
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    model.load_state_dict(state["model"])
    for opt, saved in zip(opts, state["optimizers"], strict=True):
        opt.load_state_dict(saved)
    return state["seen"], state["curve"], state["seconds"]


def earlier_runs(start_from: Path | None) -> list[dict[str, Any]]:
    """How the weights that training starts from were made."""
    return json.loads((start_from / "training.json").read_text())["runs"] if start_from else []


def export(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, out: Path, runs: list[dict[str, Any]]
) -> None:
    """Write the bfloat16 weights, the tokenizer and how they were made, run by run."""
    model.to(torch.bfloat16).save_pretrained(out / "export")  # pyright: ignore[reportCallIssue]
    tokenizer.save_pretrained(out / "export")
    (out / "export" / "training.json").write_text(json.dumps({"runs": runs}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("architecture", choices=("neox", "llama"))
    parser.add_argument("--texts", type=Path, required=True, help="folder with the training texts (*.txt)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and export")
    parser.add_argument("--tokens", type=int, default=12_000_000)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retrieval-share", type=float, default=1 / 3)
    parser.add_argument("--answer-weight", type=float, default=5.0)
    parser.add_argument(
        "--copy-share", type=float, default=0.0, help="share of sequences with repeated spans"
    )
    parser.add_argument(
        "--shortest",
        type=int,
        default=128,
        help="shortest sequence, for training a finished model on long ones",
    )
    parser.add_argument(
        "--longest", type=int, default=CONTEXT, help="longest sequence, for a run on short ones alone"
    )
    parser.add_argument(
        "--decay-from", type=float, default=0.6, help="share of the run after which the learning rate falls"
    )
    parser.add_argument("--rope-theta", type=float, default=10_000.0)
    parser.add_argument(
        "--float32",
        action="store_true",
        help="no bfloat16, for processors that do not multiply it in hardware",
    )
    parser.add_argument(
        "--start-from", type=Path, metavar="DIR", help="go on from the weights and the tokenizer in DIR"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.float32:
        _muon._zeropower_via_newtonschulz = orthogonalised
    args.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        args.architecture,
        args.tokens,
        args.learning_rate,
        args.seed,
        args.retrieval_share,
        args.answer_weight,
        decay_from=args.decay_from,
        shortest=args.shortest,
        longest=args.longest,
        copy_share=args.copy_share,
        bfloat16=not args.float32,
        rope_theta=args.rope_theta,
        start_from=args.start_from.name if args.start_from else None,
    )
    tokenizer, texts = load_text(args.texts, args.start_from or args.out.parent / "tokenizer")
    train(settings, args.out, tokenizer, texts, args.start_from, args.resume)


if __name__ == "__main__":
    main()
