"""The proof of fidelity: how far a model folder's pictures are from the PyTorch reference's, without PyTorch."""

from .check import check, drift, run_latents
from .examples import Example
from .networks import AnsweringEngine, CallNetwork, OneAtATime, Signature
from .picture import psnr, ssim
from .proof import FOLDER, PROOF, TENSORS, Proof, RecordedCall, RunSpread, Spread
from .report import FidelityError, Report, engine_arithmetic, graph_name, limit
from .run import Run, RunOptions, choose_run
from .view import View

__all__ = [
    "FOLDER",
    "PROOF",
    "TENSORS",
    "AnsweringEngine",
    "CallNetwork",
    "Example",
    "FidelityError",
    "OneAtATime",
    "Proof",
    "RecordedCall",
    "Report",
    "Run",
    "RunOptions",
    "RunSpread",
    "Signature",
    "Spread",
    "View",
    "check",
    "choose_run",
    "drift",
    "engine_arithmetic",
    "graph_name",
    "limit",
    "psnr",
    "run_latents",
    "ssim",
]
