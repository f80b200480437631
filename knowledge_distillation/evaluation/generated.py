"""What a model writes by itself, after prompts of several lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..features.preserve import resting


def generate(
    model: Any, prompts: Sequence[Sequence[int]], tokenizer: Any, batch_size: int, max_new_tokens: int, **how: Any
) -> Iterator[str]:
    """What is written after each prompt, in their order, without special tokens.

    Args:
        model: of transformers; one without an encoder goes on with the prompt, whose end is kept where it is too long.
        prompts: token ids.
        **how: as `model.generate` takes it.

    Raises:
        ConfigError: the model has no positions for so many tokens.
    """
    reads = bool(model.config.is_encoder_decoder)
    room = positions_left(model, 0 if reads else max_new_tokens)
    device = next(model.parameters()).device
    for start in range(0, len(prompts), batch_size):
        some = [list(ids[:room] if reads else ids[-room:]) for ids in prompts[start : start + batch_size]]
        inputs = {name: values.to(device) for name, values in padded(some, tokenizer, left=not reads).items()}
        yield from written(model, inputs, tokenizer, max_new_tokens=max_new_tokens, **how)


def written(model: Any, inputs: dict[str, Tensor], tokenizer: Any, **how: Any) -> list[str]:
    """What a model writes for each row of a batch; rows for one that has no encoder are padded left."""
    with resting(model), torch.no_grad():
        ids = model.generate(**inputs, pad_token_id=padding_id(tokenizer), **how)
    if not model.config.is_encoder_decoder:
        ids = ids[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def padding_id(tokenizer: Any) -> int:
    """The token that fills rows up; the mask leaves it out, so that any will do where there is none of its own."""
    own = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    return next((number for number in own if number is not None), 0)


def padded(rows: Sequence[Sequence[int]], tokenizer: Any, left: bool) -> dict[str, Tensor]:
    """(rows, longest) ids and their mask."""
    longest, fill = max(map(len, rows)), padding_id(tokenizer)

    def filled(values: Sequence[int], fill: int) -> list[int]:
        missing = [fill] * (longest - len(values))
        return [*missing, *values] if left else [*values, *missing]

    return {
        "input_ids": torch.tensor([filled(ids, fill) for ids in rows]),
        "attention_mask": torch.tensor([filled([1] * len(ids), 0) for ids in rows]),
    }


def positions_left(model: Any, needed: int) -> int:
    """How many tokens of a prompt a model has positions for, beside those it is to write.

    Raises:
        ConfigError: none.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return 10**9
    if positions <= needed:
        raise ConfigError(
            f"max_new_tokens is {needed}, and the model has {positions} positions for prompt and answer together"
        )
    return positions - needed
