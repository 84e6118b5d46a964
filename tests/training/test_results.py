"""The model card: figures with their intervals, what chose them marked, names that cannot break it."""

from dataclasses import replace

from bottleneck.training.results import MOST_CLASSES_LISTED, model_card
from tests.helpers.heads import head

FIGURES = {"accuracy": 0.9, "accuracy_ci95": [0.8, 0.95], "log_loss": 0.3, "n": 50}


def test_figures_carry_intervals_and_what_chose_is_marked():
    shown = head(metrics={"val": FIGURES, "test": FIGURES}, settings={"chosen_on": ["val"]})
    card = model_card(shown, "m.safetensors", {"epochs": 3}, ("The val split chose the epoch.",))
    assert "| val (chose the model) | 50 | 0.9000 | 0.8000 … 0.9500 | 0.3000 |" in card
    assert "| test | 50 |" in card
    assert "> The val split chose the epoch." in card
    assert "| epochs | 3 |" in card


def test_names_cannot_break_the_table_or_the_line():
    card = model_card(head(target="a\nb|c`d"), "m.safetensors", {"x|y": "1\n2"})
    assert "`a\\ b" not in card
    assert "x\\|y | 1 2 |" in card
    assert "`a\\|b`, `'c'`" in card


def test_many_classes_are_counted_not_listed():
    names = tuple(f"class {i}" for i in range(MOST_CLASSES_LISTED + 7))
    shown = replace(head(), class_names=names, arrays=many(len(names)))
    assert "… 7 more" in model_card(shown, "m.safetensors", {})


def many(classes):
    arrays = head().arrays
    return {
        **arrays,
        "coef": arrays["coef"].repeat(classes, 0)[:classes],
        "intercept": arrays["mean"].repeat(classes)[:classes],
    }
