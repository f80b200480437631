"""Rows from files and from streams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from runs import HARD, bert, distiller, same, tokenizer_of, weights

from knowledge_distillation import ConfigError, DataError
from knowledge_distillation.data.row_files import rows_of_file

ROWS = [{"input_ids": [1, 2, 3 + i % 5], "labels": i % 2} for i in range(12)]
OPTIONS = {"processing_class": tokenizer_of(40), "per_device_train_batch_size": 4}


class Stream(torch.utils.data.IterableDataset[Any]):
    """Rows without a number, and their epochs."""

    def __init__(self, made: list[dict[str, Any]]) -> None:
        self.made, self.epochs = made, list[int]()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.made)

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


class Sized(Stream):
    def __len__(self) -> int:
        return len(self.made)


def trained(dataset: Any, **options: Any) -> Any:
    run = distiller(HARD, None, bert(1), train_dataset=dataset, **{**OPTIONS, **options})
    run.train()
    return run


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


@pytest.mark.case("D13")
@pytest.mark.parametrize("suffix", ["parquet", "json", "jsonl", "arrow", ""])
def test_a_file_of_rows_trains_as_its_rows_do(suffix: str, cache: Path) -> None:
    made, path = datasets.Dataset.from_list(ROWS), cache / f"rows.{suffix}".rstrip(".")
    if suffix == "parquet":
        made.to_parquet(path)
    elif suffix.startswith("json"):
        made.to_json(path)
    else:
        made.save_to_disk(path if not suffix else cache / "saved")
        path = path if not suffix else next((cache / "saved").glob("*.arrow"))
    expected = weights(trained(ROWS).student)
    assert same(weights(trained(path).student), expected)
    assert same(weights(trained(str(path)).student), expected)


@pytest.mark.case("D13")
def test_files_that_cannot_be_read_are_named(cache: Path) -> None:
    (cache / "rows.csv").write_text("input,labels\n1,0\n")
    (cache / "rows.dat").write_text("x")
    (cache / "broken.parquet").write_text("x")
    assert rows_of_file(cache / "rows.csv")[0] == {"input": 1, "labels": 0}
    for name, message in (
        ("row.csv", r"there is no file '.*row.csv' to read rows from. Nearest: .*rows.csv"),
        ("rows.dat", r"rows.dat is no file of rows \(.csv, .tsv, .json, .*: give a file one of these endings"),
        ("broken.parquet", "broken.parquet cannot be read as parquet"),
        ("rows.csv", "the rows hold input, labels and no input_ids: tokenize them first"),
    ):
        with pytest.raises(DataError, match=message):
            trained(str(cache / name))


@pytest.mark.case("D13")
@pytest.mark.parametrize("workers", [0, 2])
def test_streams_sized_or_not(workers: int) -> None:
    options = {"dataloader_num_workers": workers}
    with pytest.raises(ConfigError, match="the training data is a stream, which does not say.*set max_steps"):
        trained(Stream(ROWS))
    stream = Stream(ROWS)
    run = trained(stream, max_steps=7, num_train_epochs=10, **options)
    assert run.progress.step == 7
    assert workers or stream.epochs == [0, 1, 2]
    plain = trained(ROWS, data_collator=None, group_by_length=False, num_train_epochs=1)
    sized = trained(Sized(ROWS), num_train_epochs=2, **options)
    assert sized.progress.step == 6 == 2 * plain.progress.step
    assert same(weights(sized.student), weights(trained(Sized(ROWS), num_train_epochs=2).student))
    with_text = datasets.Dataset.from_list([{**row, "text": "a"} for row in ROWS]).to_iterable_dataset()
    assert trained(with_text, max_steps=4, num_train_epochs=2).progress.step == 4


@pytest.mark.case("D13")
def test_a_stream_is_evaluated_and_trains_on_the_batches_it_gives() -> None:
    batched = [[row["labels"] for row in ROWS[start : start + 4]] for start in range(0, 12, 4)]
    seen: list[list[int]] = []

    def collate(made: list[dict[str, Any]]) -> Any:
        seen.append([row["labels"] for row in made])
        return {"input_ids": torch.tensor([r["input_ids"] for r in made]), "labels": torch.tensor(seen[-1])}

    run = trained(Stream(ROWS), max_steps=3, data_collator=collate, eval_dataset=Stream(ROWS))
    assert seen[-4:-1] == batched or batched == [one for one in seen if len(one) == 4][-3:]
    assert 0 <= run.metrics["eval_accuracy"] <= 1


@pytest.mark.case("D13")
def test_streams_that_cannot_be_used() -> None:
    for dataset, message in (
        ((row for row in ROWS), "is a generator, which can be gone through only once"),
        (Stream([]), "the training data set is empty"),
        (Stream([{"text": "a", "labels": 1}]), "the rows hold labels and no input_ids"),
    ):
        with pytest.raises(DataError, match=message):
            trained(dataset, max_steps=2)
    with pytest.raises(ConfigError, match="max_tokens_per_batch goes by the length of all rows, and the train"):
        trained(Stream(ROWS), max_steps=2, max_tokens_per_batch=40)
