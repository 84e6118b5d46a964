"""Transfer learning from cached ConvNet features: run the network once, then everything after is nearly free.

The names below load on first use (PEP 562), so that `import bottleneck` costs nothing: pandas and xarray
import a module of this name when they find one. The version stays 0.x for the same reason; see the README.
"""

__version__ = "0.1.0"

_LAZY = {
    "BottleneckError": "bottleneck.errors",
    "extract": "bottleneck.extraction.extract",
    "FeatureCache": "bottleneck.store.reader",
    "fit_heads": "bottleneck.fitting.fit_heads",
    "finetune": "bottleneck.training.finetune",
    "scratch": "bottleneck.training.scratch",
    "compare": "bottleneck.training.compare",
    "evaluate": "bottleneck.models.evaluate",
    "predict": "bottleneck.models.predict",
    "load_model": "bottleneck.models.classifier",
    "Backbone": "bottleneck.backbones.backbone",
    "load_backbone": "bottleneck.backbones.registry",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
