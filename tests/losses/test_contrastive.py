"""Contrastive distillation: its memories, its normaliser, its negatives, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from processes import Forked, free_port

from knowledge_distillation.errors import ConfigError
from knowledge_distillation.losses import contrastive
from knowledge_distillation.losses.contrastive import CRD
from knowledge_distillation.objective.loss_model import MultiLayerBasedDistillationLoss

STUDENT = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
TEACHER = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
INDEX = torch.tensor([3, 9, 0, 11, 4])


def crd(student=STUDENT, teacher=TEACHER, seed=0, **options):
    torch.manual_seed(seed)
    return CRD(student, teacher, **{"num_samples": 12, "negatives": 6, "embedding_size": 3, **options})


def test_it_starts_at_about_its_log_terms():
    module = crd(num_samples=9000, negatives=4096, embedding_size=2048)
    value = module(STUDENT, TEACHER, INDEX).mean().item()
    assert value == pytest.approx(2 * (1 + math.log(4097)), rel=0.05)


def test_the_normaliser_is_that_of_the_first_batch_and_stays():
    module = crd()
    assert module.log_normaliser.isinf().all()
    module(STUDENT, TEACHER, INDEX)
    first = module.log_normaliser.clone()
    assert first.isfinite().all() and (first > 0).all()
    module(TEACHER[:, :4] * 9, TEACHER, INDEX)
    assert torch.equal(module.log_normaliser, first)


def test_the_rows_of_a_batch_move_by_the_momentum_and_no_others():
    module = crd(momentum=0.75)
    before = [module.student_memory.clone(), module.teacher_memory.clone()]
    embedded = [module.embed_student(STUDENT), module.embed_teacher(TEACHER)]
    module(STUDENT, TEACHER, INDEX)
    for memory, old, new in zip((module.student_memory, module.teacher_memory), before, embedded, strict=True):
        moved = 0.75 * old[INDEX] + 0.25 * torch.nn.functional.normalize(new, dim=1)
        torch.testing.assert_close(memory[INDEX], torch.nn.functional.normalize(moved, dim=1))
        others = [i for i in range(12) if i not in INDEX]
        assert torch.equal(memory[others], old[others])


def test_a_sample_that_is_there_twice_moves_by_its_mean_in_any_order():
    index = torch.tensor([3, 9, 3, 0, 3])
    memories = []
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0]):
        module = crd(momentum=0.0)
        new = torch.nn.functional.normalize(module.embed_student(STUDENT), dim=1)[[0, 2, 4]].mean(0)
        module(STUDENT[order], TEACHER[order], index[order])
        memories.append(module.student_memory)
        torch.testing.assert_close(memories[-1][3], torch.nn.functional.normalize(new, dim=0))
    torch.testing.assert_close(*memories)


def test_a_sample_without_tokens_moves_nothing_and_is_worth_nothing():
    student, teacher = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    mask = torch.tensor([[True, True], [False, False], [True, False]])
    module = crd(student, teacher)
    before = module.student_memory.clone()
    values = module(student, teacher, INDEX[:3], mask=mask)
    changed = (module.student_memory != before).any(1).nonzero().flatten().tolist()
    assert values[1] == 0 and (values[[0, 2]] > 0).all() and changed == [0, 3]


def test_a_first_batch_without_any_token_fixes_no_normaliser():
    student = torch.randn(3, 2, 4)
    module = crd(student, student)
    values = module(student, student, INDEX[:3], mask=torch.zeros(3, 2, dtype=torch.bool))
    assert not values.any() and module.log_normaliser.isinf().all()
    module(student, student, INDEX[:3])
    assert module.log_normaliser.isfinite().all()


@pytest.mark.parametrize("rest", ["eval", "no_grad"])
def test_outside_training_nothing_moves(rest):
    module = crd()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    if rest == "eval":
        module.eval()(STUDENT, TEACHER, INDEX)
    else:
        with torch.no_grad():
            module(STUDENT, TEACHER, INDEX)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_saved_state_goes_on_where_it_was():
    module, other = crd(), crd(seed=1)
    module(STUDENT, TEACHER, INDEX)
    other.load_state_dict(module.state_dict())
    values = []
    for one in (module, other):
        torch.manual_seed(2)
        values.append(one(STUDENT, TEACHER, INDEX))
    assert torch.equal(*values) and torch.equal(module.teacher_memory, other.teacher_memory)


@pytest.mark.parametrize("dense", [True, False], ids=["all_products", "picked_rows"])
def test_the_memory_moves_before_the_backward_pass_and_does_not_disturb_it(monkeypatch, dense):
    monkeypatch.setattr(contrastive, "DENSE", 16 if dense else 0)
    monkeypatch.setattr(contrastive, "CHUNK", 40)
    student, module = STUDENT.double().requires_grad_(), crd().double()
    following = torch.arange(1, 7)
    module._drawn = lambda index: (index[:, None] + following) % 12
    module(student, TEACHER.double(), INDEX)
    memories = module.student_memory.clone(), module.teacher_memory.clone()
    value = module(student, TEACHER.double(), INDEX)
    found = torch.autograd.grad(value.sum(), [student, *module.parameters()])

    indices = torch.cat([INDEX[:, None], module._drawn(INDEX)], 1)
    s, t = module.embed_student(student), module.embed_teacher(TEACHER.double())
    wanted = 0
    for anchor, memory, log_z in zip((s, t), memories[::-1], module.log_normaliser, strict=True):
        unit = torch.nn.functional.normalize(anchor, dim=1)
        h = (torch.einsum("bd,bkd->bk", unit, memory[indices]) / 0.07 - log_z).exp()
        wanted = wanted - (h[:, 0] / (h[:, 0] + 0.5)).log() - (0.5 / (h[:, 1:] + 0.5)).log().sum(1)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(found, torch.autograd.grad(wanted.sum(), [student, *module.parameters()]))


def test_negatives_are_other_samples_and_all_of_them_come():
    module = crd(num_samples=7, negatives=100)
    assert module.negatives == 6
    index = torch.tensor([0, 3, 6])
    drawn = torch.cat([module._drawn(index) for _ in range(200)], 1)
    for own, row in zip(index, drawn, strict=True):
        counts = row.bincount(minlength=7)
        assert counts[own] == 0 and (counts[torch.arange(7) != own] > 100).all()


@pytest.mark.parametrize(
    ("shape", "pooling", "width"),
    [
        ((2, 4), "mean", 4),
        ((2, 3, 4), "first", 4),
        ((2, 3, 2, 5), "mean", 3),
        ((2, 3, 2, 5), "flatten", 30),
    ],
)
def test_a_feature_is_embedded_by_its_pooling(shape, pooling, width):
    feature = torch.randn(shape)
    module = crd(feature, torch.randn(2, 6), pooling=pooling)
    assert module.embed_student.in_features == width
    assert module(feature, torch.randn(2, 6), INDEX[:2]).shape == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 1}, "num_samples is a whole number of 2 or more; found 1"),
        ({"negatives": 0}, "negatives is a whole number of 1 or more; found 0"),
        ({"embedding_size": 1.5}, "embedding_size is a whole number of 1 or more; found 1.5"),
        ({"temperature": 0}, "temperature is above 0; found 0"),
        ({"momentum": 1}, "momentum is at least 0 and below 1; found 1"),
        ({"pooling": "flat"}, "pooling is one of mean, first, flatten; found 'flat'. Nearest: flatten."),
    ],
)
def test_a_wrong_option_is_answered_with_what_would_do(options, message):
    with pytest.raises(ConfigError) as error:
        crd(**options)
    assert message in str(error.value)


def test_a_pooling_has_to_fit_the_feature():
    with pytest.raises(ConfigError, match=r"pooling flatten does not apply to .* \(2, 3, 4\). These do: mean, first"):
        crd(torch.randn(2, 3, 4), pooling="flatten")


@pytest.mark.parametrize("wrong", [12, -1])
def test_a_number_that_is_no_sample_s_is_an_error_and_moves_nothing(wrong):
    module = crd()
    before = module.student_memory.clone()
    with pytest.raises(ConfigError, match=r"not in 0 \.\. 11: num_samples is 12"):
        module(STUDENT, TEACHER, torch.tensor([0, 1, wrong, 2, 3]))
    assert torch.equal(module.student_memory, before)


@pytest.mark.parametrize("index", [INDEX.int(), INDEX[:4], INDEX[:, None]])
def test_the_numbers_are_int64_one_per_sample(index):
    with pytest.raises(ConfigError, match=r"one int64 number per sample, shape \(5,\); found"):
        crd()(STUDENT, TEACHER, index)


def bound(args, inputs):
    model = MultiLayerBasedDistillationLoss([{"student": "output.pooler_output", "teacher": "output.pooler_output",
                                              "loss": "crd", "args": args}])  # fmt: skip
    outputs = ({"output": {"pooler_output": side}} for side in (TEACHER, STUDENT))
    model.teacher_output_adaptor = model.student_output_adaptor = lambda output: output
    model.bind_outputs(*outputs, inputs, inputs)
    return model


def test_the_loss_model_says_what_is_missing():
    given = {"input_ids": torch.zeros(5, 2), "sample_index": INDEX}
    with pytest.raises(ConfigError, match="loss crd needs 'num_samples', which is neither in args nor"):
        bound({}, given)
    with pytest.raises(ConfigError, match="loss crd needs 'sample_index', which is neither in args nor"):
        bound({"num_samples": 12}, {"input_ids": torch.zeros(5, 2)})
    names = set(bound({"num_samples": 12}, given).state_dict())
    assert {name.rpartition(".")[2] for name in names} == {
        *("student_memory", "teacher_memory", "log_normaliser", "weight", "bias")
    }


def on_one_of_two(rank: str, port: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=2)
    module = crd()
    mine = slice(0, 3) if rank == "0" else slice(3, 5)
    module(STUDENT[mine], TEACHER[mine], INDEX[mine])
    torch.save(module.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_several_processes_keep_one_memory(tmp_path):
    given = (free_port(), str(tmp_path))
    logs = (tmp_path / "0.log", tmp_path / "1.log")
    both = [
        Forked(on_one_of_two, str(rank), *given, log=log, GLOO_SOCKET_IFNAME="lo") for rank, log in enumerate(logs)
    ]
    assert [process.wait() for process in both] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = crd()
    alone(STUDENT, TEACHER, INDEX)
    for name in ("student_memory", "teacher_memory", "log_normaliser"):
        assert torch.equal(first[name], second[name])
        if name != "log_normaliser":  # which depends on the negatives drawn
            torch.testing.assert_close(first[name], alone.state_dict()[name])
