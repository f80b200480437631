"""From text to token ids: tokenizers of a task's own, and a data set's tokenized form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
STUDENT = "student_"  # begins the names of columns that only the student reads
_LONGEST_WORD = 100  # characters; BERT's tokenizer takes longer ones for [UNK]


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 8000, model_max_length: int = 512
) -> PreTrainedTokenizerFast:
    """Train a lower-cased WordPiece tokenizer with BERT's special tokens; the same texts give the same tokenizer.

    Words of more than 100 characters are `[UNK]` to such a tokenizer, and teach it nothing.

    Args:
        texts: the training texts; read once.
        vocab_size: upper bound, the five special tokens included; few texts give fewer.
        model_max_length: the longest input the model takes, in tokens.
    Returns:
        A BERT tokenizer; `save_pretrained` writes what `AutoTokenizer.from_pretrained` reads.
    Raises:
        DataError: no text, or nothing but white space.
        ConfigError: a vocabulary too small for the special tokens.
    Source: Devlin et al., BERT, 2019; Wu et al., Google's Neural Machine Translation System, 2016 (word pieces).
    """
    from tokenizers import models, trainers
    from transformers import BertTokenizer

    tokenizer = _tokenizer(models.WordPiece(unk_token="[UNK]"), vocab_size)
    words = [[word for word in _words(text, tokenizer) if len(word) <= _LONGEST_WORD] for text in texts]
    alphabet = _by_frequency(
        piece for row in words for word in row for piece in (word[0], *(f"##{c}" for c in word[1:]))
    )
    # The trainer numbers "##a", "##b", ... in the order of a hash map that differs from run to run, and breaks ties
    # between merges by these numbers. Naming them up front, as special tokens, fixes their numbers and so the result.
    fixed = [*SPECIAL_TOKENS, *alphabet][:vocab_size]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=fixed, show_progress=False)
    tokenizer.train_from_iterator(map(" ".join, words), trainer)
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces[:vocab_size])}
    return BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=model_max_length)


def train_word_tokenizer(
    texts: Iterable[str], vocab_size: int = 20000, model_max_length: int = 512
) -> PreTrainedTokenizerFast:
    """A lower-cased tokenizer of whole words and punctuation marks, the most frequent of the texts.

    It puts BERT's special tokens where BERT does; words that it does not know are `[UNK]`.

    Args:
        texts: the training texts; read once.
        vocab_size: upper bound, the five special tokens included.
        model_max_length: the longest input the model takes, in tokens.
    Raises:
        DataError: no text, or nothing but white space.
        ConfigError: a vocabulary too small for the special tokens.
    """
    from tokenizers import models, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = _tokenizer(models.WordLevel(unk_token="[UNK]"), vocab_size)
    words = _by_frequency(word for text in texts for word in _words(text, tokenizer))
    vocabulary = {word: number for number, word in enumerate([*SPECIAL_TOKENS, *words][:vocab_size])}
    tokenizer.model = models.WordLevel(vocabulary, unk_token="[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
    )


def _tokenizer(model: Any, vocab_size: int) -> Any:
    """Splits text as BERT does, lower-cased; its vocabulary is not known yet."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers

    if vocab_size <= len(SPECIAL_TOKENS):
        raise ConfigError(f"vocab_size is {vocab_size}; the {len(SPECIAL_TOKENS)} special tokens need more")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _words(text: str, tokenizer: Any) -> list[str]:
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    return [word for word, _ in pieces]


def _by_frequency(pieces: Iterable[str]) -> list[str]:
    """Each once, the most frequent first, and of those that are as frequent the first of the alphabet."""
    counts = Counter(pieces)
    if not counts:
        raise DataError("cannot train a tokenizer: the texts are empty")
    return sorted(counts, key=lambda piece: (-counts[piece], piece))


def tokenize(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    text_columns: Sequence[str],
    max_length: int = 128,
    student_tokenizer: PreTrainedTokenizerBase | None = None,
) -> Dataset:
    """Turn text columns into token ids, without padding: batches are padded when they are made.

    Args:
        dataset: rows with the text columns and, where they have one, `label` (int or float).
        tokenizer: any Hugging Face tokenizer.
        text_columns: one column, or two for sentence pairs.
        max_length: longer inputs are cut, the longer sentence of a pair first.
        student_tokenizer: of a student that reads other tokens than its teacher; what it gives has names of its own,
            `student_input_ids`, `student_attention_mask`, ...
    Returns:
        What the tokenizer gives (`input_ids`, `attention_mask`, ...), `labels`, `length` in tokens, and every
        column that is neither text nor label (such as `idx`) as it was.
    Raises:
        DataError: an empty data set, a missing column, a text that is None.
    """
    _check_columns(dataset, text_columns)
    label = "label" if "label" in dataset.column_names else None

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name in text_columns:
            if None in rows[name]:
                raise DataError(f"column {name!r} holds None where text was expected")
        texts, cut = [rows[name] for name in text_columns], {"truncation": True, "max_length": max_length}
        encoded = dict(tokenizer(*texts, **cut))
        encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
        if student_tokenizer is not None:
            encoded |= {STUDENT + name: column for name, column in student_tokenizer(*texts, **cut).items()}
        return encoded

    encoded = dataset.map(encode, batched=True, remove_columns=list(text_columns), desc="Tokenizing")
    if not label:
        return encoded
    names = [name for name in encoded.column_names if name != label]
    return encoded.rename_column(label, "labels").select_columns([*names, "labels"])  # a ClassLabel keeps its names


def _check_columns(dataset: Dataset, text_columns: Sequence[str]) -> None:
    if isinstance(text_columns, str) or len(text_columns) not in (1, 2):
        raise ConfigError(f"text_columns is {text_columns!r}; expected a list of one column, or two for a pair")
    names = dataset.column_names
    for name in text_columns:
        if name not in names:
            raise DataError(f"the data set has no column {name!r}. It has: {', '.join(names)}.{nearest(name, names)}")
    if len(dataset) == 0:
        raise DataError("the data set is empty: there is nothing to tokenize")
