"""How far a picture drifts when some of its computations are left out, and what that saves.

`python -m safelight.benchmarks.drift [MODEL] [--json FILE] [--grid PNG]` makes the same pictures with everything
computed and with each option alone, in a few strengths, and with the presets. The drift is that from the pipeline's own
full run in float32. What is saved is counted (calls of the UNet, and rows of their batches: two to a guided picture),
which depends on no machine, and timed, as a ratio to full runs in between.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

import numpy as np

from safelight.runtime import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel, bundled_model
from safelight.runtime.backends import Array
from safelight.runtime.image import image_grid, to_pil, to_unit_interval
from safelight.runtime.schedulers import Scheduler, scheduler_class
from safelight.runtime.speed import PRESETS, Speed

from .machine import machine, versions

PROMPTS = (
    "cat face on a blue background",
    "red apple on a white background",
    "pizza on a green background",
    "cat face with heart eyes on a pink background",
    "dog face on a yellow background",
    "rose on a black background",
    "hamburger on a gray background",
    "fox on a purple background",
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to make the pictures."""

    option: str
    strength: str
    speed: Speed = field(default_factory=Speed)
    engine: Mapping[str, Any] = field(default_factory=dict)  # of `from_pretrained`, over those of the full run
    scheduler: str | None = None
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    tiles_a_side: int = 1  # of the decoder


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What a variant gave, beside the full run."""

    option: str
    strength: str
    psnr_median: float | None = None  # dB, of pictures in [0, 1]; None where all of them are the full run's
    psnr_worst: float | None = None
    latents_difference: float | None = None  # the largest of all, in standard deviations of the full run's
    unet_calls: float | None = None  # of a picture, on average
    unet_rows: float | None = None
    seconds_ratio: float | None = None  # to the full run's
    not_run: str | None = None  # why


@dataclass
class Made:
    """The pictures of a variant so far."""

    pictures: list[Array] = field(default_factory=list)
    latents: list[Array] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    calls: int = 0
    rows: int = 0


def variants(steps: int, tiny_autoencoder: Path | None = None) -> list[Variant]:
    """What is measured beside a full run of so many steps."""
    found = [
        Variant(
            option="guidance interval", strength=f"{start:g}:{stop:g}", speed=Speed(guidance_interval=(start, stop))
        )
        for start, stop in ((0.1, 1), (0.2, 1), (0.4, 1), (0, 0.9), (0, 0.8), (0, 0.6), (0, 0.4), (0.2, 0.8))
    ]
    found += [
        Variant(
            option="step reuse",
            strength=f"{threshold:g}" + f", {limit} in a row" * (limit is not None),
            speed=Speed(reuse_threshold=threshold, reuse_limit=limit),
        )
        for limit in (None, 1, 2, 3)
        for threshold in (0.01, 0.02, 0.05, 0.1, 0.2)
    ]
    found += [
        Variant(option="deep cache", strength=f"every {interval}", speed=Speed(deep_cache_interval=interval))
        for interval in (2, 3, 5)
    ]
    karras = {"use_karras_sigmas": True}
    solvers: list[tuple[str, str | None, dict[str, Any]]] = [
        ("own scheduler", None, {}),
        ("DPM++ 2M", "DPMSolverMultistepScheduler", {}),
        ("DPM++ 2M Karras", "DPMSolverMultistepScheduler", karras),
        ("UniPC", "UniPCMultistepScheduler", {}),
    ]
    for name, scheduler, options in solvers:
        for part in (1, 0.75, 0.5):
            fewer = round(steps * part)
            if scheduler is not None or part < 1:
                found.append(
                    Variant(
                        option=name,
                        strength=f"{fewer} steps",
                        scheduler=scheduler,
                        scheduler_options=options,
                        steps=fewer,
                    )
                )
    bf16 = {"backend": "openvino", "precision": "bf16"}
    found += [
        Variant(
            option="decoder in bf16",
            strength="OpenVINO",
            engine={"backend": "openvino", "precision": {"unet": "fp32", "vae_decoder": "bf16"}},
        ),
        Variant(option="all in bf16", strength="OpenVINO", engine=bf16),
        Variant(option="decoder in tiles", strength="half a side each", tiles_a_side=2),
    ]
    if tiny_autoencoder is not None:
        found.append(Variant(option="tiny autoencoder", strength="its own", engine={"vae": str(tiny_autoencoder)}))
    found += [Variant(option="preset", strength=name, speed=speed) for name, speed in PRESETS.items()]
    found.append(Variant(option="preset", strength="balanced, bf16", speed=PRESETS["balanced"], engine=bf16))
    return found


class Studio:
    """Makes the pictures of variants; the pipelines stay open."""

    def __init__(self, model: Path, *, steps: int, guidance_scale: float, **engine: Any) -> None:
        self.model, self.steps, self.guidance_scale, self.engine = model, steps, guidance_scale, engine
        self._pipelines: dict[str, tuple[StableDiffusionPipeline, Scheduler]] = {}

    def make(self, variant: Variant, prompt: str, seed: int, made: Made) -> None:
        """Makes one picture more.

        Raises:
            ValueError: the pipeline cannot be had in this way.
        """
        pipeline = self._pipeline(variant)
        with _counting(made):
            started = perf_counter()
            latents = pipeline(
                prompt,
                num_inference_steps=variant.steps or self.steps,
                guidance_scale=self.guidance_scale,
                seed=seed,
                output_type="latent",
            ).images
            picture = to_unit_interval(pipeline.vae.decode(pipeline.vae.unscale(latents)))
            seconds = perf_counter() - started
        made.pictures.append(picture[0])
        made.latents.append(latents[0])
        made.seconds.append(seconds)

    def _pipeline(self, variant: Variant) -> StableDiffusionPipeline:
        """The pipeline, set as the variant has it."""
        key = json.dumps(dict(variant.engine), sort_keys=True)
        if key not in self._pipelines:
            engine = {**self.engine, **variant.engine}
            if "vae" in engine:
                engine["vae"] = AutoencoderTiny.from_pretrained(engine["vae"])
            opened = StableDiffusionPipeline.from_pretrained(self.model, requires_safety_checker=False, **engine)
            opened.set_progress_bar_config(disable=True)
            self._pipelines[key] = (opened, opened.scheduler)
        pipeline, own = self._pipelines[key]
        pipeline.scheduler = own
        if variant.scheduler is not None:
            pipeline.scheduler = scheduler_class(variant.scheduler).from_config(own.config, **variant.scheduler_options)
        pipeline.vae.disable_tiling()
        if variant.tiles_a_side > 1:
            pipeline.vae.enable_tiling(pipeline.unet.config["sample_size"] // variant.tiles_a_side)
        pipeline.enable_speed(variant.speed)
        return pipeline


@contextmanager
def _counting(made: Made) -> Iterator[None]:
    """Counts the UNet's calls and their rows."""
    call = UNet2DConditionModel.__call__

    def counted(unet: UNet2DConditionModel, sample: Array, *others: Any, **options: Any) -> Any:
        made.calls += 1
        made.rows += len(sample)
        return call(unet, sample, *others, **options)

    with mock.patch.object(UNet2DConditionModel, "__call__", counted):
        yield


def measure(studio: Studio, wanted: Sequence[Variant], prompts: Sequence[str], seeds: Sequence[int]) -> list[Drift]:
    """Makes the pictures of all variants, each right after the full run's, and compares.

    Args:
        studio: of the model.
        wanted: the variants; the pictures of those that cannot be had are not made, and the reason is kept.
        prompts: of the pictures.
        seeds: each prompt has a picture of each.
    """
    full = Variant(option="full", strength="")
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    reference, drifts = Made(), []
    studio.make(full, *pairs[0], Made())  # warm-up
    for pair in pairs:
        studio.make(full, *pair, reference)
    for variant in wanted:
        made, beside = Made(), Made()
        try:
            studio.make(variant, *pairs[0], Made())
            for pair in pairs:
                studio.make(variant, *pair, made)
                studio.make(full, *pair, beside)
        except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
            drifts.append(Drift(option=variant.option, strength=variant.strength, not_run=str(error)))
        else:
            drifts.append(_drift(variant, reference, made, statistics.median(beside.seconds)))
        print(_row(drifts[-1]), flush=True)
    return drifts


def _drift(variant: Variant, reference: Made, made: Made, full_seconds: float) -> Drift:
    """What a variant's pictures are, beside those of the full run."""
    psnr = [_psnr(one, other) for one, other in zip(made.pictures, reference.pictures, strict=True)]
    spread = float(np.std(reference.latents))
    difference = float(np.abs(np.subtract(made.latents, reference.latents)).max())
    count = len(made.pictures)
    return Drift(
        option=variant.option,
        strength=variant.strength,
        psnr_median=_finite(statistics.median(psnr)),
        psnr_worst=_finite(min(psnr)),
        latents_difference=difference / spread,
        unet_calls=made.calls / count,
        unet_rows=made.rows / count,
        seconds_ratio=statistics.median(made.seconds) / full_seconds,
    )


def _psnr(picture: Array, reference: Array) -> float:
    """The peak signal-to-noise ratio of pictures in [0, 1], in dB."""
    error = float(np.mean((picture.astype(np.float64) - reference) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


HEAD = (
    "| option | strength | PSNR, median | worst | latents | UNet calls | rows | time |\n"
    "|---|---|---|---|---|---|---|---|"
)


def _row(drift: Drift) -> str:
    """A line of the table."""
    start = f"| {drift.option} | {drift.strength} | "
    if drift.not_run is not None:
        return f"{start}not run: {drift.not_run} | | | | | |"
    median, worst = ("equal" if each is None else f"{each:.1f} dB" for each in (drift.psnr_median, drift.psnr_worst))
    counts = f"{drift.unet_calls:.1f} | {drift.unet_rows:.1f} | {drift.seconds_ratio:.2f}"
    return f"{start}{median} | {worst} | {drift.latents_difference:.2g} | {counts} |"


def _sheet(studio: Studio, wanted: Sequence[Variant], prompts: Sequence[str], seed: int, path: Path) -> None:
    """Draws the full run's pictures, and below them a row of each variant."""
    rows: list[Array] = []
    for variant in [Variant(option="full", strength=""), *wanted]:
        made = Made()
        try:
            for prompt in prompts:
                studio.make(variant, prompt, seed, made)
        except (ValueError, FileNotFoundError, ModuleNotFoundError):
            continue
        rows += made.pictures
    image_grid(to_pil(np.stack(rows)), len(prompts)).save(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description="The drift of what is left out of a picture's computations.")
    parser.add_argument("model", nargs="?", type=Path, help="a folder (default: the bundled model)")
    parser.add_argument("--steps", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=7.5, help="(default: %(default)s)")
    parser.add_argument("--prompt", action="append", help="instead of the eight; may be given again")
    parser.add_argument("--seeds", type=int, default=4, help="how many of each prompt (default: %(default)s)")
    parser.add_argument("--option", action="append", help="only those with this in their name; may be given again")
    parser.add_argument("--backend", default="onnxruntime", help="of the full run (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: the engine's choice)")
    parser.add_argument("--tiny-autoencoder", type=Path, metavar="DIR", help="measure its decoder too")
    parser.add_argument("--no-times", action="store_true", help="leave out how long: the machine does other work too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--grid", type=Path, metavar="PNG", help="draw the pictures, a row a variant")
    arguments = parser.parse_args(argv)
    model = arguments.model or bundled_model()
    prompts, seeds = arguments.prompt or PROMPTS, range(arguments.seeds)
    studio = Studio(
        model,
        steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        backend=arguments.backend,
        threads=arguments.threads,
    )
    wanted = [
        variant
        for variant in variants(arguments.steps, arguments.tiny_autoencoder)
        if not arguments.option or any(name in f"{variant.option} {variant.strength}" for name in arguments.option)
    ]
    print(HEAD)
    drifts = measure(studio, wanted, prompts, seeds)
    if arguments.no_times:
        drifts = [replace(drift, seconds_ratio=None) for drift in drifts]
    if arguments.json is not None:
        content = {
            "machine": machine(),
            "versions": versions(),
            "model": "emoji" if arguments.model is None else str(model),
            "backend": arguments.backend,
            "steps": arguments.steps,
            "guidance_scale": arguments.guidance_scale,
            "prompts": list(prompts),
            "seeds": list(seeds),
            "presets": {name: asdict(speed) for name, speed in PRESETS.items()},
            "drift": [asdict(drift) for drift in drifts],
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if arguments.grid is not None:
        _sheet(studio, wanted, prompts, 0, arguments.grid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
