"""The operations that a case's pictures take, and how fast a contender does them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .cases import Case
from .flops import Work, graph_work
from .inputs import unet_inputs
from .rows import Row

#: stage of a row -> the graphs that run in it
_GRAPHS: Mapping[str, tuple[str, ...]] = {
    "text": ("text_encoder", "text_encoder_2"),
    "step": ("unet",),
    "decode": ("vae_decoder",),
}


def case_work(case: Case, folder: Path) -> dict[str, Work]:
    """The work of each stage, counted in the canonical graphs; a "step" is one of the loop's, with its guidance.

    Args:
        case: the pictures.
        folder: the model folder.
    """
    found = {}
    for stage, names in _GRAPHS.items():
        works = [
            graph_work(folder / name / "model.onnx", _shapes(case, folder, name))
            for name in names
            if (folder / name / "model.onnx").is_file()
        ]
        found[stage] = Work(flops=sum(work.flops for work in works), numbers=sum(work.numbers for work in works))
    return found


def add_rates(row: Row, work: Mapping[str, Work], case: Case, ceiling: float | None) -> None:
    """Adds to a row how many operations it did a second, and the share of what the machine reaches.

    Args:
        row: with its times.
        work: of each stage.
        case: the pictures.
        ceiling: operations a second, of products of matrices in the row's precision.
    """
    for stage, each in work.items():
        if stage in row.warm_seconds and each.flops:
            row.flops_per_second[stage] = each.flops / row.warm_seconds[stage].median
    if work and "total" in row.warm_seconds:
        row.flops_per_second["total"] = picture_flops(work, case.num_inference_steps) / row.warm_seconds["total"].median
        if ceiling:
            row.ceiling_share = row.flops_per_second["total"] / ceiling


def picture_flops(work: Mapping[str, Work], steps: int) -> int:
    """Operations of a whole batch of pictures, every step of them run."""
    return work["text"].flops + steps * work["step"].flops + work["decode"].flops


def _shapes(case: Case, folder: Path, network: str) -> Mapping[str, tuple[int, ...]]:
    batch, channels, height, width = case.latent_shape
    config: dict[str, Any] = json.loads((folder / network / "config.json").read_text(encoding="utf-8"))
    if network == "vae_decoder":
        return {"latent_sample": (batch, channels, height, width)}
    if network.startswith("text_encoder"):
        return {"input_ids": (case.branches * batch, _length(folder))}
    arrays = unet_inputs(config, height=height, width=width, length=_length(folder), batch=case.branches * batch)
    return {name: array.shape for name, array in arrays.items()}


def _length(folder: Path) -> int:
    """Of a prompt, in tokens."""
    config = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    return int(config.get("max_position_embeddings", 77))
