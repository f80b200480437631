"""GLUE's files are read strictly: what fits is read as the hub has it, what does not is one clear error."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pytest

from knowledge_distillation.data.glue import GLUE_TASKS, find_task, load_glue
from knowledge_distillation.errors import ConfigError, DataError

SST2 = "sentence\tlabel\na fine film \t1\ndull\t0\n"

# For each task: its folder and the files of GLUE's own layout, then the first train row as the hub has it.
LAYOUTS = {
    "sst2": ("SST-2", {"train.tsv": SST2, "dev.tsv": SST2, "test.tsv": "index\tsentence\n0\tso so\n"}, {"sentence": "a fine film ", "label": 1}),
    "qqp": ("QQP", dict.fromkeys(("train.tsv", "dev.tsv"), "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n9\t1\t2\twhy ?\thow ?\t0\n"), {"question1": "why ?", "question2": "how ?", "label": 0}),
    "qnli": ("QNLI", dict.fromkeys(("train.tsv", "dev.tsv"), "index\tquestion\tsentence\tlabel\n0\twho ?\tme\tnot_entailment\n"), {"question": "who ?", "sentence": "me", "label": 1}),
    "rte": ("RTE", dict.fromkeys(("train.tsv", "dev.tsv"), "index\tsentence1\tsentence2\tlabel\n0\tit rains\tit pours\tentailment\n"), {"sentence1": "it rains", "sentence2": "it pours", "label": 0}),
    "mrpc": ("MRPC", dict.fromkeys(("train.tsv", "dev.tsv"), "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tone\ttwo\r\n"), {"sentence1": "one", "sentence2": "two", "label": 1}),
    "cola": ("CoLA", dict.fromkeys(("train.tsv", "dev.tsv"), "gj04\t0\t*\tme likes it\n"), {"sentence": "me likes it", "label": 0}),
    "stsb": ("STS-B", dict.fromkeys(("train.tsv", "dev.tsv"), "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n0\tg\tf\ty\t1\ta\tb\ta man\ta dog\t2.500\n"), {"sentence1": "a man", "sentence2": "a dog", "label": 2.5}),
    "wnli": ("WNLI", dict.fromkeys(("train.tsv", "dev.tsv"), "index\tsentence1\tsentence2\tlabel\n0\tx\ty\t1\n"), {"sentence1": "x", "sentence2": "y", "label": 1}),
}  # fmt: skip
MNLI_HEADER = "index\tpromptID\tsentence1\tsentence2\tgold_label\n"


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
    folder, files, first = LAYOUTS[task]
    write(tmp_path / folder, files)
    splits = load_glue(task, tmp_path / folder if inside else tmp_path)
    assert set(splits) == {"train", "validation"} | ({"test"} if "test.tsv" in files else set())
    assert splits["train"][0] == {**first, "idx": 0}
    assert splits["validation"].column_names == [*GLUE_TASKS[task].text_columns, "label", "idx"]


def test_mnli_has_two_validation_splits_and_the_matched_one_is_the_plain_one(tmp_path):
    row = MNLI_HEADER + "0\t1\tit rains\tit is {}\tcontradiction\n"
    write(tmp_path / "MNLI", {"train.tsv": row.format("dry"), "dev_matched.tsv": row.format("m"), "dev_mismatched.tsv": row.format("mm")})  # fmt: skip
    splits = load_glue("mnli", tmp_path)
    assert splits["train"][0] == {"premise": "it rains", "hypothesis": "it is dry", "label": 2, "idx": 0}
    assert set(splits) == {"train", "validation", "validation_matched", "validation_mismatched"}
    assert splits["validation"][:] == splits["validation_matched"][:] != splits["validation_mismatched"][:]


def test_mrpc_reads_microsofts_own_files_and_says_what_validation_is(tmp_path, caplog):
    rows = LAYOUTS["mrpc"][1]["train.tsv"]
    write(tmp_path / "MRPC", {"msr_paraphrase_train.txt": rows, "msr_paraphrase_test.txt": rows})
    assert load_glue("mrpc", tmp_path)["validation"][0]["sentence2"] == "two"
    assert "validation is msr_paraphrase_test.txt, GLUE's test set" in caplog.text
    assert len(caplog.records) == 1


def test_quotes_and_unusual_line_ends_are_ordinary_text(tmp_path):
    text = 'a "quoted\u2028 film\x85 \x0b it is " \''
    assert load_glue("sst2", write_sst2(tmp_path, f"{SST2}{text}\t0"))["train"]["sentence"][2] == text


def test_test_rows_are_labelled_minus_one_as_on_the_hub(tmp_path):
    folder, files, _ = LAYOUTS["sst2"]
    write(tmp_path / folder, files)
    assert load_glue("sst2", tmp_path)["test"][:] == {"sentence": ["so so"], "label": [-1], "idx": [0]}


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
    assert message == f'{tmp_path}/SST-2/train.tsv, line 4: {problem}. on_broken_row="skip" leaves such rows out'


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
        ("qqp", "is_duplicate", "duplicate", "has no column 'is_duplicate'. Its first line names: 'id', 'qid1', 'qid2', "
         "'question1', 'question2', 'duplicate'. Nearest: duplicate"),
        ("mrpc", "#2 String", "#1 String", "has no column '#2 String'"),
    ],
)  # fmt: skip
def test_labels_and_columns_are_those_of_the_task(tmp_path, task, old, new, problem):
    folder, files, _ = LAYOUTS[task]
    write(tmp_path / folder, {name: content.replace(old, new) for name, content in files.items()})
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
        ("sentense\tlabel\nx\t1\n", "has no column 'sentence'. Its first line names: 'sentense', 'label'. Nearest: sentense"),
    ],
)  # fmt: skip
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
    def rows(count):
        return datasets.Dataset.from_dict({"sentence": ["s"] * count, "label": [0] * count, "idx": list(range(count))})

    def load_dataset(path, name):
        assert (path, name) == ("nyu-mll/glue", "sst2")
        return datasets.DatasetDict(train=rows(5), validation=rows(4))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert {name: len(split) for name, split in load_glue("sst2", max_eval_samples=2).items()} == {"train": 5, "validation": 2}  # fmt: skip


def test_an_unreachable_hub_names_the_way_out(monkeypatch):
    def load_dataset(path, name):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"offline\. To read local files pass data_dir or set GLUE_DATA_DIR to .* QQP/"):
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
