"""Which precision `auto` chooses: the one that is measured to be faster; and what half-precision students train in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import HARD, HIDDEN, SOFT, batches, bert, distiller, steps_of, weights
from torch import nn
from training_script import collate, rows
from transformers import AutoModelForSequenceClassification

from knowledge_distillation.errors import CheckpointError, ConfigError
from knowledge_distillation.features.preserve import modes_kept
from knowledge_distillation.training import precision

AUTO = {"mixed_precision": "auto"}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`timed(training, forward)`: what is measured of layers that train, and of the teacher's; what was asked."""

    def set_ratios(training: float, forward: float = 1.0) -> list[tuple[int, int, int, bool]]:
        asked = []

        def ratio(rows: int, out: int, into: int, trains: bool, threads: int) -> float:
            asked.append((rows, out, into, trains))
            return training if trains else forward

        monkeypatch.setattr(precision, "bf16_ratio", ratio)
        return asked

    return set_ratios


@pytest.mark.case("E1")
@pytest.mark.parametrize(
    ("training", "forward", "chosen"),
    [
        (0.5, 0.5, ("bf16", torch.bfloat16)),
        (1.8, 1.8, ("no", torch.float32)),
        (1.8, 0.5, ("no", torch.bfloat16)),  # a large teacher of a small student
        (0.97, 0.97, ("no", torch.float32)),  # a tie is float32's
    ],
)
def test_auto_takes_what_is_measured_to_be_faster_and_says_so(
    training: float, forward: float, chosen: tuple[str, torch.dtype], timed: Any
) -> None:
    asked = timed(training, forward)
    run = distiller(SOFT, **AUTO)
    assert (run.accelerator.mixed_precision, run.teacher.dtype) == chosen
    line = next(note for note in run.plan().notes if note.startswith("precision: "))
    assert {"bf16": "bf16", "no": "float32"}[chosen[0]] in line and f"{training:.2f} of float32's time" in line
    rows_of_batch = 1 << (batches()[0]["input_ids"].numel() - 1).bit_length()
    assert asked[0][0] in (rows_of_batch, rows_of_batch // 2) and [one[3] for one in asked] == [True, False]
    run.train()


def test_what_is_asked_for_is_not_measured(timed: Any) -> None:
    asked = timed(0.5, 0.5)
    run = distiller(SOFT)
    assert run.accelerator.mixed_precision == "no" and run.teacher.dtype == torch.float32
    assert distiller(SOFT, mixed_precision="bf16").teacher.dtype == torch.bfloat16
    assert not asked and not any("precision" in note for note in run.plan().notes)
    assert distiller(SOFT, **AUTO, teacher_dtype="float32").teacher.dtype == torch.float32
    assert [one[3] for one in asked] == [True]
    run.close()


def test_a_measurement_takes_less_than_a_second_and_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    precision._measured(8, 8, 8, True)  # torch starts
    begin = time.thread_time()
    ratio = precision.bf16_ratio(170, 1024, 768, True, torch.get_num_threads())
    assert ratio > 0 and time.thread_time() - begin < 1
    monkeypatch.setattr(precision, "_measured", None)
    assert precision.bf16_ratio(170, 1024, 768, True, torch.get_num_threads()) == ratio


def test_what_is_hopeless_on_small_products_is_not_tried_on_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[Any, ...]] = []
    monkeypatch.setattr(precision, "_measured", lambda *size: tried.append(size) or 9.0)
    assert precision.bf16_ratio(512, 1024, 1024, True, -1) == 9.0
    assert tried == [(256, 256, 256, True)]


def test_the_sizes_are_those_of_most_weights_and_of_the_first_batch(timed: Any) -> None:
    """Embeddings aside, of any kind of module: here the two halves of the feed-forward layers."""
    assert precision.main_matrix(bert(width=16, intermediate_size=48)) == (48, 16)
    assert precision.main_matrix(nn.Sequential(nn.Embedding(999, 4), nn.Conv2d(3, 5, 3))) == (27, 5)
    asked = timed(0.5)
    drawn = {"train_dataset": rows(), "data_collator": collate, "per_device_train_batch_size": 8}
    distiller(SOFT, train_dataset=rows(), data_collator=collate, per_device_train_batch_size=8, **AUTO)
    tokens = len(next(iter(distiller(SOFT, **drawn).train_dataloader))["input_ids"].flatten())
    assert tokens / 1.5 < asked[0][0] < tokens * 1.5
    distiller(SOFT, train_dataloader=iter(batches()), **AUTO).plan()  # an iterator is not looked into
    assert asked[-1][0] == precision.ROWS


def test_a_look_at_the_first_batch_changes_no_result(timed: Any) -> None:
    timed(1.8)
    loader = [torch.utils.data.DataLoader(rows(), 4, True, collate_fn=collate) for _ in range(2)]
    runs = [
        distiller([*HIDDEN, *HARD], train_dataloader=one, **more) for one, more in zip(loader, ({}, AUTO), strict=True)
    ]
    assert runs[0].train() == runs[1].train()


def test_a_resumed_run_keeps_the_precision_it_was_begun_in(timed: Any, tmp_path: Path) -> None:
    timed(0.5, 0.5)
    options = {"output_dir": tmp_path, "num_train_epochs": 2, **AUTO}
    distiller(SOFT, **{**options, "num_train_epochs": 1}).train()
    timed(1.8, 1.8)
    run = distiller(SOFT, **options)
    assert run.accelerator.mixed_precision == "bf16" and run.teacher.dtype == torch.bfloat16
    run.train(resume_from_checkpoint=True)
    assert steps_of(tmp_path) == [6]
    marker = tmp_path / "run.json"
    before = json.loads(marker.read_text())
    assert (before["run"]["mixed_precision"], before["run"]["teacher_dtype"]) == ("bf16", "bfloat16")
    del before["run"]["teacher_dtype"]  # a run of a version that did not write it
    marker.write_text(json.dumps(before))
    distiller(SOFT, **{**options, "num_train_epochs": 3, "teacher_dtype": "auto"}).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="mixed_precision: it has .*, asked is"):
        distiller(SOFT, **{**options, "mixed_precision": "no"}).train(resume_from_checkpoint=True)
    assert distiller(SOFT, **options, overwrite_output_dir=True).accelerator.mixed_precision == "no"


def test_a_run_that_reads_a_cache_computes_the_teacher_as_the_cache_did(timed: Any, tmp_path: Path) -> None:
    timed(0.5, 0.5)
    distiller(SOFT, **AUTO, teacher_cache=str(tmp_path / "cache")).cache_teachers()
    timed(1.8, 1.8)
    run = distiller(SOFT, **AUTO, teacher_cache=str(tmp_path / "cache"))
    assert run.accelerator.mixed_precision == "no" and run.teacher.dtype == torch.bfloat16
    run.train()


def test_bf16_is_not_chosen_where_onednn_leaves_its_instructions_alone() -> None:
    """Without them torch computes bf16 product by product."""
    module = "knowledge_distillation.training.precision"
    code = f"from {module} import bf16_ratio; print(bf16_ratio(64, 256, 256, True, 1) > 1)"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "True\n", done.stderr


# --- students in half precision ----------------------------------------------------------------------------------


def moved(student: nn.Module, **settings: Any) -> float:
    """The share of the student's values that 3 steps at a usual rate move."""
    run = distiller([*HIDDEN, *SOFT, *HARD], bert(), student, learning_rate=5e-5, warmup_ratio=0.0, **settings)
    names = [name for name, p in student.named_parameters() if name.startswith("bert.encoder.layer.0")]
    before = weights(student)
    run.train()
    after = student.state_dict()
    total = sum(after[name].numel() for name in names)
    return sum(int((after[name] != before[name]).sum()) for name in names) / total


@pytest.mark.case("E3")
@pytest.mark.parametrize("settings", [{}, {"mixed_precision": "bf16"}], ids=["float32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_student_in_half_precision_is_trained_and_saved_in_float32(
    dtype: torch.dtype, settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = bert(2, seed=1, initializer_range=0.2).to(dtype)
    held = list(student.parameters())
    assert moved(student, output_dir=tmp_path, **settings) > 0.9
    assert all(p is one for p, one in zip(student.parameters(), held, strict=True))
    assert {t.dtype for t in (*student.parameters(), *student.buffers()) if t.is_floating_point()} == {torch.float32}
    name = str(dtype).removeprefix("torch.")
    assert f"student_model came in {name}, where an update below 1/" in caplog.text
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert {p.dtype for p in saved.parameters()} == {torch.float32}


def test_left_as_it_is_it_loses_most_updates_and_the_plan_says_so(caplog: pytest.LogCaptureFixture) -> None:
    student = bert(2, seed=1, initializer_range=0.2).bfloat16()
    assert moved(student, student_dtype="own") < 0.5
    assert "student_model is trained in bfloat16 (student_dtype: own): an update below 1/256 of a weight is lost" in (
        caplog.text
    )
    with pytest.raises(ConfigError, match="mixed_precision fp16 needs float32 weights"):
        distiller(SOFT, student=student, student_dtype="own", mixed_precision="fp16")


def test_peers_are_raised_as_well_and_other_types_stay() -> None:
    peer, exact = bert(2, seed=2).half(), bert(2, seed=1).double()
    run = distiller(HARD, None, exact, peer_model=peer)
    assert {p.dtype for p in exact.parameters()} == {torch.float64}
    assert {p.dtype for p in peer.parameters()} == {torch.float32}
    run.close()


def test_frozen_half_precision_under_trained_float32_stays() -> None:
    student = bert(2, seed=1)
    student.bert.embeddings.bfloat16().requires_grad_(False)
    with modes_kept(student):
        notes = precision.to_float32({"": student}, distiller(SOFT).settings)
    assert not notes and student.bert.embeddings.word_embeddings.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("asked", "said"), [("bf16", "precision: bf16 (as accelerate launch was asked)"), ("no", "float32")]
)
def test_auto_follows_what_accelerate_launch_was_asked_for(
    asked: str, said: str, timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(1.8)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    run = distiller(HARD, **AUTO)
    assert any(said in note for note in run.plan().notes)
    assert run.accelerator.mixed_precision == asked
    assert distiller(HARD, mixed_precision="no").accelerator.mixed_precision == "no"
