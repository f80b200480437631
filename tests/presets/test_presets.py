"""Methods by name: each is a plain list that binds, trains, and says what its paper says."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from families import tiny
from runs import bert, distiller, same, weights
from tolerance import near
from training_script import collate, rows
from watching import Watch

from knowledge_distillation import ConfigError, MultiLayerBasedDistillationLoss, parse_config
from knowledge_distillation.config.entry import Feature
from knowledge_distillation.losses.activation import batch_norm_of
from knowledge_distillation.presets import METHODS, expand, hinton, layers, list_presets
from knowledge_distillation.presets.by_name import check_options

LABELS = ("labels", "output.logits", "cross_entropy", 1.0)
TWELVE, THREE = bert(12, width=8).config, bert(3, width=8).config
WIDE, NARROW = bert(width=24, heads=3).config, bert(2, width=16, heads=2).config


def names(entries: list[dict[str, Any]]) -> list[tuple[str, str]]:
    parsed = parse_config(entries).check().entries
    return [(str(e.teacher[0]) if e.teacher else "labels", str(e.student[0])) for e in parsed]


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 2.0), (0.9, 4.0), (1.0, 3.0), (0.0, 2.0)])
def test_hinton_is_soft_targets_and_labels(alpha: float, temperature: float) -> None:
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    labels = torch.tensor([0, 2, 1, 1, 0])
    soft = F.kl_div(
        F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1), reduction="batchmean"
    )
    wanted = alpha * temperature**2 * soft + (1 - alpha) * F.cross_entropy(student, labels)
    loss = MultiLayerBasedDistillationLoss(hinton(alpha, temperature))
    found = loss({"logits": teacher}, {"logits": student}, None, {"labels": labels})
    assert float(found) == near(float(wanted))


def test_hinton_on_one_real_output_is_squared_errors() -> None:
    student, teacher, labels = torch.randn(5, 1), torch.randn(5, 1), torch.rand(5)
    loss = MultiLayerBasedDistillationLoss(hinton(0.75, regression=True))
    found = loss({"logits": teacher}, {"logits": student}, None, {"labels": labels})
    wanted = 0.75 * F.mse_loss(student, teacher) + 0.25 * F.mse_loss(student[:, 0], labels)
    assert float(found) == near(float(wanted))
    entries = layers(bert(num_labels=1), bert(2, num_labels=1))
    assert [entry["loss"] for entry in entries[-2:]] == ["logits_mse", "mse"]


def test_hinton_leaves_out_what_has_no_weight() -> None:
    assert [entry["loss"] for entry in hinton(1.0)] == ["kl_divergence"]  # no labels are needed
    assert [entry["loss"] for entry in hinton(0.0)] == ["cross_entropy"] and not parse_config(hinton(0)).needs_teacher


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 1.5}, r"alpha is the weight of the soft part, in \[0, 1\]; found 1.5"),
        ({"alpha": -0.1}, "found -0.1"),
        ({"temperature": 0.0}, "temperature is above 0; found 0.0"),
    ],
)
def test_arguments_out_of_range(given: dict[str, float], message: str) -> None:
    for method in (hinton, lambda **args: layers(bert(), bert(2), **args)):
        with pytest.raises(ConfigError, match=message):
            method(**given)


@pytest.mark.parametrize(
    ("teacher", "student", "chosen"),
    [(12, 3, [4, 8, 12]), (12, 6, [2, 4, 6, 8, 10, 12]), (6, 6, [1, 2, 3, 4, 5, 6]), (7, 2, [4, 7]), (5, 1, [5])],
)
def test_layers_learn_from_the_same_relative_depth(teacher: int, student: int, chosen: list[int]) -> None:
    found = names(layers(bert(teacher, width=8), bert(student, width=8)))
    numbers = range(1, student + 1)
    assert found == [
        ("embedding_layer.embedding", "embedding_layer.embedding"),
        *[(f"layer{t}.hidden_states", f"layer{s}.hidden_states") for t, s in zip(chosen, numbers, strict=True)],
        *[(f"layer{t}.attention", f"layer{s}.attention") for t, s in zip(chosen, numbers, strict=True)],
        ("output.logits", "output.logits"),
        ("labels", "output.logits"),
    ]


def test_maps_are_compared_where_there_are_as_many_heads() -> None:
    assert any(".attention" in student for _, student in names(layers(bert(), bert(2))))
    assert not any(".attention" in student for _, student in names(layers(bert(heads=4), bert(2, heads=2))))


def test_a_student_deeper_than_its_teacher_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"at least as deep as the student; found depths \[2, 4\]"):
        layers(bert(2), bert(4))
    with pytest.raises(ConfigError, match=r"found depths \[None, None\]"):
        layers(tiny("resnet").model, tiny("resnet").model)


# --- what each maps to what, with which weight, in which stage -------------------------------------------------------


def told(entries: list[dict[str, Any]]) -> dict[str, list[tuple[str, str, str, float]]]:
    """ModelStage -> what its entries say: teacher feature, student feature, loss, weight."""
    stages: dict[str, list[tuple[str, str, str, float]]] = {}
    for entry in parse_config(entries).check().entries:
        teacher = "+".join(map(str, entry.teacher)) or "labels"
        stages.setdefault("".join(entry.stage), []).append(
            (teacher, str(entry.student[0]), entry.loss_name, entry.weight)
        )
    return stages


def each(
    output: str, pairs: dict[int, int], loss: str = "mse", weight: float = 1.0
) -> list[tuple[str, str, str, float]]:
    return [(f"layer{t}.{output}", f"layer{s}.{output}", loss, weight) for t, s in pairs.items()]


def soft(weight: float = 1.0, loss: str = "kl_divergence", teacher: str = "") -> tuple[str, str, str, float]:
    return (f"{teacher}output.logits", "output.logits", loss, weight)


def hard(weight: float = 1.0) -> tuple[str, str, str, float]:
    return (*LABELS[:3], weight)


EMBEDDING = ("embedding_layer.embedding", "embedding_layer.embedding", "mse", 1.0)
EVEN = {4: 1, 8: 2, 12: 3}
DEFAULTS = {
    "hinton": {"": [soft(0.5), hard(0.5)]},
    "attention_transfer": {
        "": [*each("hidden_states", {1: 1, 3: 3}, "attention_transfer", 1000.0), soft(0.5), hard(0.5)]
    },
    "tinybert": {
        "intermediate": [EMBEDDING, *each("hidden_states", EVEN), *each("attention_scores", EVEN)],
        "prediction": [soft(loss="soft_cross_entropy")],
    },
    "pkd": {"": [*each("hidden_states", {4: 1, 8: 2}, "pkd", 50.0), soft(0.5), hard(0.5)]},
    "distilbert": {"": [soft(5.0), hard(2.0), *each("hidden_states", {-1: -1}, "hidden_cosine")]},
    "minilm": {
        "relations": [*each("attention", {-1: -1}, "attention_kl"), *each("value", {-1: -1}, "value_relation")],
        "labels": [hard()],
    },
    "minilm_v2": {
        "relations": [one for output in ("query", "key", "value") for one in each(output, {-1: -1}, "qkv_relation")],
        "labels": [hard()],
    },
    "mobilebert": {
        "layers": [
            *each("hidden_states", EVEN, "mobilebert_feature"),
            *each("attention", EVEN, "mobilebert_attention"),
        ],
        "prediction": [soft(0.5), hard(0.5)],
    },
    "rkd": {
        "": [
            *each("hidden_states", {-1: -1}, "rkd_distance", 25.0),
            *each("hidden_states", {-1: -1}, "rkd_angle", 50.0),
            hard(),
        ]
    },
    "crd": {"": [*each("hidden_states", {-1: -1}, "crd", 0.8), hard()]},
    "born_again": {"": [soft(), hard()]},
    "deep_mutual_learning": {"": [soft(teacher="peer:"), hard()]},
}


@pytest.mark.parametrize("method", DEFAULTS)
def test_the_entries_of_a_method_for_twelve_layers_and_three(method: str) -> None:
    assert told(expand(method, TWELVE, THREE)) == DEFAULTS[method]


def test_every_method_is_held_to_its_paper() -> None:
    elsewhere = {"layers", "ofd", "byot", "meal_v2"}  # tests of their own
    elsewhere |= {name for name, method in METHODS.items() if method.__module__.endswith("stage_methods")}
    elsewhere |= {"at", "kd"}  # second names
    elsewhere |= {"data_free"}
    assert {*DEFAULTS, *elsewhere} == set(METHODS) and not elsewhere & set(DEFAULTS)


def arguments(entries: list[dict[str, Any]], loss: str) -> list[dict[str, Any]]:
    return [dict(e.args) for e in parse_config(entries).entries if e.loss_name == loss]


def test_arguments_of_losses_are_the_papers() -> None:
    assert arguments(expand("pkd", TWELVE, THREE), "pkd") == [{"mean_all": True}] * 2
    assert arguments(expand("pkd", TWELVE, THREE), "kl_divergence") == [{"temperature": 10.0}]
    assert arguments(expand("distilbert", TWELVE, THREE), "kl_divergence") == [{"temperature": 2.0}]
    assert arguments(expand("mobilebert", TWELVE, THREE), "kl_divergence") == [{"temperature": 1.0}]
    assert arguments(expand("born_again", TWELVE, THREE), "kl_divergence") == [{"temperature": 1.0}]
    assert arguments(expand("deep_mutual_learning", None, THREE), "kl_divergence") == [{"temperature": 1.0}]
    assert arguments(expand("rkd", TWELVE, THREE), "rkd_angle") == [{"pooling": "first"}]
    assert arguments(expand("crd", TWELVE, THREE), "crd") == [{"negatives": 16384, "pooling": "first"}]


def test_options_reach_the_entries() -> None:
    found = told(expand("attention_transfer", None, None, student_layers=[-2, 1], teacher_layers=[-1, 2], weight=5))
    assert found[""][:2] == each("hidden_states", {-1: -2, 2: 1}, "attention_transfer", 5.0)
    found = told(expand("pkd", TWELVE, THREE, alpha=0.2, beta=500, temperature=20.0))
    assert found[""] == [*each("hidden_states", {4: 1, 8: 2}, "pkd", 250.0), soft(0.2), hard(0.8)]
    found = told(expand("rkd", TWELVE, THREE, distance=1, angle=2, alpha=0.25))
    assert [one[3] for one in found[""]] == [1.0, 2.0, 0.25, 0.75]
    assert arguments(expand("rkd", TWELVE, THREE, pooling="mean"), "rkd_distance") == [{"pooling": "mean"}]
    found = told(expand("crd", TWELVE, THREE, alpha=1.0, negatives=8))
    assert found[""] == [*each("hidden_states", {-1: -1}, "crd", 0.8), soft()]
    assert told(expand("minilm", TWELVE, THREE, teacher_layer=10))["relations"][0][0] == "layer10.attention"
    assert told(expand("minilm_v2", TWELVE, THREE, teacher_layer=10))["relations"][0][0] == "layer10.query"
    assert (
        arguments(expand("minilm_v2", TWELVE, THREE, relation_heads=4), "qkv_relation") == [{"relation_heads": 4}] * 3
    )


def test_pkd_leaves_the_last_layer_to_the_logits() -> None:
    def pairs(teacher: int, student: int, mapping: Any) -> list[tuple[str, str]]:
        entries = expand("pkd", bert(teacher, width=8), bert(student, width=8), mapping=mapping)
        return [(t, s) for t, s, loss, weight in told(entries)[""] if loss == "pkd"]

    def states(teachers: list[int]) -> list[tuple[str, str]]:
        return [(f"layer{t}.hidden_states", f"layer{s}.hidden_states") for s, t in enumerate(teachers, start=1)]

    assert pairs(12, 6, "skip") == states([2, 4, 6, 8, 10])  # as printed in the paper, and the next line too
    assert pairs(12, 6, "last") == states([7, 8, 9, 10, 11])
    assert pairs(12, 6, "uniform") == states([2, 4, 6, 8, 10])
    assert pairs(12, 3, [[6, 1], [12, 3]]) == [states([6])[0], ("layer12.hidden_states", "layer3.hidden_states")]
    assert pairs(4, 1, "last") == pairs(4, 1, "skip") == states([4])


def test_the_weight_of_pkd_is_that_of_the_mean_over_layers() -> None:
    for depth in (3, 6):
        entries = told(expand("pkd", TWELVE, bert(depth, width=8), beta=100))[""]
        assert sum(weight for *_, loss, weight in entries if loss == "pkd") == pytest.approx(100)


def test_tinybert_takes_any_mapping() -> None:
    for mapping, numbers in (("last", [10, 11, 12]), ("skip", [4, 8]), ([[2, 1], [12, 3]], [2, 12])):
        found = told(expand("tinybert", TWELVE, THREE, mapping=mapping))["intermediate"]
        assert [t for t, *_ in found if "hidden" in t] == [f"layer{n}.hidden_states" for n in numbers]


def test_mobilebert_layer_by_layer() -> None:
    found = told(expand("mobilebert", TWELVE, THREE, progressive=True))
    assert list(found) == ["layer1", "layer2", "layer3", "prediction"]
    for (teacher, student), stage in zip(EVEN.items(), found, strict=False):
        pair = {teacher: student}
        assert found[stage] == [
            *each("hidden_states", pair, "mobilebert_feature"),
            *each("attention", pair, "mobilebert_attention"),
        ]
    assert list(parse_config(expand("mobilebert", TWELVE, THREE, progressive=True)).stages) == list(found)


def test_relation_heads_of_minilm_v2_are_48_where_that_fits() -> None:
    def heads(teacher: int, student: int) -> list[dict[str, Any]]:
        return arguments(expand("minilm_v2", bert(1, width=teacher), bert(1, width=student)), "qkv_relation")

    assert heads(96, 48) == [{"relation_heads": 48}] * 3
    assert heads(96, 64) == heads(64, 96) == [{}] * 3


@pytest.mark.parametrize(
    ("method", "gone"),
    [("layers", ".attention"), ("tinybert", ".attention_scores"), ("mobilebert", ".attention")],
)
def test_attention_is_left_out_where_heads_differ(method: str, gone: str) -> None:
    for student, there in ((bert(2, heads=4), True), (bert(2, heads=2), False)):
        entries = names(expand(method, bert(heads=4), student))
        assert any(name.endswith(gone) for _, name in entries) is there
        assert ("layer4.hidden_states", "layer2.hidden_states") in entries


def test_byot_teaches_every_inner_layer_by_the_last() -> None:
    entries = expand("byot", None, THREE)
    last, logits, exits = "self:layer-1.hidden_states", soft(0.3, teacher="self:")[0], told(entries)[""]
    assert exits[0] == LABELS
    for n in (1, 2):
        place = f"layer{n}.hidden_states"
        assert exits[3 * n - 2 : 3 * n + 1] == [
            ("labels", place, "cross_entropy", 0.7),
            (logits, place, "kl_divergence", 0.3),
            (last, place, "hidden_mse", 0.03),
        ]
    assert len(exits) == 7 and not parse_config(entries).needs_teacher
    assert arguments(entries, "kl_divergence") == [{"temperature": 3.0}] * 2
    heads = [entry.projection for entry in parse_config(entries).entries if entry.projection.type == "exit"]
    assert [(head.shared, head.width) for head in heads] == [("exit1", 2)] * 2 + [("exit2", 2)] * 2
    assert told(expand("byot", None, bert(1))) == {"": [LABELS]}


def test_meal_v2_is_the_mean_of_its_teachers_and_a_judge() -> None:
    entries = expand("meal_v2", teacher_names=["big", "bigger"], temperature=2.0, adversarial=0.5)
    both = "big:output.logits+bigger:output.logits"
    assert told(entries) == {
        "": [(both, "output.logits", "ensemble_cross_entropy", 1.0), (both, "output.logits", "adversarial", 0.5)]
    }
    assert arguments(entries, "ensemble_cross_entropy") == [{"temperature": 2.0}]
    assert [entry.learning_rate for entry in parse_config(entries).entries] == [None, 1e-4]
    assert len(expand("meal_v2", teacher_names=["one"], adversarial=0.0)) == 1


def test_ofd_reads_what_goes_into_the_last_relu_of_a_stage() -> None:
    basic = tiny("resnet").model
    bottleneck = tiny("resnet", layer_type="bottleneck", hidden_sizes=[16, 32], depths=[2, 1]).model
    for teacher, student, norm in ((basic, bottleneck, 1), (bottleneck, basic, 2)):
        entries = expand("ofd", teacher, student)
        assert entries == expand("ofd", teacher.config, student.config)
        assert [entry["weight"] for entry in entries] == [5e-4, 1e-3, 1.0]
        for stage, entry in enumerate(entries[:-1]):
            blocks = [model.resnet.encoder.stages[stage].layers[-1] for model in (teacher, student)]
            paths = [entry[side].removesuffix(".input") for side in ("teacher", "student")]
            for model, block, path in zip((teacher, student), blocks, paths, strict=True):
                assert model.get_submodule(path) is block.activation
            assert entry["loss"] == "margin_relu" and entry["projection"] == "conv1x1_bn"
            width = teacher.config.hidden_sizes[stage]
            before = batch_norm_of(teacher, [Feature(paths[0], "input")], width)
            assert isinstance(before, torch.nn.BatchNorm2d) and before is blocks[0].layer[norm].normalization
            assert blocks[0].layer[norm] is blocks[0].layer[-1]
    assert [e["weight"] for e in expand("ofd", basic, basic, weight=8)] == [4.0, 8.0, 1.0]


# --- what all of them have in common -----------------------------------------------------------------------------


RECTIFIED = {"ofd", "margin_relu"}


def options_of(method: str) -> dict[str, Any]:
    return {"teacher_names": ["first", "second"]} if method == "meal_v2" else {}


def models_of(method: str, **changes: Any) -> tuple[Any, Any]:
    """A wide and deep teacher, a narrow student."""
    if method in RECTIFIED:
        wide = {"hidden_sizes": [16, 24], "depths": [2, 2]}
        return tiny("resnet", seed=1, **wide, **changes).model, tiny("resnet", **changes).model
    heads = {"minilm": 2}.get(method, 3)
    return bert(4, width=24, heads=heads, **changes), bert(3, seed=1, **changes)


@pytest.mark.parametrize("method", METHODS)
def test_configs_do_as_well_as_models(method: str) -> None:
    teacher, student = models_of(method)
    options = options_of(method)
    assert expand(method, teacher, student, **options) == expand(method, teacher.config, student.config, **options)


REGRESSION = {"logits_mse", "mse"}


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"meal_v2"}))
def test_one_real_output_has_no_classes_to_compare(method: str) -> None:
    entries = expand(method, *(model.config for model in models_of(method, num_labels=1)))
    losses = {entry["loss"] for entry in entries if entry["student"] == "output.logits" or "projection" in entry}
    assert losses <= REGRESSION | {"margin_relu"} and losses & REGRESSION
    classes = expand(method, *(model.config for model in models_of(method, num_labels=2)))
    assert len(entries) == len(classes)
    assert [entry.get("weight") for entry in entries] == [entry.get("weight") for entry in classes]


@pytest.mark.parametrize(
    ("method", "options", "left"),
    [
        ("hinton", {"alpha": 1.0}, 1),
        ("attention_transfer", {"weight": 0.0}, 2),
        ("pkd", {"beta": 0}, 2),
        ("distilbert", {"alpha_labels": 0.0, "alpha_cos": 0.0}, 1),
        ("rkd", {"angle": 0.0}, 2),
        ("crd", {"beta": 0.0}, 1),
        ("byot", {"alpha": 1.0, "feature_weight": 0.0}, 3),
        ("ofd", {"weight": 0.0}, 1),
    ],
)
def test_what_has_no_weight_is_left_out(method: str, options: dict[str, Any], left: int) -> None:
    entries = expand(method, *models_of(method), **options)
    assert len(entries) == left and all(entry["weight"] for entry in entries)


def test_data_free_needs_no_labels() -> None:
    (soft,) = expand("data_free")
    assert (soft["loss"], soft["args"], soft["weight"]) == ("kl_divergence", {"temperature": 1.0}, 1.0)
    looks, last = expand("data_free", student_layers=[1, 3], weight=9)
    assert looks["teacher"] == looks["student"] == "layer{1,3}.hidden_states"
    assert (looks["loss"], looks["weight"]) == ("attention_transfer", 9)
    assert last == soft and not any(entry.hard for entry in parse_config([looks, last]).entries)


def test_presets_by_name() -> None:
    assert list_presets() == sorted(METHODS) and len(set(METHODS.values())) == 22
    assert expand("hinton", alpha=0.1) == hinton(0.1)
    assert expand("layers", TWELVE, THREE, alpha=0.1) == layers(TWELVE, THREE, 0.1)
    assert expand("hinton", bert(num_labels=1), regression=False)[0]["loss"] == "kl_divergence"  # what is given holds


def test_entries_are_the_callers_own() -> None:
    first = expand("tinybert", TWELVE, THREE)
    first[0]["weight"] = 7
    assert "weight" not in expand("tinybert", TWELVE, THREE)[0] and "weight" not in layers(TWELVE, THREE)[0]


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "tinybrt",
            {},
            "method 'tinybrt' is unknown. Nearest: tinybert. Known: activation_boundary, at, attention_transfer, ",
        ),
        (
            "pkd",
            {"betta": 1},
            "method pkd takes no 'betta'. Nearest: beta. It takes: alpha, temperature, beta, mapping",
        ),
        ("born_again", {"alpha": 1}, "method born_again takes no 'alpha'. It takes: nothing"),
        ("tinybert", {"teacher": 1}, "method tinybert takes no 'teacher'."),
        ("meal_v2", {}, "method meal_v2 needs teacher_names"),
        ("meal_v2", {"teacher_names": "ab"}, "teacher_names of method meal_v2 is a list of names; found 'ab'"),
        ("meal_v2", {"teacher_names": []}, "is a list of names; found []"),
        ("hinton", {"alpha": "half"}, "alpha of method hinton is a finite number of 0 or more; found 'half'"),
        ("ofd", {"weight": float("inf")}, "weight of method ofd is a finite number of 0 or more; found inf"),
        ("rkd", {"angle": -1}, "angle of method rkd is a finite number of 0 or more; found -1"),
        ("pkd", {"beta": True}, "is a finite number of 0 or more; found True"),
        ("crd", {"negatives": 2.5}, "negatives of method crd is a whole number; found 2.5"),
        ("minilm_v2", {"relation_heads": "48"}, "relation_heads of method minilm_v2 is a whole number; found '48'"),
        ("rkd", {"pooling": None}, "pooling of method rkd is a text; found None"),
        ("mobilebert", {"progressive": 1}, "progressive of method mobilebert is true or false; found 1"),
        (
            "attention_transfer",
            {"student_layers": 1},
            "student_layers of method attention_transfer is a list of whole numbers; found 1",
        ),
    ],
)
def test_names_and_options_that_no_method_has(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_options(name, options)


def test_a_name_or_an_option_is_checked_when_it_is_expanded() -> None:
    with pytest.raises(ConfigError, match="Nearest: tinybert"):
        expand("tinybrt", TWELVE, THREE)
    with pytest.raises(TypeError):  # Python's own words for one of its own calls
        expand("tinybert", TWELVE, THREE, THREE)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("method", "models", "options", "message"),
    [
        ("minilm", (WIDE, NARROW), {}, "minilm needs as many attention heads in both models; minilm_v2 does not"),
        ("tinybert", (THREE, TWELVE), {}, "needs a teacher at least as deep as the student; found depths [3, 12]"),
        ("pkd", (None, None), {}, "found depths [None, None]"),
        ("tinybert", (TWELVE, THREE), {"mapping": "lats"}, "found 'lats'. Nearest: last."),
        ("pkd", (TWELVE, THREE), {"mapping": [4, 8]}, "mapping is a list of [teacher layer, student layer] pairs"),
        ("mobilebert", (tiny("t5").model, tiny("t5").model), {}, "an encoder-decoder has two stacks of layers"),
        ("pkd", (TWELVE, THREE), {"alpha": 1.5}, "alpha is the weight of the soft part, in [0, 1]; found 1.5"),
        ("distilbert", (TWELVE, THREE), {"temperature": 0}, "temperature is above 0; found 0"),
        ("byot", (None, None), {}, "byot needs a student that says how many layers it has; NoneType does not"),
        ("byot", (None, THREE), {"temperature": 0.0}, "temperature is above 0; found 0.0"),
        (
            "attention_transfer",
            (None, None),
            {"student_layers": [1], "teacher_layers": [1, 2]},
            "student_layers and teacher_layers are paired one by one; found [1] and [1, 2]",
        ),
        (
            "ofd",
            (TWELVE, THREE),
            {},
            "ofd, margin_relu: stages of BertConfig and BertConfig do not end in a BatchNorm and a ReLU. Write its "
            "entries by hand: loss margin_relu on module paths, with projection conv1x1_bn",
        ),
        ("fitnet", (None, THREE), {}, "this method needs a teacher and a student, whose layers it pairs"),
    ],
)
def test_models_and_values_that_do_not_fit(
    method: str, models: tuple[Any, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        expand(method, *models, **options)


# --- a step of each ----------------------------------------------------------------------------------------------


def gathered(some: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch with labels of either kind, and with the places of its rows in the data set where there are any."""
    kept = [key for key in ("labels", "sample_index") if key in some[0]]
    return collate(some) | {key: torch.tensor([row[key] for row in some]) for key in kept}


def run_of(method: str, teacher: Any, student: Any, classes: int = 2, **settings: Any) -> Any:
    """A run of one step in each stage."""
    entries = expand(method, teacher, student, **options_of(method))
    data = [{**row, "labels": row["labels"] if classes > 1 else float(row["labels"])} for row in rows(8)]
    if method == "meal_v2":
        teacher = {"first": teacher, "second": bert(2, width=24, seed=5, num_labels=classes)}
    if method == "deep_mutual_learning":
        settings |= {"peer_model": bert(2, seed=5, num_labels=classes)}
    own = {"train_dataset": Dataset.from_list(data), "data_collator": gathered, "per_device_train_batch_size": 4}
    needed = parse_config(entries).needs_teacher
    return distiller(entries, teacher if needed else None, student, max_steps=1, **own, **settings)


def images(number: int = 4) -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": torch.randn(number, 3, 32, 32), "labels": torch.arange(number) % 3}]


STAGES = {
    "tinybert": ["intermediate", "prediction"],
    "minilm": ["relations", "labels"],
    "minilm_v2": ["relations", "labels"],
    "mobilebert": ["layers", "prediction"],
}


@pytest.mark.parametrize("method", sorted(set(METHODS) - RECTIFIED))
def test_every_method_trains_a_narrow_student(method: str) -> None:
    teacher, student = models_of(method)
    watch = Watch(lambda run: (run.stages[run.progress.stage].name, weights(run.student)))
    before = weights(teacher), weights(student)
    run = run_of(method, teacher, student, callbacks=[watch])
    run.train()
    assert [name for _, (name, _) in watch.seen] == STAGES.get(method, [""])
    states = [before[1], *(state for _, (_, state) in watch.seen)]
    assert not any(same(one, other) for one, other in zip(states, states[1:], strict=False))
    assert same(weights(teacher), before[0])
    terms = [name for _, values in watch.logged for name in values if name not in ("loss", "learning_rate")]
    assert len(terms) == len(run.loss_model.config.entries)  # of both students, where there are two


@pytest.mark.parametrize("method", ["layers", "tinybert", "mobilebert", "pkd", "minilm_v2", "attention_transfer"])
def test_methods_of_layers_train_on_images(method: str) -> None:
    teacher, student = (tiny("vit", seed=seed, num_hidden_layers=n).model for seed, n in ((0, 4), (1, 3)))
    run = distiller(expand(method, teacher, student), teacher, student, train_dataloader=images(), max_steps=1)
    assert all(0 < value < float("inf") for name, value in run.train().items() if not name.startswith("eval"))


@pytest.mark.parametrize("method", ["rkd", "crd", "byot", "born_again"])
def test_methods_of_the_last_layer_train_on_maps(method: str) -> None:
    teacher, student = (tiny("resnet", seed=seed).model for seed in (0, 1))
    own = None if method == "byot" else teacher
    data = Dataset.from_list([{"pixel_values": torch.randn(3, 32, 32).tolist(), "labels": i % 3} for i in range(4)])
    options = {"pooling": "mean"} if method == "crd" else {}
    run = distiller(expand(method, teacher, student, **options), own, student, train_dataset=data, max_steps=1)
    assert all(0 < value < float("inf") for name, value in run.train().items() if not name.startswith("eval"))


@pytest.mark.parametrize("kinds", [("basic", "basic"), ("basic", "bottleneck"), ("bottleneck", "basic")])
def test_ofd_trains_a_resnet(kinds: tuple[str, str]) -> None:
    sizes = ({"hidden_sizes": [16, 24], "depths": [2, 2]}, {})
    models = [tiny("resnet", seed=i, layer_type=kind, **sizes[i]).model for i, kind in enumerate(kinds)]
    teacher, student = models
    before = weights(teacher), weights(student)
    run = distiller(expand("ofd", teacher, student), teacher, student, train_dataloader=images())
    means = run.train_epoch()
    run.close()
    assert len(means) == 4 and all(value > 0 for value in means.values())
    assert same(weights(teacher), before[0]) and not same(weights(student), before[1])


@pytest.mark.parametrize("method", sorted(set(METHODS) - {*RECTIFIED, "meal_v2"}))
def test_every_method_trains_on_one_real_output(method: str) -> None:
    teacher, student = models_of(method, num_labels=1)
    before = weights(student)
    run_of(method, teacher, student, classes=1).train()
    assert not same(weights(student), before)


def test_ensembles_of_one_real_output_are_refused() -> None:
    teacher, student = models_of("meal_v2", num_labels=1)
    with pytest.raises(ConfigError, match="loss ensemble_cross_entropy compares classes: it needs two or more"):
        run_of("meal_v2", teacher, student, classes=1).train()
