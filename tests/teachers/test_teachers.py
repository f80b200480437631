"""A teacher is frozen, in eval mode, and no change to its caller's model: by its type, whatever anyone does to it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, take
from tolerance import assert_near
from torch import nn

from knowledge_distillation.config.entry import Feature
from knowledge_distillation.features.capture import Capture
from knowledge_distillation.features.catalogue import catalogue
from knowledge_distillation.teachers.frozen import FrozenTeacher

BATCH_NORM = nn.modules.batchnorm._BatchNorm


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(
        now[name].dtype == tensor.dtype and torch.equal(now[name], tensor) for name, tensor in before.items()
    )


def features_of(teacher: FrozenTeacher, inputs, *names: str) -> dict[Feature, torch.Tensor]:
    wanted = [Feature(*name.rsplit(".", 1)) for name in names]
    known = catalogue(teacher.model, teacher.cast(inputs))
    capture = Capture(teacher.model, {feature: known.find(feature).location for feature in wanted})
    try:
        return teacher.features(capture, inputs)
    finally:
        capture.close()


def awaken_wrapper(teacher):
    teacher.train()


def awaken_wrapper_by_keyword(teacher):
    teacher.train(mode=True)


def awaken_model(teacher):
    teacher.model.train()


def awaken_one_dropout(teacher):
    next(m for m in teacher.modules() if isinstance(m, nn.Dropout)).train()


def awaken_by_a_parent(teacher):
    nn.ModuleList([nn.Linear(1, 1), teacher]).train()


AWAKENINGS = [awaken_wrapper, awaken_wrapper_by_keyword, awaken_model, awaken_one_dropout, awaken_by_a_parent]


@pytest.mark.parametrize("awaken", AWAKENINGS)
@pytest.mark.parametrize("call", ["forward", "features"])
def test_nothing_wakes_the_teacher(tiny, awaken, call):
    model = tiny("bert", dropout=0.5)
    with torch.no_grad():
        expected = model.model(**model.inputs).logits
    teacher = FrozenTeacher(model.model)
    awaken(teacher)
    if call == "forward":
        logits = teacher(**model.inputs).logits
    else:
        logits = features_of(teacher, model.inputs, "output.logits")[Feature("output", "logits")]
    assert torch.equal(logits, expected)
    assert not any(module.training for module in teacher.modules())


def test_train_answers_with_the_teacher_still_in_eval_mode(tiny):
    teacher = FrozenTeacher(tiny("bert").model.train())
    assert not any(module.training for module in teacher.modules())
    assert teacher.train() is teacher
    assert not any(module.training for module in teacher.modules())


def test_batch_normalisation_never_moves(tiny):
    model = tiny("resnet")
    model.model.train()
    teacher = FrozenTeacher(model.model)
    before = snapshot(model.model)
    teacher.model.train()
    teacher(**model.inputs)
    assert unchanged(model.model, before)
    model.model(**model.inputs)
    assert not unchanged(model.model, before)  # in training mode the same pass would have moved it


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_parameter_requires_grad_and_the_callers_model_is_as_it_was(tiny, family, dtype):
    model = tiny(family)
    model.model.train()
    frozen_before = next(model.model.parameters())
    frozen_before.requires_grad_(False)
    before = snapshot(model.model)
    teacher = FrozenTeacher(model.model, dtype=dtype)
    output = teacher(**teacher.cast(model.inputs))
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not output.logits.requires_grad
    assert unchanged(model.model, before)
    assert all(module.training for module in model.model.modules())
    assert [p.requires_grad for p in model.model.parameters()] == [
        p is not frozen_before for p in model.model.parameters()
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_gives_what_its_callers_model_gives(tiny, family):
    model = tiny(family)
    with torch.no_grad():  # fused attention rounds differently where a gradient is needed
        expected = model.model(**model.inputs).logits
    assert torch.equal(FrozenTeacher(model.model.train())(**model.inputs).logits, expected)


def test_weights_are_shared_where_the_type_stays(tiny):
    model = tiny("bert").model
    teacher = FrozenTeacher(model)
    theirs, ours = model.state_dict(), teacher.model.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(theirs[name].data_ptr() == ours[name].data_ptr() for name in theirs)
    assert teacher.model is not model
    assert teacher.model.config is not model.config


def test_weights_are_copied_where_the_type_changes(tiny):
    model = tiny("bert").model
    teacher = FrozenTeacher(model, dtype=torch.bfloat16)
    theirs = dict(model.named_parameters())
    for name, parameter in teacher.model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, theirs[name].bfloat16())
        assert parameter.data_ptr() != theirs[name].data_ptr()


def test_tied_weights_stay_tied(tiny):
    teacher = FrozenTeacher(tiny("gpt2").model, dtype=torch.bfloat16)
    assert teacher.model.lm_head.weight is teacher.model.transformer.wte.weight


def test_a_teacher_is_frozen_of_a_model_whose_parameters_are_used_in_training(tiny):
    """Training goes on in the caller's model: its gradients and its optimizer's parameters are its own."""
    model = tiny("bert")
    teacher = FrozenTeacher(model.model)
    model.model(**model.inputs).logits.sum().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert model.model.classifier.weight.grad is not None


def test_batch_normalisation_and_buffers_keep_their_precision(tiny):
    model = tiny("resnet")
    teacher = FrozenTeacher(model.model, dtype=torch.bfloat16)
    norms = [module for module in teacher.modules() if isinstance(module, BATCH_NORM)]
    assert norms
    for norm in norms:
        kept = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        assert all(tensor.dtype == torch.float32 for tensor in kept)
    assert all(m.weight.dtype == torch.bfloat16 for m in teacher.modules() if isinstance(m, nn.Conv2d))
    logits = teacher(**teacher.cast(model.inputs)).logits
    assert logits.dtype == torch.float32  # handed out in float32, whatever it computes in
    torch.testing.assert_close(logits.float(), model.model(**model.inputs).logits, rtol=0.05, atol=0.05)


def test_rotary_frequencies_keep_their_precision(tiny):
    model = tiny("llama").model
    teacher = FrozenTeacher(model, dtype=torch.bfloat16)
    buffers = dict(teacher.model.named_buffers())
    assert buffers
    assert all(
        torch.equal(buffers[name], buffer) and buffer.dtype == torch.float32 for name, buffer in model.named_buffers()
    )


def test_a_bfloat16_teacher_is_near_the_exact_one(tiny):
    model = tiny("bert")
    names = ("layer2.hidden_states", "layer3.attention", "output.logits")
    exact = features_of(FrozenTeacher(model.model), model.inputs, *names)
    rough = features_of(FrozenTeacher(model.model, dtype=torch.bfloat16), model.inputs, *names)
    for name in exact:
        difference = (rough[name].float() - exact[name]).abs().max()
        assert 0 < float(difference) < 0.1 * float(exact[name].abs().max())


def test_floating_point_inputs_are_cast_and_others_are_not(tiny):
    teacher = FrozenTeacher(tiny("vit").model, dtype=torch.bfloat16)
    given = {
        "pixel_values": torch.zeros(1, 3, 32, 32),
        "bool_masked_pos": torch.zeros(1, 16, dtype=torch.bool),
        "n": 3,
    }
    cast = teacher.cast(given)
    assert cast["pixel_values"].dtype == torch.bfloat16
    assert cast["bool_masked_pos"] is given["bool_masked_pos"]
    assert cast["n"] == 3


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "resnet"])
def test_features_can_be_used_in_a_loss_with_backward(tiny, family):
    """A tensor made in inference mode could not be saved for backward, which `F.mse_loss` does."""
    model = tiny(family)
    name = next(reversed(model.hidden_states))
    features = features_of(FrozenTeacher(model.model), model.inputs, name)
    (target,) = features.values()
    assert not target.requires_grad
    assert not target.is_inference()
    guess = torch.randn_like(target, requires_grad=True)
    F.mse_loss(guess, target).backward()
    torch.testing.assert_close(guess.grad, 2 * (guess - target).detach() / target.numel())
    weighted = guess.detach().requires_grad_()
    (weighted * target).sum().backward()  # saves the teacher's tensor itself
    assert torch.equal(weighted.grad, target)


def test_features_equal_those_of_the_callers_model_in_eval_mode(tiny):
    model = tiny("bert", dropout=0.5)
    expected = take(model.model, model.inputs, *model.hidden_states, *model.attentions)
    teacher = FrozenTeacher(model.model.train())
    taken = features_of(teacher, model.inputs, *expected)
    for feature, tensor in taken.items():
        assert_near(tensor, expected[str(feature)].detach())


def test_features_take_no_memory_for_a_graph_even_where_someone_unfroze_the_teacher(tiny):
    model = tiny("bert")
    teacher = FrozenTeacher(model.model)
    teacher.model.requires_grad_(True)
    features = features_of(teacher, model.inputs, "layer2.hidden_states")
    assert all(tensor.grad_fn is None for tensor in features.values())
    assert teacher(**model.inputs).logits.grad_fn is None


def test_attributes_of_the_model_are_the_teachers(tiny):
    model = tiny("bert").model
    teacher = FrozenTeacher(model)
    assert teacher.config.hidden_size == 16
    assert teacher.get_input_embeddings() is teacher.model.bert.embeddings.word_embeddings
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        teacher.nonsense  # noqa: B018


def test_the_teachers_state_is_that_of_its_model(tiny):
    model = tiny("bert").model
    assert {name.removeprefix("model.") for name in FrozenTeacher(model).state_dict()} == set(model.state_dict())
