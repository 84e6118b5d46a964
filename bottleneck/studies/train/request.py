"""What `train` is asked for, and where it keeps the model, the caches and the finished trials."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from bottleneck.backbones.registry import outline
from bottleneck.data.source import Source, source_name
from bottleneck.errors import BottleneckError, FitError, counted, refuse_strict
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.prepare import read_model_file
from bottleneck.extraction.settings import default_cache
from bottleneck.files import require_file_name
from bottleneck.names import DEFAULT_BACKBONE
from bottleneck.progress import Reporter
from bottleneck.remote.path import path_of
from bottleneck.samples import Target
from bottleneck.store.spec import fingerprint
from bottleneck.studies.study_config import TrainConfig
from bottleneck.studies.train.budget import target_of
from bottleneck.trials.task import Records, require_learnable, stage_nodes

MODELS_FOLDER = "models"
TUNE_FROM = 50  # train samples a class; guessed, see docs/DECISIONS.md


@dataclass(frozen=True)
class Request:
    """The arguments of `train`. backbones : the preferred one first. extraction : of any of them."""

    source: Source
    output: str | Path | None
    backbones: tuple[str, ...]
    config: TrainConfig
    extraction: ExtractConfig
    cache: str | Path | None
    strict: bool
    reporter: Reporter

    def require_learnable(self) -> None:
        """Raise FitError where the labels cannot be learnt, and StrictError for notes on the source."""
        refuse_strict(self.source.notes, self.strict, self.reporter.tell)
        require_learnable(self.source.samples, self.config.target, self.source.location)
        target = target_of(self.source, self.config.target)
        self.not_tuned(target, int(target.labelled.sum()))

    def not_tuned(self, target: Target, train: int) -> str | None:
        """Return why no block is tuned, by what is known before anything is computed; None where one may be.

        train : samples of train with a label.

        Raises FitError where it is always to be tuned, and the target cannot be.
        """
        if self.config.finetune == "never":
            return "--finetune never"
        if target.kind != "class":
            text = f"target {target.name!r} is a {target.kind} one, and blocks are tuned for classes"
            if self.config.finetune == "always":
                raise FitError(f"--finetune always: {text}.", "Leave --finetune out.")
            return text
        per_class = train / max(1, len(target.class_names))
        if self.config.finetune == "auto" and per_class < TUNE_FROM:
            return f"{per_class:.0f} train samples a class are fewer than {TUNE_FROM}"
        return None

    def extraction_by(self, backbone: str) -> ExtractConfig:
        """Return the settings of extraction by one backbone."""
        return replace(self.extraction, backbone=backbone)

    @property
    def several(self) -> bool:
        """Whether several backbones are compared."""
        return len(self.backbones) > 1

    @cached_property
    def nodes(self) -> dict[str, list[str]]:
        """The nodes of every stage of each backbone, the bottleneck first, the others from the bottom up."""
        return {name: self._nodes(name) for name in self.backbones}

    def _nodes(self, backbone: str) -> list[str]:
        config = self.extraction_by(backbone)
        named, preprocess = read_model_file(config)
        network = outline(
            named.backbone or DEFAULT_BACKBONE,
            in_channels=named.in_channels or 3,
            depth=named.depth,
            trust_code=named.trust_code,
        )
        sized = (preprocess or network.preprocess).override(config.image_size, config.crop)
        *earlier, top = stage_nodes(network, sized)
        return [top, *earlier]

    @cached_property
    def model(self) -> Path:
        """The model's file: `output`, or `models/SOURCE.safetensors` below the current folder."""
        if self.output is None:
            return Path(MODELS_FOLDER) / f"{source_name(self.source.location)}.safetensors"
        path = Path(self.output)
        if path.suffix != ".safetensors":
            raise BottleneckError(
                f"The model's file is {path}; expected a name that ends in .safetensors.",
                f"Write it to {path.with_name(path.name + '.safetensors')}.",
            )
        require_file_name(path)
        return path

    @cached_property
    def work(self) -> Path:
        """The folder of caches and trials."""
        return self.model.with_suffix(".work")

    @cached_property
    def paths(self) -> dict[str, Path]:
        """The cache of each backbone."""
        given = None if self.cache is None else path_of(self.cache)
        if given is not None and given.suffix == ".h5":
            if self.several:
                raise BottleneckError(
                    f"--cache names one file, {self.cache}, for {counted(len(self.backbones), 'backbone')}.",
                    "Name a folder: there is one cache for each backbone.",
                )
            return {self.backbones[0]: given}
        folder = self.work if given is None else given
        return {
            name: folder / default_cache(self.source, self.extraction_by(name)).name
            for name in self.backbones
        }

    @cached_property
    def records(self) -> Records:
        """The finished trials."""
        return Records(self.work / "trials")

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of what the user asked for."""
        names = ("weights", "flip", "image_size", "crop", "in_channels", "depth", "dtype")
        features = {name: getattr(self.extraction, name) for name in names}
        if self.extraction.decoding is not None:  # choices of before there was one stay valid
            features["decoding"] = self.extraction.decoding
        return fingerprint({"choice": 2, **asdict(self.config), "backbones": self.backbones, **features})
