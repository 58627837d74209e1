"""``kvsweep`` as a model of EleutherAI's lm-evaluation-harness: its tasks through a pruned cache.

Tokens (also of special tokens that a text spells), windows, truncation and stop sequences are those of the
harness's own ``hf`` model (lm_eval/models/huggingface.py), so that a dense cell gives its figures; what
differs is the cache, and that what went through it is counted.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import jinja2
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import has_bos_prefix, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from workers.harness.arguments import parse
from workers.harness.counts import Counts, total
from workers.harness.scores import ContinuationScore, Pair, fitted, score_continuations
from workers.harness.tasks import HarnessError
from workers.harness.text_ids import ids_of, load_tokenizer
from workers.harness.texts import Decoding, Generated, Writer
from workers.harness.usable import usable_device, usable_settings
from workers.loaded.load import load
from workers.loaded.self_check import check_once, rounding_note
from workers.messages.kept_answers import AnswerBook
from workers.models.bos import Bos, bos_token
from workers.models.model_files import ModelError, ModelFacts, find_model
from workers.policies.settings import PruneSettings
from workers.texts.check_text import continued

log = logging.getLogger("lm_eval.kvsweep")
"""Below the harness's own logger, whose handler prints it."""


DEFAULT_LENGTH = 2048
"""Context and continuation at most, where a model does not say; as the harness has it."""


class PrunedModel(TemplateLM):
    """A loaded model whose contexts and continuations go through a cache that prunes by ``settings``.

    ``counts``, by task: what really happened.
    """

    backend = "causal"

    def __init__(
        self,
        model: nn.Module,
        facts: ModelFacts,
        settings: PruneSettings,
        device: torch.device,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        batch_size: int = 1,
        max_length: int | None = None,
        bos: Bos = "auto",
        progress: bool = True,
    ) -> None:
        """``model``: under our attention, as ``models.load`` gives it.

        Raises HarnessError for what it cannot do, ModelError where ``bos`` asks for a token that the model
        does not name.
        """
        super().__init__()
        self.model = model
        self.facts = facts
        self.settings = usable_settings(settings, model, facts, max_length)
        self._rule = settings.skip_layers if isinstance(settings.skip_layers, str) else None

        self.tokenizer = tokenizer or load_tokenizer(facts, model)
        self._bos: Bos = bos
        self._first = bos_token(facts, bos) if bos == "always" else None

        self.batch_size = batch_size
        self._device = device
        self._max_length = max_length
        self._progress = progress

        self.worked: Callable[[float], None] = lambda share: None
        """Told, while requests are answered, of the shares of them that are done."""
        self.book = AnswerBook()
        """What is known of the requests, and who is told of what is new."""
        self.counts: defaultdict[str, Counts] = defaultdict(Counts)
        self.rounding: str | None = None
        """How far figures in 16 bits are from exact, once something was asked."""

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> PrunedModel:
        """From ``a=1,b=2``; lists do not survive the commas, so layers are joined by +.
        Raises HarnessError, ModelError."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> PrunedModel:
        """From arguments by name; ``additional_config``: the harness's own options.
        Raises HarnessError, ModelError."""
        arguments = parse(arg_dict, additional_config or {})
        device = usable_device(arguments.device, is_asked="device" in arg_dict)

        facts = find_model(
            arguments.pretrained, arguments.revision, trust_remote_code=arguments.trust_remote_code
        )
        return cls(
            load(facts, arguments.dtype, device),
            facts,
            arguments.settings,
            device,
            batch_size=arguments.batch_size,
            max_length=arguments.max_length,
            bos=arguments.bos,
        )

    @property
    def eot_token_id(self) -> int:
        """The end of text."""
        if not isinstance(self.tokenizer.eos_token_id, int):
            raise ModelError(
                f"model {self.facts.name!r}: neither its tokenizer nor its config.json names an end of text"
            )
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        first = self.tokenizer.bos_token_id
        return first if isinstance(first, int) else self.eot_token_id

    @property
    def max_length(self) -> int:
        """Tokens of context and continuation at most."""
        return self._max_length or self.facts.longest(DEFAULT_LENGTH)

    @property
    def max_gen_toks(self) -> int:
        """New tokens where a task does not say."""
        return 256

    @property
    def tokenizer_name(self) -> str:
        """For the harness's own caches of requests."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids; a text that already begins with the first token gets no second one."""
        begun = has_bos_prefix(string, str(self.tokenizer.decode(self.prefix_token_id)))
        return ids_of(
            self.tokenizer, string, add_special_tokens, begun=begun, bos=self._bos, first=self._first
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy decoding says it) of each continuation of a context."""
        pairs = [fitted(self._encode(*request.args), self.max_length) for request in requests]
        scored = self._score(pairs, "loglikelihood", disable_tqdm)
        for request, one in zip(requests, scored, strict=True):
            self._count(request, [one])
            self.cache_hook.add_partial("loglikelihood", request.args, (one.logprob, one.greedy))
        return [(one.logprob, one.greedy) for one in scored]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each whole text, in windows that each begin with an empty cache."""
        windows: list[list[Pair]] = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            cut = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            windows.append([make_disjoint_window(window) for window in cut])

        pairs = [pair for of_text in windows for pair in of_text]
        scored = iter(self._score(pairs, "loglikelihood_rolling", disable_tqdm))
        sums = []
        for request, of_text in zip(requests, windows, strict=True):
            parts = [next(scored) for _ in of_text]
            self._count(request, parts)
            sums.append(sum(part.logprob for part in parts))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, sums[-1])
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text after each context, cut before the first stop sequence."""
        end = str(self.tokenizer.decode(self.eot_token_id))
        asked: list[tuple[str, dict[str, Any]]] = [request.arguments for request in requests]
        ways = [Decoding.of(options, self.max_gen_toks, end) for _, options in asked]
        writer = Writer(self.model, self.tokenizer, self.settings, self._device)
        texts = [""] * len(requests)

        with self._bar("generate_until", len(requests), disable_tqdm) as done:
            for way in dict.fromkeys(ways):
                chosen = [i for i, asked_way in enumerate(ways) if asked_way == way]
                contexts = [self._shortened(asked[i][0], way.max_tokens) for i in chosen]
                longest = max(contexts, key=len, default=[])
                self._check([continued(longest, len(longest) + way.max_tokens).tolist()] if longest else [])

                written = writer.write(contexts, way, self.batch_size, done, self.book)
                for i, answer in zip(chosen, written, strict=True):
                    self._count(requests[i], [answer])
                    text = str(self.tokenizer.decode(answer.tokens, skip_special_tokens=True))
                    texts[i] = postprocess_generated_text(text, list(way.until), None)
                    self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
        return texts

    def _encode(self, context: str, continuation: str) -> Pair:
        """Ids of both; without a context the prefix token stands for one, or the continuation's own where it
        begins with it."""
        if context:
            return self._encode_pair(context, continuation)
        ids = self.tok_encode(continuation, add_special_tokens=False)
        return (ids[:1], ids[1:]) if ids and ids[0] == self.prefix_token_id else ([self.prefix_token_id], ids)

    def _shortened(self, context: str, new_tokens: int) -> list[int]:
        room = self.max_length - new_tokens
        if room < 1:
            raise HarnessError(
                f"{new_tokens} new tokens leave no context in {self.max_length} tokens; set max_gen_toks"
            )
        return self.tok_encode(context)[-room:] or [self.prefix_token_id]

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """For requests that are ids already; counts under no task."""
        pairs = [
            fitted((list(context), list(continuation)), self.max_length)
            for _, context, continuation in requests
        ]
        return [
            (one.logprob, one.greedy)
            for one in self._score(pairs, "loglikelihood", bool(kwargs.get("disable_tqdm")))
        ]

    def _check(self, texts: Iterable[list[int]]) -> None:
        """Check the model on the longest text asked for. Raises ModelError."""
        longest = max(texts, key=len, default=[])
        if len(longest) > 1:
            dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
            passed = check_once(self.model, self.facts, dtype, torch.tensor([longest]))
            self.rounding = None if dtype == "float32" else rounding_note(self.facts.name, dtype, passed)

    def _score(self, pairs: Sequence[Pair], what: str, quiet: bool) -> list[ContinuationScore]:
        self._check(context + continuation for context, continuation in pairs)
        with self._bar(what, len(pairs), quiet) as done:
            return score_continuations(
                self.model, self.settings, pairs, self._device, self.batch_size, done, self.book
            )

    @contextlib.contextmanager
    def _bar(self, what: str, count: int, quiet: bool) -> Iterator[Callable[[int], None]]:
        """Told of requests that are done; draws a bar where one is wanted."""
        with tqdm(total=count, desc=f"kvsweep {what}", disable=quiet or not self._progress) as bar:

            def done(requests: int) -> None:
                bar.update(requests)
                self.worked(requests / count)

            yield done

    def _count(self, request: Instance, parts: Sequence[ContinuationScore | Generated]) -> None:
        for counts in (Counts(requests=1), *(part.counts for part in parts)):
            self.counts[str(request.task_name)].add(counts)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a conversation; without its system role where the template has none."""
        options: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return str(self.tokenizer.apply_chat_template(chat_history, tokenize=False, **options))
        except jinja2.TemplateError:
            log.warning("the chat template takes no system role; leaving it out")
            rest = [message for message in chat_history if message["role"] != "system"]
            return str(self.tokenizer.apply_chat_template(rest, tokenize=False, **options))

    def warnings(self) -> list[str]:
        """Tasks that settings ask to prune and of which nothing came from a pruned cache,
        and what 16 bits lose."""
        by_task = [(task, counts.warning(self.settings)) for task, counts in self.counts.items()]
        rounding = [self.rounding] if self.rounding else []
        return [f"{task}: {warning}" for task, warning in by_task if warning] + rounding

    def get_model_info(self) -> dict[str, Any]:
        """What the harness puts under ``config`` in its results. It asks after the run, so the counts are
        those of the run."""
        counted = total(self.counts.values())
        log.info("%s: %s", self.facts.name, counted.sentence())
        for warning in self.warnings():
            log.warning(warning)

        return {
            "model_num_parameters": sum(weight.numel() for weight in self.model.parameters()),
            "model_dtype": next(self.model.parameters()).dtype,
            "model_revision": self.facts.revision,
            "kvsweep_settings": asdict(self.settings),
            "kvsweep_skip_layers_rule": self._rule,
            "kvsweep_bos": self._bos,
            **counted.figures(),
            "by_task": {task: counts.figures() for task, counts in self.counts.items()},
            "pruning_warnings": self.warnings(),
        }


register_model("kvsweep")(PrunedModel)
