"""The published transfer study, as data to be drawn beside one's own.

Yosinski, Clune, Bengio & Lipson, "How transferable are features in deep neural networks?", NeurIPS 2014:
ImageNet, halves of 500 classes, an eight-layer AlexNet. The numbers are top-1 validation accuracies in
percent, the mean of the ten highest validation points in the authors' published logs; those logs mix targets.
"""

BASE = 62.5
CURVES = {  # n = 1 … 7
    "BnB": (62.7, 62.4, 62.1, 60.5, 59.4, 61.9, 62.3),
    "BnB+": (61.8, 62.2, 63.1, 62.9, 63.0, 62.8, 62.7),
    "AnB": (62.8, 62.4, 61.9, 60.0, 57.8, 58.1, 54.3),
    "AnB+": (63.7, 63.6, 64.3, 64.0, 64.5, 64.6, 64.7),
}
SOURCE = "Yosinski et al. 2014, ImageNet: mean of the ten highest validation points in the authors' logs"
