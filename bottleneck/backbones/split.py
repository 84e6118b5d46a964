"""Cut a network in two at one tensor: trunk and top, which together are the network, bit for bit.

Both halves share the network's parameters (nothing is copied) and keep their names, so that a state dict of
the network serves its halves. Each half carries the graphs of both modes and switches between them with
`.train()` and `.eval()`: a graph traced in evaluation mode would have dropout and stochastic depth switched
off for good.
"""

from torch import fx, nn
from torchvision.models.feature_extraction import DualGraphModule

from bottleneck.backbones.graph import NetworkGraph
from bottleneck.errors import BackboneError


def split(
    module: nn.Module, evaluation: NetworkGraph, training: NetworkGraph, node: fx.Node
) -> tuple[nn.Module, nn.Module]:
    """Trunk and top of `module`, cut after the tensor that `node` makes, both in evaluation mode.

    Parameters
    ----------
    evaluation, training : NetworkGraph
        The two modes of `module`.
    node : torch.fx.Node
        One of `evaluation`.

    Raises
    ------
    BackboneError
        If the top would need more tensors than this one; names the nearest where one suffices.
    """
    name = evaluation.canonical[node]
    if node not in evaluation.cuts:
        raise _no_cut(evaluation, node)
    twin = training.by_name.get(evaluation.names[node])
    if twin is None or twin not in training.cuts:
        raise BackboneError(f"The network cannot be cut at {name}: it runs otherwise in training mode.")
    trunk = DualGraphModule(module, training.part(twin), evaluation.part(node), "Trunk")
    top = DualGraphModule(
        module,
        training.part(training.output, start=twin),
        evaluation.part(evaluation.output, start=node),
        "Top",
    )
    return trunk.eval(), top.eval()


def _no_cut(network: NetworkGraph, node: fx.Node) -> BackboneError:
    at = network.position[node]
    before = [cut for cut in network.cuts[1:] if network.position[cut] < at]
    after = [cut for cut in network.cuts if network.position[cut] > at]
    nearest = " and ".join(network.canonical[cut] for cut in [*before[-1:], *after[:1]])
    return BackboneError(
        f"The network cannot be cut at {network.canonical[node]}: what follows needs more than this tensor "
        "(a residual branch or a skip runs beside it).",
        f"The nearest nodes that can be cut at are {nearest}.",
    )
