"""The two graphs of DeepCache (Ma et al. 2023, arXiv:2312.00858, section 3.2), cut out of a UNet's canonical graph.

Every resnet block on the way up takes in a skip, and what comes from the level below. Between two steps the latter
changes little, so that a step may take that of an earlier one and compute only what lies outside of it. The skips are
counted from the outside: branch 0 is the one that leaves behind `conv_in`, branch 1 that of the first resnet block, and
so on; of UNets with two layers a level these are the numbers of the package DeepCache.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.passes import common as passes

from safelight.runtime.manifest import CACHED_FEATURE

from .lowering.precision import float32_borders
from .networks import NetworkDescription, TensorDescription
from .trace import parameters

#: the class of networks that are cut
CACHED_CLASS = "UNet2DConditionModel"
#: the branch whose step costs least; `docs/speed.md` has the drift of others
DEFAULT_BRANCH = 0

_TAKES_IN_A_SKIP = re.compile(r"up_blocks\.(\d+)\.resnets\.(\d+)\.norm1\.weight")


@dataclass(frozen=True)
class Variant:
    """A graph that stands beside the canonical one, and what goes in and out."""

    graph: ir.Model
    description: NetworkDescription


def branches(names: Iterable[str]) -> list[tuple[int, int]]:
    """Where each skip of a UNet is taken in: the numbers of up block and resnet block, branch 0 first.

    Args:
        names: of the UNet's parameters.
    """
    found = [match.groups() for name in names if (match := _TAKES_IN_A_SKIP.fullmatch(name))]
    return sorted(((int(block), int(resnet)) for block, resnet in found), reverse=True)


def check_branch(branch: int, networks: Iterable[tuple[str, Collection[str]]]) -> None:
    """Refuses a branch that the networks of an export do not have.

    Args:
        branch: of `deep_graph`.
        networks: the class of each, and the names of its parameters.

    Raises:
        ValueError: there is no such branch, or no network that is cut.
    """
    cached = [names for class_name, names in networks if class_name == CACHED_CLASS]
    if not cached:
        raise ValueError(f"--deep-cache is of a {CACHED_CLASS}, and none is exported")
    if branch >= (count := len(branches(cached[0]))):
        raise ValueError(f"cache_branch_id must be below {count}, as many as this UNet has skips, got {branch}")


def deep_graph(canonical: ir.Model, description: NetworkDescription, branch: int) -> Variant:
    """The whole UNet, which also gives the feature that `shallow_graph` takes.

    Args:
        canonical: the graph of a `UNet2DConditionModel`; it stays as it is.
        description: of the network.
        branch: of the skip beside which the feature is taken in, one of `branches`.
    """
    graph = canonical.clone()
    feature, tensor = _feature(graph, description, branch)
    feature.name, feature.shape = CACHED_FEATURE, ir.Shape(tensor.shape)
    graph.graph.outputs.append(feature)
    float32_borders(graph, [])
    return Variant(graph, replace(description, outputs=(*description.outputs, tensor)))


def shallow_graph(canonical: ir.Model, description: NetworkDescription, branch: int) -> Variant:
    """What lies outside of the feature, which is an input here: no block within is computed.

    Inputs that only those blocks read are none of this graph's: the text's embeddings, where the outermost level does
    not attend to them.

    Args:
        canonical: the graph of a `UNet2DConditionModel`; it stays as it is.
        description: of the network.
        branch: see `deep_graph`.
    """
    graph = canonical.clone()
    feature, tensor = _feature(graph, description, branch)
    given = ir.Value(name=CACHED_FEATURE, shape=ir.Shape(tensor.shape), type=feature.type)
    feature.replace_all_uses_with(given)
    passes.RemoveUnusedNodesPass()(graph)
    own = [value for value in graph.graph.inputs[: len(description.inputs)] if value.uses()]
    weights = [value for value in parameters(graph, description) if value.uses()]
    assert not any(str(value.name).startswith("mid_block.") for value in weights), "the cut does not part the graph"
    graph.graph.inputs[:] = [*own, given, *weights]
    float32_borders(graph, [given])
    names = {value.name for value in own}
    inputs = [each for each in description.inputs if each.name in names]
    return Variant(graph, replace(description, inputs=(*inputs, tensor)))


def _feature(graph: ir.Model, description: NetworkDescription, branch: int) -> tuple[ir.Value, TensorDescription]:
    """The value that is concatenated with a branch's skip, and what it is like from outside."""
    by_name = {str(value.name): value for value in parameters(graph, description)}
    known = branches(by_name)
    block, resnet = known[branch]
    (norm,) = (usage.node for usage in by_name[f"up_blocks.{block}.resnets.{resnet}.norm1.weight"].uses())
    concatenated = norm.inputs[0]
    concat = None if concatenated is None else concatenated.producer()
    assert concat is not None
    assert concat.op_type == "Concat", f"{norm.name} reads no concatenation: {concat.op_type}"
    assert concat.attributes.get_int("axis") == 1
    feature, skip = concat.inputs
    assert feature is not None
    assert skip is not None
    channels = [None if value.shape is None else value.shape[1] for value in (feature, skip)]
    together = by_name[f"up_blocks.{block}.resnets.{resnet}.norm1.weight"].shape
    assert together is not None
    assert isinstance(channels[0], int)
    assert isinstance(channels[1], int)
    assert channels[0] + channels[1] == together[0], f"{channels} channels, of which the norm reads {together[0]}"
    outermost = block == known[0][0]
    size = ("height", "width") if outermost else ("cached_height", "cached_width")
    return feature, TensorDescription(CACHED_FEATURE, ("batch", channels[0], *size))
