"""Transfer learning from cached ConvNet features: run the network once, then everything after is nearly free.

The names below are imported on first use (PEP 562), so that `import bottleneck` costs nothing: pandas and
xarray import a module of this name if they find one. The version stays 0.x for that reason; see the README.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = (
    False  # as in `typing`, which would have to be imported; type checkers and editors take it for True
)
if TYPE_CHECKING:
    from bottleneck.backbones.backbone import Backbone as Backbone
    from bottleneck.backbones.registry import load_backbone as load_backbone
    from bottleneck.errors import BottleneckError as BottleneckError
    from bottleneck.extraction.extract import extract as extract
    from bottleneck.extraction.feature_extractor import FeatureExtractor as FeatureExtractor
    from bottleneck.fitting.fit_heads import fit_heads as fit_heads
    from bottleneck.fitting.left_out import seen_images as seen_images
    from bottleneck.heads.baselines import KNNHead as KNNHead
    from bottleneck.heads.baselines import NearestMeanHead as NearestMeanHead
    from bottleneck.heads.linear_heads import LogisticHead as LogisticHead
    from bottleneck.heads.linear_heads import RidgeHead as RidgeHead
    from bottleneck.heads.linear_heads import RidgeRegressionHead as RidgeRegressionHead
    from bottleneck.heads.mlp import MLPHead as MLPHead
    from bottleneck.installation import doctor as doctor
    from bottleneck.models.because import because as because
    from bottleneck.models.classifier import load_model as load_model
    from bottleneck.models.evaluate import evaluate as evaluate
    from bottleneck.models.export import export as export
    from bottleneck.models.predict import predict as predict
    from bottleneck.report.explain import explain as explain
    from bottleneck.store.reader import FeatureCache as FeatureCache
    from bottleneck.studies.advise.advise import advise as advise
    from bottleneck.studies.audit.audit import audit as audit
    from bottleneck.studies.compare.compare import compare as compare
    from bottleneck.studies.drift.drift import drift as drift
    from bottleneck.studies.rank.rank import rank as rank
    from bottleneck.studies.similar.similar import similar as similar
    from bottleneck.studies.suggest.suggest import suggest as suggest
    from bottleneck.studies.train.train import train as train
    from bottleneck.studies.transfer_study.study import transfer_study as transfer_study
    from bottleneck.training.finetune import finetune as finetune
    from bottleneck.training.scratch import scratch as scratch

_MODULE_OF = {
    "Backbone": "bottleneck.backbones.backbone",
    "BottleneckError": "bottleneck.errors",
    "FeatureCache": "bottleneck.store.reader",
    "FeatureExtractor": "bottleneck.extraction.feature_extractor",
    "KNNHead": "bottleneck.heads.baselines",
    "LogisticHead": "bottleneck.heads.linear_heads",
    "MLPHead": "bottleneck.heads.mlp",
    "NearestMeanHead": "bottleneck.heads.baselines",
    "RidgeHead": "bottleneck.heads.linear_heads",
    "RidgeRegressionHead": "bottleneck.heads.linear_heads",
    "advise": "bottleneck.studies.advise.advise",
    "audit": "bottleneck.studies.audit.audit",
    "because": "bottleneck.models.because",
    "compare": "bottleneck.studies.compare.compare",
    "doctor": "bottleneck.installation",
    "drift": "bottleneck.studies.drift.drift",
    "evaluate": "bottleneck.models.evaluate",
    "explain": "bottleneck.report.explain",
    "export": "bottleneck.models.export",
    "extract": "bottleneck.extraction.extract",
    "finetune": "bottleneck.training.finetune",
    "fit_heads": "bottleneck.fitting.fit_heads",
    "load_backbone": "bottleneck.backbones.registry",
    "load_model": "bottleneck.models.classifier",
    "predict": "bottleneck.models.predict",
    "rank": "bottleneck.studies.rank.rank",
    "scratch": "bottleneck.training.scratch",
    "seen_images": "bottleneck.fitting.left_out",
    "similar": "bottleneck.studies.similar.similar",
    "suggest": "bottleneck.studies.suggest.suggest",
    "train": "bottleneck.studies.train.train",
    "transfer_study": "bottleneck.studies.transfer_study.study",
}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        from importlib import import_module

        value = getattr(import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
