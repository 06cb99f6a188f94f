"""What a validation found, how much of it is allowed, and how it is shown."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from ..engines import EngineIdentity
from ..manifest import ComponentRecord, Manifest
from .proof import Spread

#: what a manifest calls a dtype
_ARITHMETIC = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
#: float32 whose products have float16's precision: what engines may do with it
TF32 = "tf32"
#: 8-bit integers, whatever the layers between them compute in: what a quantized network does
INT8 = "int8"
#: how many times the reference's own float16 spread an error may be, by the dtype of the arithmetic
SPREADS_ALLOWED: Mapping[str, float] = {"float32": 1 / 32, "float16": 3.0, "bfloat16": 24.0, TF32: 3.0, INT8: 64.0}
#: the same of the run's drift, which small differences add up to
DRIFTS_ALLOWED: Mapping[str, float] = {"float32": 1 / 16, "float16": 4.0, "bfloat16": 32.0, TF32: 4.0, INT8: 64.0}
#: no limit is above this: an output of zeros has an error of 1
LARGEST_LIMIT = 0.5
#: how much worse than its limit's base a picture may be, in dB, and what is asked of none
_PSNR_SLACK, _PSNR_ENOUGH = 6.0, 50.0
#: dB that are asked of every quantized run: below, a picture differs to the eye
_PSNR_QUANTIZED = 30.0


class FidelityError(ValueError):
    """A model folder is further from the reference than its limits allow."""


def arithmetic(record: ComponentRecord) -> str:
    """The dtype that a network computes in: what the record says, or that of its first floating-point output.

    That of a quantized network is `INT8`, where its weights alone are, too.
    """
    if record.quantization is not None:
        return INT8
    if record.dtype is not None:
        return _ARITHMETIC[record.dtype]
    return next(tensor.dtype for tensor in record.outputs if "float" in tensor.dtype)


def computed_in(record: ComponentRecord, precision: str | None) -> str:
    """The dtype that an engine computes a network in: the coarser of the network's own and the engine's.

    Args:
        record: of the network.
        precision: that the engine was asked for; the network's own when None.
    """
    dtypes = {arithmetic(record), *([] if precision is None else [_ARITHMETIC[precision]])}
    return max(dtypes, key=SPREADS_ALLOWED.__getitem__)


def engine_arithmetic(identity: EngineIdentity) -> str:
    """The dtype that a compiled engine computes in."""
    return TF32 if identity.dtype == "fp32" and identity.options.get("tf32") else _ARITHMETIC[identity.dtype]


def limit(dtype: str, spread: Spread) -> float:
    """The largest relative error that passes: what rounding the weights costs, and a multiple of the spread."""
    rounding = spread.weights if dtype == "float32" else 0.0
    return min(LARGEST_LIMIT, rounding + SPREADS_ALLOWED[dtype] * spread.half_precision)


@dataclass(frozen=True, kw_only=True)
class GraphFidelity:
    """The largest errors of one graph over all recorded calls; see `View.errors`."""

    relative_error: float
    absolute_error: float
    output: str  # with the largest relative error
    call: str  # of which that is
    not_run: str | None = None  # why the graph cannot be run here; the errors mean nothing then

    @classmethod
    def none(cls, reason: str) -> Self:
        """Of a graph that was not run."""
        return cls(relative_error=0.0, absolute_error=0.0, output="", call="", not_run=reason)


@dataclass(frozen=True, kw_only=True)
class ComponentFidelity:
    """One network: the errors of its graphs, and what is allowed."""

    dtype: str  # of the arithmetic
    limit: float  # of the relative error
    absolute_limit: float | None  # of the absolute error; when given, it alone decides
    half_precision: float  # see `Spread`
    overflows: bool
    weights: float
    graphs: Mapping[str, GraphFidelity]  # by target

    @property
    def run(self) -> dict[str, GraphFidelity]:
        """The graphs that were run."""
        return {target: graph for target, graph in self.graphs.items() if graph.not_run is None}

    def failure(self, target: str) -> str | None:
        """What is wrong with a graph; None where nothing is."""
        graph = self.graphs[target]
        if graph.not_run is not None:
            return None
        if self.dtype == "float16" and self.overflows:
            return "float16 overflows in the reference itself: compute this network in float32"
        error, allowed = graph.relative_error, self.limit
        if self.absolute_limit is not None:
            error, allowed = graph.absolute_error, self.absolute_limit
        if error <= allowed:
            return None
        kind = "relative" if self.absolute_limit is None else "absolute"
        return (
            f"output {graph.output} of {graph.call}, relative error {graph.relative_error:.1e}, absolute "
            f"{graph.absolute_error:.1e}; the limit is {kind} {allowed:.1e}"
        )


@dataclass(frozen=True, kw_only=True)
class RunFidelity:
    """The whole run, each network fed by the one before."""

    class_name: str
    arguments: Mapping[str, Any]
    drift: list[float]  # relative error of the latents after each evaluation of the UNet
    drift_limit: list[float]
    half_precision_drift: list[float]
    psnr: float  # dB, of the picture; infinite where it is the same
    psnr_limit: float
    ssim: float | None  # None of a picture smaller than the window
    half_precision_psnr: float

    @property
    def failure(self) -> str | None:
        """What is wrong; None where nothing is."""
        for step, (drift, allowed) in enumerate(zip(self.drift, self.drift_limit, strict=True), 1):
            if not drift <= allowed:
                return f"the run drifts from the reference: {drift:.1e} after step {step}, the limit is {allowed:.1e}"
        if not self.psnr >= self.psnr_limit:
            return f"the run's picture has a PSNR of {self.psnr:.1f} dB, the limit is {self.psnr_limit:.1f} dB"
        return None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a validation found of a model folder."""

    components: Mapping[str, ComponentFidelity]
    run: RunFidelity | None
    run_missing: str | None  # why there is no run
    backend: str
    device: str

    @property
    def failures(self) -> list[str]:
        """One sentence for each component that is not within its limits, which names it."""
        found = [
            f"{name}: {graph_name(target)} differs from the reference: {failure}"
            for name, component in self.components.items()
            for target in component.graphs
            if (failure := component.failure(target))
        ]
        return [*found, self.run.failure] if self.run is not None and self.run.failure else found

    @property
    def unchecked(self) -> list[str]:
        """The components of which no graph could be run here."""
        return [name for name, component in self.components.items() if not component.run]

    def raise_for_failure(self) -> None:
        """Raises FidelityError, with the first of `failures` and how many more there are."""
        if failures := self.failures:
            more = f" (and {len(failures) - 1} more)" if failures[1:] else ""
            raise FidelityError(failures[0] + more)

    def recorded_in(self, manifest: Manifest) -> Manifest:
        """A manifest that holds this report."""
        components = {
            name: replace(record, fidelity=to_json(asdict(self.components[name])))
            for name, record in manifest.components.items()
        }
        whole = to_json(asdict(self))
        del whole["components"]
        return replace(manifest, components=components, fidelity=whole)

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """The report that a manifest holds.

        Raises:
            FileNotFoundError: it holds none.
            ValueError: it holds something else.
        """
        records = {name: record.fidelity for name, record in manifest.components.items()}
        if manifest.fidelity is None or None in records.values():
            raise FileNotFoundError("the folder carries no report of its fidelity: it was exported with --no-validate")
        try:
            whole = dict(manifest.fidelity)
            run = whole.pop("run")
            return cls(
                components={name: _component(record or {}) for name, record in records.items()},
                run=None if run is None else RunFidelity(**_numbers(run, "psnr", "psnr_limit", "half_precision_psnr")),
                **whole,
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"the manifest's report of fidelity is none: {error!r}") from error

    def as_json(self) -> dict[str, Any]:
        """The report as JSON; what is infinite is null."""
        record: dict[str, Any] = to_json(asdict(self))
        return record | {"failures": self.failures, "unchecked": self.unchecked}

    def __str__(self) -> str:
        rows = [("component", "graph", "relative error", "limit", "half precision")]
        for name, component in self.components.items():
            allowed, spread = f"{component.limit:.1e}", f"{component.half_precision:.1e}"
            if component.absolute_limit is not None:
                allowed = f"abs {component.absolute_limit:.1e}"
            spread += ", float16 overflows" if component.overflows else ""
            for target, graph in component.graphs.items():
                error = f"{graph.relative_error:.1e}" if graph.not_run is None else "not run here"
                error += " FAILS" if component.failure(target) else ""
                rows.append((name, target, error, allowed, spread))
                name = allowed = spread = ""  # said once
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [
            f"{name}, {target}: not run here: {graph.not_run}"
            for name, component in self.components.items()
            for target, graph in component.graphs.items()
            if graph.not_run is not None
        ]
        return "\n".join([*lines, "", *_run_lines(self.run, self.run_missing)])


def graph_name(target: str) -> str:
    """The file of a target's graph."""
    return "model.onnx" if target == "onnx" else f"model.{target}.onnx"


def run_limits(
    dtypes: set[str], weights: float, half_drift: list[float], half_psnr: float
) -> tuple[list[float], float]:
    """What the run may drift after each step, and the PSNR that its picture must have.

    Args:
        dtypes: of the arithmetic of its networks.
        weights: the largest error that rounded weights make in a network.
        half_drift: the reference's own drift in half precision.
        half_psnr: of the reference's own picture in half precision.
    """
    widest = max(dtypes, key=DRIFTS_ALLOWED.__getitem__)
    exact = widest == "float32" and weights == 0
    factor = DRIFTS_ALLOWED[widest if exact or widest != "float32" else "float16"]
    psnr = half_psnr if exact else half_psnr - _PSNR_SLACK - 20 * math.log10(factor / DRIFTS_ALLOWED["float16"])
    if widest == INT8:
        psnr = max(psnr, _PSNR_QUANTIZED)
    return [min(LARGEST_LIMIT, factor * drift) for drift in half_drift], min(psnr, _PSNR_ENOUGH)


def to_json(value: Any) -> Any:
    """Plain dictionaries, lists and numbers; what is infinite is None."""
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A record in which what is None, of those names, is infinite again."""
    return {**record, **{name: math.inf for name in names if record[name] is None}}


def _component(record: Mapping[str, Any]) -> ComponentFidelity:
    graphs = {
        target: GraphFidelity(**_numbers(graph, "relative_error", "absolute_error"))
        for target, graph in record["graphs"].items()
    }
    return ComponentFidelity(**{**record, "graphs": graphs})


def _run_lines(run: RunFidelity | None, missing: str | None) -> list[str]:
    if run is None:
        return [f"no run: {missing}"]
    shown = ", ".join(f"{name} {value!r}" for name, value in run.arguments.items())
    drift = "  ".join(f"{each:.1e}" for each in run.drift)
    halves = "  ".join(f"{each:.1e}" for each in run.half_precision_drift)
    ssim = "" if run.ssim is None else f", SSIM {run.ssim:.6f}"
    return [
        f"run of {run.class_name}: {shown}",
        f"drift after each step   {drift}" + (" FAILS" if run.failure else ""),
        f"  in half precision     {halves}",
        f"picture                 PSNR {_decibels(run.psnr)}{ssim}",
        f"  in half precision     PSNR {_decibels(run.half_precision_psnr)}",
    ]


def _decibels(psnr: float) -> str:
    return f"{psnr:.1f} dB" if math.isfinite(psnr) else "infinite, the same bytes"
