"""The GPUs that an engine is for."""

from collections.abc import Sequence

from safelight.runtime.engines.flavours import TITLES, Flavour

#: what GPUs before this cannot compute in: bfloat16
_AMPERE = 80


def known_gpus(trt: Flavour) -> tuple[str, ...]:
    """The compute capabilities that TensorRT for RTX builds for, such as "sm89"."""
    return tuple(name.lower() for name in trt.module.ComputeCapability.__members__ if name.startswith("SM"))


def chosen_gpus(trt: Flavour, wanted: Sequence[str], *, bfloat16: bool) -> tuple[tuple[str, ...], str | None]:
    """The compute capabilities of an engine, and the name of the GPU where it is for no other.

    Args:
        trt: what builds it.
        wanted: compute capabilities; when empty all that TensorRT for RTX knows from Ampere on. NVIDIA advises against
            one engine for Turing (sm75) and what came after it.
        bfloat16: whether any network computes in it.

    Raises:
        ValueError: an unknown one, or one that the engine cannot be for.
        RuntimeError: TensorRT builds on a GPU, and there is none.
    """
    if not trt.is_rtx:
        if wanted:
            raise ValueError(
                f"--gpu is of tensorrt-rtx: {TITLES[trt.name]} builds for the GPU of the machine that it builds on"
            )
        capability, name = _gpu_here()
        return (capability,), name
    known = known_gpus(trt)
    if unknown := [gpu for gpu in wanted if gpu not in known]:
        raise ValueError(
            f"{TITLES[trt.name]} {trt.version} builds for no {', '.join(unknown)}; it knows {', '.join(known)}"
        )
    chosen = tuple(gpu for gpu in known if gpu in wanted or (not wanted and _number(gpu) >= _AMPERE))
    if bfloat16 and (without := [gpu for gpu in chosen if _number(gpu) < _AMPERE]):
        raise ValueError(f"{', '.join(without)} has no bfloat16: build it with --dtype fp16 and --vae-dtype fp32")
    return chosen, None


def _number(gpu: str) -> int:
    return int(gpu.removeprefix("sm"))


def _gpu_here() -> tuple[str, str]:
    """Compute capability and name of the first GPU."""
    from safelight.runtime.backends.tensorrt.cuda import CudaError, device_properties  # which need CUDA's bindings

    try:
        found = device_properties(0)
    except CudaError as error:
        raise RuntimeError(
            f"TensorRT builds for the GPU that it builds on: {error}; --target tensorrt-rtx builds on any machine"
        ) from error
    return found.compute_capability, found.name
