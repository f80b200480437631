"""Every name a model offers, as a table, from inputs made up for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import ConfigError
from .features import catalogue

if TYPE_CHECKING:
    from rich.table import Table


def list_features(name: str) -> Table:
    """The features of a model: a directory, a hub name, or a `model_type` built without weights.

    Raises:
        ConfigError: there is no such model, or no inputs could be made up for it.
    """
    from rich.table import Table

    model = load_any(name)
    names = catalogue(model.eval(), made_up_inputs(model))
    table = Table(title=f"{type(model).__name__}: features for a distill_config", title_justify="left")
    for column in ("feature", "kind", "shape on 2 rows", "taken from"):
        table.add_column(column, overflow="fold", no_wrap=column == "feature")  # a name is copied whole
    for feature, known in names.known.items():
        place = known.location
        item = "" if place.item is None or place.source == "attention" else f"[{place.item}]"
        where = f"{place.path}.{place.source}{item}" if place.path else f"the model's own {place.item}"
        table.add_row(str(feature), known.kind, "×".join(map(str, known.shape)), where)
    prefix = names.model_type.replace("-", "_")
    table.caption = (
        f"layer4 is also {prefix}_layer4, layer-1 the last; any module path has .output, .input and .output[1]"
    )
    for note in names.notes:
        table.caption += f"\nnote: {note}"
    return table


def load_any(name: str) -> nn.Module:
    """The model under a name with whatever head it was saved with, else its bare form."""
    import transformers
    from transformers import AutoConfig, AutoModel

    from .errors import nearest

    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    if name in known:
        return AutoModel.from_config(AutoConfig.for_model(name))
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no model {name!r}: no such directory, hub name or model_type.{nearest(name, known)}"
        ) from error
    architecture = getattr(transformers, (config.architectures or [""])[0], AutoModel)
    return architecture.from_pretrained(name)


def made_up_inputs(model: nn.Module) -> dict[str, Any]:
    """Two rows of valid inputs: token ids, or an image of the size the config names."""
    config: Any = model.config
    main = getattr(model, "main_input_name", "input_ids")
    if main == "pixel_values":
        size = getattr(config, "image_size", 224) or 224
        height, width = (size, size) if isinstance(size, int) else size
        return {main: torch.zeros(2, getattr(config, "num_channels", 3), height, width)}
    if main != "input_ids":
        raise ConfigError(f"{type(model).__name__} takes {main}, for which no inputs can be made up")
    ids = torch.arange(16, dtype=torch.long).view(2, 8) % max(2, getattr(config, "vocab_size", 2))
    inputs: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    return inputs
