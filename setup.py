"""Install with `pip install .`; `pip install ".[dev]"` adds what tests and checks need."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "knowledge_distillation" / "__init__.py").read_text())[1]

setup(
    name="knowledge_distillation",
    version=VERSION,
    description="A declarative layer-mapping distiller for transformers",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["knowledge_distillation", "knowledge_distillation.*"]),
    package_data={"knowledge_distillation": ["py.typed"]},
    install_requires=[
        "torch>=2.6",
        "transformers>=5.0",
        "accelerate>=1.10",
        "datasets>=4.0",
        "evaluate>=0.4.3",
        "numpy>=1.26",
        "safetensors>=0.5",
        "pydantic>=2.7",
        "xxhash>=3.4",
        "filelock>=3.12",
        "pyyaml>=6.0",
        "typer>=0.15",
        "rich>=13.0",
        "tqdm>=4.66",
    ],
    extras_require={
        "tensorboard": ["tensorboard>=2.16"],
        "sweep": ["matplotlib>=3.8"],
        "vision": ["pillow>=10.0", "scikit-learn>=1.4"],
        "onnx": ["onnx>=1.16", "onnxruntime>=1.18"],
        "detection": ["scipy>=1.11"],
        "seq2seq": ["sacrebleu>=2.4", "rouge_score>=0.1.2"],
        "docs": ["mkdocs>=1.6"],
        "dev": [
            "pytest>=8.0",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "pillow>=10.0",
            "ruff>=0.9",
            "mypy>=1.14",
            "types-PyYAML",
            "types-tqdm",
            "scikit-learn>=1.4",
            "scipy>=1.11",
            "tensorboard>=2.16",
            "matplotlib>=3.8",
            "onnx>=1.16",
            "onnxruntime>=1.18",
            "sacrebleu>=2.4",
            "rouge_score>=0.1.2",
            "triton>=3.2; platform_system == 'Linux'",
        ],
    },
    entry_points={"console_scripts": ["distill = knowledge_distillation.cli.commands:main"]},
)
