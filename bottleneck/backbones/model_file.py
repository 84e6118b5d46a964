"""A model file: a head's file that also holds the network's tensors, under the prefix `backbone.`.

One .safetensors file, readable by any safetensors library. The head's part is as `heads.artifact` writes it.
The network's part is its state up to the features that the head takes, so that no other file is needed; older
files hold the unused classifier above them too. A model card in Markdown is beside it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from bottleneck.backbones.recipe import NO_OPTIONS, LoadOptions, require_recipe
from bottleneck.errors import ArtifactError, counted
from bottleneck.files import write_whole
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.tensor_file import AGAIN, fault_of
from bottleneck.names import STATE_PREFIX, nodes_in

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bottleneck.backbones.backbone import Backbone

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of BatchNorm
MOST_TENSORS = 100_000  # more are a sign of a hostile file


def save_model(path: str | Path, head: HeadArtifact, state: Mapping[str, Tensor], card: str) -> Path:
    """Write head and network in one rename, and the card beside them as `.md`.

    Parameters
    ----------
    path : ends in .safetensors
    state : the network's whole state dict; empty if the recipe rebuilds the network
    card : Markdown
    """
    path = Path(path)
    write_whole(path.with_suffix(".md"), card.encode())
    return head.save(path, {name: tensor.detach().cpu().numpy() for name, tensor in state.items()})


def read_network(path: str | Path) -> OrderedDict[str, Tensor]:
    """The network's state in a model file, under its own names; empty for a head file.

    Raises
    ------
    ArtifactError
        The file is damaged, or has too many tensors.
    """
    with _opened(path, "pt") as file:
        return OrderedDict(
            (name, file.get_tensor(STATE_PREFIX + name)) for name in _network_names(file, path)
        )


def holds_network(path: str | Path) -> bool:
    """Whether a file contains a network; if not, the recipe of its head rebuilds it. Imports no torch.

    False for a head's file and for that of a model whose head was kept.

    Raises
    ------
    ArtifactError
        The file is damaged.
    """
    with _opened(path, "numpy") as file:
        return _is_whole(_network_names(file, path))


def load_network(module: nn.Module, path: str | Path, unused: Collection[str] = ()) -> bool:
    """Load a model file's network into `module`, all of it or nothing; False if the file contains none.

    Parameters
    ----------
    unused : entries that are set to zero, whether the file has them or not

    Raises
    ------
    ArtifactError
        Names, shapes or types are not those of this network.
    """
    import torch

    state = read_network(path)
    if not state:
        return False
    expected = module.state_dict()
    state.update((name, torch.zeros_like(expected[name])) for name in unused)
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in expected]
    problems += [
        f"{name} is {_form(tensor)}, expected {_form(expected[name])}"
        for name, tensor in state.items()
        if name in expected and _form(tensor) != _form(expected[name])
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
    """The network that computes the features for the head in the file `path`.

    For a head file it is rebuilt from the recipe, and if the weights are random with the BatchNorm statistics
    in the file. A model file contains the whole network, so that no published weights are loaded.

    Parameters
    ----------
    options : the weights file, if the recipe's weights are "file"; the permission to import code

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
    require_recipe(recipe, f"The recipe in {path},")
    variant = {name: recipe[name] for name in ("in_channels", "depth", "image_size") if name in recipe}
    backbone = load_backbone(recipe["name"], weights="none", trust_code=options.trust_code, **variant)
    expected = backbone.module.state_dict()
    lacking = {
        name for name, value in expected.items() if name not in state or state[name].shape != value.shape
    }
    backbone.untrained = frozenset(
        lacking & backbone.entries_above(*(node.partition("@")[0] for node in nodes_in(head.node)))
        if lacking
        else ()
    )
    load_network(backbone.module, path, backbone.untrained)
    trained = {"weights": "trained", "weights_sha256": state_sha256(backbone.module)}
    backbone.recipe = {"name": recipe["name"], **trained, **variant}
    return backbone


@contextmanager
def _opened(path: str | Path, framework: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} {fault_of(Path(path), error)}; expected a model file.", AGAIN) from None


def _network_names(file: Any, path: str | Path) -> list[str]:
    """Names of the network's tensors in an open file, without the prefix."""
    names = [name.removeprefix(STATE_PREFIX) for name in file.keys() if name.startswith(STATE_PREFIX)]  # noqa: SIM118
    if len(names) > MOST_TENSORS:
        raise ArtifactError(f"{path} holds {counted(len(names), 'tensor')}; at most {MOST_TENSORS} are read.")
    return names


def _is_whole(names: Iterable[str]) -> bool:
    """Whether tensors are a network, not only BatchNorm's statistics."""
    return any(name.rpartition(".")[2] not in STATISTICS for name in names)


def _form(tensor: Tensor) -> str:
    """Type and shape, for comparison and for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
