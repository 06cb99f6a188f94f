"""Every name of TensorRT that the sources use is one: of the installed TensorRT-RTX, and of the stubs of TensorRT 10.

Most of it is `Any` to the type checker, since it is one of two modules, and little of it can run without a GPU.
"""

import ast
import builtins
import collections
import ctypes
import importlib
import io
import os
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tensorrt_rtx
from cuda.bindings import runtime as cudart

ROOT = Path(__file__).parents[3]
FOLDERS = ("runtime/backends/tensorrt", "runtime/engines", "export/engines")
STUBS = ROOT / ".types" / "tensorrt_bindings" / "tensorrt.pyi"

#: what TensorRT-RTX alone has, and is asked for it alone
RTX_ONLY = {
    "ComputeCapability",
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineInvalidityDiagnostics",
    "EngineValidity",
    "create_runtime_cache",
    "cuda_graph_strategy",
    "deserialize",
    "dynamic_shapes_kernel_specialization_strategy",
    "get_engine_validity",
    "is_stream_capturable",
    "num_compute_capabilities",
    "set_compute_capability",
    "set_runtime_cache",
}
#: what TensorRT alone has, and is asked for it alone
STANDARD_ONLY: set[str] = set()
#: how the sources call the module, which is `tensorrt` or `tensorrt_rtx`
MODULE_NAMES = ("trt", "library", "module")


@dataclass(frozen=True)
class Use:
    """A name that a source uses of TensorRT: `Builder`, `BuilderFlag.TF32`, or `.create_network` of some object."""

    path: str
    place: str

    def __str__(self) -> str:
        return f"{self.place}: {self.path}"


class Api:
    """The classes of a TensorRT and their members."""

    def __init__(self, classes: dict[str, set[str]], functions: set[str]) -> None:
        self.classes = classes
        self.top = functions | {name for name in classes if "." not in name}
        self.members = set().union(*classes.values())

    def has(self, path: str) -> bool:
        if path.startswith("."):
            return path[1:] in self.members
        outer, _, name = path.rpartition(".")
        return name in self.classes.get(outer, ()) if outer else name in self.top


def installed(module: types.ModuleType) -> Api:
    classes: dict[str, set[str]] = {}

    def look(name: str, value: object) -> None:
        if isinstance(value, type) and value not in (type, object):
            classes[name] = set(dir(value))
            for inner in vars(value):
                if isinstance(vars(value)[inner], type) and not inner.startswith("_"):
                    look(f"{name}.{inner}", vars(value)[inner])

    for name in dir(module):
        look(name, getattr(module, name))
    return Api(classes, set(dir(module)))


def stubs(source: str) -> Api:
    classes: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}

    def look(name: str, found: ast.ClassDef) -> None:
        bases[name] = [base.id for base in found.bases if isinstance(base, ast.Name)]
        classes[name] = set(dir(object)) | {"__members__"}
        for statement in found.body:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                classes[name].add(statement.name)
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                classes[name].add(statement.target.id)
            if isinstance(statement, ast.ClassDef):
                look(f"{name}.{statement.name}", statement)

    body = ast.parse(source).body
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            look(statement.name, statement)
    for name in classes:
        for base in bases[name]:
            classes[name] |= classes.get(base, set())
    functions = {statement.name for statement in body if isinstance(statement, ast.FunctionDef)}
    return Api(classes, functions | {"__name__", "__version__"})


def elsewhere(tree: ast.Module) -> set[str]:
    """The members of whatever else a source may have in hand: Python's, its imports' and our own classes'."""
    known: set[str] = set()
    modules: list[object] = [builtins, collections, ctypes, cudart, io, os, types]
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        modules += [
            importlib.import_module(name) for name in names if name.split(".")[0] not in ("tensorrt", "safelight")
        ]
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, type):
                known.update(dir(value))
    return known | set(dir(type(ctypes.c_uint8))) | set(dir(np.empty(0).ctypes))


def ours() -> set[str]:
    """What our own sources define: functions, classes, fields, attributes."""
    defined: set[str] = set()
    for path in (file for folder in ("runtime", "reference", "export") for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                defined.add(node.target.id)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("self", "cls")
            ):
                defined.add(node.attr)
    return defined


def chain(node: ast.expr) -> list[str] | None:
    """`a.b.c` as its names; None for an expression that is more than names."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else None


def uses(source: str, place: str, known: set[str]) -> Iterator[Use]:
    """What a source uses of TensorRT.

    Args:
        source: Python.
        place: for messages.
        known: members of other objects, which may be TensorRT's too: nothing is said of those.
    """
    tree = ast.parse(source)
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and not (isinstance(node, ast.ImportFrom) and node.level)
        for alias in node.names
        if alias.name not in ("tensorrt", "tensorrt_rtx")
    }
    aliases: dict[str, list[str]] = {}

    def of_module(node: ast.expr) -> list[str] | None:
        """What follows the module in a chain: `library.ILogger.Severity` -> ILogger, Severity."""
        names = chain(node)
        if names is None:
            return None
        if names[0] in aliases:
            return [*aliases[names[0]], *names[1:]]
        marks = [at for at, name in enumerate(names) if name in MODULE_NAMES]
        after = names[marks[-1] + 1 :] if marks else []
        return None if not after or after[0] in ("is_rtx", "name", "version") else after

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found = of_module(node.value)
            if found and node.targets[0].id not in MODULE_NAMES:
                aliases[node.targets[0].id] = found
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        where = f"{place}:{node.lineno}"
        found, names = of_module(node), chain(node)
        if found:
            # at most a member of a class, or of a class within a class
            yield Use(".".join(found[: 3 if found[1:2] == ["Severity"] else 2]), where)
        elif (names is None or names[0] not in {*imported, "arguments"}) and node.attr not in known:
            yield Use(f".{node.attr}", where)


def wrong(found: Iterator[Use], rtx: Api, standard: Api) -> list[str]:
    """What is said of the names that are not in both, and not in the list of those that one of them alone has."""
    messages = []
    for use in found:
        name = use.path.lstrip(".")
        if not rtx.has(use.path) and name not in STANDARD_ONLY:
            messages.append(f"{use}: not in TensorRT-RTX {tensorrt_rtx.__version__}")
        alone = name in RTX_ONLY or name.split(".")[0] in RTX_ONLY
        if not standard.has(use.path) and not alone:
            messages.append(f"{use}: not in TensorRT 10.13")
    return messages


@pytest.fixture(scope="module")
def apis() -> tuple[Api, Api]:
    if not STUBS.is_file():
        pytest.skip("the stubs of TensorRT are not there: make types")
    return installed(tensorrt_rtx), stubs(STUBS.read_text(encoding="utf-8"))


def test_the_sources_use_what_tensorrt_has(apis: tuple[Api, Api]) -> None:
    own, messages = ours(), []
    for path in (file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))):
        source = path.read_text(encoding="utf-8")
        known = own | elsewhere(ast.parse(source))
        messages += wrong(uses(source, path.relative_to(ROOT).as_posix(), known), *apis)
    assert messages == []


def test_what_one_of_them_alone_has_is_in_one_alone(apis: tuple[Api, Api]) -> None:
    for names, owner, other in ((RTX_ONLY, *apis), (STANDARD_ONLY, *reversed(apis))):
        for name in names:
            path = name if name[0].isupper() else f".{name}"
            assert owner.has(path), name
            assert not other.has(path), name


def test_the_sources_use_what_cuda_has() -> None:
    for path in (file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = chain(node) if isinstance(node, ast.Attribute) else None
            if names and names[0] == "cudart":
                value: object = cudart
                for name in names[1:]:
                    assert hasattr(value, name), f"{path}:{node.lineno}: CUDA has no {'.'.join(names)}"
                    value = getattr(value, name)


KNOWN = {"items", "library", "module", "is_rtx"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("library.Bilder(logger)", "Bilder: not in TensorRT-RTX"),
        ("plan.library.TensorIOMode.IMPUT", "TensorIOMode.IMPUT: not in TensorRT-RTX"),
        ("flags = trt.module.BuilderFlag\nconfig.set_flag(flags.TF33)", "BuilderFlag.TF33: not in TensorRT-RTX"),
        ("trt.module.ILogger.Severity.EROR", "ILogger.Severity.EROR: not in TensorRT-RTX"),
        ("config.set_flagg(1)", ".set_flagg: not in TensorRT-RTX"),
        ("builder.create_network(0).add_input2", ".add_input2: not in TensorRT-RTX"),
        ("def f(config: trt.IBilderConfig) -> None: ...", "IBilderConfig: not in TensorRT-RTX"),
        ("library.BuilderFlag.INT8", "BuilderFlag.INT8: not in TensorRT-RTX"),
        ("config.create_engine_for_rtx_alone()", ".create_engine_for_rtx_alone: not in TensorRT 10.13"),
    ],
)
def test_a_name_that_is_none_is_found(apis: tuple[Api, Api], source: str, message: str) -> None:
    rtx, standard = apis
    rtx = Api({**rtx.classes, "Future": {"create_engine_for_rtx_alone"}}, rtx.top)
    told = wrong(uses(source, "x.py", KNOWN), rtx, standard)
    assert any(f": {message}" in text for text in told), told


@pytest.mark.parametrize(
    "source",
    [
        "flags = trt.module.BuilderFlag\nconfig.set_flag(flags.REFIT_IDENTICAL)",
        "config.set_memory_pool_limit(trt.module.MemoryPoolType.WORKSPACE, 1)",
        "library.ILogger.Severity.ERROR",
        "trt.module.ComputeCapability.__members__.items",
        "if trt.is_rtx: config.set_compute_capability(trt.module.ComputeCapability.SM89, 0)",
        "engine.get_tensor_profile_shape(name, 0)",
        "numpy.nothing",
    ],
)
def test_a_name_that_is_one_is_let_pass(apis: tuple[Api, Api], source: str) -> None:
    assert wrong(uses(f"import numpy\n{source}", "x.py", KNOWN), *apis) == []
