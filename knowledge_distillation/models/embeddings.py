"""Let a student's word embedding begin as its teacher's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError

_SPECIAL = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")


def begin_with_teacher(
    student: nn.Module, teacher: nn.Module, tokenizer: Any = None, student_tokenizer: Any = None
) -> None:
    """Set a student's word embedding to its teacher's, in place, scaled to the deviation that the student's own has.

    A transformer normalises what its embedding gives, which may be small; an LSTM reads it as it is. Where the
    tokenizers differ, a token of the student's is the mean of the teacher's tokens for its text. A narrower
    embedding gets the principal components of the teacher's.

    Args:
        student, teacher: models with `get_input_embeddings()`.
        tokenizer, student_tokenizer: the teacher's and the student's, where they differ.

    Raises:
        ConfigError: a model without an embedding, vocabularies of unequal size, a student wider than its teacher.
    """
    vectors, target = _embedding(teacher, "teacher").detach().float().cpu(), _embedding(student, "student")
    if student_tokenizer is not None:
        vectors = vectors_of_tokens(vectors, tokenizer, student_tokenizer, len(target))
    if len(vectors) != len(target):
        raise ConfigError(
            f"the teacher's embedding has {len(vectors)} tokens and the student's {len(target)}: they read different "
            "vocabularies, so give the tokenizers of both"
        )
    width = target.shape[1]
    if width > vectors.shape[1]:
        raise ConfigError(
            f"the student's embedding is {width} wide and the teacher's {vectors.shape[1]}: it can be as wide at most"
        )
    if width < vectors.shape[1]:
        vectors = principal_components(vectors, width)
    target.data.copy_(vectors * (target.std().cpu() / vectors.std()))
    padding = getattr(student.get_input_embeddings(), "padding_idx", None)  # type: ignore[operator]
    if padding is not None:
        target.data[padding] = 0


def vectors_of_tokens(vectors: Tensor, tokenizer: Any, student_tokenizer: Any, number: int) -> Tensor:
    """(number, width): for each token of the student's the mean vector of the teacher's tokens for the same text."""
    tokens = student_tokenizer.convert_ids_to_tokens(range(min(number, len(student_tokenizer))))
    texts = [student_tokenizer.convert_tokens_to_string([token]).removeprefix("##").strip() for token in tokens]
    pieces = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for name in _SPECIAL:
        own, teachers = (getattr(one, f"{name}_token_id", None) for one in (student_tokenizer, tokenizer))
        if own is not None and teachers is not None:
            pieces[own] = [teachers]
    means = vectors.mean(0).repeat(number, 1)
    for row, ids in enumerate(pieces):
        if ids:
            means[row] = vectors[ids].mean(0)
    return means


def principal_components(vectors: Tensor, width: int) -> Tensor:
    """(tokens, width): the directions in which centred vectors (tokens, D) vary most.

    Source: Pearson, On Lines and Planes of Closest Fit to Systems of Points in Space, 1901.
    """
    centred = vectors.double() - vectors.double().mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)  # in rising order of variance
    return (centred @ directions[:, -width:].flip(1)).float()


def _embedding(model: nn.Module, who: str) -> Tensor:
    get: Any = getattr(model, "get_input_embeddings", None)
    try:
        weight = getattr(get() if get else None, "weight", None)
    except NotImplementedError:  # transformers, of a model it finds none in
        weight = None
    if weight is None:
        raise ConfigError(f"the {who}, a {type(model).__name__}, has no word embedding")
    return weight
