"""Whether a tokenizer can say what a retrieval question asks: pieces inside a text, and what is refused at
planning."""

import hashlib
import json
import shutil
from dataclasses import astuple
from itertools import product
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers

from pipeline.cells.questions import unspeakable
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.tasks.retrieval import questions_of
from tests.support.command import kvsweep
from tests.support.tokenizers_made import (
    byte_style,
    gemma_style,
    llama2_style,
    metaspace_style,
    saved,
    unigram_style,
)
from workers.corpora import Corpus, tokenize
from workers.models.model_files import find_model
from workers.texts.questions import KINDS, build_questions
from workers.texts.text_tokens import TextTokens, open_tokenizer


@pytest.mark.parametrize("model", ["reference-neox", "reference-llama"])
def test_questions_of_the_embedded_models_are_the_ones_of_stored_results(model):
    file = find_model(model).tokenizer_file
    filler = tokenize(
        Corpus("x", "It was a dark and stormy night; the rain fell in torrents. " * 40), file
    ).ids
    asked = [
        astuple(question)
        for kind, length, others in product(KINDS, (300, 512), (0, 2))
        for question in build_questions(
            open_tokenizer(file).inside, kind, length, (0.1, 0.5, 0.9), (2, 5, 9), (others,), 3, 0, filler
        )
    ]
    assert (
        len(asked) == 216
        and hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16] == "e033b30b101fbebf"
    )


@pytest.mark.parametrize("style", [llama2_style, metaspace_style])
def test_nothing_is_put_before_a_piece_inside_a_text(tmp_path, style):
    tokens = TextTokens(saved(style(), tmp_path))
    space = style().token_to_id("▁")
    for piece in ("\nThe secret", "The grass", " 48213"):
        assert tokens.text(tokens.ids("x" + piece)) == "x" + piece
        assert tokens.text(tokens.ids("x") + tokens.inside(piece)) == "x" + piece
    assert tokens.ids("\nThe")[0] == space != tokens.inside("\nThe")[0]


def test_a_piece_is_encoded_behind_a_text_that_it_shares_no_token_with(tmp_path):
    vocab = {token: i for i, token in enumerate(["?", "a", "T", "e", "\n", ".", "aT", "\n\n", "▁"])}
    merging = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "T"), ("\n", "\n")], unk_token="?"))
    merging.normalizer = normalizers.Prepend("▁")
    tokens = TextTokens(saved(merging, tmp_path))
    assert [tokens.inside(piece) for piece in ("Te", "\nTe", "e")] == [[2, 3], [4, 2, 3], [3]]


@pytest.mark.parametrize("style", [llama2_style, metaspace_style, gemma_style, byte_style])
def test_tokenizers_of_every_kind_that_spell_all_letters_can_be_asked(tmp_path, style):
    tokens = TextTokens(saved(style(), tmp_path))
    assert [unspeakable(tokens, kind, digits) for kind, digits in product(KINDS, (2, 5, 12))] == [None] * 6


def roomy(model: Path, folder: Path) -> Path:
    """A copy of a model for planning alone, that has embeddings for any tokenizer's ids by its
    config.json."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 10_000}))
    return folder


def test_what_a_worker_is_asked_is_made_of_pieces_inside_a_text(sweep_file, tiny_model_dir, tmp_path):
    folder = roomy(tiny_model_dir, tmp_path / "llama")
    tokens = TextTokens(saved(llama2_style(), folder))
    sweep = sweep_file(
        models=f"[{folder}]", retrieval="{context_tokens: [240], questions: 2}", perplexity=None
    )
    plan = make_plan(load_spec(str(sweep)))
    for question in questions_of(plan.resolved, plan.units[0]):
        text = tokens.text(question.prompt_ids + question.answer_ids)
        assert " \n" not in text and "  " not in text
        assert (
            f"\nThe pass key is {question.expected}. Remember it. {question.expected} is the pass key.\n"
            in text
        )
        assert text.endswith(f"\nWhat is the pass key? The pass key is {question.expected}")


def test_pieces_that_each_get_a_space_are_found(tmp_path, monkeypatch):
    """What was done before: every piece encoded as a text of its own."""
    tokens = TextTokens(saved(llama2_style(), tmp_path))
    monkeypatch.setattr(TextTokens, "inside", TextTokens.ids)
    assert "back again.\\n \\nThe secret" in (unspeakable(tokens, "needle", 5) or "")


def lower_case():
    tokenizer = byte_style()
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def one_digit_for_all():
    tokenizer = byte_style()
    tokenizer.normalizer = normalizers.Replace(Regex("[0-9]"), "7")
    return tokenizer


def no_digits():
    tokenizer = llama2_style()
    vocab = {
        token: i for token, i in tokenizer.get_vocab().items() if not any(c in "0123456789" for c in token)
    }
    tokenizer.model = models.BPE(vocab=vocab, merges=[], unk_token="<unk>")
    return tokenizer


def every_digit_twice():
    tokenizer = byte_style()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(digit, 2 * digit) for digit in "0123456789"]
    )
    return tokenizer


def no_line_breaks():
    tokenizer = byte_style()
    tokenizer.normalizer = normalizers.Replace("\n", "")
    return tokenizer


UNABLE = {
    lower_case: "makes 'there is important information' of 'There is important information'",
    one_digit_for_all: "gives 11234 and 22345 the same ids",
    no_digits: "gives 11234 and 22345 the same ids",
    unigram_style: "gives 66789 and 77890 the same ids",
    every_digit_twice: "makes 11 tokens of 11234, and there is room for 8",
    no_line_breaks: "makes 't. You will be asked about it.The grass",
}


@pytest.mark.parametrize("make", UNABLE)
def test_a_tokenizer_that_cannot_say_the_questions_is_refused_for_retrieval_alone(
    sweep_file, tiny_model_dir, tmp_path, make
):
    folder = roomy(tiny_model_dir, tmp_path / "unable")
    saved(make(), folder)
    keys = {"models": f"[{folder}]", "retrieval": "{context_tokens: [240], questions: 2}", "perplexity": None}
    done = kvsweep("run", sweep_file(**keys), "--inline", "--out", "out", folder=tmp_path)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert (
        f"retrieval: {folder} cannot be asked passkey questions of 5 digits: its tokenizer {UNABLE[make]}"
        in line
    )
    plain = keys | {"perplexity": "{window: 32, stride: 32, windows: 2}", "retrieval": None}
    assert kvsweep("plan", sweep_file(**plain), folder=tmp_path).returncode == 0
