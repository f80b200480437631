"""The configs of this package's own models. Transformers knows them once both are imported.

The `model_type` begins with the name of the package, so that transformers' own error names it where it was not
imported.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..errors import ConfigError, nearest

PACKAGE = __name__.partition(".")[0]
POOLINGS = ("max", "mean", "last")
WIDE_RESNET_STEM_WIDTH = 16
SHUFFLENET_V2_UNITS = (4, 8, 4)  # of the three stages
SHUFFLENET_V2_WIDTHS = {  # width multiplier -> channels of the three stages, and of the last convolution
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
_SHUFFLENET_V2_STEMS = ("imagenet", "cifar")


class BiLSTMConfig(PreTrainedConfig):
    """Sizes of a BiLSTM classifier.

    Args:
        embedding_size: width of a token's vector.
        hidden_size: width of a hidden state; each direction has half of it.
        num_hidden_layers: LSTM layers.
        classifier_size: units of the ReLU layer before the logits.
        pooling: how tokens become a sentence: `max` or `mean` over them, or `last`: where each direction ends.
        sentence_pairs: the tokens after the first `sep_token_id` are a second sentence.
        dropout: between layers, and before each linear map of the classifier.
        embedding_dropout: of a token's vector.
        train_embeddings: whether the embedding learns; False keeps it as it was initialised.

    Raises:
        ConfigError: a value out of range, or pairs without a separator.
    """

    model_type = "knowledge_distillation.bilstm"

    vocab_size: int = 30522
    embedding_size: int = 300
    hidden_size: int = 300
    num_hidden_layers: int = 1
    classifier_size: int = 200
    pooling: str = "max"
    sentence_pairs: bool = False
    dropout: float = 0.3
    embedding_dropout: float = 0.3
    train_embeddings: bool = True
    pad_token_id: int | None = 0
    sep_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.pooling not in POOLINGS:
            near, known = nearest(str(self.pooling), POOLINGS), ", ".join(POOLINGS)
            raise ConfigError(f"pooling {self.pooling!r} is unknown.{near} Known: {known}")
        if self.hidden_size < 2 or self.hidden_size % 2:
            raise ConfigError(f"hidden_size is {self.hidden_size}; it must be even, one half for each direction")
        for name in ("vocab_size", "embedding_size", "classifier_size", "num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("dropout", "embedding_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        super().__post_init__(**kwargs)


class WideResNetConfig(PreTrainedConfig):
    """The shape of a WRN-d-k.

    Args:
        depth: d, layers in all: 6 for each block of the three stages, and 4.
        widen_factor: k; the stages have 16k, 32k and 64k channels.
        dropout: between the two convolutions of a block; the paper's 0.3 where it has one.
        num_channels: of the images, 3 for RGB.
        image_size: of the images, which are halved twice; any other size works as well.

    Raises:
        ValueError: the depth is not 6n + 4.
    """

    model_type = "knowledge_distillation.wide_resnet"

    depth: int = 16
    widen_factor: int = 2
    dropout: float = 0.0
    num_channels: int = 3
    image_size: int = 32

    def __post_init__(self, **kwargs: Any) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"the depth of a wide_resnet is 10, 16, 22, 28, 34, 40, …: 6n + 4; found {self.depth}")
        if self.widen_factor < 1:
            raise ValueError(f"the widen_factor of a wide_resnet is 1 or more; found {self.widen_factor}")
        super().__post_init__(**kwargs)

    @property
    def depths(self) -> list[int]:
        """Blocks of each stage."""
        return [(self.depth - 4) // 6] * 3

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of each stage."""
        return [WIDE_RESNET_STEM_WIDTH * self.widen_factor * factor for factor in (1, 2, 4)]


class ShuffleNetV2Config(PreTrainedConfig):
    """The shape of a ShuffleNetV2.

    Args:
        width_multiplier: 0.5, 1.0, 1.5 or 2.0.
        stem: `imagenet` quarters the size of the images before the first stage, `cifar` keeps it.
        num_channels: of the images, 3 for RGB.
        image_size: of the images; any other size works as well.

    Raises:
        ValueError: the paper has no such width, or the stem is unknown.
    """

    model_type = "knowledge_distillation.shufflenet_v2"

    width_multiplier: float = 1.0
    stem: str = "imagenet"
    num_channels: int = 3
    image_size: int = 224

    def __post_init__(self, **kwargs: Any) -> None:
        if self.width_multiplier not in SHUFFLENET_V2_WIDTHS:
            widths = ", ".join(map(str, SHUFFLENET_V2_WIDTHS))
            raise ValueError(
                f"the width_multiplier of a shufflenet_v2 is one of {widths}; found {self.width_multiplier}"
            )
        if self.stem not in _SHUFFLENET_V2_STEMS:
            stems = ", ".join(_SHUFFLENET_V2_STEMS)
            raise ValueError(f"the stem of a shufflenet_v2 is one of {stems}; found {self.stem!r}")
        super().__post_init__(**kwargs)

    @property
    def depths(self) -> list[int]:
        """Units of each stage."""
        return [*SHUFFLENET_V2_UNITS]

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of each stage."""
        return [*SHUFFLENET_V2_WIDTHS[self.width_multiplier][:3]]


for _config in (BiLSTMConfig, WideResNetConfig, ShuffleNetV2Config):
    CONFIG_MAPPING.register(_config.model_type, _config, exist_ok=True)
    _short = _config.model_type.removeprefix(f"{PACKAGE}.")  # in recipes, and in folders of older versions
    if _short not in CONFIG_MAPPING:  # transformers may have a model of that name one day
        CONFIG_MAPPING.register(_short, _config)
