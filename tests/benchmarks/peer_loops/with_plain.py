"""The job by a loop written by hand: what the other tools are compared with before they are timed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from interleaved import Meter
from job import Job, run, to


def train(job: Job, meter: Meter) -> None:
    teacher, student = job.models(output_hidden_states=True, output_attentions=True)
    optimizer = job.scheduled(torch.optim.AdamW(student.parameters(), lr=job.learning_rate))
    passes = job.passes(meter, student)
    while True:
        for raw in passes:
            batch = to(job.device, raw)
            with torch.no_grad():
                taught = teacher(**batch)
            with job.autocast():
                learnt = student(**batch)
            loss = F.mse_loss(learnt.logits.float(), taught.logits.float())
            for t, s in job.pairs:
                loss = loss + F.mse_loss(learnt.hidden_states[s].float(), taught.hidden_states[t].float())
                loss = loss + F.mse_loss(learnt.attentions[s - 1].float(), taught.attentions[t - 1].float())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            meter.loss = loss.detach()


run(train)
