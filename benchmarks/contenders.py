"""Everybody who may take part: safelight on each of its backends, the reference, and other tools."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safelight.runtime.backends import ON_GPU, backend_module

from .cases import Case
from .contender import Contender
from .older_checkpoint import is_new
from .peers.registry import PEERS, Peer
from .workspace import Workspace, key

REFERENCE = "reference (PyTorch)"
NEEDS_CHECKPOINT = "needs --checkpoint"
#: whose picture the others' are compared with: the first of them that has one
BASELINES = (REFERENCE, "diffusers", "safelight onnxruntime")


def _reference_missing(case: Case) -> str | None:
    absent = [package for package in ("torch", "onnxscript") if importlib.util.find_spec(package) is None]
    if absent:
        return f"{', '.join(absent)} not installed: pip install 'safelight[export,bench]'"
    return NEEDS_CHECKPOINT if case.model.shape is None and case.model.checkpoint is None else None


def _safelight(name: str, precision: str, backend: str, **options: Any) -> Contender:
    def missing(case: Case) -> str | None:
        if options.get("speed") and importlib.util.find_spec("safelight.runtime.speed") is None:
            return "this safelight has no --speed"
        try:
            backend_module(backend)
        except ModuleNotFoundError as error:
            return str(error)
        if case.model.shape is not None and importlib.util.find_spec("onnxscript") is None:
            return "a model of random weights has to be exported: pip install 'safelight[export]'"
        return None

    return Contender(
        name=name,
        tool="safelight",
        precision=precision,
        module="safelight.benchmarks.peers.safelight",
        missing=missing,
        options={"backend": backend, **options},
        low_memory=bool(options.get("low_memory")),
    )


def _on_a_gpu(backend: str) -> Contender:
    return Contender(
        name=f"safelight {backend}",
        tool="safelight",
        precision="fp16",
        module="safelight.benchmarks.peers.safelight",
        missing=lambda _: "runs on NVIDIA GPUs alone: safelight bench --preset gpu measures it there",
    )


_OURS = (
    _safelight("safelight onnxruntime", "fp32", "onnxruntime"),
    _safelight("safelight onnxruntime, low memory", "fp32", "onnxruntime", low_memory=True),
    _safelight("safelight openvino", "fp32", "openvino"),
    _safelight("safelight openvino bf16", "bf16", "openvino"),
    _safelight("safelight openvino bf16, balanced", "bf16", "openvino", speed="balanced"),
    *map(_on_a_gpu, ON_GPU),
)


def _peer(peer: Peer) -> Contender:
    """Another tool, which opens the case's checkpoint, or what it makes of that once."""

    def missing(case: Case) -> str | None:
        checkpoint = case.model.checkpoint
        if reason := peer.missing(None if checkpoint is None else Path(checkpoint)):
            return reason
        return NEEDS_CHECKPOINT if checkpoint is None and case.model.shape is None else None

    def prepare(case: Case, workspace: Workspace) -> Path:
        checkpoint = workspace.checkpoint(case)
        if peer.environment is not None and is_new(checkpoint):
            checkpoint = workspace.made(
                f"{case.model.name}-older-checkpoint",
                key([str(checkpoint.absolute())], ["benchmarks/older_checkpoint.py"]),
                lambda folder: [sys.executable, "-m", is_new.__module__, str(checkpoint), str(folder)],
            )
        if peer.export is None:
            return checkpoint
        _, _, exporter = peer.export.rpartition(".")
        return workspace.made(
            f"{case.model.name}-{exporter.replace('_', '-')}",
            key([str(checkpoint.absolute())], [f"benchmarks/peers/{exporter}.py"]),
            lambda folder: peer.export_command(checkpoint.absolute(), folder.absolute()),
            contender.environment(),
        )

    contender = Contender(
        name=peer.name,
        tool=peer.tool,
        precision=peer.precision,
        module=f"safelight.{peer.module}",
        python=None if peer.environment is None else peer.python,
        missing=missing,
        prepare=prepare,
        options=peer.options,
    )
    return contender


_REFERENCE = Contender(
    name=REFERENCE,
    tool="reference",
    precision="fp32",
    module="safelight.benchmarks.peers.reference",
    missing=_reference_missing,
    prepare=lambda case, workspace: workspace.checkpoint(case),
)

#: by name; the reference first, because the others are compared with it
CONTENDERS: Mapping[str, Contender] = MappingProxyType(
    {contender.name: contender for contender in (_REFERENCE, *_OURS, *map(_peer, PEERS.values()))}
)

#: those that `--quick` measures, the quickest first: what there is no time for is left out
QUICK = ("safelight onnxruntime", "safelight openvino bf16", REFERENCE, "diffusers")
