"""The loss library: one small function per method. `table.py` holds the only table of names.

A loss is a function `(student, teacher, **arguments)` of tensors that returns one value per item, or a scalar where
the method compares items with each other. It asks for context (`mask`, `labels`, any key of the batch) by naming the
keyword. Precision, masking and averaging are the loss model's business.

A method with state is an `nn.Module` class, built on the probe batch as `Class(student, teacher, **arguments)`; its
constructor may ask for `num_samples`, `teacher_model`, `teacher_features`, `losses` (the modules of other entries) and
`weights` (what the file of its argument `pretrained` holds).
It is trained, moved and checkpointed with the projections.
"""

from .table import get_loss, list_losses

__all__ = ["get_loss", "list_losses"]
