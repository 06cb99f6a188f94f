"""`safelight export SOURCE DESTINATION`."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

SUMMARY = "turn a checkpoint into a model folder that runs without PyTorch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments; options are spelled as `optimum-cli export onnx` spells them."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a checkpoint: a folder in diffusers' layout, a single file in the original one, or a hub id",
    )
    parser.add_argument(
        "destination",
        metavar="DESTINATION",
        type=Path,
        nargs="?",
        help="a folder that is new or empty; left out where --triton is all, and SOURCE an export",
    )
    parser.add_argument("--opset", type=int, default=23, help="of model.onnx: 18 to 23 (default: %(default)s)")
    parser.add_argument("--dtype", default="fp32", help="of the arithmetic: fp32, fp16 or bf16 (default: %(default)s)")
    parser.add_argument(
        "--weights-dtype", help="of the stored weights: fp32, fp16 or bf16 (default: that of the arithmetic)"
    )
    parser.add_argument(
        "--full-precision",
        metavar="NETWORKS",
        type=_names,
        default=(),
        help="networks that compute in fp32 whatever --dtype says, such as vae_encoder,vae_decoder",
    )
    parser.add_argument(
        "--components",
        metavar="NAMES",
        type=_names,
        help="export these alone, such as unet,vae_decoder (default: everything that a pipeline needs)",
    )
    parser.add_argument(
        "--targets",
        metavar="NAMES",
        type=_names,
        help="engines to write a graph for, beside model.onnx that any can read (default: all that take the dtype)",
    )
    parser.add_argument(
        "--device", default="cpu", help="where the graphs are checked: cpu or cuda (default: %(default)s)"
    )
    parser.add_argument("--atol", type=float, help="largest absolute error that passes (default: a relative error)")
    parser.add_argument("--no-validate", action="store_true", help="leave out the comparison with the reference")
    parser.add_argument(
        "--lora",
        metavar="FILE:SCALE",
        action="append",
        default=[],
        help="a LoRA (safetensors) to fuse into the weights, at a scale of 1 where :SCALE is left out; may be repeated",
    )
    parser.add_argument(
        "--deep-cache",
        action="store_true",
        help="write the UNet's two graphs of DeepCache as well, which enable_deep_cache needs",
    )
    parser.add_argument(
        "--cache-branch-id",
        metavar="ID",
        type=int,
        help="with --deep-cache: the skip that they are cut at, counted from the outside (default: 0, the fastest)",
    )
    parser.add_argument(
        "--triton",
        metavar="DIR",
        type=Path,
        help="write a model repository for Triton's onnxruntime backend as well, of the graphs for --device",
    )
    parser.add_argument(
        "--no-safety-checker", action="store_true", help="leave the safety checker out: nothing looks at the pictures"
    )
    parser.add_argument("--variant", help="of the checkpoint's weights, such as fp16")
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="also read .ckpt, .pt, .pth and .bin, by torch's unpickler that makes nothing but tensors",
    )
    parser.add_argument(
        "--prediction-type", help="of a single file: epsilon or v_prediction (default: what diffusers concludes)"
    )
    parser.add_argument("--revision", help="of a hub id: a branch, a tag or a commit")
    parser.add_argument("--token", help="for the hub (default: that of `hf auth login`, or HF_TOKEN)")
    parser.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", help="put the export into this repository, which is made if needed"
    )
    parser.add_argument("--private", action="store_true", help="with --push-to-hub: for nobody else to see")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _names(text: str) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def run(arguments: argparse.Namespace) -> int:
    """Exports; prints a line a stage, and the fidelity of each component."""
    if arguments.destination is None:
        return _only_for_triton(arguments)
    try:
        import torch  # noqa: F401  # the first of the extra's packages: what follows needs them all

        from safelight.runtime.model_folder import open_model_folder

        from .deep_cache import DEFAULT_BRANCH
        from .folder import export_model
        from .lora import LoraFile
        from .options import ExportOptions
        from .push import create_repository, push
        from .source import open_source
        from .staging import check_destination
        from .triton import check_place, write_repository
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"export needs: pip install 'safelight[export]' ({error})") from error
    progress = _progress(arguments)
    branch = DEFAULT_BRANCH if arguments.cache_branch_id is None else arguments.cache_branch_id
    if arguments.cache_branch_id is not None and not arguments.deep_cache:
        raise ValueError("--cache-branch-id is of DeepCache's graphs: ask for them, --deep-cache")
    options = ExportOptions(
        opset=arguments.opset,
        dtype=arguments.dtype,
        weights_dtype=arguments.weights_dtype,
        full_precision=arguments.full_precision,
        targets=arguments.targets,
        device=arguments.device,
        atol=arguments.atol,
        validate=not arguments.no_validate,
        loras=tuple(LoraFile.parse(text) for text in arguments.lora),
        cache_branch_id=branch if arguments.deep_cache else None,
    )
    check_destination(arguments.destination)
    if arguments.triton is not None:
        check_place(arguments.triton, arguments.destination)
        if arguments.dtype == "bf16":
            raise ValueError("Triton's onnxruntime backend has no bf16: --dtype fp32 or fp16 with --triton")
    if arguments.push_to_hub:
        create_repository(arguments.push_to_hub, private=arguments.private, token=arguments.token)
    elif arguments.private:
        raise ValueError("--private is of a repository on the hub: name one, --push-to-hub OWNER/NAME")
    with open_source(
        arguments.source,
        workspace=arguments.destination.parent,
        variant=arguments.variant,
        revision=arguments.revision,
        token=arguments.token,
        allow_pickle=arguments.allow_pickle,
        prediction_type=arguments.prediction_type,
        safety_checker=not arguments.no_safety_checker,
        components=arguments.components,
        progress=progress,
    ) as checkpoint:
        if checkpoint.networks_left_out:
            progress(f"left out: {', '.join(sorted(checkpoint.networks_left_out))}")
        export_model(checkpoint, arguments.destination, options, progress=progress)
    if arguments.triton is not None:
        folder = open_model_folder(arguments.destination)
        folder.trust()
        write_repository(folder, arguments.triton, device=arguments.device, progress=progress)
    size = sum(path.stat().st_size for path in arguments.destination.rglob("*") if path.is_file())
    progress(f"{arguments.destination}: {size / 1e6:.1f} MB")
    if arguments.push_to_hub:
        progress(push(arguments.destination, arguments.push_to_hub, token=arguments.token, progress=progress))
    return 0


def _only_for_triton(arguments: argparse.Namespace) -> int:
    """Writes the repository of a model that was exported before; needs no torch."""
    if arguments.triton is None:
        raise ValueError("name the DESTINATION: a folder that is new or empty")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for name, value in vars(arguments).items():
        if name not in ("source", "triton", "device", "components", "quiet", "run") and value != parser.get_default(
            name
        ):
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} is of an export: name its DESTINATION, or leave {option} out")
    try:
        from safelight.runtime.model_folder import open_model_folder

        from .triton import write_repository
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"--triton needs: pip install 'safelight[export]' ({error})") from error
    folder = open_model_folder(arguments.source)
    progress = _progress(arguments)
    write_repository(
        folder, arguments.triton, networks=arguments.components, device=arguments.device, progress=progress
    )
    return 0


def _progress(arguments: argparse.Namespace) -> Callable[[str], None]:
    """What prints a line with the seconds since now."""
    started = time.perf_counter()

    def progress(line: str) -> None:
        if not arguments.quiet:
            print(f"[{time.perf_counter() - started:6.1f} s] {line}", flush=True)

    return progress
