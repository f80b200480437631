"""On a processor, in bf16 training, attention is computed without the fused form: the same result, sooner."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from runs import HARD, SOFT, bert, distiller
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from knowledge_distillation import attention, map_parts


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_it_gives_what_the_fused_form_gives(causal: bool, masked: bool) -> None:
    query, key, value = (torch.randn(2, heads, 9, 8).bfloat16().requires_grad_() for heads in (4, 2, 2))
    mask = (torch.arange(9) < torch.tensor([9, 6])[:, None])[:, None, None] if masked else None
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    found = []
    for function in (attention.sdpa_with_maps, sdpa_attention_forward):
        context, _ = function(module, query, key, value, mask, is_causal=causal and not masked)
        found.append([context, *torch.autograd.grad(context.float().square().sum(), (query, key, value))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("at_once", [5, 60, 300, 1 << 19])
@pytest.mark.parametrize("case", ["open", "causal", "padding", "additive", "heads"])
def test_without_gradient_it_is_computed_by_parts(case: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, heads or samples at a time; the next number of samples is not a multiple of those of a part."""
    monkeypatch.setattr(map_parts.parts_of, "__defaults__", (at_once,))
    query, key, value = (torch.randn(3, heads, 9, 8).bfloat16() for heads in (4, 2, 2))
    kept = (torch.arange(9) < torch.tensor([9, 6, 1])[:, None])[:, None, None]
    mask = {
        "padding": kept,
        "additive": torch.zeros(3, 1, 1, 9).masked_fill(~kept, -torch.inf),
        "heads": torch.rand(3, 4, 9, 9) < 0.7,
    }.get(case)
    if case == "heads":
        mask[..., 0] = True
    given = torch.where(kept, 0, -torch.inf) if case == "additive" else mask
    expected = F.scaled_dot_product_attention(
        *(tensor.float() for tensor in (query, key, value)), given, is_causal=case == "causal", enable_gqa=True
    )
    found = map_parts.attend(query, key, value, mask, case == "causal", None)
    torch.testing.assert_close(found.transpose(1, 2).float(), expected, rtol=3e-2, atol=3e-2)


def test_it_is_used_while_a_student_trains_and_then_the_model_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    fused: list[bool] = []
    plain = attention.sdpa_attention_forward

    def count(module: torch.nn.Module, query: torch.Tensor, *rest: object, **more: object) -> object:
        fused.append(True)
        return plain(module, query, *rest, **more)

    monkeypatch.setattr(attention, "sdpa_attention_forward", count)
    student = bert(2)
    run = distiller([*SOFT, *HARD], student=student, mixed_precision="bf16")
    run.plan()
    assert student.config._attn_implementation == attention.IMPLEMENTATION
    fused.clear()
    run.train()
    assert not fused  # neither by the student nor by its teacher
    assert student.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("precision", "implementation"), [("no", "sdpa"), ("bf16", "eager")])
def test_otherwise_a_model_keeps_its_own(precision: str, implementation: str) -> None:
    student = bert(2)
    student.set_attn_implementation(implementation)
    run = distiller([*SOFT, *HARD], student=student, mixed_precision=precision)
    run.plan()
    assert student.config._attn_implementation == implementation
    run.close()
