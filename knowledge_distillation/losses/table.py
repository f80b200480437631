"""The only table of names: one line a method, with what is particular to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, nearest
from .activation import MarginReLU, activation_boundary
from .attention import attention_cross_entropy, attention_kl, attention_mse, qkv_relation, value_relation
from .channels import nst
from .classes import dist, dkd, logit_standardization
from .contrastive import CRD
from .detection import objectness_scaled
from .divergences import js_divergence, reverse_kl, skewed_kl, skewed_reverse_kl, total_variation
from .ensemble import Adversarial, ensemble_cross_entropy, ensemble_kl
from .factor import FactorTransfer, Paraphraser
from .feature_map import VariationalInformation, attention_transfer, channel_wise, fitnet_hint, fsp
from .hidden import cka, cos, gram, hidden_cosine, hidden_mse, mobilebert_feature, pkd
from .in_batch import soft_contrastive
from .labels import hard_cross_entropy, label_mse, own_loss
from .logits import kl_divergence, logits_mse, soft_cross_entropy
from .ranking import listwise_kl, margin_mse
from .relational import correlation_congruence, pkt, rkd_angle, rkd_distance, similarity_preserving
from .review import ReviewKD
from .transport import BertEMD

LossFunction = Callable[..., Any]


@dataclass(frozen=True)
class LossSpec:
    """A name of a loss, and what is particular to the method.

    Args:
        name: what an entry says.
        functions: kind of feature -> the function, or the class of a loss with state; a kind that is not listed is an
            error that says so.
        hard: it compares with the labels.
        logits: it compares logits class by class.
        own_shapes: it compares each side with itself first, so that widths, heads or channels may differ, and looks
            at the shapes itself. All others are called with equal shapes only.
        several: it compares several features at once: each side is a tuple.
        probabilities: its attention maps are probabilities: `attention`, and not `attention_scores`.
        among_samples: it compares the samples of a batch with each other, so two of them say little.
        two_classes: what it is worth where there are only two classes: said before the run.
        top_k: it follows from the teacher's largest logits and what the others have together, but for these values of
            its arguments; None for one that needs every logit.
        softmax: it compares the probabilities that a softmax makes of logits, item by item.
    """

    name: str
    functions: Mapping[str, LossFunction]
    hard: bool = False
    logits: bool = False
    own_shapes: bool = False
    several: bool = False
    probabilities: bool = False
    among_samples: bool = False
    two_classes: str = ""
    top_k: Mapping[str, float] | None = None
    softmax: bool = False


_ATTENTION, _VECTORS_OR_TOKENS, _DIRECTIONS = ("attention",), ("vector", "tokens"), ("vector", "tokens", "heads")
_CHOICES = ("vector", "tokens", "positions")
_PLANES, _SAMPLES = ("map", "tokens"), ("vector", "tokens", "map")
_MSE = {"vector": hidden_mse, "tokens": hidden_mse, "heads": hidden_mse, "map": hidden_mse, "attention": attention_mse}


def _for(kinds: Iterable[str], function: LossFunction) -> Mapping[str, LossFunction]:
    """One function for all of these kinds."""
    return dict.fromkeys(kinds, function)


LOSSES = (
    LossSpec("mse", _MSE),
    LossSpec("mse_with_mask", _MSE),
    LossSpec("hidden_mse", _for(_SAMPLES, hidden_mse)),
    LossSpec("logits_mse", _for(_CHOICES, logits_mse), logits=True),
    LossSpec("attention_mse", _for(_ATTENTION, attention_mse)),
    LossSpec("attention_mse_with_mask", _for(_ATTENTION, attention_mse)),
    LossSpec("cos", _for(_DIRECTIONS, cos)),
    LossSpec("cross_entropy", _for(_CHOICES, soft_cross_entropy), softmax=True, logits=True, top_k={}),
    LossSpec("soft_cross_entropy", _for(_CHOICES, soft_cross_entropy), softmax=True, logits=True, top_k={}),
    LossSpec("kl_divergence", _for(_CHOICES, kl_divergence), softmax=True, logits=True, top_k={}),
    # against the labels
    LossSpec("cross_entropy", _for(_CHOICES, hard_cross_entropy), softmax=True, hard=True),
    LossSpec("mse", {"vector": label_mse}, hard=True),
    LossSpec("own_loss", {"scalar": own_loss}, hard=True),
    # transformers
    LossSpec("hidden_cosine", _for(_DIRECTIONS, hidden_cosine)),
    LossSpec("pkd", _for(_VECTORS_OR_TOKENS, pkd)),
    LossSpec("mobilebert_feature", _for(_VECTORS_OR_TOKENS, mobilebert_feature)),
    LossSpec("mobilebert_attention", _for(_ATTENTION, attention_kl), probabilities=True),
    LossSpec("attention_kl", _for(_ATTENTION, attention_kl), probabilities=True),
    LossSpec("attention_cross_entropy", _for(_ATTENTION, attention_cross_entropy), probabilities=True),
    LossSpec("value_relation", {"heads": value_relation}, own_shapes=True),
    LossSpec("qkv_relation", _for(("heads", "tokens"), qkv_relation), own_shapes=True),
    LossSpec("cka", _for(_VECTORS_OR_TOKENS, cka), own_shapes=True),
    LossSpec("gram", {"tokens": gram}, own_shapes=True),
    LossSpec("bert_emd", _for(("tokens", "attention"), BertEMD), own_shapes=True, several=True),
    # logits
    LossSpec("reverse_kl", _for(_CHOICES, reverse_kl), softmax=True, logits=True),
    LossSpec("js_divergence", _for(_CHOICES, js_divergence), softmax=True, logits=True, top_k={"beta": 1}),
    LossSpec("skewed_kl", _for(_CHOICES, skewed_kl), softmax=True, logits=True, top_k={}),
    LossSpec("skewed_reverse_kl", _for(_CHOICES, skewed_reverse_kl), softmax=True, logits=True, top_k={"skew": 0}),
    LossSpec("total_variation", _for(_CHOICES, total_variation), softmax=True, logits=True, top_k={}),
    LossSpec(
        "dkd",
        _for(_CHOICES, dkd),
        softmax=True,
        logits=True,
        top_k={},
        two_classes="one other class leaves nothing to decouple, and the loss is alpha times kl_divergence",
    ),
    LossSpec(
        "dist",
        _for(_VECTORS_OR_TOKENS, dist),
        logits=True,
        top_k={},
        two_classes="the correlation of an item's two probabilities is always 1 or -1, so only gamma's part teaches",
    ),
    LossSpec(
        "logit_standardization",
        _for(_CHOICES, logit_standardization),
        softmax=True,
        logits=True,
        two_classes="standardised logits are constants, so it is label smoothing of the teacher's class",
    ),
    LossSpec("objectness_scaled", {"tokens": objectness_scaled}, logits=True),
    LossSpec(
        "ensemble_cross_entropy",
        _for(_CHOICES, ensemble_cross_entropy),
        softmax=True,
        own_shapes=True,
        several=True,
        top_k={},
    ),
    LossSpec("ensemble_kl", _for(_CHOICES, ensemble_kl), softmax=True, own_shapes=True, several=True, top_k={}),
    LossSpec("adversarial", _for(_VECTORS_OR_TOKENS, Adversarial), own_shapes=True, several=True, top_k={}),
    # relations
    LossSpec("similarity_preserving", _for(_SAMPLES, similarity_preserving), own_shapes=True, among_samples=True),
    LossSpec("rkd_distance", _for(_SAMPLES, rkd_distance), own_shapes=True, among_samples=True),
    LossSpec("rkd_angle", _for(_SAMPLES, rkd_angle), own_shapes=True, among_samples=True),
    LossSpec("correlation_congruence", _for(_SAMPLES, correlation_congruence), own_shapes=True, among_samples=True),
    LossSpec("pkt", _for(_SAMPLES, pkt), own_shapes=True, among_samples=True),
    LossSpec("nst", _for(_PLANES, nst), own_shapes=True),
    LossSpec("crd", _for(_SAMPLES, CRD), own_shapes=True),
    LossSpec("soft_contrastive", _for(_VECTORS_OR_TOKENS, soft_contrastive), among_samples=True),
    LossSpec("margin_mse", {"vector": margin_mse}, own_shapes=True),
    LossSpec("listwise_kl", {"vector": listwise_kl}, own_shapes=True),
    # feature maps
    LossSpec("fitnet_hint", _for(_SAMPLES, fitnet_hint)),
    LossSpec("attention_transfer", _for(_PLANES, attention_transfer), own_shapes=True),
    LossSpec("paraphraser", _for(_SAMPLES, Paraphraser), own_shapes=True),
    LossSpec("factor_transfer", _for(_SAMPLES, FactorTransfer), own_shapes=True),
    LossSpec("activation_boundary", _for(_SAMPLES, activation_boundary)),
    LossSpec("margin_relu", {"map": MarginReLU}),
    LossSpec("fsp", {"map": fsp}, own_shapes=True, several=True),
    LossSpec("channel_wise", _for(_PLANES, channel_wise)),
    LossSpec("variational_information", _for(_SAMPLES, VariationalInformation), own_shapes=True),
    LossSpec("review_kd", {"map": ReviewKD}, own_shapes=True, several=True),
)


def list_losses(hard: bool = False) -> list[str]:
    """The names an entry may give: of losses against the teacher, or (`hard`) against the labels."""
    return sorted(method.name for method in LOSSES if method.hard == hard)


def spec_of(name: str, hard: bool = False) -> LossSpec:
    """The method of a name.

    Raises:
        ConfigError: the name is unknown.
    """
    method = next((one for one in LOSSES if one.name == name and one.hard == hard), None)
    if method is None:
        what, names = "loss against the labels" if hard else "loss", list_losses(hard)
        if hard and name in list_losses():
            raise ConfigError(
                f"loss {name} compares with a teacher, and this entry names none: was `teacher` left out?"
            )
        raise ConfigError(f"unknown {what} {name!r}.{nearest(name, names)} Known: {', '.join(names)}")
    return method


def spec_behind(function: LossFunction) -> LossSpec | None:
    """The method of a function of the table, by whatever way it was given; None for anybody's own."""
    return next((method for method in LOSSES if function in method.functions.values()), None)


def get_loss(name: str, kind: str | None = None, hard: bool = False) -> LossFunction:
    """The function behind a name, for a kind of feature; None for that of tokens, or of what it applies to.

    Raises:
        ConfigError: the name is unknown, or the loss does not apply to the kind.
    """
    functions = spec_of(name, hard).functions
    if kind is None:
        return functions.get("tokens") or next(iter(functions.values()))
    if kind not in functions:
        fitting = sorted(one.name for one in LOSSES if one.hard == hard and kind in one.functions)
        if hard:
            raise ConfigError(
                f"loss {name} does not compare a feature of kind {kind} with labels, and this entry names no teacher: "
                f"was `teacher` left out? With labels these do: {', '.join(fitting) or 'none'}"
            )
        raise ConfigError(f"loss {name} does not apply to a feature of kind {kind}. These do: {', '.join(fitting)}")
    return functions[kind]
