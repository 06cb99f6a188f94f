"""The `README.md` of an exported model on the hub: what it is, how it runs, and how faithful it is."""

import inspect
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from safelight.runtime.fidelity import Report, graph_name
from safelight.runtime.manifest import ComponentRecord, Manifest
from safelight.runtime.pipelines import DiffusionPipeline
from safelight.runtime.source import is_hub_id

#: what a card on the hub says of the licence, and the card of an export says again
LICENCE_KEYS = ("license", "license_name", "license_link")

#: an argument of a pipeline -> what the example gives for it
_EXAMPLES = {
    "prompt": '"a photograph of an astronaut riding a horse"',
    "image": 'image=Image.open("input.png")',
    "mask_image": 'mask_image=Image.open("mask.png")',
}


def model_card(manifest: Manifest, *, repo_id: str, class_name: str, licence: Mapping[str, Any] | None = None) -> str:
    """The card, in Markdown after its front matter.

    Args:
        manifest: of the exported model.
        repo_id: what the repository is going to be called.
        class_name: of the pipeline, or of a network alone.
        licence: what the card of the checkpoint says of it, of `LICENCE_KEYS`; nothing is said when None.
    """
    arguments = _arguments(class_name)
    front = {"library_name": "safelight", "tags": ["safelight", "onnx", "diffusion"]}
    if arguments is not None:
        front["pipeline_tag"] = _task(arguments)
    base = str(manifest.source.get("id"))
    if is_hub_id(base):
        front["base_model"] = base
    front |= {key: value for key, value in (licence or {}).items() if key in LICENCE_KEYS and value}
    return "\n".join(
        [
            "---",
            *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()),
            "---",
            "",
            f"# {repo_id.partition('/')[2]}",
            "",
            f"{_origin(manifest, base)} as ONNX graphs with their weights, which run without PyTorch. "
            f"Exported by safelight {manifest.versions.get('safelight', '')}".rstrip()
            + ".",
            "",
            "## How to run it",
            "",
            "```sh",
            "pip install 'safelight[cpu]'",
            "```",
            "",
            "```python",
            *_example(repo_id, class_name, arguments),
            "```",
            "",
            "## Components",
            "",
            "| component | class | arithmetic | weights | size |",
            "|---|---|---|---|---|",
            *(_component(manifest, name, record) for name, record in manifest.components.items()),
            "",
            *_fidelity(manifest),
            "",
        ]
    )


def _arguments(class_name: str) -> list[str] | None:
    """Of those arguments that examples are known for, the ones that a pipeline takes; None if it is no pipeline."""
    if class_name not in DiffusionPipeline.registry:
        return None
    taken = inspect.signature(DiffusionPipeline.registry[class_name].__call__).parameters
    return [name for name in _EXAMPLES if name in taken]


def _task(arguments: list[str]) -> str:
    if "image" in arguments:
        return "image-to-image"
    return "text-to-image" if "prompt" in arguments else "unconditional-image-generation"


def _example(repo_id: str, class_name: str, arguments: list[str] | None) -> list[str]:
    if arguments is None:
        return [
            f"from safelight.runtime import {class_name}",
            "",
            f'network = {class_name}.from_pretrained("{repo_id}")',
        ]
    call = ", ".join([*(_EXAMPLES[name] for name in arguments), "seed=0"])
    return [
        *(["from PIL import Image"] if "image" in arguments else []),
        "from safelight.runtime import DiffusionPipeline",
        "",
        f'pipeline = DiffusionPipeline.from_pretrained("{repo_id}")',
        f"image = pipeline({call}).images[0]",
        'image.save("image.png")',
    ]


def _origin(manifest: Manifest, base: str) -> str:
    """The checkpoint, with its commit, variant and LoRAs."""
    source = manifest.source
    details = [f"commit {source['commit']}"] if source.get("commit") else []
    details += [f"variant {source['variant']}"] if source.get("variant") else []
    details += [f"with the LoRA {lora['file']} at {lora['scale']}" for lora in source.get("loras") or ()]
    where = f"[{base}](https://huggingface.co/{base})" if is_hub_id(base) else f"The checkpoint `{base}`"
    return f"{where} ({', '.join(details)})" if details else where


def _component(manifest: Manifest, name: str, record: ComponentRecord) -> str:
    file = manifest.files.get(record.weights)
    size = f"{file.size / 1e6:.1f} MB" if file else ""
    dtype = record.dtype or manifest.dtype
    return f"| {name} | {record.class_name} | {dtype} | {manifest.weights_dtype} | {size} |"


def _fidelity(manifest: Manifest) -> Iterator[str]:
    """What was measured against the reference, and what was not."""
    yield from ("## Fidelity", "")
    try:
        report = Report.of(manifest)
    except FileNotFoundError:
        yield "Not validated: the export was not compared with the PyTorch reference."
        return
    yield from (
        "How far each graph is from the PyTorch reference, at the worst output: the largest difference, over the "
        "largest magnitude. The limit derives from the reference's own float16; `safelight validate` measures again.",
        "",
        "| component | graph | relative error | limit | the reference in float16 |",
        "|---|---|---|---|---|",
    )
    for name, component in report.components.items():
        limit = f"{component.limit:.1e}"
        if component.absolute_limit is not None:
            limit = f"{component.absolute_limit:.1e} absolute"
        halves = "overflows" if component.overflows else f"{component.half_precision:.1e}"
        for target, graph in component.graphs.items():
            error = "not run" if graph.not_run is not None else f"{graph.relative_error:.1e}"
            yield f"| {name} | {graph_name(target)} | {error} | {limit} | {halves} |"
    if report.run is None:
        return
    run = report.run
    arguments = ", ".join(f"{name}={value!r}" for name, value in run.arguments.items())
    ssim = "" if run.ssim is None else f", SSIM {run.ssim:.6f}"
    psnr = f"PSNR {run.psnr:.1f} dB" if math.isfinite(run.psnr) else "the same bytes"
    yield from (
        "",
        f"A run of `{run.class_name}` ({arguments}): latents within {max(run.drift):.1e} of the reference's after "
        f"every step, picture {psnr}{ssim}; the reference in float16: {max(run.half_precision_drift):.1e}, "
        f"{run.half_precision_psnr:.1f} dB.",
    )
