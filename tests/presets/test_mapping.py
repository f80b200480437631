"""Which teacher layer teaches which student layer: by rule, and by how alike layers are."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from families import hooks_left_on, tiny
from runs import VOCABULARY, batches, bert, same, weights

from knowledge_distillation import ConfigError, student_from_teacher
from knowledge_distillation.config.layer_entries import layer_entries
from knowledge_distillation.errors import DataError
from knowledge_distillation.presets import last, search, skip, uniform
from knowledge_distillation.presets.layer_search import best_path
from knowledge_distillation.presets.mapping import STRATEGIES, check_mapping, depths, pairs_of

# --- by rule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depths", "even", "top", "every"),
    [
        ((12, 3), [4, 8, 12], [10, 11, 12], [4, 8]),
        ((12, 6), [2, 4, 6, 8, 10, 12], [7, 8, 9, 10, 11, 12], [2, 4, 6, 8, 10]),
        ((6, 3), [2, 4, 6], [4, 5, 6], [2, 4]),
        ((4, 4), [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3]),
        ((12, 5), [2, 5, 7, 10, 12], [8, 9, 10, 11, 12], [2, 4, 7, 9]),
        ((12, 1), [12], [12], [12]),
    ],
)
def test_teacher_layers_by_hand(depths: tuple[int, int], even: list[int], top: list[int], every: list[int]) -> None:
    teacher, student = (bert(depth, width=8).config for depth in depths)
    for name, chosen in (("uniform", even), ("last", top), ("skip", every)):
        assert pairs_of(name, teacher, student) == [(layer, i) for i, layer in enumerate(chosen, start=1)]


def test_no_teacher_layer_is_used_twice() -> None:
    for n, m in itertools.product(range(1, 25), repeat=2):
        if m <= n:
            for name, strategy in STRATEGIES.items():
                pairs = strategy(n, m)
                layers = [layer for layer, _ in pairs]
                assert layers == sorted(set(layers)) and 1 <= layers[0] and layers[-1] <= n, (name, n, m)
                assert [i for _, i in pairs] == list(range(1, len(pairs) + 1))


def test_strategies_write_entries() -> None:
    teacher, student = bert(6), bert(2)
    assert uniform(teacher, student) == [
        {"teacher": "layer{3,6}.hidden_states", "student": "layer{1,2}.hidden_states", "loss": "mse"}
    ]
    assert last(teacher, student, ["attention", "value"], loss="cos", weight=2) == [
        {"teacher": "layer{5,6}.attention", "student": "layer{1,2}.attention", "loss": "cos", "weight": 2},
        {"teacher": "layer{5,6}.value", "student": "layer{1,2}.value", "loss": "cos", "weight": 2},
    ]
    assert skip(teacher, student) == [
        {"teacher": "layer3.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}
    ]
    assert layer_entries([(3, 1)], ["key"], "decoder_layer")[0]["teacher"] == "decoder_layer3.key"


def test_pairs_that_are_written_are_taken_as_they_are() -> None:
    assert pairs_of([[-1, 2], (1, 1)], None, None) == [(-1, 2), (1, 1)]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("unifrom", "mapping is one of uniform, last, skip, or pairs of layers; found 'unifrom'. Nearest: uniform."),
        ("search", "mapping is one of uniform, last, skip, or pairs of layers; found 'search'."),
        ([4, 8, 12], "mapping is a list of [teacher layer, student layer] pairs; found [4, 8, 12]"),
        ([], "pairs; found []"),
        (3, "pairs; found 3"),
        (None, "pairs; found None"),
        ({4: 1}, "pairs; found {4: 1}"),
        ([[4, 1], [8, 2, 3]], "pairs; found [[4, 1], [8, 2, 3]]"),
        ([[4, "1"]], "pairs; found [[4, '1']]"),
        ([[4, True]], "pairs; found [[4, True]]"),
    ],
)
def test_what_is_no_mapping(mapping: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_mapping(mapping, STRATEGIES)
    assert message in str(raised.value)


def test_models_without_such_layers() -> None:
    with pytest.raises(ConfigError, match=r"at least as deep as the student; found depths \[2, 4\]"):
        depths(bert(2), bert(4))
    with pytest.raises(ConfigError, match=r"found depths \[None, None\]"):
        depths(tiny("resnet").model, tiny("resnet").model)
    for family in ("t5", "bart"):
        with pytest.raises(ConfigError, match="two stacks of layers: write its entries out, with encoder_layer"):
            uniform(bert(4), tiny(family).model)
    assert depths(tiny("gpt2").model, tiny("llama").model.config) == (3, 3)


# --- by similarity -----------------------------------------------------------------------------------------------


def spread_out(layers: int = 6, **changes: Any) -> Any:
    """A BERT whose layers change much: weights far from 0."""
    return bert(layers, initializer_range=0.5, **changes)


def test_a_student_cut_out_of_its_teacher_finds_where_it_came_from() -> None:
    teacher = spread_out()
    student = student_from_teacher(teacher, [1, 2, 3])
    found = search(teacher, student, batches(2))
    assert found.pairs == [(1, 1), (2, 2), (3, 3)]
    assert found.similarity.shape == (3, 6)
    assert found.similarity.diagonal().tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert found == layer_entries(found.pairs)
    assert float(found.similarity.min()) >= 0 and float(found.similarity.max()) <= 1 + 1e-5


def test_layers_two_four_six_are_found_again() -> None:
    """Where the teacher's other layers do next to nothing, those the student kept give nearly the same states."""
    teacher = spread_out()
    student = student_from_teacher(teacher, [2, 4, 6])
    for i, left in ((0, 0.0), (2, 0.01), (4, 0.01)):
        layer = teacher.bert.encoder.layer[i]
        for dense in (layer.attention.output.dense, layer.output.dense):
            dense.weight.data.mul_(left)
    found = search(teacher, student, batches(2))
    assert found.pairs == [(2, 1), (4, 2), (6, 3)]
    chosen = [float(found.similarity[i - 1, layer - 1]) for layer, i in found.pairs]
    assert chosen[0] == pytest.approx(1, abs=1e-5) and min(chosen) > 0.99
    assert "[1.00]" in found.why and all(layer in found.why for layer in ("layer1", "layer6"))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 1), (4, 4), (6, 3), (7, 5), (9, 4)])
def test_the_best_path_is_that_of_trying_all(n: int, m: int) -> None:
    for seed in range(10):
        torch.manual_seed(seed)
        similarity = torch.rand(m, n)
        choices = itertools.combinations(range(n), m)
        best = max(choices, key=lambda layers: sum(float(similarity[i, j]) for i, j in enumerate(layers)))
        assert best_path(similarity) == [(j + 1, i + 1) for i, j in enumerate(best)]


def test_padding_does_not_count() -> None:
    teacher, student = spread_out(), spread_out(2, seed=3)
    plain = batches(2)
    padded = []
    for batch in plain:
        width = batch["input_ids"].shape[0]
        more = {"input_ids": torch.randint(1, VOCABULARY, (width, 5)), "attention_mask": torch.zeros(width, 5).long()}
        padded.append({**batch, **{key: torch.cat([batch[key], pad], 1) for key, pad in more.items()}})
    one, other = search(teacher, student, plain), search(teacher, student, padded)
    assert torch.allclose(one.similarity, other.similarity, atol=1e-5) and one.pairs == other.pairs
    shown = [{**batch, "attention_mask": torch.ones_like(batch["input_ids"])} for batch in padded]
    assert not torch.allclose(one.similarity, search(teacher, student, shown).similarity, atol=1e-2)


def test_means_are_taken_over_the_batches() -> None:
    teacher, student = spread_out(3), spread_out(2, seed=3)
    both = batches(2)
    each = [search(teacher, student, [batch]).similarity for batch in both]
    assert torch.allclose(search(teacher, student, iter(both)).similarity, (each[0] + each[1]) / 2, atol=1e-6)


def test_models_are_left_as_they_were() -> None:
    teacher, student = spread_out(4, dropout=0.5), spread_out(2, dropout=0.5, seed=3)
    teacher.eval()
    student.train()
    student.bert.encoder.layer[0].eval()  # a part that its owner has frozen
    modes = [[module.training for module in model.modules()] for model in (teacher, student)]
    before, state = [weights(teacher), weights(student)], torch.get_rng_state()
    found = search(teacher, student, batches(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert [[module.training for module in model.modules()] for model in (teacher, student)] == modes
    assert same(before[0], weights(teacher)) and same(before[1], weights(student))
    assert not hooks_left_on(teacher) and not hooks_left_on(student)
    assert all(p.grad is None and p.requires_grad for p in student.parameters())
    assert not found.similarity.requires_grad
    assert torch.equal(search(teacher, student, batches(2)).similarity, found.similarity)  # without dropout


def test_an_error_leaves_the_models_as_they_were() -> None:
    teacher, student = bert(4).train(), bert(2).train()
    with pytest.raises(DataError, match="the teacher fails on a batch of search: IndexError: index out of range"):
        search(teacher, student, [{**batches(1)[0], "input_ids": torch.full((4, 7), VOCABULARY)}])
    assert teacher.training and student.training
    assert not hooks_left_on(teacher) and not hooks_left_on(student)


def test_why_names_the_numbers() -> None:
    teacher, student = spread_out(4), spread_out(2, seed=3)
    found = search(teacher, student, batches(3))
    said, head, *rows = found.why.splitlines()
    chosen = sum(float(found.similarity[i - 1, layer - 1]) for layer, i in found.pairs) / 2
    even = (float(found.similarity[0, 1]) + float(found.similarity[1, 3])) / 2
    assert said == (
        f"linear CKA of hidden states over 3 batches; mean of the chosen pairs {chosen:.3f}, "
        f"of evenly spaced ones {even:.3f}"
    )
    assert head.split() == ["student", "layer1", "layer2", "layer3", "layer4"]
    for i, row in enumerate(rows, start=1):
        cells = [f"{value:.2f}" for value in found.similarity[i - 1].tolist()]
        layer = dict((student, teacher) for teacher, student in found.pairs)[i]
        cells[layer - 1] = f"[{cells[layer - 1]}]"
        assert row.split() == [f"layer{i}", *cells]
    assert len(rows) == 2


def test_what_is_compared_and_how_can_be_said() -> None:
    teacher, student = bert(4, width=24), bert(2)
    found = search(teacher, student, batches(1), ["hidden_states", "attention"], weight=3)
    assert [entry["teacher"].rpartition(".")[2] for entry in found] == ["hidden_states", "attention"]
    assert [entry["weight"] for entry in found] == [3, 3]


def test_each_model_may_have_inputs_of_its_own() -> None:
    def adaptor(device: Any, batch: dict[str, torch.Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
        return batch, {
            **batch,
            "input_ids": batch["input_ids"].flip(0),
            "attention_mask": batch["attention_mask"].flip(0),
        }

    teacher = spread_out(3)
    student = student_from_teacher(teacher, [1, 2])
    assert search(teacher, student, batches(1)).similarity[0, 0] > 0.999
    assert search(teacher, student, batches(1), data_adaptor=adaptor).similarity[0, 0] < 0.9


def test_images_have_no_padding() -> None:
    teacher = tiny("vit")
    found = search(teacher.model, student_from_teacher(teacher.model, [1, 2]), [teacher.inputs])
    assert found.pairs == [(1, 1), (2, 2)]


def test_a_search_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="search needs at least one batch"):
        search(bert(4), bert(2), [])
    with pytest.raises(ConfigError, match=r"found depths \[2, 4\]"):
        search(bert(2), bert(4), batches(1))
