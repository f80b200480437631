"""Projections: every type, on either side, shared, frozen, loaded, with a rate of their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny as build_tiny
from runs import HARD, batches, bert, distiller, same, weights
from safetensors.torch import save_file
from tolerance import assert_near
from torch import Tensor, nn

from knowledge_distillation import CheckpointError, ConfigError, parse_config
from knowledge_distillation.config.entry import PROJECTIONS, Projection
from knowledge_distillation.objective.projections import build_projection
from knowledge_distillation.storage.checkpoint_files import latest

STATES = {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse", "name": "states"}
MAPS = {"teacher": "layer2.attention", "student": "layer1.attention", "loss": "mse", "name": "maps"}


def tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def built(kind: str, given: Tensor, other: Tensor | None, **wanted: Any) -> nn.Module:
    return build_projection(Projection(**wanted), kind, given, other)


def run(config: Any, teacher: Any = None, student: Any = None, **options: Any) -> Any:
    """A wide teacher of two layers and a narrow student of one; the config bound."""
    teacher = bert(2, width=24, heads=4, seed=1) if teacher is None else teacher
    made = distiller(config, teacher, bert(1, seed=3) if student is None else student, **options)
    made.plan()
    return made


def projection(made: Any, key: str = "states") -> nn.Module:
    return made.loss_model.projections[key]


def states(model: nn.Module, batch: dict[str, Tensor], layer: int) -> Tensor:
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    return model(**inputs, output_hidden_states=True).hidden_states[layer]


def mse(one: Tensor, other: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return (one - other).square().mean(-1)[batch["attention_mask"].bool()].mean()


# --- the types ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "other", "wanted", "parameters"),
    [
        ("tokens", (2, 5, 4), (2, 5, 6), {"type": "linear"}, 4 * 6 + 6),
        ("vector", (2, 4), (2, 6), {"type": "linear"}, 4 * 6 + 6),
        ("heads", (2, 2, 5, 4), (2, 2, 5, 6), {"type": "linear"}, 4 * 6 + 6),
        ("map", (2, 4, 8, 8), (2, 6, 8, 8), {"type": "linear"}, 4 * 6 + 6),
        ("map", (2, 4, 8, 8), (2, 6, 8, 8), {"type": "conv1x1"}, 4 * 6 + 6),
        ("map", (2, 4, 8, 8), (2, 6, 8, 8), {"type": "conv1x1_bn"}, 4 * 6 + 6 + 6),
        ("map", (2, 4, 8, 8), (2, 6, 4, 4), {"type": "resize"}, 4 * 6 + 6),
        ("map", (2, 4, 4, 4), (2, 6, 8, 8), {"type": "resize"}, 4 * 6 + 6),
        ("map", (2, 4, 8, 8), (2, 4, 4, 4), {"type": "resize"}, 0),
        ("tokens", (2, 5, 4), (2, 5, 6), {"type": "mlp"}, 4 * 6 + 6 + 6 * 6 + 6),
        ("tokens", (2, 5, 4), (2, 5, 6), {"type": "mlp", "hidden_size": 3}, 4 * 3 + 3 + 3 * 6 + 6),
        ("map", (2, 4, 8, 8), (2, 6, 8, 8), {"type": "mlp", "hidden_size": 3}, 4 * 3 + 3 + 3 * 6 + 6),
        ("attention", (2, 2, 5, 5), (2, 6, 5, 5), {"type": "heads"}, 2 * 6),
        ("heads", (2, 2, 5, 4), (2, 3, 5, 6), {"type": "heads"}, 8 * 18 + 18),
        ("tokens", (2, 5, 4), (2, 3), {"type": "exit"}, 4 * 3 + 3),
        ("map", (2, 4, 8, 8), (2, 3), {"type": "exit", "hidden_size": 5}, 4 * 5 + 5 + 5 * 3 + 3),
        ("vector", (2, 4), (2, 3), {"type": "exit"}, 4 * 3 + 3),
    ],
)
def test_a_type_gives_the_shape_of_the_other_side(kind, given, other, wanted, parameters):
    module = built(kind, tensor(*given), tensor(*other), **wanted)
    assert module(tensor(*given)).shape == other
    assert sum(p.numel() for p in module.parameters()) == parameters


@pytest.mark.parametrize("type_", ["linear", "mlp", "exit"])
def test_a_width_of_ones_own(type_):
    module = built("tokens", tensor(2, 5, 4), None, type=type_, width=7)
    assert module(tensor(2, 5, 4)).shape[-1] == 7


def test_a_resized_map_is_pooled_where_it_shrinks_and_interpolated_where_it_grows():
    given = tensor(1, 2, 8, 8)
    small = built("map", given, tensor(1, 2, 4, 4), type="resize")(given)
    assert_near(small, given.unflatten(-1, (4, 2)).unflatten(-3, (4, 2)).mean((-1, -3)))
    large = built("map", given, tensor(1, 2, 16, 16), type="resize")(torch.ones_like(given))
    assert torch.equal(large, torch.ones(1, 2, 16, 16))


def test_projected_heads_stay_probabilities_and_begin_near_heads_of_the_same_place():
    maps = tensor(3, 2, 5, 5).softmax(-1)
    module = built("attention", maps, tensor(3, 4, 5, 5), type="heads")
    projected = module(maps)
    assert_near(projected.sum(-1), torch.ones(3, 4, 5))
    assert (projected >= 0).all()
    assert module.weight.argmax(-1).tolist() == [0, 0, 1, 1]
    module.weight.data.normal_(0, 10)
    assert_near(module(maps).sum(-1), torch.ones(3, 4, 5))


def test_an_exit_reads_the_first_token_and_the_mean_of_a_map():
    given = tensor(2, 5, 4)
    module = built("tokens", given, tensor(2, 3), type="exit")
    assert torch.equal(module(given), module.head(given[:, 0]))
    given = tensor(2, 4, 8, 8)
    module = built("map", given, tensor(2, 3), type="exit")
    assert_near(module(given), module.head(given.flatten(2).mean(-1)))


def test_every_type_is_built_somewhere_and_the_others_are_said_to_be_wrong():
    made = {type_ for type_ in PROJECTIONS if type_ not in ("auto", "none")}
    with pytest.raises(ConfigError) as caught:
        built("attention", tensor(2, 2, 5, 5), None, type="mlp")
    said = "projection mlp does not apply to a feature of kind attention (2, 2, 5, 5). These do: heads"
    assert str(caught.value) == said
    for kind, fitting in (
        ("tokens", "exit, linear, mlp"),
        ("map", "conv1x1, conv1x1_bn, exit, linear, mlp, resize"),
        ("heads", "heads, linear, mlp"),
    ):
        wrong = sorted(made - set(fitting.split(", ")))[0]
        with pytest.raises(ConfigError, match=f"These do: {fitting}$"):
            built(kind, tensor(2, 2, 5, 4), None, type=wrong)


# --- in a run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ([{**STATES, "projection": "mlp"}], "Sequential"),
        ([{**MAPS, "projection": "heads"}], "Heads"),
        (
            [{**MAPS, "teacher": "layer2.query", "student": "layer1.query", "projection": "heads"}],
            "JoinedHeads",
        ),
        ([{**STATES, "projection": {"type": "exit"}, "teacher": "output.logits", "loss": "kl_divergence"}], "Exit"),
    ],
)
def test_a_text_model_trains_with_it(config, kind):
    made = run(config)
    (module,) = made.loss_model.projections.values()
    before = weights(module)
    assert type(module).__name__ == kind
    assert made.train()["loss"] > 0 and not same(before, weights(module))


@pytest.mark.parametrize("type_", ["auto", "linear", "mlp", "conv1x1", "conv1x1_bn", "resize", "exit"])
def test_an_image_model_trains_with_it(type_):
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 12]}
    teacher, student = build_tiny("resnet").model, build_tiny("resnet", seed=1, **sizes).model
    pixels = {"pixel_values": torch.randn(4, 3, 32, 32)}
    entry = {"teacher": "layer1.hidden_states", "student": "layer1.hidden_states", "loss": "mse", "projection": type_}
    if type_ == "resize":
        entry["teacher"] = "layer2.hidden_states"
    if type_ == "exit":
        entry |= {"teacher": "output.logits", "loss": "kl_divergence"}
    made = run([entry], teacher, student, train_dataloader=[pixels] * 2)
    (module,) = made.loss_model.projections.values()
    before = weights(module)
    assert type_ != "conv1x1_bn" or before["1.num_batches_tracked"] == 0
    assert made.train()["loss"] > 0 and not same(before, weights(module))
    assert type_ != "conv1x1_bn" or module[1].num_batches_tracked == 2


def test_a_shared_projection_is_one_module_with_the_gradient_of_both_entries():
    shared = {"projection": {"type": "linear", "shared": "map"}}
    config = [{**STATES, "student": f"layer{n}.hidden_states", "name": f"at{n}", **shared} for n in (1, 2)]
    student, teacher, batch = bert(2, seed=3), bert(2, width=24, heads=4, seed=1), batches(1)[0]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    made = run(config, teacher, student, optimizer=optimizer, max_grad_norm=0, train_dataloader=[batch])
    assert list(made.loss_model.projections) == ["map"]
    twin, target = copy.deepcopy(projection(made, "map")), states(teacher.eval(), batch, 2).detach()
    sum(mse(twin(states(student, batch, n)), target, batch) for n in (1, 2)).backward()
    moved = twin.weight - 0.1 * twin.weight.grad
    made.train()
    assert_near(projection(made, "map").weight, moved)


def test_braces_may_share_one_projection():
    item = {**STATES, "teacher": "layer{1,2}.hidden_states", "projection": {"type": "linear", "shared": "map"}}
    made = run([item])
    made.close()
    assert list(made.loss_model.projections) == ["map"]


def test_a_frozen_projection_stays_as_it_is():
    made = run([{**STATES, "projection": {"type": "linear", "trainable": False}}], weight_decay=0.5)
    before, start = weights(projection(made)), weights(made.student)
    made.train()
    assert same(before, weights(projection(made))) and not same(start, weights(made.student))
    assert not any(p.requires_grad for p in projection(made).parameters())


def test_a_projection_trains_at_a_rate_of_its_own():
    """Adam's first step moves every weight by the rate."""
    config = [{**STATES, "learning_rate": 0.05}]
    made = run(config, learning_rate=1e-3, warmup_ratio=0.0, weight_decay=0.0, max_steps=1, max_grad_norm=0)
    before, start = weights(projection(made)), weights(made.student)
    made.train()
    assert float((projection(made).weight.detach() - before["weight"]).abs().max()) == pytest.approx(0.05, rel=1e-2)
    name = "bert.encoder.layer.0.output.dense.weight"
    assert float((made.student.state_dict()[name] - start[name]).abs().max()) == pytest.approx(1e-3, rel=1e-2)


def test_an_optimizer_of_ones_own_gets_projections_at_their_rate():
    student, batch = bert(1, seed=3), batches(1)[0]
    config = [{**STATES, "learning_rate": 0.5}, {**STATES, "teacher": "layer1.hidden_states", "name": "plain"}]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    made = run(config, student=student, optimizer=optimizer, max_grad_norm=0, train_dataloader=[batch])
    twins = copy.deepcopy(made.loss_model.projections)
    given = states(student, batch, 1)
    for key, layer in (("states", 2), ("plain", 1)):
        target = states(made.teacher.model, batch, layer).detach()
        mse(twins[key](given), target, batch).backward(retain_graph=True)
    made.train()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5, 0.1]
    for key, rate in (("states", 0.5), ("plain", 0.1)):
        assert_near(projection(made, key).weight, twins[key].weight - rate * twins[key].weight.grad)


def test_a_rate_with_nothing_to_train_is_warned_about():
    made = run([{**STATES, "learning_rate": 0.5}], teacher=bert(2, seed=1))
    assert "warning: states: it has nothing of its own that trains at its learning_rate" in made.plan().notes
    made.close()


def test_a_projection_of_the_teachers_side_trains_and_the_teacher_does_not():
    student, teacher, batch = bert(1, seed=3), bert(2, width=24, heads=4, seed=1), batches(1)[0]
    config = [{**STATES, "projection": "none", "teacher_projection": "linear"}]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    made = run(config, teacher, student, optimizer=optimizer, max_grad_norm=0, train_dataloader=[batch])
    assert list(made.loss_model.projections) == ["states:teacher"]
    module, start = projection(made, "states:teacher"), weights(teacher)
    twin_student, twin = copy.deepcopy(student), copy.deepcopy(module)
    mse(states(twin_student, batch, 1), twin(states(teacher.eval(), batch, 2).detach()), batch).backward()
    made.train()
    assert_near(module.weight, twin.weight - 0.1 * twin.weight.grad)
    inner = "bert.encoder.layer.0.output.dense.weight"
    by_hand = twin_student.get_parameter(inner) - 0.1 * twin_student.get_parameter(inner).grad
    assert_near(student.get_parameter(inner), by_hand)
    assert same(start, weights(teacher)) and all(p.grad is None for p in teacher.parameters())


def test_both_sides_may_meet_at_a_width_of_their_own():
    wanted = {"type": "linear", "width": 5}
    made = run([{**STATES, "projection": wanted, "teacher_projection": wanted}])
    shapes = {key: tuple(module.weight.shape) for key, module in made.loss_model.projections.items()}
    assert shapes == {"states": (5, 16), "states:teacher": (5, 24)}
    assert made.train()["states"] > 0


def test_a_projection_for_each_of_several_features():
    def nearest_layers(student, teacher):
        return sum((s - t).square().mean(-1) for s, t in zip(student, teacher, strict=True))

    several = {"teacher": ["layer{1,2}.hidden_states"], "student": ["layer{1,2}.hidden_states"]}
    made = run([{**several, "loss": nearest_layers, "projection": "linear", "name": "all"}], student=bert(2, seed=3))
    assert list(made.loss_model.projections) == ["all:0", "all:1"]
    made.train()


# --- loaded from an earlier run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A run with a projection `states`, and the projection's weights at its end."""
    folder = tmp_path_factory.mktemp("projections") / "run"
    made = run([{**STATES, "projection": "linear"}, {**MAPS, "projection": "heads"}], output_dir=folder)
    made.train()
    return folder, weights(projection(made))


def checkpoint_of(folder: Path, what: str, state: dict[str, Tensor]) -> Path:
    bare = folder.parent / "bare.safetensors"
    save_file(state, str(bare))
    file = latest(folder) / "projections.safetensors"
    return {"run": folder, "checkpoint": latest(folder), "file": file, "bare file": bare}[what]


@pytest.mark.parametrize("what", ["run", "checkpoint", "file", "bare file"])
def test_a_projection_is_loaded_from(earlier, what):
    folder, state = earlier
    wanted = {"projection": {"type": "linear", "trainable": False}, "learning_rate": None}
    made = run([{**STATES, **wanted, "projection_checkpoint": str(checkpoint_of(folder, what, state))}])
    assert same(weights(projection(made)), state)
    made.train()
    assert same(weights(projection(made)), state)


def test_a_loaded_projection_trains_on_and_is_resumed_as_it_became(earlier, tmp_path):
    folder, state = earlier
    config = [{**STATES, "projection_checkpoint": folder}]
    made = run(config, output_dir=tmp_path / "next")
    made.train()
    trained = weights(projection(made))
    assert not same(trained, state)
    again = run(config, output_dir=tmp_path / "next")
    again.train(resume_from_checkpoint=True)
    assert same(weights(projection(again)), trained)


def test_what_cannot_be_loaded(earlier, tmp_path):
    folder, _ = earlier

    def said(path: Any, **changes: Any) -> str:
        with pytest.raises(CheckpointError) as caught:
            run([{**STATES, "projection_checkpoint": path, **changes}])
        return str(caught.value)

    missing = tmp_path / "no.safetensors"
    assert said(missing) == f"projection_checkpoint {missing}: there is no file {missing}"
    assert said(tmp_path) == f"{tmp_path} holds no checkpoint (checkpoints/step-…)"
    assert said(folder, name="state") == (
        f"projection_checkpoint {folder} holds no projection 'state'. Nearest: states. It holds: maps, states"
    )
    assert "projection 'states' in projections does not fit this run: RuntimeError" in said(folder, projection="mlp")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    assert f"{broken} cannot be read" in said(broken)


# --- what does not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"projection": "cubic"}, "projection is one of auto, linear, mlp, conv1x1, conv1x1_bn, resize, pca, heads,"),
        ({"projection": "linaer"}, "found 'linaer'. Nearest: linear."),
        ({"projection": 3}, "found 3."),
        ({"projection": {"type": "mpl"}}, "found 'mpl'. Nearest: mlp."),
        ({"projection": {"type": "mlp", "breadth": 3}}, "unknown key 'breadth' in projection. Nearest: width. Keys:"),
        ({"projection": {"hiden_size": 3}}, "unknown key 'hiden_size' in projection. Nearest: hidden_size."),
        ({"projection": {"width": 0}}, "width of projection is a whole number of 1 or more; found 0"),
        ({"projection": {"hidden_size": 1.5}}, "hidden_size of projection is a whole number of 1 or more; found 1.5"),
        ({"projection": {"trainable": "no"}}, "trainable of projection is true or false; found 'no'"),
        ({"projection": {"shared": "a.b"}}, "shared of projection is a text without '.' and '/', and not"),
        ({"projection": {"shared": "type"}}, "name 'type' is one torch uses itself; choose another"),
        ({"teacher_projection": "lin"}, "teacher_projection is one of auto, linear,"),
        ({"teacher_projection": {"width": 5}}, "teacher_projection says its type, such as linear"),
        ({"teacher_projection": True}, "teacher_projection says its type, such as linear"),
        ({"projection_checkpoint": 3}, "is the path of a run or of a .safetensors file; found 3"),
        (
            {"projection_checkpoint": "runs/a", "projection": "none"},
            "projection_checkpoint needs a projection, and projection is none",
        ),
        ({"learning_rate": 0}, "learning_rate is a finite number above 0; found 0"),
        ({"learning_rate": "fast"}, "learning_rate is a finite number above 0; found 'fast'"),
        ({"learning_rate": True}, "learning_rate is a finite number above 0; found True"),
    ],
)  # fmt: skip
def test_wrong_keys(changes, said):
    with pytest.raises(ConfigError) as caught:
        run([{**STATES, **changes}])
    assert said in str(caught.value)


def test_a_rate_as_yaml_reads_it():
    assert parse_config([{**STATES, "learning_rate": "1e-4"}]).check().entries[0].learning_rate == 1e-4


def test_a_hard_entry_has_no_teacher_to_project():
    ((_, text),) = parse_config([{**HARD[0], "teacher_projection": "linear"}]).problems
    assert text == "teacher_projection is given, and no teacher feature"


def test_an_entry_and_a_shared_projection_have_different_names():
    shared = {"type": "linear", "shared": "states"}
    ((index, text),) = parse_config([STATES, {**STATES, "name": "b", "projection": shared}]).problems
    assert (index, text) == (0, "name 'states' is also that of a shared projection; choose another")
    assert not parse_config([{**STATES, "projection": shared}]).problems


def wrong(config: Any, *models: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        run(config, *models, **options).train()
    return str(caught.value)


def test_projections_that_do_not_fit_their_features():
    shared = {"projection": {"type": "linear", "shared": "map"}}
    differ = [{**STATES, **shared}, {**STATES, **shared, "name": "other", "student": "output.logits"}]
    assert "[1] projection 'map' is shared by features of different widths; share it among equal ones" in wrong(differ)
    exit_ = {**HARD[0], "student": "layer1.hidden_states", "projection": "exit"}
    assert "[0] projection exit: nothing tells its width; give width" in wrong([exit_])
    assert "projection linear does not apply to attention maps" in wrong([{**MAPS, "projection": "linear"}])
    assert "does not apply to a feature of kind tokens (4, 6, 16). These do: exit, linear, mlp" in wrong(
        [{**STATES, "projection": "resize"}]
    )
    assert "the student has 2 heads, the teacher 4. Maps are compared head by head: set projection: heads" in wrong(
        [MAPS]
    )
    narrow = {**STATES, "projection": {"type": "linear", "width": 7}}
    assert "layer1.hidden_states (4, 6, 16) and layer2.hidden_states (4, 6, 24)" in wrong([narrow])
    whole = {**MAPS, "teacher": "layer2.hidden_states", "projection": "heads"}
    assert "[0] layer1.attention (4, 2, 6, 6) and layer2.hidden_states (4, 6, 24)" in wrong([whole])
    queries = {**MAPS, "student": "layer1.query", "teacher": "output.logits", "projection": "heads"}
    assert "projection heads needs queries, keys or values on the other side, to have their heads" in wrong([queries])


def test_maps_of_two_sizes():
    pixels = {"pixel_values": torch.randn(2, 3, 32, 32)}
    models = build_tiny("resnet").model, build_tiny("resnet", seed=1).model
    entry = {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}
    assert "the maps differ in size: set projection: resize" in wrong([entry], *models, train_dataloader=[pixels])
    entry |= {"teacher": "output.logits", "projection": "resize"}
    said = "projection resize needs a feature map on the other side, to have its size"
    assert said in wrong([entry], *models, train_dataloader=[pixels])


def test_a_checkpoint_for_a_projection_that_is_not_needed(tmp_path):
    said = wrong([{**STATES, "projection_checkpoint": tmp_path}], bert(2, seed=1))
    assert "[0] projection_checkpoint is given, and no projection is needed: set its type." in said


def test_a_schedule_of_ones_own_knows_no_other_rates():
    student = bert(1, seed=3)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    options = {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)}
    said = "an entry has a learning_rate, and your lr_scheduler does not know it: leave it out"
    assert wrong([{**STATES, "learning_rate": 0.5}], None, student, **options) == said


def test_a_projection_that_a_loss_cannot_train_is_said_before_the_run():
    maps = {"teacher": "layer4.attention", "student": "layer2.attention"}
    config = [{**maps, "loss": "attention_kl", "teacher_projection": {"type": "heads", "width": 2}}]
    with pytest.raises(ConfigError, match="attention_kl gives its teacher's side no gradient"):
        distiller(config, bert(heads=4), bert(2)).plan()
