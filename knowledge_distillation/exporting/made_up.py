"""What an exported model is tried on: made-up batches of several sizes, lengths and paddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..features.signature import forward_parameters

LONGEST = 512  # tokens of the longest row that is tried
_TEXT = ("input_ids", "attention_mask")
_FROM_POSITION = 2  # positions that some families, such as RoBERTa, never use


class Shape(NamedTuple):
    """A batch to be made: rows, tokens, tokens of the decoder's input, and where the rows are padded."""

    rows: int
    length: int
    decoder_length: int = 5
    padding: str = "right"


TRACED = Shape(2, 8)


def input_names(model: nn.Module, processing_class: Any = None) -> tuple[str, ...]:
    """The inputs of an exported model: those that its tokenizer gives, as far as `forward` takes them.

    Raises:
        ConfigError: the model reads neither text nor pictures.
    """
    config, parameters = getattr(model, "config", None), forward_parameters(model)[0]
    if getattr(model, "main_input_name", None) == "pixel_values" and config is not None:
        return ("pixel_values",)
    names = getattr(processing_class, "model_input_names", None)
    if names is None:
        names = [*_TEXT, *(["token_type_ids"] if getattr(config, "type_vocab_size", 0) > 1 else [])]
    names = [name for name in names if name in parameters]
    if "input_ids" not in names or config is None:
        raise ConfigError(
            f"{type(model).__name__} takes {', '.join(parameters) or 'no inputs by name'}: models of transformers "
            "that read text (input_ids) or one picture (pixel_values) can be exported"
        )
    return (*names, *(["decoder_input_ids"] if getattr(config, "is_encoder_decoder", False) else []))


def shapes(model: nn.Module, processing_class: Any = None) -> Iterator[Shape]:
    """The batches on which an exported model is compared; the longest is as long as the model takes, or `LONGEST`."""
    if getattr(model, "main_input_name", None) == "pixel_values":
        yield from (Shape(rows, 0) for rows in (1, 2, 5))
        return
    longest = _longest(model, processing_class)
    yield TRACED
    for rows, length, decoder_length, padding in (
        (1, 3, 1, "right"),
        (1, longest, 7, "right"),
        (3, 17, 4, "left"),
        (5, 30, 9, "right"),
    ):
        yield Shape(rows, min(length, longest), min(decoder_length, longest), padding)


def batch(model: nn.Module, names: tuple[str, ...], shape: Shape, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of these names: ids of the vocabulary, of which each row is padded further than the one before.

    The last token of a row is the end of text where the model has one, and no other is: some heads count them. A
    separator stands in the middle where the model has that.
    """
    config: Any = getattr(model, "config", None)
    generator = torch.Generator().manual_seed(seed)
    if names == ("pixel_values",):
        size, channels = _picture(config)
        return {"pixel_values": torch.randn(shape.rows, channels, *size, generator=generator)}
    ids, mask = _tokens(config, shape.rows, shape.length, shape.padding, generator)
    inputs = {"input_ids": ids, "attention_mask": mask}
    for name in names:
        if name == "decoder_input_ids":
            inputs[name] = _tokens(config, shape.rows, shape.decoder_length, "none", generator)[0]
        elif name not in inputs:
            kinds = min(2, getattr(config, "type_vocab_size", 1) or 1) if name == "token_type_ids" else 1
            inputs[name] = torch.randint(0, kinds, ids.shape, generator=generator)
    return {name: inputs[name] for name in names}


def _tokens(config: Any, rows: int, length: int, padding: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(rows, length) ids and their mask; row r has a share of r / rows of padding, and two tokens at least."""
    size = config.get_text_config().vocab_size
    special = {getattr(config, f"{kind}_token_id", None) for kind in ("pad", "bos", "sep", "eos", "decoder_start")}
    ordinary = torch.tensor([number for number in range(min(size, 1000)) if number not in special] or [0])
    ids = ordinary[torch.randint(0, len(ordinary), (rows, length), generator=generator)]
    places = {"sep": (2 * length) // 3, "eos": length - 1}
    for kind, place in places.items():
        token = getattr(config, f"{kind}_token_id", None)
        if isinstance(token, int) and token < size:
            ids[:, place] = token
    pad = getattr(config, "pad_token_id", None)
    mask = torch.ones_like(ids)
    for row in range(rows) if padding != "none" else ():
        padded = min(length * row // rows, max(0, length - 2))
        mask[row, :padded] = 0
        ids[row, :padded] = pad if isinstance(pad, int) else 0
    return _to_the_right(ids, mask) if padding == "right" else (ids, mask)


def _to_the_right(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The padding at the end of each row in place of its beginning."""
    order = mask.argsort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


def _longest(model: Any, processing_class: Any) -> int:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [LONGEST, getattr(processing_class, "model_max_length", None)]
    if isinstance(positions, int) and positions > 0:
        limits.append(max(1, positions - _FROM_POSITION))
    return min(limit for limit in limits if limit is not None)


def _picture(config: Any) -> tuple[tuple[int, int], int]:
    size = getattr(config, "image_size", None) or 224
    return (size, size) if isinstance(size, int) else tuple(size), getattr(config, "num_channels", 3)
