"""The only table of names: which function each name means for each kind of feature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConfigError, nearest
from .activation import MarginReLU, activation_boundary
from .attention import attention_cross_entropy, attention_kl, attention_mse, qkv_relation, value_relation
from .contrastive import CRD
from .ensemble import Adversarial, ensemble_cross_entropy, ensemble_kl
from .factor import FactorTransfer, Paraphraser
from .feature_map import VariationalInformation, attention_transfer, channel_wise, fitnet_hint, fsp
from .hidden import cka, cos, gram, hidden_cosine, hidden_mse, mobilebert_feature, pkd
from .labels import hard_cross_entropy, label_mse, own_loss
from .logits import (
    dist,
    dkd,
    js_divergence,
    kl_divergence,
    logit_standardization,
    logits_mse,
    objectness_scaled,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
    soft_cross_entropy,
    total_variation,
)
from .relational import correlation_congruence, nst, pkt, rkd_angle, rkd_distance, similarity_preserving
from .review import ReviewKD
from .transport import BertEMD

Loss = Callable[..., Any]

# Keywords that are never arguments of an entry: the loss model fills them.
FILLED = ("mask", "key_mask", "teacher_mask", "labels", "teacher_model", "teacher_features", "losses")

_FROM_DATASET = (
    "With train_dataset the rows are numbered by themselves; with a train_dataloader give num_samples in args, and in "
    "each batch sample_index, the place of each row in the training set"
)
_MSE = {"vector": hidden_mse, "tokens": hidden_mse, "heads": hidden_mse, "map": hidden_mse, "attention": attention_mse}
_HIDDEN = {kind: hidden_mse for kind in ("vector", "tokens", "map")}
_LOGITS = ("vector", "tokens")
_SAMPLES = ("vector", "tokens", "map")

# name -> the function for each kind of feature; a kind that is not listed is an error that says so.
SOFT_LOSSES: Mapping[str, Mapping[str, Loss]] = {
    "mse": _MSE,
    "mse_with_mask": _MSE,
    "hidden_mse": _HIDDEN,
    "logits_mse": dict.fromkeys(_LOGITS, logits_mse),
    "attention_mse": {"attention": attention_mse},
    "attention_mse_with_mask": {"attention": attention_mse},
    "cos": dict.fromkeys(("vector", "tokens", "heads"), cos),
    "cross_entropy": dict.fromkeys(_LOGITS, soft_cross_entropy),
    "soft_cross_entropy": dict.fromkeys(_LOGITS, soft_cross_entropy),
    "kl_divergence": dict.fromkeys(_LOGITS, kl_divergence),
    # transformers
    "hidden_cosine": dict.fromkeys(("vector", "tokens", "heads"), hidden_cosine),
    "pkd": dict.fromkeys(("vector", "tokens"), pkd),
    "mobilebert_feature": dict.fromkeys(("vector", "tokens"), mobilebert_feature),
    "mobilebert_attention": {"attention": attention_kl},
    "attention_kl": {"attention": attention_kl},
    "attention_cross_entropy": {"attention": attention_cross_entropy},
    "value_relation": {"heads": value_relation},
    "qkv_relation": dict.fromkeys(("heads", "tokens"), qkv_relation),
    "cka": dict.fromkeys(("vector", "tokens"), cka),
    "gram": {"tokens": gram},
    "bert_emd": dict.fromkeys(("tokens", "attention"), BertEMD),
    # logits
    "reverse_kl": dict.fromkeys(_LOGITS, reverse_kl),
    "js_divergence": dict.fromkeys(_LOGITS, js_divergence),
    "skewed_kl": dict.fromkeys(_LOGITS, skewed_kl),
    "skewed_reverse_kl": dict.fromkeys(_LOGITS, skewed_reverse_kl),
    "total_variation": dict.fromkeys(_LOGITS, total_variation),
    "dkd": dict.fromkeys(_LOGITS, dkd),
    "dist": dict.fromkeys(_LOGITS, dist),
    "logit_standardization": dict.fromkeys(_LOGITS, logit_standardization),
    "objectness_scaled": {"tokens": objectness_scaled},
    "ensemble_cross_entropy": dict.fromkeys(_LOGITS, ensemble_cross_entropy),
    "ensemble_kl": dict.fromkeys(_LOGITS, ensemble_kl),
    "adversarial": dict.fromkeys(_LOGITS, Adversarial),
    # relations
    "similarity_preserving": dict.fromkeys(_SAMPLES, similarity_preserving),
    "rkd_distance": dict.fromkeys(_SAMPLES, rkd_distance),
    "rkd_angle": dict.fromkeys(_SAMPLES, rkd_angle),
    "correlation_congruence": dict.fromkeys(_SAMPLES, correlation_congruence),
    "pkt": dict.fromkeys(_SAMPLES, pkt),
    "nst": dict.fromkeys(("map", "tokens"), nst),
    "crd": dict.fromkeys(_SAMPLES, CRD),
    # feature maps
    "fitnet_hint": dict.fromkeys(_SAMPLES, fitnet_hint),
    "attention_transfer": dict.fromkeys(("map", "tokens"), attention_transfer),
    "paraphraser": dict.fromkeys(_SAMPLES, Paraphraser),
    "factor_transfer": dict.fromkeys(_SAMPLES, FactorTransfer),
    "activation_boundary": dict.fromkeys(_SAMPLES, activation_boundary),
    "margin_relu": {"map": MarginReLU},
    "fsp": {"map": fsp},
    "channel_wise": dict.fromkeys(("map", "tokens"), channel_wise),
    "variational_information": dict.fromkeys(_SAMPLES, VariationalInformation),
    "review_kd": {"map": ReviewKD},
}
HARD_LOSSES: Mapping[str, Mapping[str, Loss]] = {
    "cross_entropy": dict.fromkeys(_LOGITS, hard_cross_entropy),
    "mse": {"vector": label_mse},
    "own_loss": {"scalar": own_loss},
}

# Losses that compare each side with itself first, so that widths, heads or channels may differ: they look at the
# shapes themselves. All others are called with equal shapes only.
OWN_SHAPES: frozenset[Loss] = frozenset(
    {
        *(value_relation, qkv_relation, cka, gram, BertEMD, ensemble_cross_entropy, ensemble_kl, Adversarial),
        *(similarity_preserving, rkd_distance, rkd_angle, correlation_congruence, pkt, nst, CRD),
        *(attention_transfer, Paraphraser, FactorTransfer, fsp, VariationalInformation, ReviewKD),
    }
)

# Losses that compare several features at once: each side is a tuple.
SEVERAL: frozenset[Loss] = frozenset({BertEMD, ensemble_cross_entropy, ensemble_kl, Adversarial, fsp, ReviewKD})

# Losses on attention maps that are probabilities: `attention`, and not `attention_scores`.
PROBABILITIES: frozenset[Loss] = frozenset({attention_kl, attention_cross_entropy})

# What a method is worth where there are only two classes: said before the run.
TWO_CLASSES: Mapping[str, str] = {
    "dkd": "one other class leaves nothing to decouple, and the loss is alpha times kl_divergence",
    "dist": "the correlation of an item's two probabilities is always 1 or -1, so only gamma's part teaches",
    "logit_standardization": "standardised logits are constants, so it is label smoothing of the teacher's class",
}


def list_losses(hard: bool = False) -> list[str]:
    """The names an entry may give: of losses against the teacher, or (`hard`) against the labels."""
    return sorted(HARD_LOSSES if hard else SOFT_LOSSES)


def get_loss(name: str, kind: str | None = None, hard: bool = False) -> Loss:
    """The function behind a name, for a kind of feature; None for that of tokens, or of what it applies to.

    Raises:
        ConfigError: the name is unknown, or the loss does not apply to the kind.
    """
    functions = functions_of(name, hard)
    if kind is None:
        return functions.get("tokens") or next(iter(functions.values()))
    if kind not in functions:
        table = HARD_LOSSES if hard else SOFT_LOSSES
        fitting = [other for other in list_losses(hard) if kind in table[other]]
        raise ConfigError(f"loss {name} does not apply to a feature of kind {kind}. These do: {', '.join(fitting)}")
    return functions[kind]


def functions_of(name: str, hard: bool = False) -> Mapping[str, Loss]:
    """Kind of feature -> function, for every kind that the loss of this name applies to."""
    table = HARD_LOSSES if hard else SOFT_LOSSES
    if name not in table:
        what = "loss against the labels" if hard else "loss"
        raise ConfigError(f"unknown {what} {name!r}.{nearest(name, table)} Known: {', '.join(list_losses(hard))}")
    return table[name]
