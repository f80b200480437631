"""The job by this project, with its defaults."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat

from interleaved import Meter, Passes
from job import Batch, Batches, Job, run

from knowledge_distillation import KnowledgeDistiller


class Loader:
    """The batches of the epoch that is set; with `passes` one endless epoch of those."""

    def __init__(self, job: Job) -> None:
        self.job, self.epoch = job, 0
        self.passes: Passes | None = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def _batches(self) -> Batches:
        return self.job.batches(self.epoch)

    def __len__(self) -> int:
        return len(self._batches()) if self.passes is None else 10**9

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches()) if self.passes is None else chain.from_iterable(repeat(self.passes))


def train(job: Job, meter: Meter) -> None:
    teacher, student = (job.model(who, "sdpa") for who in ("teacher", "student"))
    config = [
        {"teacher": f"layer{t}.{output}", "student": f"layer{s}.{output}", "loss": "mse"}
        for t, s in job.pairs
        for output in ("hidden_states", "attention")
    ]
    config.append({"teacher": "output.logits", "student": "output.logits", "loss": "mse"})
    loader = Loader(job)
    endless = {"num_train_epochs": 10**6, "lr_scheduler_type": "constant"}
    distiller = KnowledgeDistiller(
        teacher,
        student,
        config,
        train_dataloader=loader,
        device=job.device,
        learning_rate=job.learning_rate,
        disable_tqdm=True,
        seed=job.seed,
        mixed_precision="bf16" if job.precision == "bf16" else "no",
        **{**({"num_train_epochs": len(job.plan)} if job.total_steps else endless), **job.own},
    )
    if job.one_epoch:
        distiller.plan()
        loader.passes = job.passes(meter, student)
        distiller.train_epoch()
        return
    while True:
        meter.begin()
        meter.loss = distiller.train_epoch().get("loss")
        meter.end(lambda: job.score(student))


run(train)
