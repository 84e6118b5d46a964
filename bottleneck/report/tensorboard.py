"""Epochs of a training as TensorBoard events. matplotlib is not needed, and not imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bottleneck.errors import BottleneckError

if TYPE_CHECKING:
    from bottleneck.training.loop import EpochRecord


@contextmanager
def log_epochs(folder: str | Path | None) -> Iterator[Callable[[EpochRecord], None]]:
    """Yield a function that writes an epoch as TensorBoard events below `folder`; None writes nothing.

    Raises BottleneckError where the package tensorboard is not installed.
    """
    if folder is None:
        yield lambda record: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BottleneckError(
            "TensorBoard events need the package tensorboard, which is not installed.",
            "Install it with `pip install 'bottleneck-features[tensorboard]'`.",
        ) from None
    with SummaryWriter(str(folder)) as writer:

        def write(record: EpochRecord) -> None:
            scalars = {
                "loss/train": record.train_loss,
                "loss/val": record.val_loss,
                "accuracy/train": record.train_accuracy,
                "accuracy/val": record.val_accuracy,
                "learning rate": record.lr,
                **{f"learning rate/{name}": rate for name, rate in record.learning_rates.items()},
            }
            for name, value in scalars.items():
                if value is not None:
                    writer.add_scalar(name, value, record.epoch)

        yield write
