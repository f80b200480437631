"""Rows to train on and to evaluate on, from files, folders and data sets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest

from knowledge_distillation import ConfigError, DataError
from knowledge_distillation.data.files import Splits, load_rows, load_splits
from knowledge_distillation.data.row_files import rows_of_file

TABLE = [{"review": f'film {i}, "the" {"great" if i % 3 else "bad"} one', "stars": i % 3} for i in range(30)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def _csv(path: Path, made: list[dict[str, Any]] = TABLE, **options: Any) -> Path:
    datasets.Dataset.from_list(made).to_csv(path, **options)
    return path


def written(folder: Path, kind: str) -> Path:
    """The table in a file of this kind."""
    made, path = datasets.Dataset.from_list(TABLE), folder / f"train.{kind}"
    if kind == "csv":
        return _csv(path)
    if kind == "tsv":
        lines = ["review\tstars", *(f"{row['review']}\t{row['stars']}" for row in TABLE)]
        path.write_text("\n".join(lines) + "\n")
    elif kind == "parquet":
        made.to_parquet(path)
    elif kind == "jsonl":
        made.to_json(path)
    elif kind == "json":
        path.write_text(json.dumps(TABLE, indent=1))
    elif kind == "arrow":
        made.save_to_disk(folder / "saved")
        next((folder / "saved").glob("*.arrow")).rename(path)
    else:
        made.save_to_disk(folder / "saved")
        return folder / "saved"
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet", "arrow", "saved"])
def test_every_format_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind)
    splits = load_splits(path, path)
    assert list(splits.train) == TABLE and list(splits.validation) == TABLE
    assert splits.train.features == {"review": datasets.Value("string"), "stars": datasets.Value("int64")}


def test_columns_of_json_as_a_dict_and_as_pandas_writes_them(tmp_path: Path) -> None:
    columns = {name: [row[name] for row in TABLE] for name in ("review", "stars")}
    for document in (columns, {name: dict(enumerate(values)) for name, values in columns.items()}, {"rows": TABLE}):
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(document))
        assert list(load_splits(path, path).train) == TABLE
        path.unlink()


def test_sentences_of_words_and_tags(tmp_path: Path) -> None:
    path = tmp_path / "ner.conll"
    path.write_text("-DOCSTART-\tO\n\n# id = 1\nNew York\tB-place\nis\tO\n\n\nHome\tO\n")
    rows = rows_of_file(path)
    assert rows[:] == {"tokens": [["New York", "is"], ["Home"]], "tags": [["B-place", "O"], ["O"]]}
    (tmp_path / "ner.bio").write_text("EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n")
    assert rows_of_file(tmp_path / "ner.bio").column_names == ["tokens", "column2", "column3", "tags"]
    named = load_splits(tmp_path / "ner.bio", tmp_path / "ner.bio", columns="tokens,pos,chunks,tags").train
    assert named[0]["pos"] == ["NNP", "VBZ"] and named[0]["tags"] == ["B-ORG", "O"]


def test_questions_in_the_layout_of_squad(tmp_path: Path) -> None:
    asked = {"id": 7, "question": "Where?", "answers": [{"text": "Rome", "answer_start": 3}]}
    paragraphs = [{"context": "In Rome.", "qas": [asked, {**asked, "id": 8, "answers": []}]}]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "2.0", "data": [{"title": "T", "paragraphs": paragraphs}]}))
    first = {"id": "7", "title": "T", "context": "In Rome.", "question": "Where?"}
    assert list(rows_of_file(path)) == [
        {**first, "answers": {"text": ["Rome"], "answer_start": [3]}},
        {**first, "id": "8", "answers": {"text": [], "answer_start": []}},
    ]


def test_text_is_a_row_a_line_without_the_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "wiki.txt"
    path.write_bytes(b"\xef\xbb\xbf = A = \r\n \n\r\nB\n")
    assert rows_of_file(path)["text"][:] == [" = A = ", "B"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_how_a_csv_is_written_is_seen(delimiter: str, ends: str, tmp_path: Path) -> None:
    made = [{"review": 'a, b; c | d\te "f"\n\ng', "stars": 2.5}, {"review": "é", "stars": 1.0}]
    path = tmp_path / "own data é.csv"
    _csv(path, made, sep=delimiter, lineterminator=ends)
    assert [{**row, "review": row["review"].replace("\r", "")} for row in rows_of_file(path)] == made


def test_quotes_in_tsv_are_text_unless_a_cell_needs_them(tmp_path: Path) -> None:
    path = tmp_path / "glue.tsv"
    path.write_text('text\tlabel\n"Quoted," he said\t1\n"All of it."\t0\n5" of snow\t1\n')
    assert rows_of_file(path)["text"][:] == ['"Quoted," he said', '"All of it."', '5" of snow']
    quoted = _csv(tmp_path / "pandas.tsv", [{"text": 'a\t"b"\nc', "label": 1}, {"text": "d", "label": 0}], sep="\t")
    assert rows_of_file(quoted)["text"][:] == ['a\t"b"\nc', "d"]


def test_cells_are_numbers_only_where_all_of_them_are_and_nothing_is_lost(tmp_path: Path) -> None:
    cells = {
        "whole": ["1", "-2", ""],
        "number": ["1", "2.50", "1e-3"],
        "zeros": ["007", "1", "2"],
        "long": ["12345678901234567890", "1", "2"],
        "text": ["1", "NA", "None"],
        "yes": ["True", "False", "True"],
        "nothing": ["", "", ""],
    }
    path = tmp_path / "cells.csv"
    path.write_text("\n".join([",".join(cells), *map(",".join, zip(*cells.values(), strict=True))]))
    expected = {
        **cells,
        "whole": [1, -2, None],
        "number": [1.0, 2.5, 0.001],
        "nothing": [None, None, None],
    }
    assert rows_of_file(path)[:] == expected


def test_a_type_that_shows_late_is_that_of_the_whole_column(tmp_path: Path) -> None:
    many = 10_000  # rows that are read together
    (tmp_path / "late.csv").write_text("text,a,b\n" + "x,1,1.50\n" * many + "z,3.5,1\nw,4,none\n")
    table = rows_of_file(tmp_path / "late.csv")
    assert table.features["a"].dtype == "float64" and len(table) == many + 2
    assert table[0] == {"text": "x", "a": 1.0, "b": "1.50"} and table[many + 1] == {"text": "w", "a": 4.0, "b": "none"}
    late = [{"a": 2.5, "b": {"c": 1}}, {"b": {"c": 2, "d": ["x"]}}, {"a": 1}]
    (tmp_path / "late.jsonl").write_text('{"a": 1}\n' * many + "\n".join(map(json.dumps, late)))
    objects = rows_of_file(tmp_path / "late.jsonl")
    assert objects[0] == {"a": 1.0, "b": None}
    assert objects[many:] == {"a": [2.5, None, 1.0], "b": [{"c": 1, "d": None}, {"c": 2, "d": ["x"]}, None]}
    (tmp_path / "mixed.jsonl").write_text('{"a": 1}\n' * many + '{"a": "x"}\n')
    with pytest.raises(DataError, match="mixed.jsonl, line 10001: 'a' is a text, 'x', and a whole number in rows bef"):
        rows_of_file(tmp_path / "mixed.jsonl")
    (tmp_path / "long.csv").write_text("text,a\n" + 'x,"1\n"\n' * many + "z\n")
    with pytest.raises(DataError, match="long.csv, line 20002: found 1 column, expected 2"):
        rows_of_file(tmp_path / "long.csv")


def test_a_file_is_read_once_and_again_when_it_has_changed(tmp_path: Path, cache: Path) -> None:
    path = _csv(tmp_path / "train.csv")
    state = path.stat()
    first = load_splits(path)
    held = set((cache / "cache").rglob("*.arrow"))
    again = load_splits(path)
    assert set((cache / "cache").rglob("*.arrow")) == held and again.train._fingerprint == first.train._fingerprint
    path.write_text(path.read_text().replace("film", "FILM"))
    assert all(text.startswith("FILM") for text in load_splits(path).train["review"])
    path.write_text("review,stars\n" + "new,1\n" * 7)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert set(load_splits(path).train["review"]) == {"new"}
    named = load_splits(_csv(tmp_path / "bare.csv", header=False), columns=["a", "b"]).train
    assert named.column_names == ["a", "b"] and len(named) == 27


@pytest.mark.parametrize("dev", ["dev", "validation", "valid", "val"])
def test_a_folder_of_parts(dev: str, tmp_path: Path) -> None:
    _csv(tmp_path / "train.csv")
    _csv(tmp_path / f"{dev}.csv", TABLE[:4])
    _csv(tmp_path / "test.csv", TABLE[:2])
    (tmp_path / "README.md").write_text("x")
    splits = load_splits(tmp_path)
    assert (len(splits.train), len(splits.validation), splits.notes) == (30, 4, ())
    assert len(load_splits(tmp_path, tmp_path / "test.csv").validation) == 2
    assert len(load_splits(tmp_path / "train.csv", tmp_path).validation) == len(load_rows(tmp_path)) == 4
    (tmp_path / f"{dev}.csv").unlink()
    splits = load_splits(tmp_path)
    assert len(splits.validation) == 3 and splits.notes[0] == "test.csv is not read: its rows are for the end"


def test_data_sets_and_lists_are_taken_as_they_are(tmp_path: Path) -> None:
    made = datasets.Dataset.from_list(TABLE)
    parts = datasets.DatasetDict({"train": made, "validation": made.select(range(3))})
    parts.save_to_disk(tmp_path / "both")
    for data in (parts, tmp_path / "both"):
        splits = load_splits(data)
        assert (len(splits.train), len(splits.validation), splits.notes) == (30, 3, ())
    assert len(load_splits(TABLE).train) == len(load_splits(made).train) == 27
    with pytest.raises(DataError, match="no part train; it has a, b"):
        load_splits({"a": made, "b": made})
    with pytest.raises(DataError, match="a int is no data"):
        load_splits(3)


def _by_stars(rows: Any) -> list[int]:
    return [list(rows["stars"]).count(star) for star in range(3)]


def test_a_tenth_is_held_out_by_class_and_said(tmp_path: Path) -> None:
    path = _csv(tmp_path / "train.csv", [{"review": f"r{i}", "stars": int(i > 39) + int(i > 89)} for i in range(100)])
    splits = load_splits(path)
    assert (_by_stars(splits.train), _by_stars(splits.validation)) == ([36, 45, 9], [4, 5, 1])
    assert splits.notes == (
        f"no rows to evaluate on were named (--eval): 10 of the 100 rows of {path} are held out, the same each time, "
        "by class of 'stars'",
    )
    again = load_splits(path, label="stars")
    assert again.validation[:] == splits.validation[:] and again.train[:] == splits.train[:]
    assert not {*splits.train["review"]} & {*splits.validation["review"]}
    other = load_splits(path, label="review")
    assert len(other.validation) == 10 and other.validation[:] != splits.validation[:]


def test_no_more_than_ten_thousand_rows_are_held_out() -> None:
    rows = datasets.Dataset.from_dict({"score": [float(i) for i in range(300_000)]})
    splits = load_splits(rows)
    assert len(splits.validation) == 10_000 and len(splits.train) == 290_000


def test_a_part_of_the_rows(tmp_path: Path) -> None:
    path = _csv(tmp_path / "train.csv")
    small, larger = (load_splits(path, path, max_train_samples=n, max_eval_samples=3) for n in (5, 9))
    texts = list(small.train["review"])
    assert len(texts) == 5 and len(small.validation) == 3
    assert [row["review"] for row in TABLE if row["review"] in texts] == texts
    assert set(texts) < set(larger.train["review"])
    with pytest.raises(ConfigError, match="max_train_samples is 0; it must be at least 1"):
        load_splits(path, max_train_samples=0)
    assert isinstance(small, Splits)


def test_what_is_evaluated_on_what_it_was_trained_on_is_said(tmp_path: Path) -> None:
    path = _csv(tmp_path / "train.csv")
    (tmp_path / "link.csv").symlink_to(path)
    for dev in (path, tmp_path / "link.csv"):
        (note,) = load_splits(path, dev).notes
        assert "is also what is trained on" in note


def test_paths_with_spaces_home_and_brackets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _csv(tmp_path / "my däta [1].csv")
    datasets.Dataset.from_list(TABLE).to_parquet(tmp_path / "my däta [1].parquet")
    for ending in ("csv", "parquet"):
        assert list(rows_of_file(f"~/my däta [1].{ending}")) == TABLE
