"""The part of a passage that answers a question: from rows to predictions."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
import torch
from runs import distiller
from transformers import AutoModelForQuestionAnswering, BertConfig, PreTrainedTokenizerFast
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from knowledge_distillation import DataError
from knowledge_distillation.data import train_tokenizer
from knowledge_distillation.data.collating import PadToBucket
from knowledge_distillation.data.columns import Columns
from knowledge_distillation.data.passages import PadWithPassage
from knowledge_distillation.errors import ConfigError
from knowledge_distillation.evaluation.span_texts import exact_match, overlap
from knowledge_distillation.presets import hinton
from knowledge_distillation.tasks import Reading, find_task

TASK = find_task("question-answering")
PASSAGES = [
    "The river rises in the hills near Ulm, passes four capitals and ends in a wide delta at the Black Sea.",
    "Ada wrote the first programme. It was never run, as the engine was never built.",
    "Nobody lives here.",
]
QUESTIONS = ["Where does the river rise?", " What was never built?  ", "Who lives here?"]
ANSWERS = [["in the hills near Ulm", "hills"], ["the engine"], ["Nobody"]]
COLUMNS = Columns(("question", "context"), "answers")
TOKENIZER = train_tokenizer([*PASSAGES, *QUESTIONS], vocab_size=90)


def given(texts: list[str], passage: str) -> dict[str, list[Any]]:
    return {"text": texts, "answer_start": [passage.index(text) for text in texts]}


def rows(answers: Any = ANSWERS) -> datasets.Dataset:
    columns = {"question": QUESTIONS, "context": PASSAGES, "id": ["a", "b", "c"]}
    column = [given(*pair) for pair in zip(answers, PASSAGES, strict=True)]
    return datasets.Dataset.from_dict({**columns, "answers": column})


def reading(max_length: int = 64, **options: Any) -> Reading:
    return Reading(COLUMNS, TOKENIZER, (), max_length, options=options)


def model(seed: int = 0, layers: int = 1) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.5}
    config = BertConfig(vocab_size=len(TOKENIZER), **sizes, **TASK.fields(reading()))
    return AutoModelForQuestionAnswering.from_config(config)


def pieces(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_length", "stride"), [(64, 128), (32, 4), (32, 0), (24, 128)])
def test_windows_against_a_plain_twin(max_length: int, stride: int) -> None:
    """Every window is question and a part of the passage; the answer is pointed at where all of it is there."""
    encoded = TASK.encode(rows(), reading(max_length, stride=stride), True)
    known = TASK.encode(rows(), reading(max_length, stride=stride), False)
    assert max(encoded["length"]) <= max_length and len(encoded) == len(known)
    whole = [TOKENIZER(passage, add_special_tokens=False, return_offsets_mapping=True) for passage in PASSAGES]
    seen: dict[int, list[int]] = {}
    answered = set()
    for window, offsets in zip(encoded, known["offsets"], strict=True):
        row, number = window["window"]
        question = window["input_ids"][1 : window["input_ids"].index(TOKENIZER.sep_token_id)]
        assert question == pieces(QUESTIONS[row])[: (max_length - 3) // 2]
        begin, ids = len(question) + 2, window["input_ids"][len(question) + 2 : -1]
        start = next(n for n, pair in enumerate(whole[row]["offset_mapping"]) if list(pair) == offsets[begin])
        assert ids == whole[row]["input_ids"][start : start + len(ids)] and start <= len(seen.get(row, []))
        assert number == 0 or start > 0
        seen[row] = whole[row]["input_ids"][: start + len(ids)]
        mask = [place == 0 or begin <= place < begin + len(ids) for place in range(window["length"])]
        assert window["passage_mask"] == mask and [pair[0] >= 0 for pair in offsets] == [False, *mask[1:]]
        left = PASSAGES[row].index(ANSWERS[row][0])
        right = left + len(ANSWERS[row][0])
        ends = window["start_positions"], window["end_positions"]
        if offsets[begin][0] <= left and offsets[begin + len(ids) - 1][1] >= right:
            assert offsets[ends[0]][0] == left and offsets[ends[1]][1] == right
            answered.add(row)
        else:
            assert ends == (0, 0)
    assert seen == {row: one["input_ids"] for row, one in enumerate(whole)}
    assert answered == {0, 1, 2} or max_length == 24


def test_a_tokenizer_without_cls_leaves_windows_without_an_answer_out() -> None:
    inner = train_tokenizer([*PASSAGES, *QUESTIONS], vocab_size=90).backend_tokenizer
    inner.post_processor = None
    bare = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    encoded = TASK.encode(rows([["delta"], [], ["Nobody"]]), Reading(COLUMNS, bare, (), 24), True)
    positions: dict[int, set[int]] = {row: set() for row in range(3)}
    for window in encoded:
        positions[window["window"][0]].add(window["start_positions"])
        assert window["passage_mask"].index(True) == len(pieces(QUESTIONS[window["window"][0]]))
    assert -100 in positions[0] and max(positions[0]) > 0 and positions[1] == {-100} and -100 not in positions[2]


def test_a_question_without_an_answer_points_at_cls() -> None:
    for answers in ([["delta"], [], ["Nobody"]], [["delta"], ["Ada"], ["Nobody"]]):
        encoded = TASK.encode(rows(answers), reading(), True)
        assert (encoded[1]["start_positions"] == 0) == (encoded[1]["end_positions"] == 0) == (answers[1] == [])


def test_an_answer_may_be_a_text() -> None:
    columns = {"question": QUESTIONS, "context": PASSAGES, "answers": ["Ulm", "engine", None]}
    encoded = TASK.encode(datasets.Dataset.from_dict(columns), reading(), True)
    same = TASK.encode(rows([["Ulm"], ["engine"], []]), reading(), True)
    for name in ("start_positions", "end_positions"):
        assert encoded[name][:] == same[name][:]


def test_answers_that_nobody_knows_are_not_those_that_there_are_not() -> None:
    columns = {"question": QUESTIONS, "context": PASSAGES, "answers": [None] * 3}
    data = datasets.Dataset.from_dict(columns)
    assert "start_positions" not in TASK.encode(data, reading(), True).column_names
    dev = TASK.encode(data, reading(), False)
    scores = TASK.evaluator(data, dev, reading())(
        model(2), model(1), [TASK.collator(reading())(list(dev))], distiller().accelerator
    )
    assert list(scores) == ["agreement"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": [{"text": ["Ulm"], "answer_start": [0]}] * 3}, "row 0: the answer 'Ulm' begins at character 34"),
        ({"answers": ["Bonn"] * 3}, "row 0: the answer 'Bonn' is not in its passage"),
        ({"question": ["Why?", None, "Who?"]}, "row 1 has no text in column 'question'"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(changes: dict[str, Any], message: str) -> None:
    columns = {"question": QUESTIONS, "context": PASSAGES, **changes}
    with pytest.raises(DataError, match=message):
        TASK.encode(datasets.Dataset.from_dict(columns), reading(), True)


def test_a_window_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_length is 5, of which 4 tokens are taken already"):
        TASK.encode(rows(), reading(5), True)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_has_the_passage_where_it_is(side: str) -> None:
    encoded = TASK.encode(rows(), reading(), False)
    tokenizer = train_tokenizer([*PASSAGES, *QUESTIONS], vocab_size=90)
    tokenizer.padding_side = side
    batch = PadWithPassage(tokenizer)(list(encoded))
    for n, row in enumerate(encoded):
        real = batch["attention_mask"][n].bool()
        assert (
            batch["passage_mask"][n][real].tolist() == row["passage_mask"]
            and not batch["passage_mask"][n][~real].any()
        )
        assert batch["offsets"][n][real].tolist() == row["offsets"] and (batch["offsets"][n][~real] == -1).all()


# --- learnt, measured, predicted -------------------------------------------------------------------------------------


def test_a_method_becomes_entries_on_both_ends() -> None:
    soft, hard = hinton(alpha=0.75, temperature=3.0)
    hidden = {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}
    fitted = TASK.fit([{**soft, "name": "soft"}, hidden, hard])
    assert [entry.get("name") for entry in fitted] == ["soft_start", "soft_end", None, None, None]
    assert [entry["student"] for entry in fitted] == [
        *(
            "output.start_logits",
            "output.end_logits",
            "layer1.hidden_states",
            "output.start_logits",
            "output.end_logits",
        )
    ]
    assert [entry.get("weight") for entry in fitted] == [0.375, 0.375, None, 0.125, 0.125]
    assert fitted[0]["teacher"] == "output.start_logits" and "teacher" not in fitted[3] and fitted[2] == hidden
    assert {entry.get("mask") for entry in fitted} == {"passage", None} and fitted[0]["args"] == {"temperature": 3.0}


def test_a_finder_learns_from_passages_alone() -> None:
    """Soft targets and labels are over the tokens of the passage and [CLS]."""
    data, read = rows(), reading(28, stride=4)
    train = TASK.encode(data, read, True)
    teacher, student = model(1), model(2)
    config = TASK.fit(hinton(alpha=0.5, temperature=2.0))
    options = {"train_dataset": train, "data_collator": TASK.collator(read), "processing_class": TOKENIZER}
    results = distiller(config, teacher, student, **options, learning_rate=0.0).train()
    soft, hard = [], []
    for row in train:
        inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask", "token_type_ids")}
        kept = torch.tensor(row["passage_mask"])
        mine, theirs = (one.eval()(**inputs) for one in (student, teacher))
        for end in ("start", "end"):
            p, q = (side[f"{end}_logits"][0][kept] for side in (theirs, mine))
            soft.append(4 * torch.sum((p / 2).softmax(-1) * ((p / 2).log_softmax(-1) - (q / 2).log_softmax(-1))))
            place = int(kept[: row[f"{end}_positions"]].sum())
            hard.append(-q.log_softmax(-1)[place])
    expected = torch.stack(soft).mean() / 2 + torch.stack(hard).mean() / 2
    assert results["loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_scores_are_those_of_the_predictions(batch_size: int) -> None:
    data, read = rows(), reading(28, stride=4)
    dev = TASK.encode(data, read, False)
    assert len(dev) > 2 * len(data)
    teacher, student = model(1), model(2)
    options = {"train_dataset": TASK.encode(data, read, True), "eval_dataset": dev, "processing_class": TOKENIZER}
    options |= {"data_collator": TASK.collator(read), "evaluator": TASK.evaluator(data, dev, read)}
    options |= {"learning_rate": 0.0, "per_device_eval_batch_size": batch_size}
    results = distiller(TASK.hard_entries(), teacher, student, **options).train()
    answers = []
    for who, one in (("", student), ("teacher_", teacher)):
        said = [row["prediction"] for row in TASK.predict(one, data, read)]
        for name, score in (("f1", overlap), ("exact_match", exact_match)):
            expected = sum(score(*pair) for pair in zip(said, ANSWERS, strict=True)) / 3
            assert results[f"eval_{who}{name}"] == pytest.approx(expected)
        answers.append([row["start"] for row in TASK.predict(one, data, read)])
    alike = sum(mine == theirs for mine, theirs in zip(*answers, strict=True)) / 3
    assert results["eval_agreement"] == pytest.approx(alike)
    assert results["best_f1"] == results["eval_f1"]


def test_windows_that_processes_share_are_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    data, read = rows(), reading(28, stride=4)
    dev, (teacher, student) = TASK.encode(data, read, False), (model(1), model(2))
    batches = [TASK.collator(read)([row]) for row in dev]
    accelerator = distiller().accelerator
    whole = TASK.evaluator(data, dev, read)(student, teacher, batches, accelerator)
    shares: list[Any] = []
    monkeypatch.setattr("accelerate.utils.gather_object", lambda parts: shares.extend(parts) or list(shares))
    for share in (batches[::2], [], batches[1::2]):
        scores = TASK.evaluator(data, dev, read)(student, teacher, share, accelerator)
    assert scores == pytest.approx(whole) and len(scores) == 5


def test_predictions_are_parts_of_the_passage() -> None:
    finder = model(3).train()
    for one, passage in zip(
        TASK.predict(finder, rows().remove_columns("answers"), reading(28)), PASSAGES, strict=True
    ):
        assert passage[one["start"] : one["end"]] == one["prediction"] != "" and 0 < one["probability"] < 1
        assert len(pieces(one["prediction"])) <= 30
    assert finder.training
    short = TASK.predict(finder, rows(), reading(28, longest_answer=1))
    assert all(len(pieces(one["prediction"])) == 1 for one in short)


def test_no_answer_is_said_where_questions_may_have_none() -> None:
    finder = model(3)
    with torch.no_grad():
        finder.qa_outputs.weight.zero_()  # all places are alike
    read = reading(no_answer=True)
    assert [one["prediction"] != "" for one in TASK.predict(finder, rows(), read)] == [True] * 3
    lower = type("Lower", (type(finder),), {"forward": _with_cls_first})
    finder.__class__ = lower
    assert [one["prediction"] for one in TASK.predict(finder, rows(), read)] == ["", "", ""]
    assert all(one["prediction"] for one in TASK.predict(finder, rows(), reading()))
    data = rows([[], ["the engine"], ["Nobody"]])  # one has none: that is what the scores go by
    dev = TASK.encode(data, reading(), False)
    loader = [TASK.collator(reading())(list(dev))]
    scores = TASK.evaluator(data, dev, reading())(finder, None, loader, distiller().accelerator)
    assert scores == pytest.approx({"f1": 1 / 3, "exact_match": 1 / 3})


def _with_cls_first(self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:
    logits = torch.zeros(input_ids.shape)
    logits[:, 0] = 1.0
    return QuestionAnsweringModelOutput(start_logits=logits, end_logits=logits)


def test_windows_are_padded_into_few_shapes() -> None:
    encoded = TASK.encode(rows(), reading(28), True)
    short = [row for row in encoded if row["length"] < 28][-1:]
    batch = PadToBucket(TASK.collator(reading()), 14, 28)(short)
    assert batch["input_ids"].shape == batch["passage_mask"].shape == (1, 28) and short
