"""Rows of a file with what a saved model says of each, in the order and with the columns of the file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from runs import bert, distill
from transformers import AutoModelForSequenceClassification, BertForTokenClassification, BertModel

from knowledge_distillation import ConfigError, DataError
from knowledge_distillation.data import train_tokenizer
from knowledge_distillation.tasks import predict_file as module
from knowledge_distillation.tasks.predict_file import predict_file
from knowledge_distillation.tasks.row_writers import row_writer

WORDS = ("good", "bad", "fine", "dull")
TEXTS = [f"a {WORDS[n % 4]} film, {WORDS[n % 3]}" for n in range(11)]
NAMES = {0: "no", 1: "so so", 2: "yes"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    model = bert(1, initializer_range=0.5, num_labels=3, id2label=NAMES, label2id={v: k for k, v in NAMES.items()})
    model.save_pretrained(folder)
    train_tokenizer(TEXTS, vocab_size=40).save_pretrained(folder)
    return folder


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([["nr", "review"], *([100 - n, text] for n, text in enumerate(TEXTS))])
    return path


def expected(saved: Path) -> list[tuple[str, float]]:
    from transformers import AutoTokenizer

    model, tokenizer = (auto.from_pretrained(saved) for auto in (AutoModelForSequenceClassification, AutoTokenizer))
    with torch.no_grad():
        odds = [model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0] for text in TEXTS]
    return [(NAMES[int(one.argmax())], float(one.max())) for one in odds]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_row_with_its_columns_and_what_the_model_says(ending, saved, file, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 4)
    out = tmp_path / "new" / f"out{ending}"
    predicted = predict_file(saved, file, out, batch_size=3)
    assert (predicted.rows, predicted.columns) == (11, ("prediction", "probability"))
    rows = datasets.load_dataset(
        {".jsonl": "json", ".parquet": "parquet"}.get(ending, "csv"),
        data_files=str(out),
        split="train",
        cache_dir=str(tmp_path / "cache"),
        **({"sep": "\t"} if ending == ".tsv" else {}),
    )
    assert rows.column_names == ["nr", "review", "prediction", "probability"]
    assert rows["nr"][:] == [100 - n for n in range(11)] and rows["review"][:] == TEXTS
    for said, probability, (name, odds) in zip(rows["prediction"], rows["probability"], expected(saved), strict=True):
        assert said == name and probability == pytest.approx(odds, rel=1e-4)


def test_no_more_than_some_rows_are_held(saved, file, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 4)
    sizes = []
    kept = module._in_memory
    monkeypatch.setattr(module, "_in_memory", lambda *asked: sizes.append(len(part := kept(*asked))) or part)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    predict_file(saved, file, tmp_path / "out.csv")
    assert sizes == [4, 4, 3]
    assert [*(tmp_path / "cache").rglob("*.arrow")] and not [*(tmp_path / "cache").rglob("cache-*")]


def test_lists_are_json_in_a_table(tmp_path):
    model = BertForTokenClassification(bert(1, num_labels=3, id2label={0: "O", 1: "B-x", 2: "I-x"}).config)
    model.save_pretrained(tmp_path / "ner")
    train_tokenizer(TEXTS, vocab_size=40).save_pretrained(tmp_path / "ner")
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"tokens": text.split()}) + "\n" for text in TEXTS))
    predict_file(tmp_path / "ner", tmp_path / "x.jsonl", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [json.loads(row["tokens"]) for row in rows] == [text.split() for text in TEXTS]
    assert all(len(json.loads(row["prediction"])) == 4 for row in rows)


def test_a_column_of_parquet_may_be_empty_at_first(tmp_path):
    parts = [
        {"nr": [1, 2], "kinds": [[], []], "found": [[], []], "why": [None, None]},
        {"nr": [3], "kinds": [["a"]], "found": [[]], "why": [None]},
        {"nr": [4], "kinds": [[]], "found": [[{"start": 0, "text": "x"}]], "why": [0.5]},
        {"nr": [5], "kinds": [["b", "c"]], "found": [[]], "why": [None]},
    ]
    with row_writer(tmp_path / "out.parquet") as write:
        for part in parts:
            write(part)
    rows = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert rows == {name: [value for part in parts for value in part[name]] for name in parts[0]}
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_a_row_that_cannot_be_read_is_named_and_nothing_is_written(saved, tmp_path):
    lines = [{"review": text} for text in TEXTS]
    lines[7] = {"review": None}
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "out.csv").write_text("the one before")
    with pytest.raises(DataError, match=r"row 8 of the .*x\.jsonl rows has no text in column 'review'"):
        predict_file(saved, tmp_path / "x.jsonl", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "the one before" and not [*tmp_path.glob(".*")]


def test_what_stops_half_way_leaves_nothing(saved, file, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 4)
    monkeypatch.setattr(module, "_in_memory", lambda rows, start: 1 / 0 if start else rows.select(range(4)))
    with pytest.raises(ZeroDivisionError):
        predict_file(saved, file, tmp_path / "out.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"output": "out.xlsx"}, DataError, r"out\.xlsx: rows are written to files that end in \.csv, \.tsv"),
        ({"text": "revew"}, ConfigError, "there is no column 'revew'. Nearest: review"),
        ({"task": "text-clasification"}, ConfigError, "is unknown. Nearest: text-classification"),
        ({"batch_size": 0}, ConfigError, "batch_size is a number of rows from 1; found 0"),
        ({"data": "y.csv"}, DataError, r"there is no file '.*y\.csv' to read rows from. Nearest: .*x\.csv"),
    ],
)
def test_what_does_not_fit_is_said(changes, error, message, saved, file, tmp_path):
    changes = {"output": "out.csv", "data": "x.csv", **changes}
    paths = (tmp_path / changes.pop("data"), tmp_path / changes.pop("output"))
    with pytest.raises(error, match=message):
        predict_file(saved, *paths, **changes)


def test_a_column_that_a_prediction_adds(saved, tmp_path):
    (tmp_path / "x.csv").write_text("text,prediction\na good film,yes\n")
    with pytest.raises(DataError, match="rows have a column 'prediction' already, which a prediction adds: rename it"):
        predict_file(saved, tmp_path / "x.csv", tmp_path / "out.csv", text="text")


def test_a_model_without_a_head(file, tmp_path):
    BertModel(bert(1).config).save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match="is BertModel, of which no task is told; predictions are of text-class"):
        predict_file(tmp_path / "bare", file, tmp_path / "out.csv")


def test_the_command(saved, file, tmp_path):
    result = distill("predict", saved, "--data", file, "-o", tmp_path / "out.csv")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "task: text-classification, told from the model",
        "text: column 'review'",
        f"{tmp_path / 'out.csv'}: 11 rows, with prediction, probability",
    ]
