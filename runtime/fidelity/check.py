"""A model folder against its proof: every recorded call replayed by an engine, then the whole run."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ..backends import Array, Network, TensorSpec, backend_module, open_network
from ..manifest import ComponentRecord, TensorRecord
from ..model_folder import CANONICAL, ModelFolder
from .networks import AnsweringEngine, OneAtATime, Signature
from .picture import fits_window, psnr, ssim
from .proof import Proof, RecordedCall
from .report import (
    ComponentFidelity,
    FidelityError,
    GraphFidelity,
    Report,
    RunFidelity,
    arithmetic,
    graph_name,
    limit,
    run_limits,
)

Progress = Callable[[str], None]

#: what the latents are called where a network takes them
_LATENTS = {"unet": "sample", "vae_decoder": "latent_sample"}


def check(
    folder: ModelFolder,
    proof: Proof,
    *,
    backend: str = "onnxruntime",
    device: str = "cpu",
    target: str | None = None,
    atol: float | None = None,
    progress: Progress = lambda _: None,
) -> Report:
    """Replays a proof. One network is in memory at a time.

    Args:
        folder: with a manifest; its graphs are opened.
        proof: of that folder.
        backend: the engine.
        device: where it runs.
        target: the only graphs to run; all that the engine can run when None.
        atol: the largest absolute error that passes, in place of the proof's limits.
        progress: told one line a network.

    Raises:
        FidelityError: the proof is not of this folder's networks, or the engine cannot run one of its graphs.
        ValueError: an unknown backend, device or target.
    """
    assert folder.manifest is not None
    records = folder.manifest.components
    engine_target = backend_module(backend).target(device)
    known = {name for record in records.values() for name in record.graphs}
    if target is not None and target not in known:
        raise ValueError(f"{folder.path} has no graphs for {target!r}; it has {', '.join(sorted(known))}")

    def opened(name: str, graph: str) -> Network:
        try:
            return open_network(folder.graph(name, graph), backend=backend, device=device)
        except (RuntimeError, ValueError) as error:
            raise FidelityError(f"{name}: {error}") from error

    components = {}
    for name, record in records.items():
        calls = proof.of(name)
        if not calls or name not in proof.spreads:
            raise FidelityError(f"{name}: the proof in {folder.path} has no calls of it; make it anew with --checkpoint")
        graphs = {}
        for graph in record.graphs:
            reason = _cannot_run(record, graph, engine_target, target)
            if reason is None:
                progress(f"{name}: {graph_name(graph)}")
                graphs[graph] = _replayed(opened(name, graph), name, calls)
            else:
                graphs[graph] = GraphFidelity.none(reason)
        spread = proof.spreads[name]
        components[name] = ComponentFidelity(
            dtype=arithmetic(record),
            limit=limit(arithmetic(record), spread),
            absolute_limit=atol,
            half_precision=spread.half_precision,
            overflows=spread.overflows,
            weights=spread.weights,
            graphs=graphs,
        )
    run, missing = None, None
    if proof.run is None or proof.run_spread is None or proof.picture is None:
        missing = "the folder holds a part of a pipeline"
    elif idle := [name for name, component in components.items() if not component.run]:
        missing = f"{', '.join(idle)} cannot be run here"
    else:
        progress(f"run of {proof.run.class_name}")
        with_target = target or engine_target
        networks = OneAtATime(lambda name: opened(name, with_target), Network.close)
        try:
            run = _run(folder, proof, components, networks)
        finally:
            networks.close()
    return Report(components=components, run=run, run_missing=missing, backend=backend, device=device)


def _cannot_run(record: ComponentRecord, graph: str, engine_target: str, target: str | None) -> str | None:
    """Why a graph is not run: None where it is."""
    if target is not None and graph != target:
        return f"--target {target} was asked for"
    if graph not in (CANONICAL, engine_target):
        return f"it is for another engine than {engine_target}"
    if arithmetic(record) == "bfloat16":
        return "NumPy has no bfloat16"
    return None


def _replayed(network: Network, name: str, calls: list[RecordedCall]) -> GraphFidelity:
    """The largest errors of a graph."""
    worst = GraphFidelity(relative_error=0.0, absolute_error=0.0, output="", call="")
    largest = 0.0
    try:
        for number, call in enumerate(calls, 1):
            try:
                found = network(call.arrays())
            except (RuntimeError, ValueError) as error:
                raise FidelityError(f"{name}: {error}") from error
            for output, view in call.outputs.items():
                relative, absolute = view.errors(found[output]) if output in found else (float("inf"), float("inf"))
                largest = max(largest, absolute)
                if relative >= worst.relative_error:
                    about = f"call {number} ({call.origin})"
                    worst = GraphFidelity(relative_error=relative, absolute_error=0.0, output=output, call=about)
    finally:
        network.close()
    return GraphFidelity(relative_error=worst.relative_error, absolute_error=largest, output=worst.output, call=worst.call)


def _run(
    folder: ModelFolder, proof: Proof, components: Mapping[str, ComponentFidelity], networks: OneAtATime[Network]
) -> RunFidelity:
    """The run, by an engine."""
    assert folder.manifest is not None
    assert proof.run is not None
    assert proof.run_spread is not None
    assert proof.picture is not None
    latents: list[Array] = []

    def answer(name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if name in _LATENTS:
            latents.append(inputs[_LATENTS[name]])
        return networks(name)(inputs)

    signatures = {name: signature(record) for name, record in folder.manifest.components.items()}
    try:
        picture = proof.run.picture(folder, AnsweringEngine(signatures=signatures, call=answer))
    except ValueError as error:
        raise FidelityError(f"the run of {proof.run.class_name} fails: {error}") from error
    called = {call.network for call in proof.calls if call.origin == "run"}
    limits, psnr_limit = run_limits(
        {components[name].dtype for name in called},
        max(components[name].weights for name in called),
        proof.run_spread.drift,
        proof.run_spread.psnr,
    )
    same_shape = picture.shape == proof.picture.shape
    return RunFidelity(
        class_name=proof.run.class_name,
        arguments=proof.run.arguments,
        drift=drift(latents, run_latents(proof.calls)),
        drift_limit=limits,
        half_precision_drift=proof.run_spread.drift,
        psnr=psnr(picture, proof.picture) if same_shape else 0.0,
        psnr_limit=psnr_limit,
        ssim=ssim(picture, proof.picture) if same_shape and fits_window(picture) else None,
        half_precision_psnr=proof.run_spread.psnr,
    )


def run_latents(calls: Collection[RecordedCall]) -> list[Array]:
    """What the UNet is given in a run, evaluation by evaluation, and the decoder at its end."""
    return [call.arrays()[_LATENTS[call.network]] for call in calls if call.origin == "run" and call.network in _LATENTS]


def drift(found: list[Array], expected: list[Array]) -> list[float]:
    """The relative error of the latents after each evaluation of the UNet.

    Args:
        found: what one run gave the UNet and the decoder, as `run_latents` lists it.
        expected: what another gave them.
    """
    channels = expected[-1].shape[1]  # the UNet may be given more, which does not change
    pairs = list(zip(found, expected, strict=True))[1:]
    return [_relative(one[:, :channels], other[:, :channels]) for one, other in pairs]


def _relative(found: Array, expected: Array) -> float:
    """|found - expected| / |expected|, in which NaN is infinite."""
    error = float(np.linalg.norm((found - expected).ravel()) / np.linalg.norm(expected.ravel()))
    return error if np.isfinite(error) else float("inf")


def signature(record: ComponentRecord) -> Signature:
    """What goes into a network and comes out of it, in the widest dtypes."""
    return Signature(inputs=_specs(record.inputs), outputs=_specs(record.outputs))


def _specs(tensors: Collection[TensorRecord]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(tensor.name, _dtype(tensor.dtype), tuple(tensor.shape)) for tensor in tensors)


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(np.float32 if "float" in name else name)
