"""GLUE's files are read strictly: what fits is read as the hub has it, what does not is one clear error."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pytest

from knowledge_distillation.data.glue import GLUE_TASKS, find_task, load_glue
from knowledge_distillation.errors import ConfigError, DataError

SST2 = "sentence\tlabel\na fine film \t1\ndull\t0\n"


def rows(*lines: str, end: str = "\n") -> str:
    """A file's content; columns are written apart by " | " here."""
    return "".join(line.replace(" | ", "\t") + end for line in lines)


# For each task: its folder and a train file of GLUE's own layout, then its first row as the hub has it.
LAYOUTS = {
    "sst2": ("SST-2", SST2, {"sentence": "a fine film ", "label": 1}),
    "qqp": (
        "QQP",
        rows("id | qid1 | qid2 | question1 | question2 | is_duplicate", "9 | 1 | 2 | why ? | how ? | 0"),
        {"question1": "why ?", "question2": "how ?", "label": 0},
    ),
    "qnli": (
        "QNLI",
        rows("index | question | sentence | label", "0 | who ? | me | not_entailment"),
        {"question": "who ?", "sentence": "me", "label": 1},
    ),
    "rte": (
        "RTE",
        rows("index | sentence1 | sentence2 | label", "0 | it rains | it pours | entailment"),
        {"sentence1": "it rains", "sentence2": "it pours", "label": 0},
    ),
    "mrpc": (
        "MRPC",
        rows("\ufeffQuality | #1 ID | #2 ID | #1 String | #2 String", "1 | 7 | 8 | one | two", end="\r\n"),
        {"sentence1": "one", "sentence2": "two", "label": 1},
    ),
    "cola": ("CoLA", rows("gj04 | 0 | * | me likes it"), {"sentence": "me likes it", "label": 0}),
    "stsb": (
        "STS-B",
        rows(
            "index | genre | filename | year | old_index | source1 | source2 | sentence1 | sentence2 | score",
            "0 | g | f | y | 1 | a | b | a man | a dog | 2.500",
        ),
        {"sentence1": "a man", "sentence2": "a dog", "label": 2.5},
    ),
    "wnli": (
        "WNLI",
        rows("index | sentence1 | sentence2 | label", "0 | x | y | 1"),
        {"sentence1": "x", "sentence2": "y", "label": 1},
    ),
}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("GLUE_DATA_DIR", raising=False)


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_sst2(tmp_path: Path, train: str | bytes = SST2) -> Path:
    write(tmp_path / "SST-2", {"train.tsv": train, "dev.tsv": SST2})
    return tmp_path


def error_of(tmp_path: Path, train: str | bytes, task: str = "sst2", **options) -> str:
    if task == "sst2":
        write_sst2(tmp_path, train)
    with pytest.raises(DataError) as caught:
        load_glue(task, tmp_path, **options)
    return str(caught.value)


@pytest.mark.parametrize("task", LAYOUTS)
@pytest.mark.parametrize("inside", [False, True], ids=["glue folder", "task folder"])
def test_every_layout_is_read_with_the_columns_of_the_hub(tmp_path, task, inside):
    folder, content, first = LAYOUTS[task]
    write(tmp_path / folder, {"train.tsv": content, "dev.tsv": content})
    splits = load_glue(task, tmp_path / folder if inside else tmp_path)
    assert set(splits) == {"train", "validation"}
    assert splits["train"][0] == {**first, "idx": 0}
    assert splits["validation"].column_names == [*GLUE_TASKS[task].text_columns, "label", "idx"]


def test_mnli_has_two_validation_splits_and_the_matched_one_is_the_plain_one(tmp_path):
    texts = {"train.tsv": "it is dry", "dev_matched.tsv": "matched", "dev_mismatched.tsv": "mismatched"}
    header = "index | promptID | sentence1 | sentence2 | gold_label"
    files = {name: rows(header, f"0 | 1 | it rains | {text} | contradiction") for name, text in texts.items()}
    write(tmp_path / "MNLI", files)
    splits = load_glue("mnli", tmp_path)
    assert splits["train"][0] == {"premise": "it rains", "hypothesis": "it is dry", "label": 2, "idx": 0}
    assert set(splits) == {"train", "validation", "validation_matched", "validation_mismatched"}
    assert splits["validation"]["hypothesis"] == splits["validation_matched"]["hypothesis"] == ["matched"]
    assert splits["validation_mismatched"]["hypothesis"] == ["mismatched"]


def test_mrpc_reads_microsofts_own_files_and_says_what_validation_is(tmp_path, caplog):
    content = LAYOUTS["mrpc"][1]
    write(tmp_path / "MRPC", {"msr_paraphrase_train.txt": content, "msr_paraphrase_test.txt": content})
    assert load_glue("mrpc", tmp_path)["validation"][0]["sentence2"] == "two"
    assert "validation is msr_paraphrase_test.txt, GLUE's test set" in caplog.text
    assert len(caplog.records) == 1


def test_quotes_and_unusual_line_ends_are_ordinary_text(tmp_path):
    text = 'a "quoted\u2028 film\x85 \x0b it is " \''
    assert load_glue("sst2", write_sst2(tmp_path, f"{SST2}{text}\t0"))["train"]["sentence"][2] == text


def test_test_rows_are_labelled_minus_one_as_on_the_hub(tmp_path):
    write(write_sst2(tmp_path) / "SST-2", {"test.tsv": rows("index | sentence", "0 | so so")})
    assert load_glue("sst2", tmp_path)["test"][:] == {"sentence": ["so so"], "label": [-1], "idx": [0]}


def test_labels_of_a_test_split_are_read_where_it_has_them(tmp_path):
    write(write_sst2(tmp_path) / "SST-2", {"test.tsv": SST2})
    assert load_glue("sst2", tmp_path)["test"]["label"][:] == [1, 0]


def test_words_that_readers_of_tables_take_for_nothing_are_text(tmp_path):
    words = ["NA", "null", "nan", "None", "#N/A", "inf", "# x", "mid\rdle", '"open', 'clo"sed"']
    content = "sentence\tlabel\n" + "".join(f"{word}\t1\n" for word in words)
    assert load_glue("sst2", write_sst2(tmp_path, content))["train"]["sentence"][:] == words


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GLUE_DATA_DIR", str(write_sst2(tmp_path)))
    assert len(load_glue("sst2")["train"]) == 2


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("only text", "found 1 column, expected 2 (sentence, label)"),
        ("a\tb\t1", "found 3 columns, expected 2 (sentence, label)"),
        ("", "found 1 column, expected 2 (sentence, label)"),
        ("fine\t2", "found label '2', expected one of 0, 1"),
        ("fine\t", "found label '', expected one of 0, 1"),
        ("fine\tpositive", "found label 'positive', expected one of 0, 1"),
        ("  \t1", "found an empty sentence, expected text"),
        (b"caf\xe9\t1", "found byte 0xe9 at position 3, expected UTF-8"),
    ],
)
def test_a_broken_row_is_one_error_with_file_and_line(tmp_path, row, problem):
    row = row.encode() if isinstance(row, str) else row
    message = error_of(tmp_path, SST2.encode() + row + b"\nlast\t1\n")
    end = '. In Python on_broken_row="skip" leaves such rows out'
    assert message == f"{tmp_path}/SST-2/train.tsv, line 4: {problem}{end}"


def test_further_broken_rows_are_counted(tmp_path):
    assert "line 4: found 1 column, expected 2 (sentence, label). 2 more broken rows follow." in error_of(
        tmp_path, SST2 + "x\ny\t5\nz\t1\n\t0\n"
    )


@pytest.mark.parametrize(
    ("task", "old", "new", "problem"),
    [
        ("rte", "entailment", "neutral", "line 2: found label 'neutral', expected one of entailment, not_entailment"),
        ("stsb", "2.500", "5.1", "line 2: found score '5.1', expected a number from 0 to 5"),
        ("stsb", "2.500", "nan", "line 2: found score 'nan', expected a number from 0 to 5"),
        ("stsb", "2.500", "high", "line 2: found score 'high', expected a number from 0 to 5"),
        ("cola", "gj04\t0", "gj04\t*", "line 1: found label '*', expected one of 0, 1"),
        (
            "qqp",
            "is_duplicate",
            "duplicate",
            "has no column 'is_duplicate'. Its first line names: 'id', 'qid1', 'qid2', 'question1', 'question2', "
            "'duplicate'. Nearest: duplicate",
        ),
        ("mrpc", "#2 String", "#1 String", "has no column '#2 String'"),
    ],
)
def test_labels_and_columns_are_those_of_the_task(tmp_path, task, old, new, problem):
    folder, content, _ = LAYOUTS[task]
    write(tmp_path / folder, {"train.tsv": content.replace(old, new), "dev.tsv": content})
    assert problem in error_of(tmp_path, "", task)


def test_broken_rows_can_be_skipped_and_are_counted_in_the_log(tmp_path, caplog):
    write_sst2(tmp_path, SST2 + "broken\nlast\t1\n")
    train = load_glue("sst2", tmp_path, on_broken_row="skip")["train"]
    assert train["sentence"][:] == ["a fine film ", "dull", "last"]
    assert train["idx"][:] == [0, 1, 3]
    assert "skipped 1 broken rows; the first is line 4: found 1 column" in caplog.text


def test_a_file_of_only_broken_rows_cannot_be_skipped(tmp_path):
    message = error_of(tmp_path, "sentence\tlabel\nx\n", on_broken_row="skip")
    assert message.endswith("train.tsv holds no rows but 1 broken ones")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "train.tsv is empty"),
        ("sentence\tlabel\n", "train.tsv holds no rows"),
        (b"sent\xffence\tlabel\n", "line 1: the header is not UTF-8"),
        ("sentense\tlabel\nx\t1\n", "'sentence'. Its first line names: 'sentense', 'label'. Nearest: sentense"),
    ],
)
def test_an_unusable_file_is_named(tmp_path, content, problem):
    assert problem in error_of(tmp_path, content)


def test_a_missing_folder_or_file_says_what_is_there(tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder; expected one that holds SST-2/"):
        load_glue("sst2", tmp_path / "nowhere")
    write(tmp_path / "SST2", {"train.tsv": SST2})
    with pytest.raises(DataError, match=r"holds neither SST-2/ nor train.tsv. It holds: SST2. Nearest: SST2"):
        load_glue("sst2", tmp_path)
    with pytest.raises(DataError, match=r"SST2 has no file dev.tsv. It holds: train.tsv."):
        load_glue("sst2", tmp_path / "SST2")


def test_task_names_are_the_hubs_or_the_folders():
    assert find_task("STS-B") is GLUE_TASKS["stsb"]
    with pytest.raises(DataError, match="no GLUE task 'sst3'. Tasks: sst2, qqp, .* Nearest: sst2"):
        find_task("sst3")


def test_without_a_folder_the_hub_is_asked(monkeypatch):
    def split(count):
        columns = {"sentence": ["s"] * count, "label": [0] * count, "idx": list(range(count))}
        return datasets.Dataset.from_dict(columns)

    def load_dataset(path, name):
        assert (path, name) == ("nyu-mll/glue", "sst2")
        return datasets.DatasetDict(train=split(5), validation=split(4))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = load_glue("sst2", max_eval_samples=2)
    assert (len(splits["train"]), len(splits["validation"])) == (5, 2)


def test_an_unreachable_hub_names_the_way_out(monkeypatch):
    def load_dataset(path, name):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError, match=r"offline\. To read local files pass data_dir or set GLUE_DATA_DIR to .* QQP/"
    ):
        load_glue("qqp")


def test_a_sample_is_fixed_random_and_nested(tmp_path):
    write_sst2(tmp_path, "sentence\tlabel\n" + "".join(f"row {row}\t{row % 2}\n" for row in range(200)))
    small, large = (load_glue("sst2", tmp_path, max_train_samples=size) for size in (20, 50))
    chosen = small["train"]["idx"][:]
    assert len(chosen) == 20 and chosen == sorted(chosen) and chosen != list(range(20))
    assert set(chosen) < set(large["train"]["idx"][:])
    assert load_glue("sst2", tmp_path, max_train_samples=20)["train"][:] == small["train"][:]
    assert small["train"]["sentence"][:] == [f"row {row}" for row in chosen]
    assert len(load_glue("sst2", tmp_path, max_train_samples=999)["train"]) == 200
    assert len(small["validation"]) == 2 and len(load_glue("sst2", tmp_path, max_eval_samples=1)["validation"]) == 1


def test_arguments_out_of_range_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="max_train_samples is 0; it must be at least 1"):
        load_glue("sst2", tmp_path, max_train_samples=0)
    with pytest.raises(ConfigError, match='on_broken_row is \'ignore\'; it can be "error" or "skip"'):
        load_glue("sst2", tmp_path, on_broken_row="ignore")


REAL = os.environ.get("GLUE_DATA_DIR")


@pytest.mark.skipif(not REAL or not (Path(REAL) / "SST-2").is_dir(), reason="set GLUE_DATA_DIR to a folder with SST-2")
def test_the_real_sst2_is_read_whole():
    splits = load_glue("sst2", REAL)
    assert {name: len(split) for name, split in splits.items()} == {"train": 67349, "validation": 872, "test": 1821}
    assert sum(splits["train"]["label"]) == 37569
