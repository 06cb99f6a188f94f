"""The TensorRT that is installed, and what is said where it is not, or is in part."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from safelight.runtime.engines import FLAVOURS
from safelight.runtime.engines.flavours import flavour


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages that come before those that are installed; a TensorRT that is imported is not seen."""
    imported = {name: sys.modules.pop(name, None) for name in ("tensorrt", "tensorrt_rtx")}
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name, module in imported.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def package(folder: Path, name: str, source: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source)


@pytest.mark.parametrize(("name", "module"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_what_is_installed(packages: Path, name: str, module: str) -> None:
    package(packages, module, "__version__ = '10.13.0.35'")
    found = flavour(name)
    assert (found.name, found.version, found.module.__name__) == (name, "10.13.0.35", module)
    assert found.is_rtx is (name == "tensorrt-rtx")


def test_the_real_wheel() -> None:
    found = flavour("tensorrt-rtx")
    assert found.is_rtx
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+", found.version)
    assert found.module.BuilderFlag.REFIT_IDENTICAL


@pytest.mark.parametrize("name", FLAVOURS)
def test_what_is_not_installed(packages: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(packages)])
    with pytest.raises(ModuleNotFoundError, match=rf"is not installed: pip install 'safelight\[{name}\]'") as error:
        flavour(name)
    assert error.value.name == name.replace("-", "_")


def test_type_stubs_alone_are_no_tensorrt(packages: Path) -> None:
    (packages / "tensorrt").mkdir()
    (packages / "tensorrt" / "__init__.pyi").write_text("__version__: str")
    with pytest.raises(ModuleNotFoundError, match=r"only its type stubs are: pip install 'safelight\[tensorrt\]'"):
        flavour("tensorrt")


def test_a_wheel_without_its_bindings(packages: Path) -> None:
    package(packages, "tensorrt", "from tensorrt_bindings_that_are_not_there import *")
    with pytest.raises(ImportError, match="in part, tensorrt_bindings_that_are_not_there is missing") as error:
        flavour("tensorrt")
    assert not isinstance(error.value, ModuleNotFoundError)


@pytest.mark.parametrize(
    "error", ["ImportError('libnvinfer.so.10: cannot open')", "OSError('libnvinfer.so.10: cannot open')"]
)
def test_a_wheel_whose_libraries_are_missing(packages: Path, error: str) -> None:
    package(packages, "tensorrt", f"raise {error}")
    with pytest.raises(ImportError, match=r"TensorRT is installed, but .* loaded: libnvinfer.so.10: cannot open"):
        flavour("tensorrt")


def test_unknown_flavours_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown TensorRT 'os'; known: tensorrt, tensorrt-rtx"):
        flavour("os")


def test_no_tensorrt_is_imported_before_it_is_asked_for() -> None:
    program = """
import sys
import safelight.runtime
assert not any("engines" in name for name in sys.modules), "the runtime has no use for engines yet"
import safelight.runtime.engines.cli, safelight.runtime.engines.prune
print([name for name in sys.modules if "tensorrt" in name or name.startswith(("cuda", "onnxruntime", "torch"))])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
