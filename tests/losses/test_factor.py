"""Factor transfer: who learns from what, and paraphrasers that were trained before."""

from __future__ import annotations

import re

import pytest
import reference
import torch
from runs import bert, distiller
from safetensors.torch import load_file, save_file

from knowledge_distillation import ConfigError, MultiLayerBasedDistillationLoss
from knowledge_distillation.config.entry import Feature
from knowledge_distillation.losses.factor import FactorTransfer, Paraphraser
from knowledge_distillation.storage.checkpoint_files import checkpoints


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


SHAPES = [((2, 3, 4, 4), (2, 5, 4, 4)), ((2, 3, 6, 3), (2, 5, 4, 4)), ((2, 3), (2, 6)), ((2, 4, 3), (2, 4, 7))]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("norm", [False, True])
def test_factors_of_other_widths_and_sizes_are_compared(shapes, norm):
    student, teacher = (random(*shape) for shape in shapes)
    loss = FactorTransfer(student, teacher, norm=norm).double()
    state = {name: tensor.numpy() for name, tensor in loss.state_dict().items()}
    expected = reference.factor_transfer(student.numpy(), teacher.numpy(), norm=norm, **state)
    assert loss(student, teacher).mean().item() == pytest.approx(expected, rel=1e-12)


def test_the_paraphraser_learns_beside_the_student_what_it_would_learn_alone():
    student, teacher = random(2, 3, 4, 4).requires_grad_(), random(2, 5, 4, 4)
    torch.manual_seed(0)
    alone = Paraphraser(student, teacher).double()
    loss = FactorTransfer(student, teacher, paraphraser_weight=2.0).double()
    loss.paraphraser.load_state_dict(alone.state_dict())
    alone(student, teacher).mean().backward()
    assert student.grad is None
    loss(student, teacher).mean().backward()
    for mine, other in zip(loss.paraphraser.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, 2 * other.grad)
    assert (student.grad != 0).any() and all((p.grad != 0).any() for p in loss.translator.parameters())


def test_zero_features_have_a_finite_gradient():
    student, teacher = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 6)
    loss = FactorTransfer(student, teacher)
    for parameter in loss.parameters():
        parameter.data.zero_()
    loss(student, teacher).sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (student, *loss.parameters()))


def saved(tmp_path, prefix="", **paraphrasers):
    """A file of paraphrasers by name, among other tensors, and the last of them."""
    tensors = {"student.encoder.0.weight": torch.zeros(1)}
    for name, paraphraser in paraphrasers.items():
        tensors |= {f"{prefix}{name}.{key}": tensor for key, tensor in paraphraser.state_dict().items()}
    save_file(tensors, tmp_path / "paraphraser.safetensors")
    return str(tmp_path / "paraphraser.safetensors")


def in_a_loss_model(student, teacher, **arguments):
    """The module that a loss model builds: it reads the files."""
    entry = {
        "teacher": "layer.map",
        "student": "layer.map",
        "loss": "factor_transfer",
        "name": "it",
        "args": arguments,
    }
    model, features = (
        MultiLayerBasedDistillationLoss([entry]),
        [{Feature("layer", "map"): side} for side in (student, teacher)],
    )
    model.bind(model.config.check().entries[0], *features, "map" if student.dim() == 4 else "vector", {})
    return model.losses["it"]


def test_a_pretrained_paraphraser_is_loaded_and_stays_as_it_is(tmp_path):
    student, teacher = random(2, 3, 4, 4).requires_grad_(), random(2, 5, 4, 4)
    trained, other = Paraphraser(student, teacher), Paraphraser(student, teacher)
    path = saved(tmp_path, "losses.", first=trained, second=other)
    loss = FactorTransfer(
        student, teacher, pretrained=path, pretrained_entry="first", weights=load_file(path)
    ).double()
    for key, tensor in trained.state_dict().items():
        assert torch.equal(loss.paraphraser.state_dict()[key].float(), tensor)
    loss(student, teacher).sum().backward()
    assert [p.requires_grad for p in loss.paraphraser.parameters()] == [False] * 8
    assert (student.grad != 0).any()
    state = {name: tensor.numpy() for name, tensor in loss.state_dict().items()}
    expected = reference.factor_transfer(student.detach().numpy(), teacher.numpy(), paraphraser_weight=0.0, **state)
    assert loss(student, teacher).mean().item() == pytest.approx(expected, rel=1e-12)


def test_a_pretrained_paraphraser_is_found_in_a_run_directory(tmp_path):
    student, teacher = random(2, 3), random(2, 6)
    trained = Paraphraser(student, teacher)
    folder = tmp_path / "checkpoints" / "step-00000010"
    folder.mkdir(parents=True)
    save_file({f"losses.it.{k}": t for k, t in trained.state_dict().items()}, folder / "projections.safetensors")
    loss = in_a_loss_model(student, teacher, pretrained=str(tmp_path))
    assert torch.equal(loss.paraphraser.encoder[0].weight.float(), trained.encoder[0].weight)


def test_a_file_without_the_one_paraphraser_asked_for_is_an_error(tmp_path):
    student, teacher = random(2, 3, 4, 4), random(2, 5, 4, 4)
    two = {name: Paraphraser(student, teacher) for name in ("first", "second")}
    path = saved(tmp_path, **two)
    found = (
        r"; found .*first\., second\..* One is needed: name its entry by pretrained_entry, and train it at the same"
    )
    for arguments, number in (({}, 2), ({"rate": 0.9}, 0), ({"pretrained_entry": "third"}, 0)):
        with pytest.raises(ConfigError, match=f"holds {number} paraphrasers of this shape .*{found}"):
            in_a_loss_model(student, teacher, pretrained=path, **arguments)
    (tmp_path / "broken.safetensors").write_text("no")
    for name in ("absent.safetensors", "broken.safetensors", "."):
        with pytest.raises(ConfigError, match=f"pretrained {re.escape(str(tmp_path / name))} cannot be read: "):
            in_a_loss_model(student, teacher, pretrained=str(tmp_path / name))


def test_arguments_out_of_range_are_errors(tmp_path):
    student, teacher = random(2, 3), random(2, 6)
    with pytest.raises(ConfigError, match="paraphraser_weight is 0, which leaves the paraphraser untrained"):
        FactorTransfer(student, teacher, paraphraser_weight=0)
    with pytest.raises(ConfigError, match="paraphraser_weight is 0 or more; found -1"):
        FactorTransfer(student, teacher, paraphraser_weight=-1)
    for loss in (FactorTransfer, Paraphraser):
        with pytest.raises(ConfigError, match=re.escape("is above 0; found 0")):
            loss(student, teacher, rate=0)


def test_tokens_of_other_lengths_are_an_error():
    student, teacher = random(2, 4, 3), random(2, 5, 3)
    with pytest.raises(ConfigError, match="loss factor_transfer compares position with position"):
        FactorTransfer(student, teacher).double()(student, teacher)


def test_a_paraphraser_learns_to_restore_the_feature():
    torch.manual_seed(0)
    teacher = random(4, 6, 4, 4)
    loss = Paraphraser(teacher, teacher).double()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    values = []
    for _ in range(60):
        value = loss(teacher, teacher).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] / 3


LAST = {"teacher": "layer-1.hidden_states", "student": "layer-1.hidden_states"}
STAGED = [
    {**LAST, "loss": "paraphraser", "name": "p", "stage": "first"},
    {**LAST, "loss": "factor_transfer", "args": {"paraphraser": "p"}, "name": "f", "stage": "second"},
]


def test_a_paraphraser_is_trained_in_one_stage_and_rests_in_the_next(tmp_path):
    run = distiller(STAGED, bert(), bert(2), output_dir=tmp_path, save_steps=2, save_total_limit=9, max_steps=2)
    run.train()
    losses = run.loss_model.losses
    assert losses["f"].paraphraser is losses["p"]
    saved = [load_file(path / "projections.safetensors") for path in checkpoints(tmp_path)]
    paraphraser = [name for name in saved[0] if ".encoder." in name or ".decoder." in name]  # under one of two names
    translator = [name for name in saved[0] if name.startswith("losses.f.translator.")]
    fresh = distiller(STAGED, bert(), bert(2), max_steps=2)
    fresh.plan()
    begun = fresh.loss_model.state_dict()
    fresh.close()
    assert paraphraser and translator
    for name in paraphraser:
        assert not torch.equal(begun[name], saved[0][name]) and torch.equal(saved[0][name], saved[1][name])
    for name in translator:
        assert torch.equal(begun[name], saved[0][name]) and not torch.equal(saved[0][name], saved[1][name])


def test_a_paraphraser_that_no_entry_trains_is_an_error():
    with pytest.raises(ConfigError, match="paraphraser 'q' is no entry of loss paraphraser before this one. Known: p"):
        distiller([STAGED[0], {**STAGED[1], "args": {"paraphraser": "q"}}], bert(), bert(2)).plan()
