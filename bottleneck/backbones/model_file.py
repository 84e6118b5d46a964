"""A model file: a head's file that also holds the network's tensors, under the prefix `backbone.`.

One .safetensors, readable by any safetensors library. The head's part is as `heads.artifact` writes it; the
network's part is its whole state, so that the file stands alone. A model card lies beside it in Markdown.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from bottleneck.backbones.recipe import NO_OPTIONS, LoadOptions
from bottleneck.errors import ArtifactError, first_line
from bottleneck.files import write_whole
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.names import STATE_PREFIX

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bottleneck.backbones.backbone import Backbone

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of BatchNorm
MOST_TENSORS = 100_000


def save_model(path: str | Path, head: HeadArtifact, state: Mapping[str, Tensor], card: str) -> Path:
    """Write head and network in one rename, and the card beside them as `.md`.

    Parameters
    ----------
    path : ends in .safetensors
    state : the network's whole state dict; empty where the network is the recipe's own
    card : Markdown
    """
    path = Path(path)
    write_whole(path.with_suffix(".md"), card.encode())
    return head.save(path, {name: tensor.detach().cpu().numpy() for name, tensor in state.items()})


def read_network(path: str | Path) -> OrderedDict[str, Tensor]:
    """The network's state in a model file, by its own names; empty for a head file.

    Raises
    ------
    ArtifactError
        The file is damaged, or has absurdly many tensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(STATE_PREFIX)]  # noqa: SIM118
            if len(names) > MOST_TENSORS:
                raise ArtifactError(f"{path} holds {len(names)} tensors; at most {MOST_TENSORS} are read.")
            return OrderedDict((name.removeprefix(STATE_PREFIX), file.get_tensor(name)) for name in names)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not a model file: {first_line(error)}.") from None


def holds_network(path: str | Path) -> bool:
    """False for a head's file, and for a model's that kept its head: their network is the recipe's own.

    Raises
    ------
    ArtifactError
        The file is damaged.
    """
    return _is_whole(read_network(path))


def load_network(module: nn.Module, path: str | Path) -> bool:
    """Put a model file's network into `module`, all of it or none; False where the file holds none.

    Raises
    ------
    ArtifactError
        Names, shapes or types are not those of this network.
    """
    state = read_network(path)
    if not state:
        return False
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in own]
    problems += [
        f"{name} is {_form(tensor)}, expected {_form(own[name])}"
        for name, tensor in state.items()
        if name in own and _form(tensor) != _form(own[name])
    ]
    if problems:
        raise ArtifactError(
            f"The network in {path} does not fit its recipe: {'; '.join(problems[:3])}"
            + (f"; {len(problems) - 3} more." if len(problems) > 3 else "."),
            "Train it again with `bottleneck finetune` or `bottleneck scratch`.",
        )
    module.load_state_dict(state)
    return True


def backbone_of(head: HeadArtifact, path: str | Path, options: LoadOptions = NO_OPTIONS) -> Backbone:
    """The network that the head in the file `path` takes its features from.

    Of a head file it is the recipe's, with the BatchNorm statistics that the file holds where the weights are
    random. A model file holds the network whole, so no published weights are loaded.

    Parameters
    ----------
    options : the weights file, where the recipe's weights are "file"; the permission to import code

    Raises
    ------
    ArtifactError, BackboneError
    """
    from bottleneck.backbones.backbone import state_sha256
    from bottleneck.backbones.registry import load_backbone, load_from_recipe

    state, recipe = read_network(path), head.backbone
    if not _is_whole(state):
        statistics = {name: tensor.numpy() for name, tensor in state.items()} or None
        return load_from_recipe(recipe, options, statistics=statistics)
    own = {name: recipe[name] for name in ("in_channels", "depth") if name in recipe}
    backbone = load_backbone(recipe["name"], weights="none", trust_code=options.trust_code, **own)
    load_network(backbone.module, path)
    trained = {"weights": "trained", "weights_sha256": state_sha256(backbone.module)}
    backbone.recipe = {"name": recipe["name"], **trained, **own}
    return backbone


def _is_whole(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors are a network, not BatchNorm's statistics alone."""
    return any(name.rpartition(".")[2] not in STATISTICS for name in state)


def _form(tensor: Tensor) -> str:
    """Type and shape, as they are shown and compared."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
