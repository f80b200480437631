"""On a processor, in bf16 training, attention is computed without the fused form: the same result, sooner."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from runs import HARD, SOFT, bert, distiller
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from knowledge_distillation.features import attention
from knowledge_distillation.features import attention_by_parts as map_parts


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


CASES = ["open", "causal", "padding", "additive", "heads", "shared heads"]


def drawn(case: str) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Query, key and value in bf16, and a mask."""
    tensors = [torch.randn(3, heads, 9, 8).bfloat16().requires_grad_() for heads in (4, 2, 2)]
    kept = (torch.arange(9) < torch.tensor([9, 6, 1])[:, None])[:, None, None]
    mask = {
        "padding": kept,
        "additive": torch.zeros(3, 1, 1, 9).masked_fill(~kept, -torch.inf),
        "heads": torch.rand(3, 4, 9, 9) < 0.7,
        "shared heads": torch.rand(1, 4, 9, 9) < 0.7,
    }.get(case)
    if case.endswith("heads"):
        mask[..., 0] = True
    return tensors, mask


@pytest.mark.parametrize("at_once", [5, 60, 200, 300, 800, 1 << 19])
@pytest.mark.parametrize("case", CASES)
def test_by_parts_it_is_what_it_is_at_once(case: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, heads or samples at a time, of which the last part may have fewer."""
    monkeypatch.setattr(map_parts, "AT_ONCE", at_once)
    monkeypatch.setattr(map_parts.parts_of, "__defaults__", (at_once,))
    tensors, mask = drawn(case)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    mask64 = mask.double() if case == "additive" else mask
    expected = F.scaled_dot_product_attention(*exact, mask64, is_causal=case == "causal", enable_gqa=True)
    found = map_parts.attend(*tensors, mask, case == "causal").transpose(1, 2)
    above = torch.randn(found.shape).bfloat16()
    gradients = torch.autograd.grad(found, tensors, above)
    expected_gradients = torch.autograd.grad(expected, exact, above.double())
    for one, other in zip([found, *gradients], [expected, *expected_gradients], strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, rtol=3e-2, atol=3e-2)
    with torch.no_grad():
        assert torch.equal(map_parts.attend(*tensors, mask, case == "causal").transpose(1, 2), found)


@pytest.mark.parametrize("at_once", [60, 300, 1 << 19])
def test_dropout_of_parts_and_its_gradient(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same values are left out in both directions; the others grow so that the mean is as without."""
    monkeypatch.setattr(map_parts.parts_of, "__defaults__", (at_once,))
    masks = []
    draw = map_parts._keep_mask

    def remembered(shape: torch.Size, steps: int) -> torch.Tensor:
        masks.append(draw(shape, steps))
        return masks[-1]

    monkeypatch.setattr(map_parts, "_keep_mask", remembered)
    tensors = [torch.randn(3, 4, 9, 8).bfloat16().requires_grad_() for _ in range(3)]
    found = map_parts.attend(*tensors, dropout=0.25)
    kept = torch.zeros(3, 4, 9, 9).double()
    for part, mask in zip(map_parts.parts_of(kept.shape), masks, strict=True):
        kept[part] = mask.view(kept[part].shape).double()
    query, key, value = exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = (torch.softmax(query @ key.mT / 8**0.5, -1) * kept / 0.75 @ value).transpose(1, 2)
    above = torch.randn(found.shape).bfloat16()
    pairs = zip(
        [found, *torch.autograd.grad(found, tensors, above)],
        [expected, *torch.autograd.grad(expected, exact, above.double())],
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(one.double(), other, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_the_share_that_dropout_leaves(dropout: float) -> None:
    kept = map_parts._keep_mask(torch.Size([7, 301, 333]), round(dropout * 2**16))
    assert set(kept.unique().tolist()) == {0, 1}
    for share in (kept.double().mean(), *(kept.flatten()[i::8].double().mean() for i in range(8))):
        assert float(share) == pytest.approx(1 - dropout, abs=5e-3)  # 4 standard deviations of an eighth
    assert not torch.equal(kept, map_parts._keep_mask(kept.shape, round(dropout * 2**16)))


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
