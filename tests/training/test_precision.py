"""Which precision `auto` chooses: bf16 only where the machine has it and oneDNN uses it."""

from __future__ import annotations

import os
import subprocess
import sys


def test_bf16_is_not_chosen_where_onednn_leaves_its_instructions_alone() -> None:
    code = (
        "import torch; from knowledge_distillation.training.accelerate import machine_precision;"
        "print(machine_precision(torch.device('cpu')))"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "no\n", done.stderr
