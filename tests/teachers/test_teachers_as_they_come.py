"""Teachers that are offloaded, quantized, adapted, or share modules with the student: used as they lie, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload, disk_offload, dispatch_model
from runs import HIDDEN, SOFT, batches, bert, distiller, same, weights
from torch import nn

from knowledge_distillation.errors import ConfigError
from knowledge_distillation.teachers.cache_keys import Identity
from knowledge_distillation.teachers.frozen import FrozenTeacher

CPU = torch.device("cpu")


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything a run could change of a model: where its tensors lie, their types, modes, hooks and config."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = {name: tensor for name, tensor in tensors.items() if type(tensor) in (torch.Tensor, nn.Parameter)}
    return {
        "tensors": {name: id(tensor) for name, tensor in tensors.items() if not tensor.is_meta},
        "places": {name: (str(t.device), t.dtype, t.data_ptr(), t.requires_grad) for name, t in plain.items()},
        "modes": [module.training for module in model.modules()],
        "hooks": [(id(getattr(m, "_hf_hook", None)), ours(m)) for m in model.modules()],
        "config": model.config.to_dict(),
    }


def ours(module: nn.Module) -> list[Any]:
    """Its hooks, without those that transformers leaves where it was asked for hidden states."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return [hook for hook in hooks if not hook.__module__.startswith("transformers")]


def losses_with(teacher: nn.Module, **settings: Any) -> dict[str, float]:
    """Those of two epochs with this teacher, which is as it was before."""
    before, x = state_of(teacher), {k: v for k, v in batches(1)[0].items() if k != "labels"}
    with torch.no_grad():
        expected = teacher(**x).logits
    run = distiller([*HIDDEN, *SOFT], teacher, bert(2, seed=1), num_train_epochs=2, **settings)
    assert torch.equal(run.teacher(**x).logits, expected)
    losses = run.train()
    assert state_of(teacher) == before
    assert torch.equal(run.teacher(**x).logits, expected)
    return losses


# --- offloaded ---------------------------------------------------------------------------------------------------


def on_cpu(folder: Path) -> nn.Module:
    return cpu_offload(bert().eval(), execution_device=CPU)


def on_disk(folder: Path) -> nn.Module:
    disk_offload(model := bert().eval(), str(folder), execution_device=CPU)
    return model


def by_device_map(folder: Path) -> nn.Module:
    parts = {"bert.embeddings": "cpu", "bert.encoder": "disk", "bert.pooler": "cpu", "dropout": "cpu"}
    model = bert().eval()
    return dispatch_model(
        model, {**parts, "classifier": "cpu"}, main_device="cpu", offload_dir=str(folder), force_hooks=True
    )


@pytest.mark.case("E4")
@pytest.mark.parametrize(
    ("offload", "settings"),
    [
        (on_cpu, {}),
        (on_disk, {"mixed_precision": "bf16"}),
        (by_device_map, {"mixed_precision": "bf16"}),
        (on_cpu, {"teacher_cache": "cache"}),
        (by_device_map, {"teacher_cache": "cache"}),
    ],
)
def test_an_offloaded_teacher_is_used_as_it_lies(
    offload: Callable[[Path], nn.Module], settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = {key: str(tmp_path / value) if value == "cache" else value for key, value in settings.items()}
    teacher = offload(tmp_path / "weights")
    if offload is not by_device_map:  # the map leaves parts where they are
        assert all(p.is_meta for p in teacher.parameters())
    losses = losses_with(teacher, **settings)
    plain = {key: f"{value}2" if key == "teacher_cache" else value for key, value in settings.items()}
    assert losses == losses_with(bert().eval(), **plain, teacher_dtype="float32")


def test_weights_that_wait_elsewhere_are_there_once() -> None:
    model = on_cpu(Path())
    models = (model, FrozenTeacher(model).model)
    maps = [[m._hf_hook.weights_map for m in one.modules() if hasattr(m, "_hf_hook")] for one in models]
    assert maps[0] and all(one is other for one, other in zip(*maps, strict=True))


def test_an_offloaded_teacher_is_the_same_teacher_to_a_cache() -> None:
    plain, offloaded = bert(), on_cpu(Path())
    assert Identity.of(offloaded) == Identity.of(plain) != Identity.of(cpu_offload(bert(seed=1), CPU))


# --- quantized ---------------------------------------------------------------------------------------------------


class Int8(torch.Tensor):
    """A weight in int8 as torchao has them: nothing is done with it but what it says itself."""

    values: torch.Tensor
    scale: torch.Tensor

    def __new__(cls, values: torch.Tensor, scale: torch.Tensor) -> Int8:
        made = torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype)
        made.values, made.scale = values, scale
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values", "scale"], None

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, given: Any = (), more: Any = None) -> Any:
        if function is F.linear:
            x, weight, *bias = given
            return F.linear(x, weight.values * weight.scale, *bias)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*given, **(more or {}))

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, given: Any = (), more: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(given[0].values, given[0].scale)
        raise NotImplementedError(f"{function} of an int8 weight")


def int8_weights(seed: int = 0) -> nn.Module:
    model = bert(seed=seed).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.detach()
            scale = weight.abs().amax(1, keepdim=True) / 127
            module.weight = nn.Parameter(Int8((weight / scale).round().to(torch.int8), scale), requires_grad=False)
    return model


def int8_by_torch(seed: int = 0) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(bert(seed=seed).eval(), {nn.Linear}, dtype=torch.qint8)


def int8_by_torchao(seed: int = 0) -> nn.Module:
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(model := bert(seed=seed).eval(), torchao.Int8WeightOnlyConfig())
    return model


@pytest.mark.case("E5")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*qint8:UserWarning")
@pytest.mark.parametrize("quantized", [int8_weights, int8_by_torch, int8_by_torchao])
def test_a_quantized_teacher_is_used_as_it_is(quantized: Callable[..., nn.Module], tmp_path: Path) -> None:
    losses = losses_with(quantized())
    assert losses["loss"] == pytest.approx(losses_with(bert().eval())["loss"], rel=1e-2)
    assert losses_with(quantized(), mixed_precision="bf16")["loss"] == pytest.approx(losses["loss"], rel=1e-2)
    cached = losses_with(quantized(), teacher_cache=str(tmp_path / "cache"))
    assert cached["loss"] == pytest.approx(losses["loss"], rel=1e-2)
    assert Identity.of(quantized()) == Identity.of(quantized()) != Identity.of(quantized(1))


# --- shared with the student -------------------------------------------------------------------------------------


def shared_module(teacher: Any, student: Any) -> None:
    student.bert.encoder.layer[0] = teacher.bert.encoder.layer[0]


def shared_weight(teacher: Any, student: Any) -> None:
    student.bert.embeddings.word_embeddings.weight = teacher.bert.embeddings.word_embeddings.weight


def shared_memory(teacher: Any, student: Any) -> None:
    table = teacher.bert.embeddings.word_embeddings.weight
    student.bert.embeddings.position_embeddings.weight = nn.Parameter(table.detach()[8:40])  # starts elsewhere in it


def shared_statistics(teacher: Any, student: Any) -> None:
    teacher.norm = student.norm = nn.BatchNorm1d(3).requires_grad_(False)


SHARED = [shared_module, shared_weight, shared_memory, shared_statistics]


@pytest.mark.parametrize("share", SHARED)
def test_trained_weights_of_the_teacher_are_refused(share: Callable[[Any, Any], None]) -> None:
    teacher, student = bert(), bert(2, seed=1)
    share(teacher, student)
    with pytest.raises(ConfigError, match=r"share weights that are trained \(.*copy.deepcopy\(student_model\)"):
        distiller(SOFT, teacher, student)
    with pytest.raises(ConfigError, match=r"peer_model peer and teacher_model share"):
        distiller(SOFT, teacher, bert(2), peer_model=student)
    before = state_of(teacher), weights(teacher)
    distiller(SOFT, teacher, copy.deepcopy(student)).train()
    assert state_of(teacher) == before[0] and same(weights(teacher), before[1])


def test_frozen_weights_may_be_shared_and_the_teacher_is_as_it_was() -> None:
    teacher, student = bert().eval(), bert(2, seed=1)
    shared_module(teacher, student)
    student.bert.encoder.layer[0].requires_grad_(False)
    before, kept = state_of(teacher), weights(teacher)
    run = distiller(SOFT, teacher, student)
    run.train()
    assert state_of(teacher) == before and same(weights(teacher), kept)
    ours = {p.data_ptr() for p in run.teacher.parameters()}
    assert all(p.data_ptr() in ours for p in teacher.parameters())  # no second copy of a large base


def adapted(base: nn.Module) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))


def test_lora_on_a_base_of_its_own_and_on_the_students() -> None:
    teacher = adapted(bert()).eval()
    before, kept = state_of_adapted(teacher), weights(teacher)
    distiller(SOFT, teacher, bert(2)).train()
    assert state_of_adapted(teacher) == before and same(weights(teacher), kept)
    base = bert()
    for teacher, student in ((adapted(base), base), (base, adapted(base))):
        with pytest.raises(ConfigError, match="share weights that are trained"):
            distiller(SOFT, teacher, student)


def state_of_adapted(model: nn.Module) -> list[Any]:
    tensors = [*model.parameters(), *model.buffers()]
    return [(t.data_ptr(), t.dtype, t.requires_grad) for t in tensors] + [m.training for m in model.modules()]
