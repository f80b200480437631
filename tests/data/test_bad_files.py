"""What people have in place of a good file: one clear error each, or the rows that are meant."""

from __future__ import annotations

import builtins
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest

from knowledge_distillation import ConfigError, DataError, DistillationError
from knowledge_distillation.data.classes import classes_of
from knowledge_distillation.data.columns import Columns, guess_columns
from knowledge_distillation.data.files import Splits, load_splits
from knowledge_distillation.data.row_checks import checked

GOOD = "review,stars\ngood,1\nbad,0\nfine,1\nawful,0\n"
ROWS = [("good", 1), ("bad", 0), ("fine", 1), ("awful", 0)]
DEV = "review,stars\nsplendid,1\ndull,0\n"


@dataclass(frozen=True)
class Bad:
    """A file, and what is said of it: a pattern of the error, or the texts and labels that are read.

    `{}` in a pattern stands for the path.
    """

    kind: str
    content: str | bytes
    name: str = "data.csv"
    says: str = ""
    rows: Any = None
    dev: str | bytes | None = DEV
    notes: str = ""
    options: tuple[tuple[str, Any], ...] = ()


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


TEXT, LABEL = {"text": "a", "label": 1}, {"text": "b", "label": 0}
DEV_LINES = lines(TEXT, LABEL)
UNCLOSED = GOOD + '"open,1\na,0\n'

BAD = [
    Bad("missing column of text", GOOD, says="no column 'reviw'. Nearest: review. Col", options=(("text", "reviw"),)),
    Bad("missing column of labels", GOOD, says="no column 'star'. Nearest: stars.", options=(("label", "star"),)),
    Bad("one class", "review,stars\na,1\nb,1\n", says="column 'stars' holds one class only, '1'"),
    Bad("a label for each row", "review,stars\n" + "".join(f"r{i},x{i}\n" for i in range(1001)), says="1,001 differe"),
    Bad("empty", "", says="^{} is empty$"),
    Bad("nothing but blank lines", "\n\r\n\n", says="^{} is empty$"),
    Bad("nothing but blank lines of text", " \n\n", name="data.txt", says="^{} holds no rows$"),
    Bad("nothing but a header", "review,stars\n", says="^{} holds no rows$"),
    Bad(
        "UTF-16", GOOD.encode("utf-16"), says="^{}, line 1: byte 0xff begins a file in UTF-16. .*iconv -f UTF-16LE -t"
    ),
    Bad(
        "UTF-16 without a mark", GOOD.encode("utf-16-be"), says="line 1: byte 0x00 begins .*iconv -f UTF-16BE -t UTF-8"
    ),
    Bad(
        "Latin-1",
        (GOOD + "café,1\n").encode("latin-1"),
        says="^{}, line 6: byte 0xe9 at position 3 is not UTF-8. Conv",
    ),
    Bad("UTF-8 cut short", GOOD.encode() + "é".encode()[:1], says="^{}, line 6: byte 0xc3 at position 0 is not UTF-8"),
    Bad("NUL bytes", GOOD + "a\0b,1\n", says=r"^{}, line 6: byte 0x00 at position 1 is no text. .*tr -d '\\000' < "),
    Bad("byte order mark", GOOD.encode("utf-8-sig"), rows=ROWS),
    Bad(
        "a row too long",
        GOOD + "a,b,1\n",
        says=r"^{}, line 6: found 3 columns, expected 2 \(review, stars\). Put cells t",
    ),
    Bad("a row too short", GOOD + "a\n", says="^{}, line 6: found 1 column, expected 2"),
    Bad("a row too long after one of two lines", GOOD + '"a\nb",1\na,b,1\n', says="^{}, line 8: found 3 columns"),
    Bad(
        "a quote not closed",
        UNCLOSED,
        says=r'^{}, line 6: a quote \("\) is opened in the row that begins here, and not',
    ),
    Bad(
        "text after a quote",
        GOOD + '"a" b,1\n',
        says="^{}, line 6: in the row that begins here text follows a closing",
    ),
    Bad("two columns of one name", "text,label,text\na,1,b\n", says="line 1: columns 1, 3 are both called 'text'"),
    Bad("header twice", GOOD + GOOD, says="^{}, line 6: the header stands there again"),
    Bad("no header, with numbers", GOOD[13:], says="^{}, line 1: 'good', '1' would name .* --columns text,label, or"),
    Bad(
        "no header, with names",
        "great,pos\nbad,neg\nok,pos\nfine,pos\nno,neg\n",
        says="line 1: 'great', 'pos' .*'pos' is a val",
    ),
    Bad("no header, and named", GOOD[13:], dev=DEV[13:], rows=ROWS, options=(("columns", "review,stars"),)),
    Bad(
        "too few columns named", GOOD[13:], says="line 1: found 2 columns, expected 1", options=(("columns", "text"),)
    ),
    Bad("a cell of a million characters", GOOD + "a" * 1_000_000 + ",1\n", rows=[*ROWS, ("a" * 1_000_000, 1)]),
    Bad("a text missing", GOOD + " ,1\n", rows=ROWS, notes="1 of 5 training rows have no text in column 'review' and"),
    Bad(
        "every text missing",
        "review,stars\n,1\n,0\n",
        says="none of the 2 training rows has a text in column 'review'",
    ),
    Bad("a label missing", GOOD + "a,\n", says="row 4 of the train rows has no label in column 'stars'"),
    Bad("labels that are fractions", "review,stars\na,0.5\nb,1\n", says="column 'stars' holds fractions, such as 0.5"),
    Bad(
        "a label misspelt", "text,label\na,pos\nb,neg\n", dev="text,label\na,pso\n", says="holds pso, .* Nearest: pos"
    ),
    Bad(
        "other columns in dev",
        GOOD,
        dev="reviews,stars\na,1\n",
        says="evaluation rows have no column 'review'. Nearest: r",
    ),
    Bad(
        "dev in train", GOOD, dev=GOOD[:20], rows=ROWS, notes="1 of 1 evaluation rows have the text of a training row"
    ),
    Bad("line ends of Windows", GOOD.replace("\n", "\r\n"), rows=ROWS),
    Bad(
        "line ends of old Macs", GOOD.replace("\n", "\r"), says="line 1: a carriage return stands inside a row. .*tr "
    ),
    Bad("tabs in a .csv", GOOD.replace(",", "\t"), rows=ROWS),
    Bad("semicolons in a .csv", GOOD.replace(",", ";"), rows=ROWS),
    Bad("commas in a .tsv", GOOD, name="data.tsv", rows=ROWS),
    Bad("spaces after commas", GOOD.replace(",", ", "), rows=ROWS),
    Bad(
        "numbers of rows from pandas",
        "".join(f"{n},{row}\n" for n, row in enumerate(GOOD.split())).replace("0,", ",", 1),
    ),
    Bad("no line end at the end", GOOD.strip(), rows=ROWS),
    Bad(
        "JSON broken on line 7",
        DEV_LINES * 3 + '{"text": "a", "label" 1}\n',
        name="data.jsonl",
        says="^{}, line 7: no J",
    ),
    Bad(
        "JSON cut short", '[{"text": "a", "label": 1},\n', name="data.json", says="^{}, line 2: no JSON: Expecting val"
    ),
    Bad("JSON of columns", '{"text": ["a", "b"], "label": [1, 0]}', name="data.json", rows=[("a", 1), ("b", 0)]),
    Bad(
        "JSON of columns of two lengths",
        '{"a": ["a", "b"], "b": [1]}',
        name="data.json",
        says="different lengths: {'a'",
    ),
    Bad("a JSON list", json.dumps([TEXT, LABEL]), name="data.json", rows=[("a", 1), ("b", 0)]),
    Bad("a JSON list in .jsonl", json.dumps([TEXT, LABEL]), name="data.jsonl", rows=[("a", 1), ("b", 0)]),
    Bad("JSON lines in .json", DEV_LINES, name="data.json", rows=[("a", 1), ("b", 0)]),
    Bad(
        "a JSON list of numbers", "[1, 2]", name="data.json", says="^{}, row 1: found 1, and no object with names: exp"
    ),
    Bad("JSON without rows", "3", name="data.json", says="^{} holds 3, and no rows: expected lines of"),
    Bad("text in records", lines({"text": {"de": "a"}, "label": 1}), name="data.jsonl", says="no column holds text"),
    Bad(
        "mixed types",
        lines(TEXT, {"text": "b", "label": "x"}),
        name="data.jsonl",
        says="line 2: 'label' is a text, 'x', and",
    ),
    Bad("mixed types late", lines(TEXT, LABEL, {"text": ["b"]}), name="data.jsonl", says="line 3: 'text' is a list"),
    Bad(
        "a number too long",
        lines(TEXT, {"text": "b", "label": 10**30}),
        name="data.jsonl",
        says="line 2: .* be stored",
    ),
    Bad(
        "half a character",
        lines(TEXT, {"text": "\ud800", "label": 1}),
        name="data.jsonl",
        says="line 2: 'text' is '.ud",
    ),
    Bad("no columns", "{}\n{}\n", name="data.jsonl", says="^{}, line 1: rows have no columns"),
    Bad(
        "SQuAD without context",
        '{"data": [{"paragraphs": [{"qas": [{}]}]}]}',
        name="data.json",
        says="lacks 'context'",
    ),
    Bad(
        "a word without a tag",
        "a\tO\nb\n\n",
        name="data.conll",
        says=r"^{}, line 2: found 1 column, expected 2 \(tokens",
    ),
    Bad("a word with too many", "a O\nb O X\n", name="data.conll", says="line 2: found 3 columns, expected 2"),
    Bad(
        "gzip",
        gzip.compress(GOOD.encode()),
        name="data.csv.gz",
        says=r"^{} is no file of rows .*: unpack it first \(gun",
    ),
    Bad("gzip called .csv", gzip.compress(GOOD.encode()), says=r"^{} is packed by gzip: unpack it first \(gunzip\)$"),
    Bad("Excel", b"PK\3\4", name="data.xlsx", says="^{} is no file of rows .*: save the sheet as CSV in UTF-8$"),
    Bad(
        "Excel called .csv",
        b"PK\3\4\0\0",
        says="^{} is a zip archive or an Excel workbook: unpack it, or save the sheet",
    ),
    Bad("PDF", b"%PDF-1.4", name="data.txt", says="^{} is a PDF: copy"),
    Bad("a pickle", b"\x80\4", name="data.pkl", says="pickles are not opened, since they run code"),
    Bad("bytes", bytes(range(1, 256)), says="^{}, line 2: byte 0x80 at position 117 is not UTF-8"),
    Bad(
        "an ending nobody knows", GOOD, name="data.dat", says="^{} is no file of rows .*: give a file one of these end"
    ),
    Bad("broken parquet", "PAR1", name="data.parquet", says="^{} cannot be read as parquet: "),
    Bad("broken Arrow", "ARROW1", name="data.arrow", says="^{} cannot be read as arrow: "),
    Bad(
        "names for columns that have some",
        DEV_LINES,
        name="data.jsonl",
        says="columns names those of CSV, TSV and C",
        options=(("columns", "a,b"),),
    ),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def read(data: Any, dev: Any = None, text: Any = None, label: Any = None, **options: Any) -> tuple[Splits, Any]:
    """As a task of classes reads its data."""
    splits = load_splits(data, dev, label=label, **options)
    columns, _ = guess_columns(splits.train, text, label)
    parts, notes = checked({"train": splits.train, "validation": splits.validation}, columns)
    classes_of(parts, str(columns.label))
    return Splits(**parts, notes=(*splits.notes, *notes)), columns


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.kind)
def test_a_file_gives_one_clear_error_or_its_rows(bad: Bad, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, dev = tmp_path / bad.name, tmp_path / "dev.csv"
    path.write_bytes(bad.content if isinstance(bad.content, bytes) else bad.content.encode())
    of_lines = path.suffix in (".json", ".jsonl") and isinstance(bad.dev, str) and bad.dev == DEV
    if of_lines:
        dev = tmp_path / "dev.jsonl"
    dev.write_text(DEV_LINES if of_lines else str(bad.dev))
    if bad.says:
        with pytest.raises(DistillationError, match=bad.says.replace("{}", str(path))) as raised:
            read(path, dev, **dict(bad.options))
        assert len(str(raised.value)) < 600 and "\n" not in str(raised.value)
        assert capfd.readouterr().out + capfd.readouterr().err == ""
        return
    splits, columns = read(path, dev, **dict(bad.options))
    expected = ROWS if bad.rows is None else bad.rows
    assert list(zip(splits.train[columns.text[0]], splits.train[columns.label], strict=True)) == expected
    assert any(bad.notes in note for note in splits.notes) or not bad.notes


def test_there_are_many_kinds() -> None:
    assert len({bad.kind for bad in BAD}) == len(BAD) > 60


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(GOOD)
    with pytest.raises(DataError, match="there is no file '.*/tran.csv' to read rows from. Nearest: .*/train.csv"):
        read(tmp_path / "tran.csv")
    with pytest.raises(DataError, match="there is no file or folder 'nobody/nothing' here, and .* from the hub: "):
        read("nobody/nothing")
    with pytest.raises(DataError, match="there is no file 'nowhere/train.csv' to read rows from"):
        read("nowhere/train.csv")


def test_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.csv"
    path.write_text(GOOD)
    opened = builtins.open

    def closed(file: Any, *rest: Any, **options: Any) -> Any:
        if str(file) == str(path):
            raise PermissionError(13, "Permission denied")
        return opened(file, *rest, **options)

    monkeypatch.setattr(builtins, "open", closed)
    with pytest.raises(DataError, match="train.csv cannot be opened: Permission denied"):
        read(path)


def test_folders_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no file of rows .*, as train.csv and dev.csv. It holds: nothing"):
        read(tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="It holds: a.png"):
        read(tmp_path)
    (tmp_path / "one.csv").write_text(GOOD)
    assert len(read(tmp_path)[0].train) == 2
    (tmp_path / "two.csv").write_text(GOOD)
    with pytest.raises(
        DataError, match="holds one.csv, two.csv, and no file called train: call the files train and d"
    ):
        read(tmp_path)
    (tmp_path / "train.csv").write_text(GOOD)
    (tmp_path / "train.tsv").write_text(GOOD)
    with pytest.raises(DataError, match="holds train.csv and train.tsv, which are one part: name the files"):
        read(tmp_path)


def test_too_few_rows_to_hold_some_out(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text(GOOD[:20])
    with pytest.raises(DataError, match=f"{path} holds 1 row, too few to hold some out: name rows to evaluate on"):
        read(path)


def test_named_columns_that_hold_no_text_or_only_numbers(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(lines({"a": 5, "b": {"c": 1}, "label": "x"}, {"a": 6, "b": {"c": 1}, "label": "y"}))
    assert read(path, path, text="a")[0].train["a"][:] == ["5", "6"]
    with pytest.raises(DataError, match="column 'b' of the training rows holds {'c': 1}, and no text: name a column"):
        read(path, path, text="b")
    with pytest.raises(ConfigError, match="no column holds text"):
        read(path, path, label="label", text=None)


def test_pairs_of_texts_that_training_has_are_counted_as_pairs() -> None:
    train = datasets.Dataset.from_dict({"one": ["a", "a", "b"], "two": ["x", "y", "x"], "label": [0, 1, 0]})
    dev = datasets.Dataset.from_dict({"one": ["b", "a", "b"], "two": ["y", "y", "x"], "label": [0, 1, 0]})
    parts, notes = checked({"train": train, "validation": dev}, Columns(("one", "two"), "label"))
    assert len(parts["train"]) == 3 and notes[0].startswith("2 of 3 evaluation rows have the text of a training row")
