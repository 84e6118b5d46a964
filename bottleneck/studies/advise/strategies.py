"""The strategies of transfer learning, each tried on a small budget: its accuracy, its seconds, its command.

    linear head on top · linear head on earlier features · fine-tuned blocks · a network from scratch

Among earlier features cross-validation on train chooses; the epochs of a network are chosen by val.
Strategies are compared on val; test is only reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from bottleneck.backbones.recipe import NO_OPTIONS, LoadOptions
from bottleneck.data.source import Source
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.names import BOTTLENECK
from bottleneck.progress import SILENT, Reporter
from bottleneck.studies.advise.recommendation import EARLY, FINETUNE, HEAD, SCRATCH, Attempt
from bottleneck.training.finetune import finetune
from bottleneck.training.results import Result
from bottleneck.training.scratch import scratch

EPOCHS = 10
UNFROZEN = (1, 2)  # blocks below the head on top
SCRATCH_EPOCHS = 20
SCRATCH_SIZE = 64  # pixels a side
WORTH_TUNING = 0.01  # of cross-validated accuracy, won by earlier features: then their blocks are tuned, too


@dataclass(frozen=True)
class Subject:
    """What is advised on.

    cache : the user's. root : its source. nodes : those that it has. options : those that load its network.
    """

    cache: Path
    root: str
    target: str
    nodes: tuple[str, ...]
    options: LoadOptions = NO_OPTIONS

    @property
    def network_flags(self) -> str:
        """As the commands that load the network take them."""
        weights = f" --weights {quote(self.options.weights)}" if self.options.weights else ""
        return weights + (" --trust-code" if self.options.trust_code else "")

    def fit_command(self, node: str) -> str:
        """Extract `node` where the cache lacks it, and fit a head on it."""
        cache, root = quote(str(self.cache)), quote(self.root)
        fit = f"bottleneck fit-head {cache} --target {quote(self.target)} --node {node}"
        if node in self.nodes:
            return fit
        return f"bottleneck extract {root} -o {cache} --node {node}{self.network_flags} && {fit}"

    def tune_command(self, head: dict[str, Any], unfreeze: int | str) -> str:
        """Fit the same head, and fine-tune the blocks below it from there."""
        path = Path("heads") / Path(head["path"]).name.replace("trial--", f"{self.cache.stem}--", 1)
        cache, own = quote(str(self.cache)), quote(str(path))
        tune = f"bottleneck finetune {cache} --head {own} --unfreeze {unfreeze}{self.network_flags}"
        return f"{self.fit_command(head['node'])} && {tune}"


@dataclass
class Attempts:
    """What is tried on the cache `trial` of `source`, below `folder`. heads : the probe curve."""

    trial: Path
    source: Source
    subject: Subject
    nodes: list[str]
    folder: Path
    reporter: Reporter = SILENT
    heads: list[dict[str, Any]] = field(default_factory=list)
    done: list[Attempt] = field(default_factory=list)

    def run(self) -> list[Attempt]:
        """Try everything, the cheapest first."""
        self._heads()
        top, early = (self._best_head(on_top=on_top) for on_top in (True, False))
        self._add_head(HEAD, top)
        if early is not None:
            self._add_head(EARLY, early)
        for unfreeze in UNFROZEN[: len(self.nodes) - 1]:
            self._finetune(top, unfreeze)
        if early is not None and early["cv_accuracy"] > top["cv_accuracy"] + WORTH_TUNING:
            self._finetune(early, 1)
        self._scratch()
        return self.done

    def _heads(self) -> None:
        fitted = fit_heads(
            self.trial,
            targets=[self.subject.target],
            nodes=self.nodes,
            output=self.folder / "heads",
            reporter=self.reporter,
        )
        self.heads = sorted(fitted.heads, key=lambda head: self.nodes.index(head["node"]))
        self._seconds = fitted.seconds / len(fitted.heads)

    def _best_head(self, *, on_top: bool) -> dict[str, Any] | None:
        heads = [head for head in self.heads if (head["node"] == BOTTLENECK) == on_top]
        return max(heads, key=lambda head: head["cv_accuracy"], default=None)

    def _add_head(self, strategy: str, head: dict[str, Any]) -> None:
        self.done.append(
            Attempt(
                strategy,
                f"linear head on {head['node']}",
                head["accuracy"],
                head["accuracy_ci95"],
                self._seconds,
                self.subject.fit_command(head["node"]),
            )
        )

    def _finetune(self, head: dict[str, Any], unfreeze: int) -> None:
        model = self.folder / "models" / f"{head['node']}-{unfreeze}.safetensors"
        result = finetune(
            self.trial,
            head["path"],
            model,
            unfreeze=unfreeze,
            epochs=EPOCHS,
            weights=self.subject.options.weights,
            trust_code=self.subject.options.trust_code,
            reporter=self.reporter,
        )
        blocks = ", ".join(result.unfrozen)
        what = f"{blocks} fine-tuned from the head on {head['node']}"
        self._add_network(FINETUNE, what, result, self.subject.tune_command(head, unfreeze))

    def _scratch(self) -> None:
        result = scratch(
            self.source,
            self.folder / "models" / "scratch.safetensors",
            target=self.subject.target,
            image_size=SCRATCH_SIZE,
            epochs=SCRATCH_EPOCHS,
            reporter=self.reporter,
        )
        what = f"the small CNN from scratch at {SCRATCH_SIZE} pixels"
        command = f"bottleneck scratch {quote(self.subject.root)} --image-size {SCRATCH_SIZE}"
        self._add_network(SCRATCH, what, result, command)

    def _add_network(self, strategy: str, what: str, result: Result, command: str) -> None:
        accuracy, interval = result.finetuned_accuracy, result.accuracy_ci95
        self.done.append(Attempt(strategy, what, accuracy, interval, result.seconds, command))
