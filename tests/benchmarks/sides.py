"""The sides of step.py and growth.py: training programs that do the same work on the same batches.

    python tests/benchmarks/sides.py '{"side": "ours", ...}'        (started by interleaved.Worker)

`floor`    what the job costs at least: the teacher up to its deepest mapped layer, without gradient; the student's
           forward and backward pass; the step. Fused attention, a trivial loss.
`plain`    a loop as one writes it by hand: both models hand out all hidden states and attention maps.
`ours`     KnowledgeDistiller.
`cached`   KnowledgeDistiller, with the teacher's features read from its cache.
`student`  the student trained alone on labels, by a loop written by hand.

All compute in the same precision (in bf16 the teacher's weights are bf16, the student's stay float32 under autocast),
with the same AdamW (fused, no decay of biases and norms) and the same clipping of gradients.
"""

from __future__ import annotations

import atexit
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from interleaved import Meter
from torch import Tensor, nn

VOCABULARY = 30522
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Job:
    """What to train: models, entries and batches.

    Args:
        entries: (output, teacher layer, student layer), each with mean squared error.
        padding: share of the tokens that is padding; the first row of a batch has none.
        precision: `bf16` or `float32`.
        settings: of KnowledgeDistiller, beside those that make the work equal.
    """

    entries: list[tuple[str, int, int]]
    batch_size: int = 16
    length: int = 64
    steps: int = 2
    layers: int = 12
    student_layers: int = 3
    width: int = 768
    heads: int = 12
    dropout: float = 0.1
    padding: float = 0.0
    precision: str = "float32"
    threads: int = 1
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def deepest(self) -> int:
        return max(layer for _, layer, _ in self.entries)

    def distill_config(self) -> list[dict[str, Any]]:
        return [
            {"teacher": f"layer{t}.{output}", "student": f"layer{s}.{output}", "loss": "mse"}
            for output, t, s in self.entries
        ]

    def as_json(self, side: str) -> str:
        return json.dumps({"side": side, **asdict(self)})

    def model(self, layers: int, attention: str) -> Any:
        """A classifier with random weights; the same ones each time."""
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=VOCABULARY,
            num_hidden_layers=layers,
            hidden_size=self.width,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            max_position_embeddings=max(512, self.length),
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            attn_implementation=attention,
        )
        torch.manual_seed(layers)
        return BertForSequenceClassification(config)

    def batches(self) -> list[Batch]:
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, self.length)
        kept = torch.full((self.batch_size,), round(self.length * (1 - self.padding)))
        kept[0] = self.length
        made = []
        for _ in range(self.steps):
            ids = torch.randint(1000, VOCABULARY, shape, generator=generator)
            mask = (torch.arange(self.length) < kept[:, None]).long()
            labels = torch.randint(2, shape[:1], generator=generator)
            made.append({"input_ids": ids * mask, "attention_mask": mask, "labels": labels})
        return made


def from_json(text: str) -> tuple[str, Job]:
    given = json.loads(text)
    side = given.pop("side")
    entries = [tuple(entry) for entry in given.pop("entries")]
    return side, Job(entries=entries, **given)  # type: ignore[arg-type]


# --- the sides ---------------------------------------------------------------------------------------------------
# Each is made of a job and returns a function that makes one pass and returns the loss of its last step.

Pass = Callable[[], Tensor | float]


def floor(job: Job, device: torch.device) -> Pass:
    teacher = frozen(job, "sdpa", device).bert
    del teacher.encoder.layer[job.deepest :]
    student = job.model(job.student_layers, "sdpa").bert
    teacher.pooler = student.pooler = None

    def loss(batch: Batch) -> Tensor:
        inputs = inputs_of(batch)
        with torch.no_grad():
            teacher(**inputs)
        with autocast(job, device):
            hidden = student(**inputs).last_hidden_state
        return hidden.float().mean()

    return loop(job, student, loss, device)


def plain(job: Job, device: torch.device) -> Pass:
    teacher, student = frozen(job, "eager", device), job.model(job.student_layers, "eager")
    asked = {"output_hidden_states": True, "output_attentions": True}

    def feature(output: Any, kind: str, layer: int) -> Tensor:
        return (output.hidden_states[layer] if kind == "hidden_states" else output.attentions[layer - 1]).float()

    def loss(batch: Batch) -> Tensor:
        inputs = inputs_of(batch)
        with torch.no_grad():
            taught = teacher(**inputs, **asked)
        with autocast(job, device):
            learnt = student(**inputs, **asked)
        pairs = ((feature(learnt, kind, s), feature(taught, kind, t)) for kind, t, s in job.entries)
        return sum(error(job, one, other, batch["attention_mask"]) for one, other in pairs)  # type: ignore[return-value]

    return loop(job, student, loss, device)


def error(job: Job, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over what is not padding."""
    if not job.padding:
        return F.mse_loss(student, teacher)
    mask = mask.float()
    pairs = mask[:, None, :, None] * mask[:, None, None, :] if student.dim() == 4 else mask[:, :, None]
    total = ((student - teacher).square() * pairs).sum()
    return total / (pairs.sum() * (student.shape[1] if student.dim() == 4 else student.shape[2]))


def student(job: Job, device: torch.device) -> Pass:
    model = job.model(job.student_layers, "sdpa")

    def loss(batch: Batch) -> Tensor:
        with autocast(job, device):
            logits = model(**inputs_of(batch)).logits
        return F.cross_entropy(logits.float(), batch["labels"])

    return loop(job, model, loss, device)


def ours(job: Job, device: torch.device, **settings: Any) -> Pass:
    from knowledge_distillation import KnowledgeDistiller

    equal = {"max_grad_norm": 1.0, "lr_scheduler_type": "constant", "num_train_epochs": 10**6, "disable_tqdm": True}
    distiller = KnowledgeDistiller(
        job.model(job.layers, "sdpa"),
        job.model(job.student_layers, "sdpa"),
        job.distill_config(),
        train_dataloader=job.batches(),
        device=device,
        mixed_precision="bf16" if job.precision == "bf16" else "no",
        **{**equal, **job.settings, **settings},
    )
    return lambda: distiller.train_epoch()["loss"]


def cached(job: Job, device: torch.device) -> Pass:
    """Its first pass fills the cache."""
    folder = tempfile.TemporaryDirectory(prefix="teacher-cache-")
    atexit.register(folder.cleanup)
    return ours(job, device, teacher_cache=folder.name)


def settings_of(texts: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as settings; a value is read as YAML."""
    return {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in texts)}


def own_precision(width: int, rows: int) -> str:
    """What `mixed_precision="auto"` chooses here for a student of a width, in batches of so many tokens."""
    from knowledge_distillation.training.precision import faster

    student = nn.Linear(width, 4 * width)
    return {"bf16": "bf16", "no": "float32"}[faster(device_of(), student, lambda: rows)[0]]


SIDES = {side.__name__: side for side in (floor, plain, ours, cached, student)}


# --- what they share ---------------------------------------------------------------------------------------------


def frozen(job: Job, attention: str, device: torch.device) -> Any:
    teacher = job.model(job.layers, attention).eval().requires_grad_(False).to(device)
    return teacher.bfloat16() if job.precision == "bf16" else teacher


def autocast(job: Job, device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if job.precision == "bf16" else nullcontext()


def inputs_of(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def loop(job: Job, model: nn.Module, loss_of: Callable[[Batch], Tensor], device: torch.device) -> Pass:
    model.train().to(device)
    batches = job.batches()
    trained = list(model.parameters())
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=5e-5, fused=True)

    def one_pass() -> Tensor:
        for batch in batches:
            loss = loss_of({name: tensor.to(device) for name, tensor in batch.items()})
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    return one_pass


def first_loss(side: str, job: Job) -> float:
    """Of one step without dropout."""
    return float(SIDES[side](replace(job, dropout=0.0, steps=1), device_of())())


def device_of() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    name, job = from_json(sys.argv[1])
    torch.set_num_threads(job.threads)
    meter = Meter()
    one_pass = SIDES[name](job, device_of())
    while True:
        meter.begin()
        meter.loss = one_pass()
        meter.end()


if __name__ == "__main__":
    main()
