"""Every example runs, both recipes run from the command line, and a script in the long-known style still works."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import Forked
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

from knowledge_distillation import (
    KnowledgeDistiller,
    MultiLayerBasedDistillationEvaluator,
    MultiLayerBasedDistillationLoss,
)
from knowledge_distillation.cli.commands import main
from knowledge_distillation.data import train_tokenizer

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
RECIPES = sorted((ROOT / "examples").glob("*.yaml"))


def ran(call: list[str], folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def fell(output: str, name: str) -> bool:
    """Whether the example says that this value has become clearly smaller."""
    first, last = re.search(rf"^{name}:? ([\d.]+) -> ([\d.]+)$", output, re.MULTILINE).groups()
    return float(last) < 0.9 * float(first)


# --- the scripts -----------------------------------------------------------------------------------------------------


def check_bert12_to_bert3(output: str) -> None:
    pairs = re.findall(r"^(\d) +\w+\.(\w+) [\d×]+ +\w+\.(\w+) [\d×]+ ", output, re.MULTILINE)
    outputs = ["embedding", *["hidden_states", "attention"] * 3]
    assert pairs == [(str(number), name, name) for number, name in enumerate(outputs)]
    assert fell(output, "loss")


def check_bert12_to_bert3_adaptor(output: str) -> None:
    check_bert12_to_bert3(output)
    assert output.count("runs whole, for its output adaptor") == 2
    logged = [float(loss) for loss in re.findall(r"^epoch 1  step \d+  loss ([\d.]+)$", output, re.MULTILINE)]
    ends = [float(loss) for loss in re.search(r"^loss ([\d.]+) -> ([\d.]+)$", output, re.MULTILINE).groups()]
    assert len(logged) == 3 and [logged[0], logged[-1]] == pytest.approx(ends, abs=2e-4)


def check_custom_evaluator(output: str) -> None:
    assert re.search(r"^callable form: \{.*'eval_mean_rank': [12]\.\d+, 'best_mean_rank': [12]\.\d+\}$", output, re.M)
    losses = [float(loss) for loss in re.findall(r"^epoch 1 step \d+ loss ([\d.]+)$", output, re.MULTILINE)]
    kept = float(re.search(r"^object form: kept the student with loss ([\d.]+)$", output, re.MULTILINE)[1])
    assert len(losses) > 1 and kept == min(losses)


def check_custom_loss(output: str) -> None:
    assert fell(output, "sentence") and fell(output, "mlp")
    assert float(re.search(r"weights moved by up to ([\d.]+)$", output, re.MULTILINE)[1]) > 0


def check_data_free(output: str) -> None:
    scores = re.findall(r"^seed 1 (teacher|student, generator|student, bank): (\d+\.\d)$", output, re.MULTILINE)
    assert [name for name, _ in scores] == ["teacher", "student, generator", "student, bank"]
    assert all(0 < float(score) < 100 for _, score in scores)


def check_digits_sweep(output: str) -> None:
    passed, rows, runs = (
        int(re.search(pattern, output)[1]) for pattern in (r"runs: (\d+) of", r"of (\d+),", r"in (\d+)")
    )
    assert (passed, rows, runs) == (64, 64, 4)  # the teacher's pass once for every row
    assert re.search(r"^ alpha \\ temperature +2 +8 ", output, re.MULTILINE)
    assert re.search(r"^best student: runs/alpha=0\.[28],temperature=[28],seed=1/student$", output, re.MULTILINE)


def check_own_loop(output: str) -> None:
    lines = re.findall(r"^epoch (\d)/(\d)  loss ([\d.]+)  accuracy [01]\.\d+", output, re.MULTILINE)
    one = [("1", "1"), ("1", "1"), ("2", "3"), ("3", "3")]  # teacher, student, and the student goes on where it was
    assert [line[:2] for line in lines] == one * 2
    for students in (lines[1:4], lines[5:]):
        losses = [float(line[2]) for line in students]
        assert losses == sorted(losses, reverse=True) and losses[0] != losses[-1]


def check_scenes(output: str) -> None:
    found = re.findall(r"^(teacher|plain|distilled) +(?:map50|mean_iou) +([01]\.\d{4})", output, re.MULTILINE)
    assert [name for name, _ in found] == ["teacher", "plain", "distilled", "plain", "distilled"]
    assert re.search(r"^distilled +mean +[01]\.\d{4} ± [01]\.\d{4}$", output, re.MULTILINE)


RUNS = {
    ("own_loop",): check_own_loop,
    ("detection", "--seeds", "1", "2"): check_scenes,
    ("segmentation", "--seeds", "1", "2"): check_scenes,
    ("bert12_to_bert3",): check_bert12_to_bert3,
    ("bert12_to_bert3", "--adaptor"): check_bert12_to_bert3_adaptor,
    ("custom_evaluator",): check_custom_evaluator,
    ("custom_loss",): check_custom_loss,
    ("data_free",): check_data_free,
    ("digits_sweep",): check_digits_sweep,
}


def test_every_example_is_run_and_is_in_the_table():
    assert len(EXAMPLES) >= 3 and len(RECIPES) >= 2
    assert {path.stem for path in EXAMPLES} == {run[0] for run in RUNS} | {"scenes"}  # which two of them import
    assert {path.stem for path in RECIPES} == {*TASKS, *OF_IMAGES}
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES + RECIPES if f"[{path.name}]({path.name})" not in page] == []


def run_script(path: str, folder: str, *options: str) -> None:
    """What `python PATH OPTIONS` does in a folder."""
    os.chdir(folder)
    sys.argv = [path, *options]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(path, run_name="__main__")


@pytest.mark.parametrize("run", RUNS, ids=" ".join)
def test_an_example_runs(run, tmp_path):
    name, *options = run
    folder, script = tmp_path / "here", str(ROOT / "examples" / f"{name}.py")
    folder.mkdir()
    process = Forked(run_script, script, str(folder), "--smoke", *options, log=tmp_path / "log.txt")
    status = process.wait(timeout=300)
    output = process.log.read_text()
    assert status == 0, output
    RUNS[run](output)
    assert list(folder.iterdir()) == []  # an example leaves nothing behind


# --- the recipes -----------------------------------------------------------------------------------------------------

WORDS = (
    "the film was good bad dull bright never very not plot and how do i learn what is a best way to cook rice".split()
)
HEADERS = {"SST-2": "sentence\tlabel", "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"}
TASKS = {
    "glue_sst2": ("SST-2", "accuracy"),
    "glue_qqp": ("QQP", "f1"),
    "bilstm_sst2": ("SST-2", "accuracy"),
    "bilstm_qqp": ("QQP", "f1"),
}
OF_IMAGES = ("cifar10", "digits", "image_folder")  # run by test_vision_recipes.py


def sentence(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(3, 9)))


def write_glue(folder: Path, task: str, rows: dict[str, int]) -> None:
    generator = random.Random(0)
    (folder / task).mkdir(parents=True)
    for split, number in rows.items():
        lines = [HEADERS[task]]
        for i in range(number):
            pair = (f"{i}", f"{2 * i}", f"{2 * i + 1}", sentence(generator), sentence(generator))
            lines.append("\t".join((*(pair if task == "QQP" else (sentence(generator),)), str(i % 2))))
        (folder / task / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def shrunk(*models: str) -> list[str]:
    """Overrides that make the models of a recipe narrow, and a run three steps long."""
    sizes = ("hidden_size=16", "num_attention_heads=2", "intermediate_size=16", "max_position_embeddings=32")
    narrow = [f"{model}.{size}" for model in models for size in sizes]
    run = [
        "vocab_size=90",
        "training.max_steps=3",
        "training.per_device_train_batch_size=4",
        "training.logging_steps=1",
    ]
    return [part for override in (*narrow, *run) for part in ("--set", override)]


def call_distill(*arguments: str) -> None:
    sys.argv = ["distill", *arguments]
    main()


def distill(*arguments: str, folder: Path) -> str:
    """`distill ARGUMENTS` in a process of its own."""
    process = Forked(call_distill, *arguments, log=folder / "log.txt", COLUMNS="200")
    status = process.wait(timeout=300)
    output = process.log.read_text()
    assert status == 0, output
    return output


def losses(run: Path) -> list[dict]:
    return [line for line in map(json.loads, (run / "history.jsonl").read_text().splitlines()) if "loss" in line]


@pytest.mark.parametrize("recipe", ["glue_sst2", "glue_qqp"])
def test_a_recipe_runs_from_text_to_a_student_that_transformers_loads(recipe, tmp_path):
    task, metric = TASKS[recipe]
    path, data = str(ROOT / "examples" / f"{recipe}.yaml"), str(tmp_path / "glue")
    write_glue(tmp_path / "glue", task, {"train": 24, "dev": 8})
    both = shrunk("teacher", "student")

    plan = distill("check", path, *both, "--set", f"data_dir={data}", folder=tmp_path)
    assert "bert_layer12.attention" in plan and "runs 12 of 12 layers, and the head" in plan
    assert {entry.name for entry in tmp_path.iterdir()} == {"glue", "log.txt"}  # it trains and writes nothing

    distill("finetune", path, *both, "--data-dir", data, "-o", str(tmp_path / "teacher"), folder=tmp_path)
    assert [list(line) for line in losses(tmp_path / "teacher")] == [
        ["step", "epoch", "loss", "cross_entropy:output_logits", "learning_rate"]
    ] * 3

    given = ("--data-dir", data, "--teacher", str(tmp_path / "teacher" / "student"), "-o", str(tmp_path / "run"))
    output = distill("run", path, *shrunk("student"), *given, "--baseline", folder=tmp_path)
    for name in ("teacher", "student without distillation", "student with distillation"):
        assert re.search(rf"{name} .*[01]\.\d{{4}}", output), output
    assert "bert_layer8.hidden_states" in output and f"best {metric}" in output

    for folder in (tmp_path / "run", tmp_path / "run" / "baseline"):
        assert [line["step"] for line in losses(folder)] == [1, 2, 3]
        student, loading = AutoModelForSequenceClassification.from_pretrained(
            folder / "student", output_loading_info=True
        )
        assert not loading["missing_keys"] and not loading["unexpected_keys"]
        assert (student.config.num_hidden_layers, student.config.hidden_size) == (3, 16)
    tokens = AutoTokenizer.from_pretrained(tmp_path / "run" / "student")("the film was good", return_tensors="pt")
    assert student(**tokens).logits.shape == (1, 2)
    assert len(losses(tmp_path / "run")[0]) == 13  # step, epoch, loss, rate, and a term for each of nine entries


@pytest.mark.parametrize("recipe", ["bilstm_sst2", "bilstm_qqp"])
def test_a_recipe_makes_a_bilstm_of_a_pretrained_teacher(recipe, tmp_path):
    task, metric = TASKS[recipe]
    path, data = str(ROOT / "examples" / f"{recipe}.yaml"), str(tmp_path / "glue")
    write_glue(tmp_path / "glue", task, {"train": 24, "dev": 8})
    tokenizer = train_tokenizer(WORDS, vocab_size=90)
    sizes = {"num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    BertModel(BertConfig(hidden_size=16, **sizes)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    small = [*("max_steps=3", "logging_steps=1"), *(f"per_device_{kind}_batch_size=4" for kind in ("train", "eval"))]
    short = [part for size in small for part in ("--set", f"training.{size}", "--set", f"finetune.{size}")]
    narrow = ["--set", "student.embedding_size=12", "--set", "student.hidden_size=8"]

    given = ("--data-dir", data, "--teacher", str(tmp_path / "bert"), "-o", str(tmp_path / "teacher"))
    distill("finetune", path, *short, *given, folder=tmp_path)
    given = ("--data-dir", data, "--teacher", str(tmp_path / "teacher" / "student"), "-o", str(tmp_path / "run"))
    output = distill("run", path, *short, *narrow, *given, "--baseline", folder=tmp_path)
    assert "student: BiLSTMForSequenceClassification" in output and f"best {metric}" in output

    for folder in (tmp_path / "run", tmp_path / "run" / "baseline"):
        assert [line["step"] for line in losses(folder)] == [1, 2, 3]
        student = AutoModelForSequenceClassification.from_pretrained(folder / "student")
        assert (student.config.embedding_size, student.config.sentence_pairs) == (12, task == "QQP")
    reader = AutoTokenizer.from_pretrained(tmp_path / "run" / "student")
    texts = ["how do i cook rice"] * (2 if task == "QQP" else 1)
    assert student(**reader(*texts, return_tensors="pt")).logits.shape == (1, 2)


def test_an_example_is_a_script_of_its_own(tmp_path):
    """The others run in processes that have imported the libraries already."""
    assert "--smoke" in ran([sys.executable, str(ROOT / "examples" / "segmentation.py"), "--help"], tmp_path)


def test_the_package_is_a_command(tmp_path):
    assert "distil" in ran([sys.executable, "-m", "knowledge_distillation", "--help"], tmp_path).lower()


# --- a script in the style of old ------------------------------------------------------------------------------------


def four_way_unpack(model_output):
    last_hidden_state, pooler_output, hidden_states, attentions = model_output
    output = {"embedding_layer": {"embedding": hidden_states[0]}}
    for idx in range(len(attentions)):
        output["bert_layer" + str(idx + 1)] = {"hidden_states": hidden_states[idx + 1], "attention": attentions[idx]}
    return output


def long_entry(teacher: str, student: str, output: str) -> dict:
    return {
        "type": "ts_distill",
        "teacher_layer_name": teacher,
        "teacher_layer_output_name": output,
        "student_layer_name": student,
        "student_layer_output_name": output,
        "loss": {"loss_function": "mse", "args": {}},
        "weight": 1.0,
    }


SEVEN = [
    long_entry("embedding_layer", "embedding_layer", "embedding"),
    long_entry("bert_layer4", "bert_layer1", "hidden_states"),
    long_entry("bert_layer4", "bert_layer1", "attention"),
    long_entry("bert_layer8", "bert_layer2", "hidden_states"),
    long_entry("bert_layer8", "bert_layer2", "attention"),
    long_entry("bert_layer12", "bert_layer3", "hidden_states"),
    long_entry("bert_layer12", "bert_layer3", "attention"),
]


def bert(layers: int, **more: str) -> BertModel:
    """As one wrote it: no attention implementation named, hidden states and attentions switched on."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 100}
    return BertModel(
        BertConfig(num_hidden_layers=layers, output_hidden_states=True, output_attentions=True, **sizes, **more)
    )


def batches_of(rows: int = 48) -> DataLoader:
    input_ids = torch.randint(1, 100, (rows, 10))
    data = TensorDataset(input_ids, torch.ones_like(input_ids), torch.zeros_like(input_ids))
    return DataLoader(data, sampler=RandomSampler(data), batch_size=8)


def adaptor(device, batch_data):
    batch_data = tuple(t.to(device) for t in batch_data)
    inputs = {"input_ids": batch_data[0], "attention_mask": batch_data[1], "token_type_ids": batch_data[2]}
    return inputs, inputs


def test_a_script_of_old_trains_the_student(caplog):
    caplog.set_level(logging.INFO)
    teacher_model, student_model = bert(12), bert(3)
    before = {name: tensor.clone() for name, tensor in teacher_model.state_dict().items()}
    loss_model = MultiLayerBasedDistillationLoss(
        distill_config=SEVEN, teacher_output_adaptor=four_way_unpack, student_output_adaptor=four_way_unpack
    )
    no_decay = ["bias", "LayerNorm.bias", "LayerNorm.weight"]
    named = list(student_model.named_parameters())
    groups = [
        {"params": [p for n, p in named if not any(nd in n for nd in no_decay)], "weight_decay": 0.01},
        {"params": [p for n, p in named if any(nd in n for nd in no_decay)], "weight_decay": 0.0},
    ]
    distiller = KnowledgeDistiller(
        teacher_model=teacher_model,
        student_model=student_model,
        train_dataloader=batches_of(),
        dev_dataloader=None,
        train_data_adaptor=adaptor,
        dev_data_adaptor=None,
        device=torch.device("cpu"),
        loss_model=loss_model,
        optimizer=torch.optim.Adam(params=groups, lr=3e-3),
        evaluator=MultiLayerBasedDistillationEvaluator(save_dir=None, save_step=None, print_loss_step=6),
        num_epoch=4,
    )
    distiller.distillate()
    logged = [float(loss) for loss in re.findall(r"loss ([\d.]+)", caplog.text)]
    assert len(logged) == 4 and logged[-1] < 0.6 * logged[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher_model.state_dict().items())


def test_the_loss_model_alone_serves_a_plain_loop():
    # Here nobody but the user runs the models, and only eager attention gives maps.
    teacher_model, student_model = bert(12, attn_implementation="eager").eval(), bert(3, attn_implementation="eager")
    loss_model = MultiLayerBasedDistillationLoss(SEVEN, four_way_unpack, four_way_unpack)
    optimizer = torch.optim.Adam(student_model.parameters(), lr=3e-3)
    values = []
    for _ in range(4):
        for batch_data in batches_of():
            teacher_inputs, student_inputs = adaptor(torch.device("cpu"), batch_data)
            with torch.no_grad():
                teacher_output = teacher_model(**teacher_inputs)
            student_output = student_model(**student_inputs)
            loss = loss_model(teacher_output, student_output, teacher_inputs, student_inputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
    assert values[-1] < 0.6 * values[0]
    assert all(parameter.grad is None for parameter in teacher_model.parameters())
