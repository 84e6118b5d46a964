"""Few of scikit-learn's digits, as image files."""

import shutil
from pathlib import Path

from bottleneck.demo import write_digits


def few_digits(folder: Path) -> Path:
    """Fifteen images of each numeral."""
    whole = write_digits(folder.with_name("all"))
    for digit in sorted(whole.iterdir()):
        (folder / digit.name).mkdir(parents=True)
        for image in sorted(digit.iterdir())[:15]:
            shutil.copy(image, folder / digit.name)
    return folder
