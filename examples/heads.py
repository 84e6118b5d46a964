"""Many questions, one cache: two labellings, three nodes, a k-shot curve. About 40 s on two idle cores.

    python examples/heads.py [--output heads-example]

Runs the network once over the digits of scikit-learn, and then asks of the same features which numeral an
image shows and whether it is even, on three nodes of the network and with few images per class. Draws both
curves into the folder. Expected: blocks.4@avg2 is best for both, at 0.989 and 0.994 on test; numerals reach
0.95 there with 10 images per class, and 0.80 at the bottleneck.
"""

import argparse
import csv
from pathlib import Path

from bottleneck import extract, fit_heads
from bottleneck.demo import write_digits
from bottleneck.report.curves import head_curves

NODES = ("blocks.2@avg2", "blocks.4@avg2", "bottleneck")


def write_labels(source: Path, path: Path) -> Path:
    """A table of labels by image: the numeral, and whether it is even."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "numeral", "parity"))
        for image in sorted(source.rglob("*.png")):
            digit = image.parent.name
            table.writerow((image.relative_to(source).as_posix(), digit, ("even", "odd")[int(digit) % 2]))
    return path


def main(folder: Path) -> None:
    source = write_digits(folder / "digits")
    cache = extract(source, folder / "digits.h5", nodes=NODES, test_fraction=0.2).cache
    labels = write_labels(source, folder / "labels.csv")
    result = fit_heads(cache, labels=labels, shots=(1, 2, 5, 10), output=folder / "heads")
    for head in result.heads:
        low, high = head["accuracy_ci95"]["test"]
        print(
            f"{head['target']:8} {head['node']:14} C {head['C']:<8.2g} "
            f"test {head['accuracy']['test']:.4f} ({low:.4f} … {high:.4f})"
        )
    for curve in result.curves["shots"]:
        means = ", ".join(
            f"{mean:.2f} with {k}" for k, mean in zip(curve["shots"], curve["mean"], strict=True)
        )
        print(f"{curve['target']} on {curve['node']}, images per class: {means}")
    print("drawn:", *head_curves(result).values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("heads-example"))
    main(parser.parse_args().output)
