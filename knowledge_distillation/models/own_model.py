"""What the models of this package have in common: how transformers knows them, and what their folder says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import AutoModel, PreTrainedModel

from .configs import PACKAGE

_README = """# {name}

A model of the Python package `{package}`. Transformers loads it once that is imported:

```python
import {package}
from transformers import {auto}

model = {auto}.from_pretrained("this folder")
```
"""


class OwnModel(PreTrainedModel):
    """A model that transformers does not have; `save_pretrained` writes a README.md that says how it is loaded."""

    auto_class: type

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """As of every model of transformers. A README.md that is there already stays."""
        super().save_pretrained(save_directory, **kwargs)
        readme = Path(save_directory) / "README.md"
        if not readme.exists():
            text = _README.format(name=type(self).__name__, package=PACKAGE, auto=self.auto_class.__name__)
            readme.write_text(text, encoding="utf-8")


def offer(model: type[OwnModel]) -> None:
    """Let `AutoModel` and the Auto class of its task find a model."""
    config: Any = model.config_class
    for auto in (AutoModel, model.auto_class):
        auto.register(config, model, exist_ok=True)  # type: ignore[attr-defined]
