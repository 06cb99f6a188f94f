"""What a user says of ONNX Runtime's sessions: its own options, by its own names, looked at before they are used.

ONNX Runtime takes any entry of a session's configuration, and says nothing of one that it does not know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self

import onnxruntime as ort

from ..protocol import AUTO, Tuning

#: whether a network that was made ready for this CPU is kept for the next time; see `optimized_graphs`
CACHE = "cache"

_FLAG, _NUMBER, _TEXT = "true or false", "a number of at least 0", "a text of at most 1024 characters"
_LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_LAYOUT", "ORT_ENABLE_ALL")
_MODES = ("ORT_SEQUENTIAL", "ORT_PARALLEL")

#: attribute of `onnxruntime.SessionOptions` -> what it takes
ATTRIBUTES: Mapping[str, str | tuple[str, ...]] = MappingProxyType(
    {
        "enable_cpu_mem_arena": _FLAG,
        "enable_mem_pattern": _FLAG,
        "enable_mem_reuse": _FLAG,
        "enable_profiling": _FLAG,
        "execution_mode": _MODES,
        "graph_optimization_level": _LEVELS,
        "inter_op_num_threads": _NUMBER,
        "log_severity_level": _NUMBER,
        "profile_file_prefix": _TEXT,
        "use_deterministic_compute": _FLAG,
    }
)
#: entry of a session's configuration -> what it takes: those of `onnxruntime_session_options_config_keys.h` (1.22 to
#: 1.32) that say how a network is computed on a CPU or with CUDA, and not what is read or written
ENTRIES: Mapping[str, str | tuple[str, ...]] = MappingProxyType(
    {
        "optimization.disable_specified_optimizers": _TEXT,
        "optimization.enable_cast_chain_elimination": _FLAG,
        "optimization.enable_gelu_approximation": _FLAG,
        "session.collect_node_memory_stats_to_file": _TEXT,
        "session.disable_aot_function_inlining": _FLAG,
        "session.disable_cpu_ep_fallback": _FLAG,
        "session.disable_double_qdq_remover": _FLAG,
        "session.disable_prepacking": _FLAG,
        "session.disable_qdq_constant_folding": _FLAG,
        "session.disable_quant_qdq": _FLAG,
        "session.dynamic_block_base": _NUMBER,
        "session.enable_quant_qdq_cleanup": _FLAG,
        "session.force_spinning_stop": _FLAG,
        "session.graph_optimizations_loop_level": _NUMBER,
        "session.inter_op.allow_spinning": _FLAG,
        "session.intra_op.allow_spinning": _FLAG,
        "session.intra_op_thread_affinities": _TEXT,
        "session.qdqisint8allowed": _FLAG,
        "session.set_denormal_as_zero": _FLAG,
        "session.strict_shape_type_inference": _FLAG,
        "session.use_device_allocator_for_initializers": _FLAG,
        "session.x64quantprecision": _FLAG,
    }
)
_LONGEST = 1024  # characters of an entry's value

#: what is not as ONNX Runtime has it, where a user says nothing: a warning about an initializer is not the user's
#: business
_ATTRIBUTES: Mapping[str, Any] = MappingProxyType({"log_severity_level": 3})
#: and on a CPU: a pattern lays out all activations of a run in one block, which the second run of a shape allocates
#: beside what the first one has left in the arena, so that a large picture's decoder has its activations twice
_ON_CPU: Mapping[str, Any] = MappingProxyType({"enable_mem_pattern": False})
#: each network has threads of its own, and those that spin after a run slow the next network down
_ENTRIES: Mapping[str, str] = MappingProxyType({"session.force_spinning_stop": "1"})


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """How a session is opened, beyond where it runs."""

    threads: int | None = None  # of the CPU, within one operator; ONNX Runtime's choice (the physical cores) when None
    attributes: Mapping[str, Any] = field(default_factory=dict)  # of `onnxruntime.SessionOptions`
    entries: Mapping[str, str] = field(default_factory=dict)  # of the session's configuration
    cache: bool = True  # see `CACHE`

    @classmethod
    def of(cls, tuning: Tuning | None) -> Self:
        """The settings that a user's tuning stands for.

        Raises:
            ValueError: a precision that ONNX Runtime does not choose, or an unknown option or value.
        """
        tuning = tuning or Tuning()
        if tuning.precision not in (None, AUTO, "fp32"):
            raise ValueError(
                f"ONNX Runtime does not compute in {tuning.precision} what was not exported in it: use "
                f"backend='openvino' on a CPU, or safelight export --dtype {tuning.precision} for a GPU"
            )
        attributes, entries = {}, {}
        for name, value in tuning.options.items():
            if name in ATTRIBUTES:
                attributes[name] = _checked(name, ATTRIBUTES[name], value)
            elif name in ENTRIES:
                entries[name] = _entry(_checked(name, ENTRIES[name], value))
            elif name != CACHE:
                _refuse(name)
        cache = bool(_checked(CACHE, _FLAG, tuning.options.get(CACHE, True)))
        return cls(threads=tuning.threads, attributes=attributes, entries=entries, cache=cache)

    def and_also(self, *, attributes: Mapping[str, Any], entries: Mapping[str, str]) -> Self:
        """These settings and further ones, which win."""
        return replace(self, attributes={**self.attributes, **attributes}, entries={**self.entries, **entries})

    def session_options(self, *, on_cpu: bool = True) -> Any:
        """ONNX Runtime's own object, for a session that runs on a CPU or not; Any, because it has no types."""
        options = ort.SessionOptions()
        kinds = {"execution_mode": ort.ExecutionMode, "graph_optimization_level": ort.GraphOptimizationLevel}
        for name, value in {**_ATTRIBUTES, **(_ON_CPU if on_cpu else {}), **self.attributes}.items():
            setattr(options, name, getattr(kinds[name], value) if name in kinds else value)
        for name, value in {**_ENTRIES, **self.entries}.items():
            options.add_session_config_entry(name, value)
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        return options


def _checked(name: str, kind: str | tuple[str, ...], value: Any) -> Any:
    """The value of an option, if it is of its kind.

    Raises:
        ValueError: it is not; the message says what it takes.
    """
    if kind == _FLAG and (isinstance(value, bool) or value in (0, 1, "0", "1")):
        return bool(int(value))
    if kind == _NUMBER and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if kind == _TEXT and isinstance(value, str) and len(value) <= _LONGEST:
        return value
    if isinstance(kind, tuple) and value in kind:
        return value
    takes = f"one of {', '.join(kind)}" if isinstance(kind, tuple) else kind
    raise ValueError(f"{name} of the onnxruntime backend must be {takes}, got {value!r}")


def _entry(value: bool | int | str) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _refuse(name: str) -> None:
    if name == "intra_op_num_threads":
        raise ValueError("intra_op_num_threads of the onnxruntime backend is called threads here")
    known: Sequence[str] = (CACHE, *ATTRIBUTES, *ENTRIES)
    raise ValueError(f"the onnxruntime backend has no option {name!r}; known: {', '.join(known)}")
