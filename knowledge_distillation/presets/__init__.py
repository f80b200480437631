"""Published methods and layer mappings: each gives the `distill_config` list that says it."""

from .layer_search import search
from .mapping import last, skip, uniform
from .methods import (
    attention_transfer,
    born_again,
    byot,
    crd,
    data_free,
    deep_mutual_learning,
    distilbert,
    hinton,
    layers,
    meal_v2,
    minilm,
    minilm_v2,
    mobilebert,
    pkd,
    rkd,
    tinybert,
)
from .stage_methods import activation_boundary, channel_wise, factor_transfer, fitnet, ofd, similarity_preserving
from .table import METHODS, expand, list_presets

__all__ = [
    "METHODS",
    "activation_boundary",
    "attention_transfer",
    "born_again",
    "byot",
    "channel_wise",
    "crd",
    "data_free",
    "deep_mutual_learning",
    "distilbert",
    "expand",
    "factor_transfer",
    "fitnet",
    "hinton",
    "last",
    "layers",
    "list_presets",
    "meal_v2",
    "minilm",
    "minilm_v2",
    "mobilebert",
    "ofd",
    "pkd",
    "rkd",
    "search",
    "similarity_preserving",
    "skip",
    "tinybert",
    "uniform",
]
