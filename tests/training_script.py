"""A tiny run as a process of its own, for tests that kill it, resume it, or start it twice.

python tests/training_script.py OUTPUT_DIR [--resume] [--slow] [--dropout P] [--batch N] [--accumulate N] [--loader] …
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from processes import Forked, free_port
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from knowledge_distillation import Callback, KnowledgeDistiller, student_from_teacher
from knowledge_distillation.data.token_budget import TokenBudgetBatchSampler
from knowledge_distillation.evaluation.evaluators import TaskEvaluator
from knowledge_distillation.features import catalogue as features
from knowledge_distillation.training.callbacks import EarlyStopping

CONFIG = [
    {"teacher": "layer{2,4}.hidden_states", "student": "layer{1,2}.hidden_states", "loss": "mse"},
    {"teacher": "layer4.attention", "student": "layer2.attention", "loss": "mse"},
    {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence", "args": {"temperature": 2}},
    {"student": "output.logits", "loss": "cross_entropy"},
]
STAGES = [{"name": "hidden", "max_steps": 6}, {"name": "logits", "num_train_epochs": 1}]
IN_STAGES = [  # beside them entries of each kind that trains or measures something of its own
    {**CONFIG[0], "stage": "hidden", "reduction": "sequence_mean", "learning_rate": 2e-3},
    {**CONFIG[2], "stage": "logits", "schedule": {"weight": "linear", "temperature": {"type": "cosine", "start": 4}}},
    {**CONFIG[2], "teacher_name": "peer"},
    CONFIG[3],
]


def models(dropout: float, wide: bool = True) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40,
        "num_attention_heads": 2,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    teacher = BertForSequenceClassification(
        BertConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=4, **sizes)
    )
    if not wide:
        return teacher, student_from_teacher(teacher, [2, 4])
    narrow = BertConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, **sizes)
    return teacher, BertForSequenceClassification(narrow)


def language_models() -> tuple[torch.nn.Module, torch.nn.Module]:
    """The student's head is its embedding."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    teacher = LlamaForCausalLM(LlamaConfig(hidden_size=24, num_hidden_layers=2, **sizes))
    narrow = LlamaConfig(hidden_size=16, num_hidden_layers=1, tie_word_embeddings=True, **sizes)
    return teacher, LlamaForCausalLM(narrow)


def collate_text(batch: list[dict]) -> dict[str, torch.Tensor]:
    made = collate(batch)
    return made | {"labels": made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)}


def rows(number: int = 37) -> list[dict[str, list[int] | int]]:
    """Rows of uneven length, a number of them that no batch size divides."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(number):
        length = 3 + i % 7
        ids = torch.randint(2, 40, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": sum(ids) % 2})
    return made


def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
    length = max(len(row["input_ids"]) for row in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(batch):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[i, : len(row["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in batch])}


class InTurn:
    """The batches that two processes take of the token budget, in turn."""

    def __init__(self, max_tokens: int) -> None:
        lengths = [len(row["input_ids"]) for row in rows()]
        place = {"seed": 42, "num_processes": 2}
        self.shares = [TokenBudgetBatchSampler(lengths, max_tokens, process_index=i, **place) for i in range(2)]

    def set_epoch(self, epoch: int) -> None:
        for share in self.shares:
            share.set_epoch(epoch)

    def __len__(self) -> int:
        return sum(map(len, self.shares))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        all_rows = rows()
        for pair in itertools.zip_longest(*self.shares):
            yield from (collate([all_rows[i] for i in batch]) for batch in pair if batch)


class Slow(Callback):
    """Leaves time to be killed in."""

    def on_step_end(self, distiller: KnowledgeDistiller) -> None:
        time.sleep(0.05)


class StopAt(Callback):
    """Ends the run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, distiller: KnowledgeDistiller) -> None:
        if distiller.progress.step == self.step:
            distiller.stop()


def forked(output_dir: str, *options: str, **environment: str) -> Forked:
    """This script as a process of its own; what it writes is in a file beside its folder."""
    log = Path(f"{output_dir}{environment.get('RANK', '')}.log")
    return Forked(main, output_dir, *options, log=log, **environment)


def alone(folder: Path, *options: str) -> dict[str, torch.Tensor]:
    """The weights of one process."""
    assert forked(str(folder), *options).wait() == 0
    return saved_weights(folder)


def both_of(folder: Path, *options: str) -> list[Forked]:
    """Two processes of one run, started as a launcher starts them."""
    rendezvous = {
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "WORLD_SIZE": "2",
    }
    return [forked(str(folder), *options, **rendezvous, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in (0, 1)]


def in_two(folder: Path, *options: str) -> dict[str, torch.Tensor]:
    """The weights of two processes."""
    assert [process.wait() for process in both_of(folder, *options)] == [0, 0]
    return saved_weights(folder)


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Those of student, projections and peer in the last checkpoint of a folder."""
    last = sorted((folder / "checkpoints").iterdir())[-1]
    files = [file for file in last.glob("*.safetensors") if file.stem in ("student", "projections", "peer-peer")]
    return {f"{file.stem}.{name}": tensor for file in files for name, tensor in load_file(str(file)).items()}


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output_dir")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--loader", action="store_true", help="a shuffling DataLoader instead of a data set")
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--in-turn", action="store_true", help="the budget's batches for two processes, on one")
    parser.add_argument("--sgd", action="store_true")
    parser.add_argument("--list", action="store_true", help="a plain list of batches in a fixed order")
    parser.add_argument("--stop-at", type=int)
    parser.add_argument("--peer", action="store_true", help="a second student; they teach each other")
    parser.add_argument("--stages", action="store_true", help="two stages, with a peer")
    parser.add_argument("--balance", default="none")
    parser.add_argument("--patience", type=int, help="stop after so many evaluations without improvement")
    parser.add_argument("--defaults", action="store_true", help="no device and no precision is named")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--log-every", type=int, default=2)
    parser.add_argument("--cache", help="a folder for the teacher's features")
    parser.add_argument("--language-model", choices=["held", "deferred"], help="and what becomes of its logits")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    teacher, student = language_models() if options.language_model else models(options.dropout)
    as_batch = collate_text if options.language_model else collate
    if options.language_model == "deferred":
        features.LARGE_VOCABULARY = 1
    train: dict = {"train_dataset": rows(), "data_collator": as_batch}
    if options.loader:
        loader = torch.utils.data.DataLoader(rows(), batch_size=options.batch, shuffle=True, collate_fn=collate)
        train = {"train_dataloader": loader}
    if options.list:
        all_rows = rows()
        batches = [as_batch(all_rows[i : i + options.batch]) for i in range(0, len(all_rows), options.batch)]
        train = {"train_dataloader": batches}
    if options.in_turn:
        train = {"train_dataloader": InTurn(options.max_tokens)}
    config, more = CONFIG[2:] if options.language_model else CONFIG, {}
    peer = models(options.dropout, wide=False)[1] if options.peer or options.stages else None
    if peer:
        config = IN_STAGES if options.stages else [*CONFIG, IN_STAGES[2]]
    if options.stages:
        more["stages"] = STAGES
    if options.sgd:
        trained = [*student.parameters(), *(peer.parameters() if peer else ())]
        more["optimizer"] = torch.optim.SGD(trained, lr=options.learning_rate)
    distiller = KnowledgeDistiller(
        teacher,
        student,
        config,
        **train,
        **more,
        peer_model=peer,
        balance=options.balance,
        balance_steps=3,
        dev_dataloader=[as_batch(rows(11))],
        evaluator=TaskEvaluator(),
        callbacks=[
            *[Slow()][: options.slow],
            *([StopAt(options.stop_at)] if options.stop_at else []),
            *([EarlyStopping(options.patience)] if options.patience else []),
        ],
        output_dir=options.output_dir,
        device=None if options.defaults else "cpu",
        mixed_precision="auto" if options.defaults else "no",
        num_train_epochs=3,
        per_device_train_batch_size=options.batch,
        max_tokens_per_batch=options.max_tokens,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.learning_rate,
        logging_steps=options.log_every,
        save_steps=4,
        eval_steps=5,
        teacher_cache=options.cache,
        disable_tqdm=True,
    )
    distiller.train(resume_from_checkpoint=options.resume)
    distiller.evaluate()  # a run that is over may still be measured


if __name__ == "__main__":
    main(*sys.argv[1:])
