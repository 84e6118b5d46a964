"""Pictures and logs of a training: curves of loss and accuracy, the trial of a learning rate, TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from bottleneck.errors import BottleneckError
from bottleneck.report.figures import drawable, picture
from bottleneck.training.loop import EpochRecord
from bottleneck.training.lr_finder import FoundRate

TRAIN, VAL = "tab:blue", "tab:orange"


def training_curves(
    epochs: Sequence[EpochRecord], path: str | Path, best: int, title: str, head: float | None = None
) -> Path:
    """Draw loss and accuracy of train and val by epoch to a PNG.

    best : the chosen epoch, which is marked. head : val accuracy of the head that training started from.
    """
    numbers = [record.epoch for record in epochs]
    trained = [record for record in epochs if record.train_loss is not None]
    with picture(path, 10, 4.4, columns=2) as (loss, accuracy):
        for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
            for split, records, colour, label in (
                ("train", trained, TRAIN, "train, while learning"),
                ("val", epochs, VAL, "val"),
            ):
                x = [record.epoch for record in records]
                y = [getattr(record, f"{split}_{name}") for record in records]
                axes.plot(x, y, "o-", color=colour, markersize=3, label=label)
            axes.axvline(best, color="grey", linewidth=1, linestyle=":", label=f"kept: epoch {best}")
            axes.set(xlabel="epoch", ylabel=name, xlim=(-0.5, numbers[-1] + 0.5))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
        if head is not None:
            accuracy.axhline(head, color="black", linewidth=1, linestyle="--", label="the head on val")
        loss.set_title("Loss")
        accuracy.set_title("Accuracy")
        # Below the axes, since within them it would hide the first or the last epochs.
        loss.figure.legend(
            *accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8
        )
        loss.figure.suptitle(drawable(title, 80))
    return Path(path)


def rate_curve(trial: FoundRate, path: str | Path) -> Path:
    """Draw the smoothed loss by learning rate, and the suggested rate, to a PNG."""
    with picture(path, 6, 4) as (axes,):
        axes.semilogx(trial.rates, trial.losses, color=TRAIN)
        axes.axvline(trial.lr, color=VAL, linestyle="--", label=f"suggested: {trial.lr:.2g}")
        axes.set(xlabel="learning rate of the head", ylabel="loss, smoothed", title="Loss by learning rate")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    return Path(path)


@contextmanager
def tensorboard(folder: str | Path | None) -> Iterator[Callable[[EpochRecord], None]]:
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
            }
            for name, value in scalars.items():
                if value is not None:
                    writer.add_scalar(name, value, record.epoch)

        yield write
