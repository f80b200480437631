"""Which columns hold the text and the label: named, or guessed where there is one way only."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from knowledge_distillation import ConfigError
from knowledge_distillation.data.columns import Columns, guess_columns

VALUES = {"text": ["a b", "c", "d e f"], "whole": [4, 1, 4], "real": [0.5, 1.5, 2.0], "words": [["a"], ["b"], ["c"]]}


def rows(*columns: str) -> Any:
    """Three rows; `name:kind` is a column of another kind than text."""
    parts = [column.split(":") for column in columns]
    made = {name: VALUES[kind[0] if kind else "text"] for name, *kind in parts}
    return datasets.Dataset.from_dict(made)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("review", "stars:whole"), Columns(("review",), "stars")),
        (("Text", "Label"), Columns(("Text",), "Label")),
        (("id", "question1", "question2", "is_duplicate:whole"), Columns(("question1", "question2"), "is_duplicate")),
        (("hypothesis", "premise", "label"), Columns(("premise", "hypothesis"), "label")),
        (
            ("index:whole", "genre", "sentence1", "sentence2", "score:real"),
            Columns(("sentence1", "sentence2"), "score"),
        ),
        (("question", "sentence", "label"), Columns(("question", "sentence"), "label")),
        (("kommentar", "note:whole"), Columns(("kommentar",), "note")),
        (("Unnamed: 0:whole", "kommentar", "note:real"), Columns(("kommentar",), "note")),
        (("text", "user_id:whole", "toxic:whole"), Columns(("text",), "toxic")),
        (("tokens:words", "tags:words"), Columns(("tokens",), "tags")),
        (("worte:words", "pos:words", "ner_tags:words", "id"), None),
    ],
)
def test_one_way_only_is_taken_and_said(columns: tuple[str, ...], expected: Columns | None) -> None:
    if columns[0].startswith("Unnamed"):
        columns = ("Unnamed0:whole", *columns[1:])
        made = rows(*columns).rename_column("Unnamed0", "Unnamed: 0")
    else:
        made = rows(*columns)
    if expected is None:
        with pytest.raises(ConfigError, match="columns worte, pos hold text, .*: name it, as in --text worte"):
            guess_columns(made)
        return
    found, notes = guess_columns(made)
    assert found == expected
    texts = " and ".join(map(repr, expected.text))
    assert notes == (f"text: column{'s' * (len(expected.text) > 1)} {texts}; label: column {expected.label!r}",)


def test_what_only_counts_the_rows_is_no_label() -> None:
    made = datasets.Dataset.from_dict({"kommentar": ["a", "b", "c"], "nummer": [5, 6, 7], "note": [1, 0, 1]})
    assert guess_columns(made)[0] == Columns(("kommentar",), "note")


def test_named_columns_are_those() -> None:
    made = rows("a", "b", "c", "text", "label:whole", "d,e")
    assert guess_columns(made, "a", "b") == (Columns(("a",), "b"), ())
    assert guess_columns(made, "a, b", "c") == (Columns(("a", "b"), "c"), ())
    assert guess_columns(made, ["b", "a"]) == (Columns(("b", "a"), "label"), ("label: column 'label'",))
    assert guess_columns(made, label="c") == (Columns(("text",), "c"), ("text: column 'text'",))
    assert guess_columns(made, "d,e", "c")[0].text == ("d,e",)
    assert guess_columns(made, "a", labelled=False) == (Columns(("a",), None), ())
    assert guess_columns(made, "a", "c", labelled=False)[0].label == "c"
    assert guess_columns(made, "a,b,c", texts=(3, 3), labelled=False)[0].text == ("a", "b", "c")


def test_two_columns_where_two_are_read() -> None:
    assert guess_columns(rows("links", "rechts", "note:real"), texts=(2, 2))[0] == Columns(("links", "rechts"), "note")
    assert guess_columns(rows("question", "context", "id"), texts=(2, 2), labelled=False)[0].text[1] == "context"
    assert guess_columns(rows("sentence1", "sentence2", "text"), texts=(1, 1), labelled=False)[0].text == ("text",)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            ("review", "stars:whole"),
            {"text": "reviews"},
            "no column 'reviews'. Nearest: review. Columns: review, stars",
        ),
        (("review", "stars:whole"), {"label": "star"}, "no column 'star'. Nearest: stars. Columns: review, stars"),
        (("a", "b", "label"), {}, r"columns a, b hold text, .*--text a \(or --text FIRST,SECOND for pairs\)"),
        (("text", "review", "label"), {}, "the text could be 'text' or 'review': name it, as in --text text"),
        (
            ("text", "label", "stars:whole"),
            {},
            "columns label, stars could each be the label: name it, as in --label l",
        ),
        (("text", "a:whole", "b:whole"), {}, "columns a, b could each be the label: name it, as in --label a"),
        (("text", "id"), {}, "no column is left for the label: name it, as in --label NAME. Columns: text, id"),
        (("x:real", "y:real"), {}, "no column holds text: name it, as in --text NAME"),
        (("a", "b"), {"text": "a,b"}, "no column is left for the label"),
        (("a", "b"), {"text": "a", "label": "a"}, "column 'a' is named both as text and as label"),
        (("a", "b"), {"text": "a,a", "label": "b"}, "text names a column twice: a, a"),
        (("a", "b"), {"text": "a,b", "texts": (1, 1)}, r"text names 2 columns \(a, b\); the task reads 1$"),
        (("a", "b"), {"text": "a", "texts": (2, 3)}, "the task reads 2 to 3"),
    ],
)
def test_no_way_or_more_than_one(columns: tuple[str, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        guess_columns(rows(*columns), **options)
