"""Which losses have a fused or a summed form."""

from __future__ import annotations

from collections.abc import Mapping

from ...losses.attention import attention_cross_entropy, attention_kl, attention_mse
from ...losses.hidden import hidden_mse
from ...losses.table import LossFunction
from .attention import fused_attention_cross_entropy, fused_attention_kl, fused_attention_mse
from .squares import summed_attention_mse, summed_hidden_mse
from .vocabulary import FUSED_WITH_HEAD

# Losses that can work from what a feature is computed from (a `Deferred`), and the function that does so:
# fused(student, teacher, rows, keys, **arguments) -> the sum over all values of their row's weight times the value.
#   student: Deferred; teacher: Deferred, the feature as a tensor of any precision, or labels
#   rows: (batch, length), the weights of query rows or tokens, 0 for what does not count
#   keys: (batch, keys), True for the keys of an attention map that count; None for all
FUSED: Mapping[LossFunction, LossFunction] = {
    attention_mse: fused_attention_mse,
    attention_kl: fused_attention_kl,
    attention_cross_entropy: fused_attention_cross_entropy,
    **FUSED_WITH_HEAD,
}

# Losses whose weighted sum over whole tensors with rows is one step: summed(student, teacher, rows, keys), as above.
SUMMED: Mapping[LossFunction, LossFunction] = {hidden_mse: summed_hidden_mse, attention_mse: summed_attention_mse}

# Arguments with which a loss looks at more than one item's logits: its features are then not deferred.
BEYOND_ONE_ITEM = frozenset({"sample_temperature", "temperature_spread", "temperature_power", "probability_shift"})
