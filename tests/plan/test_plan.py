"""The plan: what a config comes to on two models, checked, counted and printed."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from families import tiny
from rich.console import Console
from runs import HARD, HIDDEN, SOFT, batches, bert, distiller
from torch import nn

from knowledge_distillation.plan.plan import COLUMNS, Plan
from knowledge_distillation.training.batch import adapt, make_batch

BATCH = batches(1)[0]["input_ids"].shape  # (4, 6)


def plan_of(config: Any, teacher: Any = None, student: Any = None, **options: Any) -> Plan:
    run = distiller(config, bert() if teacher is None else teacher, student, **options)
    try:
        return run.plan()
    finally:
        run.close()


def rows_of(plan: Plan) -> list[dict[str, str]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in plan.rows]


def row_of(*given: Any, **options: Any) -> dict[str, str]:
    (row,) = rows_of(plan_of(*given, **options))
    return row


def notes_of(plan: Plan, start: str) -> list[str]:
    return [note.removeprefix(start) for note in plan.notes if note.startswith(start)]


def hidden(teacher: int, student: int, **more: Any) -> dict[str, Any]:
    features = {"teacher": f"layer{teacher}.hidden_states", "student": f"layer{student}.hidden_states"}
    return {**features, "loss": "mse", **more}


# --- rows ----------------------------------------------------------------------------------------------------------


def test_a_row_names_features_shapes_loss_weight_and_memory() -> None:
    assert BATCH == (4, 6)
    assert row_of([hidden(2, 1, weight=0.125)]) == {
        "entry": "0",
        "teacher": "layer2.hidden_states 4×6×16",
        "student": "layer1.hidden_states 4×6×16",
        "projection": "-",
        "loss": "mse",
        "mask": "tokens",
        "weight": "0.125",
        "memory": "3 KiB",  # 2 tensors of 4 * 6 * 16 numbers of 4 bytes
    }


def test_braces_give_a_row_each_under_the_number_of_their_item() -> None:
    plan = plan_of(
        [*SOFT, {**hidden(1, 1), "teacher": "layer{1,3}.hidden_states", "student": "layer{1,2}.hidden_states"}]
    )
    assert [(row["entry"], row["teacher"].split()[0]) for row in rows_of(plan)] == [
        ("0", "output.logits"),
        ("1", "layer1.hidden_states"),
        ("1", "layer3.hidden_states"),
    ]


def test_a_hard_entry_learns_from_labels() -> None:
    row = row_of([{**HARD[0], "args": {"label_smoothing": 0.1}}])
    assert row["teacher"] == "labels" and row["student"] == "output.logits 4×2"
    assert row["loss"] == "cross_entropy(label_smoothing=0.1)" and row["memory"] == "32 B"


def test_a_projection_is_shown_with_its_parameters() -> None:
    plan = plan_of([hidden(2, 1), hidden(4, 2, projection="linear")], bert(width=24), bert(2))
    assert [row["projection"] for row in rows_of(plan)] == ["Linear 408", "Linear 408"]  # 16 * 24 + 24
    assert notes_of(plan, "projections: ") == ["816 parameters, trained and saved beside the student"]
    assert rows_of(plan)[0]["memory"] == "3.75 KiB"
    assert row_of([hidden(2, 1)], bert(), bert(2))["projection"] == "-"


MASKED = {
    "tokens": hidden(2, 1),
    "pairs": {"teacher": "layer2.attention", "student": "layer1.attention", "loss": "mse"},
    "rows": {"teacher": "layer2.query", "student": "layer1.query", "loss": "mse"},
    "-": SOFT[0],
    "by the loss": hidden(2, 1, loss=lambda s, t, mask: ((s - t).square().mean(-1) * mask).sum() / mask.sum()),
    "NONE: a scalar": hidden(2, 1, loss=lambda s, t: (s - t).square().mean()),
}


@pytest.mark.parametrize("shown", MASKED)
def test_the_mask_column_says_what_does_not_count(shown: str) -> None:
    assert row_of([MASKED[shown]])["mask"] == shown


def test_an_image_has_no_mask() -> None:
    teacher, student = tiny("vit"), tiny("vit", seed=1)
    row = row_of([hidden(3, 1)], teacher.model, student.model, train_dataloader=[teacher.inputs])
    assert row["mask"] == "-" and row["student"] == "layer1.hidden_states 2×17×16"


def test_several_features_of_one_entry_stand_below_each_other() -> None:
    def flow(student, teacher):
        return sum((s - t).square().mean(-1) for s, t in zip(student, teacher, strict=True))

    both = ["layer1.hidden_states", "layer2.hidden_states"]
    plan = plan_of([{"teacher": both, "student": both, "loss": flow}, *SOFT])
    row = rows_of(plan)[0]
    assert row["teacher"].splitlines() == ["layer1.hidden_states 4×6×16", "layer2.hidden_states 4×6×16"]
    assert row["loss"] == "flow" and row["memory"] == "6 KiB"
    header, first, second, third = str(plan).splitlines()[:4]
    at = {name: header.index(name) for name in ("teacher", "student", "loss")}
    assert first[at["teacher"] :].startswith("layer1.hidden") and first[at["student"] :].startswith("layer1.hidden")
    assert second[at["teacher"] :].startswith("layer2.hidden") and second[at["student"] :].startswith("layer2.hidden")
    assert first[at["loss"] :].startswith("flow") and third[at["loss"] :].startswith("kl_divergence")


# --- notes: depth, sizes, what is not reached ----------------------------------------------------------------------


def layers_begun(model: nn.Module, path: str, run: Any) -> int:
    ran = set()
    hooks = [
        layer.register_forward_pre_hook(lambda *given, number=number: ran.add(number))
        for number, layer in enumerate(model.get_submodule(path))
    ]
    run()
    for hook in hooks:
        hook.remove()
    return len(ran)


DEPTHS = {
    "embedding_layer.embedding": ("0 of 4 layers", 0),
    "layer1.attention": ("1 of 4 layers", 1),
    "layer2.hidden_states": ("2 of 4 layers", 2),
    "layer2.query": ("2 of 4 layers", 2),
    "bert.encoder.layer.2.attention.output": ("3 of 4 layers", 3),
    "layer4.hidden_states": ("4 of 4 layers", 4),
    "output.logits": ("4 of 4 layers, and the head", 4),
}


@pytest.mark.parametrize("feature", DEPTHS)
def test_the_teacher_runs_as_deep_as_the_plan_says(feature: str) -> None:
    """The layers that begin, counted by hooks; one that is left in its middle has run as well."""
    said, layers = DEPTHS[feature]
    name = feature if not feature.startswith("bert.") else f"{feature}.output"
    run = distiller([{"teacher": name, "student": name, "loss": "mse"}], bert(), bert(seed=1))
    plan = run.plan()
    assert notes_of(plan, "teacher: ") == [f"BertForSequenceClassification, 9.36k parameters in float32, runs {said}"]
    assert notes_of(plan, "student: ")[0].endswith(f"runs {said}")
    batch = make_batch(run.run, adapt(run.run, batches(1)[0]))
    begun = layers_begun(
        run.teacher.model,
        "bert.encoder.layer",
        lambda: run.stage_teachers.start(batch.teachers, batch.teachers_on_cpu),
    )
    assert begun == layers
    run.close()


def test_each_stack_of_an_encoder_decoder_has_its_depth() -> None:
    teacher, student = tiny("t5"), tiny("t5", seed=1)
    data = {"train_dataloader": [{**teacher.inputs, "labels": teacher.inputs["decoder_input_ids"]}]}
    name = "encoder_layer2.hidden_states"
    plan = plan_of([{"teacher": name, "student": name, "loss": "mse"}], teacher.model, student.model, **data)
    assert notes_of(plan, "teacher: ")[0].endswith("runs 2 of 3 encoder layers, 0 of 2 decoder layers")
    name = "decoder_layer1.hidden_states"
    plan = plan_of([{"teacher": name, "student": name, "loss": "mse"}], teacher.model, student.model, **data)
    assert notes_of(plan, "teacher: ")[0].endswith("runs 3 of 3 encoder layers, 1 of 2 decoder layers")


def test_a_model_runs_whole_for_an_output_adaptor_and_the_plan_says_so() -> None:
    def adaptor(output):
        return {"last": {"hidden": output.hidden_states[-1]}}

    plan = plan_of(
        [{"teacher": "last.hidden", "student": "layer1.hidden_states", "loss": "mse"}], teacher_output_adaptor=adaptor
    )
    size, note = notes_of(plan, "teacher: ")
    assert size.endswith("runs whole, for its output adaptor")
    assert note == "the teacher's output adaptor takes its whole output"
    assert rows_of(plan)[0]["teacher"] == "last.hidden 4×6×16" and rows_of(plan)[0]["mask"] == "tokens"
    assert notes_of(plan, "student: ")[0].endswith("runs 1 of 2 layers")


def test_attention_of_a_familys_own_is_noted() -> None:
    teacher, student = tiny("deberta-v2"), tiny("deberta-v2", seed=1)
    entry = {"teacher": "layer3.attention", "student": "layer1.attention", "loss": "mse"}
    plan = plan_of([entry], teacher.model, student.model, train_dataloader=[teacher.inputs])
    note = "attention does not go through transformers' attention interface, it runs as the model has it"
    assert note in notes_of(plan, "teacher: ") and note in notes_of(plan, "student: ")
    assert not any("interface" in note for note in plan_of(HIDDEN).notes)


def test_parameters_are_counted_in_a_readable_unit_and_with_their_type() -> None:
    teacher, student = bert(2, width=256, intermediate_size=512), bert(1, width=8)
    plan = plan_of(SOFT, teacher, student, teacher_dtype="bfloat16")
    numbers = [sum(p.numel() for p in model.parameters()) for model in (teacher, student)]
    sizes = f"{numbers[0] / 1e6:.3g}M parameters in bfloat16", f"{numbers[1] / 1e3:.3g}k parameters in float32"
    assert notes_of(plan, "teacher: ") == [
        f"BertForSequenceClassification, {sizes[0]}, runs 2 of 2 layers, and the head"
    ]
    assert notes_of(plan, "student: ") == [
        f"BertForSequenceClassification, {sizes[1]}, runs 1 of 1 layers, and the head"
    ]


def test_what_no_entry_reaches_is_listed() -> None:
    student = bert(2)
    student.classifier.bias.requires_grad_(False)  # the user's: not ours to list
    plan = plan_of([hidden(4, 2)], student=student)
    assert plan.unreached == ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight"]
    assert notes_of(plan, "student: ")[1] == (
        "no entry reaches bert.pooler.dense.weight, bert.pooler.dense.bias, classifier.weight: frozen for this run"
    )
    plan = plan_of([hidden(4, 1)])
    (note,) = [note for note in plan.notes if "no entry reaches" in note]
    assert len(plan.unreached) == 20 and note.endswith(" and 16 more: frozen for this run")
    assert plan_of(SOFT).unreached == [] and not any("no entry" in note for note in plan_of(SOFT).notes)


def test_maps_need_only_queries_and_keys_of_their_layer() -> None:
    plan = plan_of([{"teacher": "layer4.attention", "student": "layer2.attention", "loss": "mse"}])
    assert "bert.encoder.layer.1.attention.self.value.weight" in plan.unreached
    assert not any(name.startswith("bert.encoder.layer.0") for name in plan.unreached)
    assert not any("query" in name or "key" in name for name in plan.unreached)


def test_a_scalar_that_asks_for_no_mask_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    warned = plan_of([{**MASKED["NONE: a scalar"], "name": "mine"}])
    text = "mine returns a scalar and asks for no mask, so padding counts in it"
    assert notes_of(warned, "warning: ") == [text]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [text]
    for quiet in (MASKED["by the loss"], MASKED["tokens"], {**SOFT[0], "loss": lambda s, t: (s - t).square().mean()}):
        assert notes_of(plan_of([quiet]), "warning: ") == []


def test_without_a_teacher_there_is_none_in_the_plan() -> None:
    run = distiller(HARD, None, bert(2))
    plan = run.plan()
    run.close()
    assert not plan.teachers and notes_of(plan, "teacher: ") == []


# --- printed -------------------------------------------------------------------------------------------------------


def test_the_text_is_a_table_and_then_the_notes() -> None:
    plan = plan_of(HIDDEN + SOFT + HARD)
    lines = str(plan).splitlines()
    assert lines[0].split() == list(COLUMNS)
    assert lines[1].split() == ["0", "layer2.hidden_states", "4×6×16", "layer1.hidden_states", "4×6×16"] + [
        "-",
        "mse",
        "tokens",
        "1",
        "3",
        "KiB",
    ]
    starts = [[line.index(cell) for line, cell in zip(lines[:4], cells, strict=True)] for cells in (
        ("student", "layer1", "output.logits 4×2  ", "output.logits"),
        ("loss", "mse", "kl_divergence", "cross_entropy"),
    )]  # fmt: skip
    assert starts[1] == [starts[1][0]] * 4
    assert lines[4:] == plan.notes


def test_the_table_fits_a_terminal_and_breaks_no_name() -> None:
    maps = {"teacher": "layer{2,4}.attention_scores", "student": "layer{1,2}.attention_scores", "loss": "mse"}
    soft = {**SOFT[0], "args": {"temperature": 2.0}}
    for width, words in (
        (24, ["Linear", "408"]),
        (16, ["mse", "kl_divergence", "temperature=2.0", "labels", "pairs"]),
    ):
        plan = plan_of([*HIDDEN, maps, soft, *HARD], bert(width=width), bert(2))
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(plan.rich_table())
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= 80
        features = [row[side].split()[0] for row in rows_of(plan) for side in ("teacher", "student")]
        assert len(features) == 10 and all(word in text for word in [*features, *words])


def test_making_a_plan_moves_nothing_and_keeps_no_gradient() -> None:
    student = bert(2).eval()
    run = distiller(HIDDEN + SOFT, student=student)
    first = run.plan()
    assert run.plan() is first
    assert all(parameter.grad is None for parameter in student.parameters()) and not student.training
    assert torch.is_grad_enabled()
    run.close()
    assert run.plan() is not first
    run.close()
