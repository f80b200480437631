"""The teacher cache: the same numbers without the teacher, never those of another teacher, nothing lost."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import HARD, SOFT, batches, bert, contents, distill, distiller, furthest, same, weights, written
from tolerance import assert_near, near
from torch.utils.data import DataLoader
from training_script import collate, forked, in_two, rows
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from knowledge_distillation import KnowledgeDistiller, student_from_teacher
from knowledge_distillation.errors import CheckpointError, ConfigError, DataError
from knowledge_distillation.features.batch_context import make_context
from knowledge_distillation.teachers.cache_format import Form, Span
from knowledge_distillation.teachers.cache_keys import Identity, sample_keys
from knowledge_distillation.teachers.cache_store import CacheError, Store

EVERY_KIND = [
    {"teacher": "layer{2,4}.hidden_states", "student": "layer{1,2}.hidden_states", "loss": "mse"},
    {"teacher": "layer4.attention", "student": "layer2.attention", "loss": "mse"},
    {"teacher": "layer4.attention_scores", "student": "layer2.attention_scores", "loss": "mse"},
    {"teacher": "layer4.{query,key,value}", "student": "layer2.{query,key,value}", "loss": "mse"},
    {"teacher": "bert.pooler.dense.output", "student": "bert.pooler.dense.output", "loss": "mse"},
    *SOFT,
    *HARD,
]


def passes(run: KnowledgeDistiller) -> list[int]:
    """Filled with the rows of every pass of the teacher."""
    seen: list[int] = []
    for teacher in run.teachers.values():
        embeddings = teacher.model.get_input_embeddings()
        embeddings.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    return seen


def trained(config: Any = EVERY_KIND, **options: Any) -> tuple[dict[str, torch.Tensor], dict[str, float], list[int]]:
    """The student's weights, the run's metrics, and the teacher's passes after the probe."""
    run = distiller(config, **{"num_train_epochs": 3, **options})
    run.plan()
    seen = passes(run)
    metrics = run.train()
    return weights(run.student), metrics, seen


def store(folder: Path, model: Any = None, forms: dict[str, Form] | None = None, **options: Any) -> Store:
    return Store(folder, Identity.of(model or bert()), forms or {"output.logits": Form((2,), "float32")}, **options)


# --- the same numbers ------------------------------------------------------------------------------------------------


def test_a_cached_run_is_the_same_to_the_last_bit_and_runs_the_teacher_once_for_each_sample(tmp_path: Path) -> None:
    plain, metrics, every_epoch = trained()
    cached = {"teacher_cache": tmp_path / "cache", "teacher_cache_dtype": "float32"}
    filled, metrics_filled, first = trained(**cached)
    read, metrics_read, none = trained(**cached)
    assert same(plain, filled) and same(plain, read)
    assert metrics == metrics_filled == metrics_read
    assert (sum(every_epoch), sum(first), sum(none)) == (36, 12, 0)


@pytest.mark.parametrize(("dtype", "close"), [("bfloat16", 1e-2), ("float16", 2e-3), ("int8", 3e-2), ("auto", 2e-3)])
def test_fewer_bits_change_the_loss_as_little_as_they_should(tmp_path: Path, dtype: str, close: float) -> None:
    still = {"learning_rate": 0.0, "student": bert(2, seed=3)}
    _, plain, _ = trained(**still)
    _, filled, _ = trained(**still, teacher_cache=tmp_path / "cache", teacher_cache_dtype=dtype)
    _, read, _ = trained(**still, teacher_cache=tmp_path / "cache", teacher_cache_dtype=dtype)
    assert filled == read
    for name, value in plain.items():
        assert read[name] == pytest.approx(value, rel=close, abs=1e-5)
    assert read != plain


def test_another_order_another_batch_size_another_collator_find_the_same_samples(tmp_path: Path) -> None:
    cache = {"teacher_cache": tmp_path / "cache", "teacher_cache_dtype": "float32"}
    plain = {"num_train_epochs": 1, "optim": "sgd"}  # Adam makes steps of rounding
    trained(train_dataloader=batches(3), **plain, **cache)
    other = rows(12)[::-1]

    def padded(batch: list[Any], length: int = 20) -> dict[str, torch.Tensor]:
        wide = collate(batch)
        missing = length - wide["input_ids"].shape[1]
        names = ("input_ids", "attention_mask")
        longer = {name: torch.nn.functional.pad(wide[name], (0, missing)).int() for name in names}
        return {**wide, **longer}

    shuffled = [padded(other[start : start + 5]) for start in range(0, 12, 5)]
    weights_read, metrics, none = trained(train_dataloader=shuffled, **plain, **cache)
    weights_live, expected, _ = trained(train_dataloader=shuffled, **plain)
    assert not none
    assert_near(weights_read, weights_live)
    assert metrics == near(expected)


def test_a_data_set_grouped_by_length_is_read_from_a_cache(tmp_path: Path) -> None:
    options = {
        "train_dataset": rows(),
        "data_collator": collate,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "optim": "sgd",
    }
    plain, _, _ = trained(**options)
    cache = {"teacher_cache": tmp_path / "cache", "teacher_cache_dtype": "float32"}
    filled, _, passed = trained(**options, **cache)
    read, _, none = trained(**options, **cache)
    assert sum(passed) == 37 and not none
    assert same(filled, read)
    assert_near(plain, read)


@pytest.mark.parametrize("deferred", [False, True], ids=["logits", "hidden states and head"])
def test_the_cache_of_a_language_model_keeps_the_likeliest_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deferred: bool
) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_positions": 32, "n_embd": 16, "n_head": 2, "resid_pdrop": 0, "embd_pdrop": 0}
    teacher = GPT2LMHeadModel(GPT2Config(n_layer=4, attn_pdrop=0, **sizes))
    data = [{k: v for k, v in batch.items() if k != "labels"} for batch in batches()]
    values = {}
    monkeypatch.setattr("knowledge_distillation.features.catalogue.LARGE_VOCABULARY", 10 if deferred else 1000)
    for top in (None, 39, 4):
        run = distiller(
            SOFT,
            teacher,
            student_from_teacher(teacher, [2, 4]),
            train_dataloader=data,
            num_train_epochs=2,
            learning_rate=0.0,
            teacher_cache=tmp_path / str(top),
            teacher_cache_dtype="float32",
            teacher_cache_top_k=top,
        )
        values[top] = run.train()["loss"]
    assert values[39] == near(values[None])  # one word left has all the probability that is left
    assert values[4] != pytest.approx(values[None], rel=1e-3)
    size = {top: sum(len(data) for data in contents(tmp_path / str(top)).values()) for top in (None, 4)}
    assert size[4] < size[None]


def whole(batch: int, length: int) -> dict[str, Span]:
    return {"attention_mask": Span(np.zeros(batch, int), np.full(batch, length), length)}


def test_logits_come_back_with_the_mass_of_what_was_left_out() -> None:
    logits = 3 * torch.randn(5, 7, 50)
    form = Form(("attention_mask", 50), "float32", top_k=6)
    back = form.decode(form.encode(logits, whole(5, 7)))
    kept = logits.topk(6, -1).indices
    expected, found = (side.softmax(-1) for side in (logits, back.tensor()))
    torch.testing.assert_close(found.gather(-1, kept), expected.gather(-1, kept))
    torch.testing.assert_close(found.sum(-1), torch.ones(5, 7))
    left_out = found.scatter(-1, kept, -1).flatten()
    left_out = left_out[left_out >= 0].view(35, 44)
    assert (left_out.std(-1) < 1e-8).all()


def test_eight_bits_are_within_half_a_step_of_each_row() -> None:
    feature = torch.randn(4, 6, 33) * torch.logspace(-3, 3, 6)[:, None]
    form = Form(("attention_mask", 33), "int8")
    error = (form.decode(form.encode(feature, whole(4, 6))) - feature).abs().amax(-1)
    assert (error <= 0.5001 * feature.abs().amax(-1) / 127).all()
    zeros = torch.zeros(2, 3, 33)
    assert torch.equal(form.decode(form.encode(zeros, whole(2, 3))), zeros)


# --- what a sample is ------------------------------------------------------------------------------------------------


def keys(inputs: dict[str, torch.Tensor]) -> list[bytes]:
    return [key.tobytes() for key in sample_keys(inputs, make_context(inputs))]


def test_a_key_does_not_see_padding_or_integer_types_and_sees_all_else() -> None:
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]])
    mask = torch.ones_like(ids)
    plain = keys({"input_ids": ids, "attention_mask": mask})
    assert len(set(plain)) == 2
    assert keys({"input_ids": ids}) == plain
    wide = {"input_ids": ids, "attention_mask": mask}
    right = {name: torch.nn.functional.pad(value, (0, 4)) for name, value in wide.items()}
    assert keys({name: value.int() for name, value in right.items()}) == plain
    assert keys({**right, "input_ids": right["input_ids"] + 9 * (1 - right["attention_mask"])}) == plain
    left = {name: torch.nn.functional.pad(value, (4, 0)) for name, value in wide.items()}
    assert not set(keys(left)) & set(plain)  # positions are inputs too
    assert not set(keys({**wide, "token_type_ids": mask})) & set(plain)
    holed = {**wide, "attention_mask": torch.tensor([[1, 0, 1], [1, 0, 1]])}
    assert not set(keys(holed)) & set(plain)
    assert not set(keys({"input_ids": ids, "inputs_embeds": ids[..., None].float()})) & set(plain)


def test_a_decoder_is_known_by_its_whole_prompt_and_by_what_of_it_counts() -> None:
    def decoder(prompt: int, labels: list[int], more: int = 0) -> list[bytes]:
        pad = torch.nn.functional.pad
        ids, labelled = torch.tensor([[1, prompt, 9, 9]]), torch.tensor([labels])
        inputs = {"input_ids": torch.tensor([[5, 6]]), "decoder_input_ids": pad(ids, (0, more))}
        context = make_context({**inputs, "labels": pad(labelled, (0, more), value=-100)})
        return [key.tobytes() for key in sample_keys(inputs, context)]

    one = decoder(2, [-100, -100, 9, 4])
    assert decoder(2, [-100, -100, 8, 3], more=3) == one  # labels are nothing to a teacher
    assert decoder(3, [-100, -100, 9, 4]) != one
    assert decoder(2, [-100, 9, 9, 4]) != one


def test_only_the_mask_by_which_rows_are_cut_goes_without_saying() -> None:
    ids = torch.tensor([[5, 6, 7]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert keys({**inputs, "global_attention_mask": torch.ones_like(ids)}) != keys(inputs)


def test_images_are_their_own_keys() -> None:
    images = torch.randn(3, 3, 8, 8)
    one = keys({"pixel_values": images})
    assert keys({"pixel_values": images.flip(0)}) == one[::-1]
    assert not set(keys({"pixel_values": images + 1e-6})) & set(one)


def test_an_input_of_no_use_for_a_key_is_named() -> None:
    with pytest.raises(DataError, match="input 'boxes' is a list, of which a teacher cache can make no key"):
        sample_keys({"input_ids": torch.ones(1, 2), "boxes": [torch.ones(2)]}, {})


def test_inputs_that_change_from_epoch_to_epoch_are_an_error_that_says_so(tmp_path: Path) -> None:
    class Augmented:
        def __iter__(self) -> Any:
            for batch in batches():
                ids = batch["input_ids"]
                yield {**batch, "input_ids": torch.where(ids > 0, torch.randint_like(ids, 2, 40), ids)}

        def __len__(self) -> int:
            return 3

    run = distiller(SOFT, train_dataloader=Augmented(), num_train_epochs=3, teacher_cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"of 12 samples 0 were found, though a whole pass(.|\n)*augmentation"):
        run.train()


# --- whose features these are ----------------------------------------------------------------------------------------


def test_a_cache_of_something_else_is_refused_with_what_changed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    trained(SOFT, teacher_cache=cache)
    before = contents(cache)

    def refused(config: Any = SOFT, **options: Any) -> str:
        run = distiller(config, teacher_cache=cache, **options)
        with pytest.raises(CacheError) as caught:
            run.train()
        assert contents(cache) == before
        return str(caught.value)

    assert "weights: it holds '" in refused(teacher=bert(seed=1))
    assert "teacher: it holds 'BertForSequenceClassification'" in refused(
        [{"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}],
        teacher=bert().bert,
        student=bert(2),
    )
    assert "computed_in: it holds 'float32', this run has 'bfloat16'" in refused(teacher_dtype="bfloat16")
    assert "layer2.hidden_states is not in it; it holds output.logits" in refused(EVERY_KIND[:1] + SOFT)
    assert "output.logits: it holds 2 in float16, this run has 2 in int8" in refused(teacher_cache_dtype="int8")
    (cache / "cache.json").write_text("{}")
    before = contents(cache)
    assert "cannot be read" in refused()


def test_fewer_features_are_read_from_a_cache_of_more_and_not_added_to_it(tmp_path: Path) -> None:
    cache = {"teacher_cache": tmp_path / "cache", "teacher_cache_dtype": "float32"}
    trained(EVERY_KIND, **cache)
    before = contents(tmp_path / "cache")
    read, _, none = trained(SOFT, **cache)
    live, _, _ = trained(SOFT)
    assert same(read, live) and not none
    more = [*4 * batches(), batches(5)[-1]]
    _, _, passed = trained(SOFT, train_dataloader=more, **cache, num_train_epochs=1)
    assert sum(passed) == 4
    assert contents(tmp_path / "cache") == before


def test_a_folder_that_is_no_cache_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CacheError, match=r"holds files and no cache\.json: choose an empty folder"):
        distiller(SOFT, teacher_cache=tmp_path).plan()
    with pytest.raises(CacheError, match="is a file; a directory is needed"):
        distiller(SOFT, teacher_cache=tmp_path / "notes.txt").plan()
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_looking_at_the_plan_writes_nothing(tmp_path: Path) -> None:
    run = distiller(SOFT, teacher_cache=tmp_path / "cache", train_dataset=rows(), data_collator=collate)
    assert f"teacher cache {tmp_path / 'cache'}: holds 0 samples, 0 B; about 740 B for 37 samples in float16" in (
        run.plan().notes
    )
    run.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"teacher_cache": 3}, "teacher_cache is a path; found 3"),
        ({"teacher_cache_dtype": "fp8"}, "teacher_cache_dtype is one of auto, bfloat16"),
        ({"teacher_cache_top_k": 0}, "teacher_cache_top_k is a whole number of 1 or more; found 0"),
        ({"teacher_cache_limit": -1}, "teacher_cache_limit is a number of GB above 0; found -1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        distiller(SOFT, **settings)


def test_of_two_runs_on_one_empty_folder_the_second_is_refused_before_it_reads_or_writes(tmp_path: Path) -> None:
    """Also where both looked at the folder while it was empty."""
    for other, config, said in (
        (bert(seed=1), SOFT, "weights: it holds"),
        (bert(), EVERY_KIND, "is not in it; it holds output.logits"),
    ):
        folder = tmp_path / str(len(config))
        first = distiller(SOFT, teacher_cache=folder)
        second = distiller(config, other, teacher_cache=folder)
        first.plan(), second.plan()
        first.train()
        before = contents(folder)
        with pytest.raises(CacheError, match=said):
            second.train()
        assert contents(folder) == before


def test_a_reader_of_fewer_features_writes_none_and_calls_nothing_complete(tmp_path: Path) -> None:
    half = distiller(EVERY_KIND, teacher_cache=tmp_path, teacher_cache_dtype="float32", max_steps=1)
    half.train()
    _, live, _ = trained(SOFT)
    _, metrics, passed = trained(SOFT, teacher_cache=tmp_path, teacher_cache_dtype="float32")
    assert metrics == live and sum(passed) == 3 * 8
    assert not (tmp_path / "complete.json").exists()


def test_another_output_adaptor_or_another_structure_is_another_teacher() -> None:
    def adaptor(layer: int) -> Any:
        return lambda output: {"hidden": {"h": output.hidden_states[layer]}}

    assert Identity.of(bert(), adaptor(1)) == Identity.of(bert(), adaptor(1))
    assert Identity.of(bert(), adaptor(1)) != Identity.of(bert(), adaptor(2))
    line = torch.nn.Linear(2, 2)
    one, other = (torch.nn.Sequential(line, last) for last in (torch.nn.ReLU(), torch.nn.Tanh()))
    assert Identity.of(one) != Identity.of(other)


def test_one_feature_under_two_names_is_kept_once(tmp_path: Path) -> None:
    config = [{**EVERY_KIND[0], "teacher": name, "student": "layer1.hidden_states"} for name in
              ("layer4.hidden_states", "bert_layer4.hidden_states", "layer-1.hidden_states")]  # fmt: skip
    trained(config[:1], teacher_cache=tmp_path, teacher_cache_dtype="float32")
    read, _, none = trained(config, teacher_cache=tmp_path, teacher_cache_dtype="float32")
    live, _, _ = trained(config)
    assert same(read, live) and not none


# --- files -----------------------------------------------------------------------------------------------------------


def filled(folder: Path, samples: int = 6, **options: Any) -> tuple[Store, np.ndarray]:
    made = store(folder, **options)
    numbers = np.arange(2 * samples, dtype=np.uint64).reshape(samples, 2)
    made.add(numbers, {"output.logits": torch.arange(2.0 * samples).view(samples, 2)}, {})
    return made, numbers


def test_shards_of_many_writers_are_one_cache(tmp_path: Path) -> None:
    one, numbers = filled(tmp_path / "cache")
    other, _ = filled(tmp_path / "cache", 9)
    one.flush()
    other.flush()
    again = store(tmp_path / "cache")
    places = again.find(np.arange(18, dtype=np.uint64).reshape(9, 2))
    assert (places >= 0).all() and again.find(numbers + 1).max() == -1
    assert torch.equal(again.read(places, {})["output.logits"], torch.arange(18.0).view(9, 2))


def test_a_damaged_shard_is_named_and_costs_its_samples_alone(tmp_path: Path) -> None:
    cache = {"teacher_cache": tmp_path / "cache", "teacher_cache_dtype": "float32"}
    trained(**cache)
    shard = next((tmp_path / "cache").glob("*.safetensors"))
    whole = bytearray(shard.read_bytes())
    whole[-3] ^= 1
    shard.write_bytes(whole)
    with pytest.raises(CacheError, match=rf"{shard.name} is damaged: its checksum differs\. Delete this file"):
        trained(**cache)
    shard.write_bytes(whole[:50])
    with pytest.raises(CacheError, match=f"{shard.name} is damaged"):
        trained(**cache)


def test_a_limit_ends_a_run_before_it_begins_and_a_fill_before_it_is_passed(tmp_path: Path) -> None:
    options = {"train_dataset": rows(), "data_collator": collate, "teacher_cache": tmp_path / "cache"}
    with pytest.raises(CacheError, match=r"teacher_cache_limit is 500 B, and about 740 B are needed"):
        distiller(SOFT, **options, teacher_cache_limit=5e-7).plan()
    assert not (tmp_path / "cache").exists()
    made, numbers = filled(tmp_path / "cache", limit=500)
    made.flush()
    more = numbers + 100
    made.add(more, {"output.logits": torch.zeros(6, 2)}, {})
    made.limit = made.nbytes + 10
    with pytest.raises(CacheError, match="are needed by now. It holds 6 samples, which stay good"):
        made.flush()
    assert len(store(tmp_path / "cache")) == 6


def test_a_full_disk_ends_the_run_and_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = shutil.disk_usage(tmp_path)._replace(free=(256 << 20) + 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: small)
    options = {"train_dataset": rows(), "data_collator": collate, "teacher_cache": tmp_path / "cache"}
    with pytest.raises(CacheError, match="the disk has 10 B to spare, and about 740 B are needed"):
        distiller(SOFT, **options).plan()
    with pytest.raises(CacheError, match="the disk has 10 B to spare"):  # a loader of one's own has no length
        distiller(SOFT, train_dataloader=iter(batches()), max_steps=3, teacher_cache=tmp_path / "cache").train()
    assert list(contents(tmp_path / "cache")) == ["cache.json"]


def test_a_value_beyond_float16_is_an_error_not_an_infinity(tmp_path: Path) -> None:
    teacher = bert()
    with torch.no_grad():
        teacher.classifier.bias.fill_(1e6)
    run = distiller(SOFT, teacher, teacher_cache=tmp_path / "cache")
    with pytest.raises(CacheError, match=r"output\.logits has values beyond float16.*teacher_cache_dtype: bfloat16"):
        run.train()


# --- processes -------------------------------------------------------------------------------------------------------


def test_two_processes_fill_one_cache_and_read_each_other(tmp_path: Path) -> None:
    common = ("--dropout", "0", "--sgd", "--learning-rate", "0.1")
    two = in_two(tmp_path / "live", "--batch", "4", *common)
    cache = ("--cache", str(tmp_path / "cache"))
    filling = in_two(tmp_path / "filling", "--batch", "4", *common, *cache)
    assert json.loads((tmp_path / "cache" / "complete.json").read_text())["samples"] == 37
    reading = in_two(tmp_path / "reading", "--batch", "4", *common, *cache)
    assert furthest(two, filling) < 1e-3  # float16
    assert furthest(filling, reading) == 0


def test_a_run_killed_while_it_fills_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    common = ("--dropout", "0.1", "--batch", "4")
    whole = tmp_path / "whole"
    assert forked(str(whole), *common, "--cache", str(tmp_path / "one")).wait() == 0
    process = forked(str(tmp_path / "killed"), *common, "--slow", "--cache", str(tmp_path / "other"))
    history = tmp_path / "killed" / "checkpoints"
    deadline = time.time() + 60
    while not (history.exists() and any(history.iterdir())) and time.time() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "other" / "complete.json").exists()
    resumed = forked(str(tmp_path / "killed"), *common, "--resume", "--cache", str(tmp_path / "other"))
    assert resumed.wait() == 0
    student = "student/model.safetensors"
    assert (whole / student).read_bytes() == (tmp_path / "killed" / student).read_bytes()


def test_a_sample_that_is_there_is_the_stored_one_in_any_batch(tmp_path: Path) -> None:
    """Sentences come twice, in batches of different lengths: filled and read runs are the same to the last bit."""
    twice = rows(9) + rows(9)[::-1]
    options = {"train_dataset": twice, "data_collator": collate, "group_by_length": False, "num_train_epochs": 2}
    options |= {"per_device_train_batch_size": 4, "teacher_cache": tmp_path, "teacher_cache_dtype": "float32"}
    filled, metrics, _ = trained(**options)
    read, metrics_read, none = trained(**options)
    assert same(filled, read) and metrics == metrics_read and not none


def test_a_loss_that_works_in_place_changes_nothing_on_disk(tmp_path: Path) -> None:
    def careless(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        difference = (student - teacher).square().mean(-1)
        teacher.zero_()
        return difference

    config = [{**EVERY_KIND[0], "loss": careless}]
    options = {"student": bert(2, seed=3), "teacher_cache": tmp_path, "teacher_cache_dtype": "float32"}
    _, filled, _ = trained(config, **options, learning_rate=0.0)
    _, read, none = trained(config, **options, learning_rate=0.0)
    assert filled == read and not none


def test_labels_alone_are_enough_for_an_encoder_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "dropout_rate": 0.0}
    sizes |= {"decoder_start_token_id": 0}
    teacher = T5ForConditionalGeneration(T5Config(num_layers=2, num_decoder_layers=2, **sizes))
    student = T5ForConditionalGeneration(T5Config(num_layers=1, num_decoder_layers=1, **sizes))
    data = []
    for length in (4, 6, 3):
        labels = torch.randint(2, 40, (2, length))
        labels[0, length - 1 :] = -100
        data.append({"input_ids": torch.randint(2, 40, (2, length + 1)), "labels": labels})
    config = [{"teacher": "decoder_layer2.hidden_states", "student": "decoder_layer1.hidden_states", "loss": "mse"}]
    options = {"train_dataloader": data, "num_train_epochs": 2, "learning_rate": 0.0}
    _, live, _ = trained([*config, *SOFT], teacher=teacher, student=student, **options)
    cache = {"teacher_cache": tmp_path, "teacher_cache_dtype": "float32"}
    _, read, _ = trained([*config, *SOFT], teacher=teacher, student=student, **options, **cache)
    assert read == near(live)


def test_a_cache_may_move_and_grow_when_a_run_goes_on(tmp_path: Path) -> None:
    options = {"output_dir": tmp_path / "run", "teacher_cache_dtype": "float32", "num_train_epochs": 2}
    distiller(SOFT, **options, teacher_cache=tmp_path / "one", teacher_cache_limit=1).train()
    again = {**options, "num_train_epochs": 3, "teacher_cache": tmp_path / "other"}
    distiller(SOFT, **again).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="settings.teacher_cache: it has true, asked is false"):
        distiller(SOFT, **options).train(resume_from_checkpoint=True)


def test_nothing_stays_on_the_models_where_a_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    student = bert(2)
    run = distiller(EVERY_KIND, student=student, teacher_cache=tmp_path)
    with pytest.raises(CacheError):
        run.plan()
    assert student.config._attn_implementation == "sdpa"
    hooks = [hook for m in student.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert not [hook for hook in hooks if "knowledge_distillation" in hook.__module__]


# --- ahead of time, by command ---------------------------------------------------------------------------------------


def test_caches_are_filled_ahead_of_time_and_a_fill_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    options = {"train_dataset": rows(), "data_collator": collate, "teacher_cache_dtype": "float32"}
    run = distiller(EVERY_KIND, **options, teacher_cache=tmp_path / "cache")
    run.plan()
    seen = passes(run)
    assert run.cache_teachers() == {str(tmp_path / "cache"): 37}
    assert sum(seen) == 37
    run.plan()
    seen.clear()
    after = run.train()  # the same run, now
    assert not seen
    live = distiller(EVERY_KIND, train_dataset=rows(), data_collator=collate)
    assert after == near(live.train())
    (tmp_path / "cache" / "complete.json").unlink()
    again = distiller(EVERY_KIND, **options, teacher_cache=tmp_path / "cache")
    again.plan()
    seen = passes(again)
    again.cache_teachers()
    assert not seen and (tmp_path / "cache" / "complete.json").exists()


def test_filling_ahead_moves_no_order(tmp_path: Path) -> None:
    def shuffling() -> Any:
        generator = torch.Generator().manual_seed(3)
        return DataLoader(rows(), batch_size=4, shuffle=True, collate_fn=collate, generator=generator)

    live, _, _ = trained(train_dataloader=shuffling(), optim="sgd")
    run = distiller(
        EVERY_KIND,
        train_dataloader=shuffling(),
        num_train_epochs=3,
        teacher_cache=tmp_path,
        teacher_cache_dtype="float32",
        optim="sgd",
    )
    run.cache_teachers()
    run.train()
    assert_near(live, weights(run.student))  # samples were computed in other batches


def test_each_teacher_and_each_stage_has_a_folder_of_its_own(tmp_path: Path) -> None:
    config = [
        {**SOFT[0], "teacher_name": "one", "stage": "first"},
        {**EVERY_KIND[0], "teacher_name": "two", "stage": "second"},
        {**HARD[0]},
    ]
    teachers = {"one": bert(), "two": bert(seed=2)}
    stages = [{"name": "first"}, {"name": "second"}]
    options = {"student": bert(2), "stages": stages, "num_train_epochs": 2, "teacher_cache_dtype": "float32"}
    run = distiller(config, teachers, **options, teacher_cache=tmp_path)
    run.cache_teachers()
    assert {str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("cache.json")} == {"first/one", "second/two"}
    seen = passes(run)
    run.train()
    probed = len(seen)
    live = distiller(config, teachers, **{**options, "student": bert(2)})
    live.train()
    assert probed <= 3 * 4 and same(weights(run.student), weights(live.student))


def test_without_a_folder_or_a_teacher_there_is_nothing_to_fill(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="teacher_cache is missing"):
        distiller(SOFT).cache_teachers()
    with pytest.raises(ConfigError, match="no entry has a teacher of its own, so there is nothing to cache"):
        distiller(HARD, teacher_cache=tmp_path / "cache").cache_teachers()


def test_by_command(tmp_path: Path) -> None:
    recipe = written(tmp_path)
    folder = tmp_path / "cache"
    result = distill("cache", recipe, "--teacher-cache", folder)
    assert result.exit_code == 0, result.output
    assert f"teacher cache {folder}: holds 0 samples, 0 B; about " in result.output
    assert f"{folder}: 18 samples, " in result.output
    result = distill("run", recipe, "--teacher-cache", folder)
    assert result.exit_code == 0, result.output
    assert f"teacher cache {folder}: holds 18 samples" in result.output
    result = distill("cache", recipe)
    assert result.exit_code == 2 and "teacher_cache is missing" in result.output
