"""The runtime is torch-free, in fact and not only by its import statements."""

import json
import subprocess
import sys

import pytest

import safelight.runtime

HEAVY = {
    "torch",
    "transformers",
    "diffusers",
    "onnx",
    "onnxscript",
    "onnx_ir",
    "safelight.export",
    "safelight.reference",
}


def modules_after(program: str) -> set[str]:
    """The modules of a fresh process that ran a program."""
    program += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    loaded = modules_after("import safelight.runtime")
    assert "safelight.runtime.pipelines.stable_diffusion" in loaded
    assert not loaded & (HEAVY | {"onnxruntime", "PIL", "tokenizers", "huggingface_hub", "tqdm", "scipy"})


def test_a_whole_generation_loads_nothing_heavy() -> None:
    loaded = modules_after(
        "from safelight.runtime import DiffusionPipeline, bundled_model\n"
        "pipeline = DiffusionPipeline.from_pretrained(bundled_model())\n"
        "pipeline('cat face', num_inference_steps=2, seed=0, clip_skip=1).images[0]"
    )
    assert "onnxruntime" in loaded
    assert not loaded & HEAVY


def test_public_names_are_there_and_listed() -> None:
    listed = safelight.runtime.__all__
    assert listed == sorted(listed)
    public = {name for name, value in vars(safelight.runtime).items() if isinstance(value, type) or callable(value)}
    assert {name for name in public if not name.startswith("_")} - {"Any"} <= set(listed) == set(dir(safelight.runtime))
    assert all(isinstance(getattr(safelight.runtime, name), type) for name in listed if name != "bundled_model")
    with pytest.raises(AttributeError, match="has no attribute 'NoScheduler'"):
        _ = safelight.runtime.NoScheduler


def test_schedulers_are_imported_when_they_are_asked_for() -> None:
    before = modules_after("import safelight.runtime")
    after = modules_after("from safelight.runtime import UniPCMultistepScheduler")
    assert "safelight.runtime.schedulers.unipc_multistep" in after - before
    assert "safelight.runtime.schedulers.dpmsolver_sde" not in after
