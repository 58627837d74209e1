"""What is measured on: datasets by name or path -> texts -> token ids of windows and prompts. Torch-free.

entry.py       what a sweep file asks for: a name, and which column, which sample, what a row is
read.py        the name -> where its texts are; known.py: the datasets that have names here
files.py       a path -> the files that it means, and what may not be read;
               compressed.py: what is in a compressed one
row_files.py   files of rows, block by block, by what rows.py says that rows are; prose.py: files of prose;
               hub.py: sets of the Hugging Face hub
columns.py     which column is the text; values.py: what a row holds that is no text
text_rule.py   what happens to a text before it is tokenized
passages.py    where a long text is read (workers.texts.sampling: in which order blocks and rows are)
collection.py  documents that are read as far as they are needed
tokens.py      the tokens of one text; document_tokens.py: those of a collection;
               document_search.py: what was looked at to find them
"""

from workers.corpora.collection import Collection
from workers.corpora.document_tokens import CollectionTokens
from workers.corpora.entry import NAMES, CorpusError, DatasetEntry
from workers.corpora.read import read_corpus, read_text
from workers.corpora.tokens import Corpus, TokenizedCorpus, tokenize_text
from workers.texts.text_tokens import SpecialTokens

__all__ = [
    "NAMES",
    "Collection",
    "Corpus",
    "CorpusError",
    "DatasetEntry",
    "Tokens",
    "read_corpus",
    "read_text",
    "tokenize",
    "tokens_of",
]

Tokens = TokenizedCorpus | CollectionTokens
"""A dataset under one tokenizer."""


def tokenize(corpus: Corpus, tokenizer_file: str, special: SpecialTokens = "literal") -> TokenizedCorpus:
    """``tokens.tokenize_text``: a whole text's ids."""
    return tokenize_text(corpus, tokenizer_file, special)


def tokens_of(corpus: Corpus | Collection, tokenizer_file: str, special: SpecialTokens = "literal") -> Tokens:
    """A dataset under one tokenizer: one text is tokenized whole, a collection as far as it is asked for.

    Raises CorpusError where the text spells special tokens that the tokenizer cannot read as letters.
    """
    if isinstance(corpus, Corpus):
        return tokenize_text(corpus, tokenizer_file, special)
    return CollectionTokens(corpus, tokenizer_file, special)
