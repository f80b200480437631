"""The same distillation by this project and by others: time of three epochs of SST-2, and the score reached.

    python tests/benchmarks/peers.py [--data FOLDER] [--rounds 5] [--peers NAME ...] [--set key=value ...] [--small]
    python tests/benchmarks/peers.py --parity --teacher DIR [--rows 8000] [--epochs 3] [--seeds 1 2 3]

Three layers of a 12-layer teacher 768 wide teach 3 layers their hidden states and attention maps, and the logits are
compared as well, each by mean squared error. Each tool is installed by pip into an environment of its own, in --envs,
which sees the packages of the environment this runs in: torch and transformers are not installed again. What is needed
beside that is in PEERS. The loops are in peer_loops/, one file each.

Before anything is timed every tool makes one step on one batch without padding, without dropout, in float32: their
losses have to be the same. Then each trains twice, as its own examples do (padded to 128, float32) and with our
batches (rows of similar length together) and our precision. Ours has its defaults both times, once without and once
with a cache of the teacher: one epoch that fills it, on rows that are new each time, and two that read it. Steps are
timed in turns (interleaved.py) and scaled to three epochs: of our batches, whose costs differ, those in the middle of
equal parts of an epoch, sorted by size, stand for it.

--parity trains a student cut out of a real teacher by each tool on the same rows, and prints the accuracy on SST-2's
development rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from interleaved import Worker, machine, spread, table, take_turns
from sides import VOCABULARY, own_precision, settings_of

LOOPS = Path(__file__).parent / "peer_loops"
BATCH_SIZE, PAD_TO, EPOCHS = 32, 128, 3
PEERS = {  # what pip is given, line by line
    "ancestor": ["--no-deps KnowledgeDistillation==1.0.4"],  # it requires a distribution called python
    "textbrewer": ["textbrewer==0.2.1.post1"],
    "torchdistill": [
        "--no-deps torchdistill==1.1.5 torchvision==0.28.0",
        "pillow scipy pyyaml",
    ],  # else it replaces torch
    "modelopt": ["nvidia-modelopt==0.47.0 requests"],  # it imports requests without saying so
}
AGREE = 1e-5
FILLING, READING = "ours, filling a cache", "ours, reading a cache"


# --- environments ------------------------------------------------------------------------------------------------


def environment(name: str, folder: Path) -> Path:
    """The Python of a peer's environment, made where it is not there yet."""
    home, python = (folder / name).absolute(), (folder / name).absolute() / "bin" / "python"
    done = home / "done"
    if done.exists() and done.read_text() == "\n".join(PEERS[name]):
        return python
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    packages = next(home.glob("lib/python*/site-packages"))
    host = dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib"))
    (packages / "host.pth").write_text("\n".join(host) + "\n")
    for line in PEERS[name]:
        print(f"$ pip install {line}", file=sys.stderr, flush=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *line.split()], check=True, stdout=sys.stderr)
    found = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    if found.stdout.strip() != torch.__version__:
        raise SystemExit(f"{name}: torch {torch.__version__} was replaced by {found.stdout.strip()} in {home}")
    done.write_text("\n".join(PEERS[name]))
    return python


def worker(name: str, job: Path, envs: Path) -> Worker:
    """Ours and the loop by hand run in this environment; a peer must not see this project, whose name one shares."""
    here = name in ("ours", "plain")
    python = sys.executable if here else environment(name, envs)
    path = [str(LOOPS.parent), os.environ.get("PYTHONPATH", "") if here else ""]
    given = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "TRANSFORMERS_VERBOSITY": "error"}
    given |= {"OMP_NUM_THREADS": str(json.loads((job / "job.json").read_text())["threads"]), "HF_HUB_OFFLINE": "1"}
    return Worker([str(python), str(LOOPS / f"with_{name}.py"), str(job)], given, job / f"{name}.log")


# --- jobs --------------------------------------------------------------------------------------------------------


def write_job(folder: Path, models: Path, **changes: Any) -> Path:
    """A job's folder; its models and rows are those in `models`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("teacher", "student", "rows.pt"):
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to((models / name).resolve())
    plain = {"pad_to": None, "precision": "float32", "learning_rate": 5e-5, "total_steps": 0, "dropout": None}
    plain |= {"evaluate": False, "threads": 1, "seed": 1, "one_epoch": False, "own": {}}
    shared = json.loads((models / "shared.json").read_text())
    (folder / "job.json").write_text(json.dumps({**plain, **shared, **changes}))
    return folder


def write_models(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Teacher, student and tokenized rows, once for all jobs; returns the rows."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BertConfig,
        BertForSequenceClassification,
    )

    from knowledge_distillation import student_from_teacher
    from knowledge_distillation.data import embedded_sentiment, load_glue, train_tokenizer

    data = embedded_sentiment(200, 40) if options.small else load_glue("sst2", options.data, options.rows)
    train, dev = data["train"], data["validation"]
    if options.teacher:
        teacher = AutoModelForSequenceClassification.from_pretrained(options.teacher)
        tokenizer = AutoTokenizer.from_pretrained(options.teacher)
    else:
        tokenizer = train_tokenizer(train["sentence"], VOCABULARY)
        sizes = {"num_hidden_layers": options.layers, "hidden_size": options.width}
        sizes |= {"num_attention_heads": options.heads, "intermediate_size": 4 * options.width}
        torch.manual_seed(0)
        teacher = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **sizes))
    depth = teacher.config.num_hidden_layers
    kept = [depth // 3, 2 * depth // 3, depth]
    teacher.save_pretrained(folder / "teacher")
    student_from_teacher(teacher, kept).save_pretrained(folder / "student")

    def tokenized(rows: Any) -> dict[str, Any]:
        ids = tokenizer(list(rows["sentence"]), truncation=True, max_length=PAD_TO)["input_ids"]
        return {"input_ids": ids, "labels": list(rows["label"])}

    rows = {"train": tokenized(train), "dev": tokenized(dev)}
    torch.save(rows, folder / "rows.pt")
    shared = {"pairs": list(zip(kept, (1, 2, 3), strict=True)), "threads": options.threads}
    (folder / "shared.json").write_text(json.dumps(shared))
    return rows


def grouped(lengths: Sequence[int], epoch: int, seed: int) -> list[list[int]]:
    """The batches of an epoch as this project makes them."""
    from knowledge_distillation.data import LengthGroupedBatchSampler

    sampler = LengthGroupedBatchSampler(lengths, BATCH_SIZE, seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def shuffled(number: int, epoch: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1000 * seed + epoch)
    return [rows.tolist() for rows in torch.randperm(number, generator=generator).split(BATCH_SIZE)]


def sample(batches: list[list[int]], lengths: Sequence[int], number: int, place: float = 0.5) -> list[list[int]]:
    """Those at a place, from 0 to 1, of `number` equal parts of the batches, sorted by their size when padded."""
    ordered = sorted(batches, key=lambda rows: len(rows) * max(lengths[row] for row in rows))
    return [ordered[int((i + place) * len(ordered) / number)] for i in range(number)]


# --- what is measured --------------------------------------------------------------------------------------------


def see_that_losses_agree(names: Sequence[str], models: Path, rows: dict[str, Any], options: Any) -> dict[str, float]:
    """The first loss of every tool, on rows of one length, without dropout.

    Raises:
        SystemExit: one differs from that of the loop written by hand.
    """
    lengths = [len(ids) for ids in rows["train"]["input_ids"]]
    common = max(set(lengths), key=lengths.count)
    batch = [row for row, length in enumerate(lengths) if length == common][:8]
    job = write_job(options.work / "check", models, plan=[[batch]], dropout=0.0)
    found = {}
    for name in ["plain", *names]:
        one = worker(name, job, options.envs)
        found[name] = one()["loss"]
        one.close()
    wrong = {name: loss for name, loss in found.items() if abs(loss - found["plain"]) > AGREE * abs(found["plain"])}
    if wrong or not found["plain"] > 0:
        raise SystemExit(f"the first loss differs from that by hand, {found['plain']!r}: {wrong}")
    return found


def speed(names: Sequence[str], models: Path, rows: dict[str, Any], options: Any) -> list[dict[str, Any]]:
    """Three epochs by each tool."""
    lengths = [len(ids) for ids in rows["train"]["input_ids"]]
    precision = options.precision
    batches = grouped(lengths, 0, 1)
    ours = sample(batches, lengths, options.steps)
    equal = write_job(options.work / "equal", models, plan=[ours], precision=precision)
    switched = "float32" if precision == "float32" else "autocast"
    cast = write_job(options.work / "cast", models, plan=[ours], precision=switched)
    theirs = write_job(options.work / "theirs", models, plan=[shuffled(len(lengths), 0, 1)[:1]], pad_to=PAD_TO)
    mine: dict[str, Any] = {"precision": precision, "own": settings_of(options.set)}
    live = write_job(options.work / "ours", models, plan=[ours], **mine)
    places = [(one + 0.5) / (options.rounds + 1) for one in range(options.rounds + 1)]  # no batch comes twice
    fresh = [sample(batches, lengths, options.steps, place) for place in places]
    steps = len(lengths) / BATCH_SIZE

    def caching(folder: str, **changes: Any) -> Path:
        """The job with an empty cache."""
        cache = options.work / f"teacher-cache-{folder}"
        shutil.rmtree(cache, ignore_errors=True)
        own = {**mine["own"], "teacher_cache": str(cache)}
        return write_job(options.work / folder, models, **{**mine, "own": own, **changes})

    lines: dict[str, dict[str, Any]] = {}
    for name in names or [""]:  # one peer at a time: all together would need 20 GB
        workers = {
            "ours": worker("ours", live, options.envs),
            FILLING: worker("ours", caching("filling", plan=fresh, one_epoch=True), options.envs),
            READING: worker("ours", caching("cached", plan=[ours]), options.envs),
        }
        if name:
            workers[name] = worker(name, theirs, options.envs)
            workers[f"{name}, our batches"] = worker(name, cast, options.envs)
            workers[f"{name}, our batches, bf16 teacher"] = worker(name, equal, options.envs)
        try:
            costs = take_turns(workers, options.rounds)
        finally:
            for one in workers.values():
                one.close()
        epoch = {
            side: [cost["seconds"] * steps / (1 if side == name else options.steps) for cost in found]
            for side, found in costs.items()
        }
        run = {side: [EPOCHS * seconds for seconds in found] for side, found in epoch.items()}
        both = zip(epoch[FILLING], epoch[READING], strict=True)
        best = run["ours, cached"] = [filled + (EPOCHS - 1) * read for filled, read in both]
        costs["ours, cached"] = costs[READING]
        for side, found in run.items():
            ratios = [theirs / mine for theirs, mine in zip(found, best, strict=True)]
            mib = max(cost["mib"] for cost in costs[side])
            lines.setdefault(
                side, {"tool": side, "hours": statistics.median(found) / 3600, "ratios": ratios, "mib": mib}
            )
    return list(lines.values())


def parity(names: Sequence[str], models: Path, rows: dict[str, Any], options: Any) -> list[dict[str, Any]]:
    """Accuracy after each epoch by each tool, for each seed."""
    lengths = [len(ids) for ids in rows["train"]["input_ids"]]
    found = []
    for seed in options.seeds:
        plans = {
            "ours": [grouped(lengths, epoch, seed) for epoch in range(options.epochs)],
            "theirs": [shuffled(len(lengths), epoch, seed) for epoch in range(options.epochs)],
        }
        for name in ["ours", *names]:
            plan = plans["ours" if name == "ours" else "theirs"]
            changes: dict[str, Any] = {"precision": options.precision} if name == "ours" else {"pad_to": PAD_TO}
            if name == "ours":
                cache = options.work / "teacher-cache-parity"
                shutil.rmtree(cache, ignore_errors=True)
                changes["own"] = {"teacher_cache": str(cache)}
            changes |= {"plan": plan, "total_steps": sum(map(len, plan)), "learning_rate": options.learning_rate}
            job = write_job(options.work / f"parity-{name}-{seed}", models, evaluate=True, seed=seed, **changes)
            one = worker(name, job, options.envs)
            costs = [one() for _ in plan]
            one.close()
            scores = [100 * cost["accuracy"] for cost in costs]
            found.append({"tool": name, "seed": seed, "scores": scores, "seconds": sum(c["seconds"] for c in costs)})
            print(found[-1], file=sys.stderr, flush=True)
    return found


# --- the command -------------------------------------------------------------------------------------------------


def print_speed(lines: list[dict[str, Any]]) -> None:
    rows = [[line["tool"], f"{line['hours']:.2f}", spread(line["ratios"]), f"{line['mib']:.0f}"] for line in lines]
    print(table(["tool", "hours of three epochs", "by ours", "MiB"], rows))


def print_parity(lines: list[dict[str, Any]]) -> None:
    rows = []
    for name in dict.fromkeys(line["tool"] for line in lines):
        mine = [line for line in lines if line["tool"] == name]
        scores = [[line["scores"][-1] for line in mine], [max(line["scores"]) for line in mine]]
        rows.append([name, *map(spread, scores), f"{statistics.mean(line['seconds'] for line in mine):.0f}"])
    print(table(["tool", "accuracy after the last epoch", "best accuracy", "seconds"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder in GLUE's TSV layout; else the environment's GLUE_DATA_DIR")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--envs", type=Path, default=Path("runs/bench/envs"), help="for their environments")
    parser.add_argument("--work", type=Path, default=Path("runs/bench/peers"), help="for models and logs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help="of our batches in a pass")
    parser.add_argument("--precision", choices=["bf16", "float32"], help="ours; None: what is measured to be faster")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of our side")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--parity", action="store_true", help="scores in place of times; needs --teacher")
    parser.add_argument("--teacher", help="folder of a BERT fine-tuned on SST-2")
    parser.add_argument("--rows", type=int, help="a random part of the training rows")
    parser.add_argument("--epochs", type=int, default=3, help="of --parity")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of --parity")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of --parity")
    parser.add_argument("--small", action="store_true", help="small models and sentences made here")
    parser.add_argument("--json", action="store_true", help="numbers for a program in place of the table")
    options = parser.parse_args()
    if options.parity and not options.teacher and not options.small:
        parser.error("--parity needs --teacher")
    if options.small:
        options.layers, options.width, options.heads, options.rounds, options.steps = 6, 32, 2, 1, 2
    options.precision = options.precision or own_precision(options.width, BATCH_SIZE * 64)
    models = options.work / "models"
    models.mkdir(parents=True, exist_ok=True)
    rows = write_models(models, options)
    losses = see_that_losses_agree([*options.peers, "ours"], models, rows, options)
    lines = (parity if options.parity else speed)(options.peers, models, rows, options)
    if options.json:
        print(json.dumps({"machine": machine(options.threads), "first losses": losses, "lines": lines}, indent=1))
        return
    print(f"{machine(options.threads)}; first losses: " + ", ".join(f"{n} {loss:.7g}" for n, loss in losses.items()))
    print()
    (print_parity if options.parity else print_speed)(lines)


if __name__ == "__main__":
    main()
