"""What is installed: every sub-package, the bundled model, and nothing that pulls torch in."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "export", "reference", "runtime")
HEAVY = ("torch", "transformers", "diffusers", "onnx", "onnxscript", "onnx_ir")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_sub_package_on_disk_is_listed() -> None:
    on_disk = {
        "safelight." + ".".join(path.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert on_disk == set(PROJECT["tool"]["setuptools"]["packages"])


def test_constraints_hold_every_requirement() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *(r for name in ("cpu", "export", "bench", "test") for r in extras[name]),
    ]
    names = {requirement.split(">=")[0].lower().replace("_", "-") for requirement in wanted}
    assert names <= pinned


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools would pack what was deleted since
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_wheel_holds_the_packages_and_the_bundled_model(installed: Path) -> None:
    for folder in FOLDERS:
        sources = {
            path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py") if "emoji" not in path.parts
        }
        shipped = {
            path.relative_to(installed / "safelight" / folder)
            for path in (installed / "safelight" / folder).rglob("*.py")
        }
        assert sources == shipped
        assert (installed / "safelight" / folder / "py.typed").is_file()
    vocabulary = Path("export", "single_file", "bpe_simple_vocab_16e6.txt.gz")
    assert (installed / "safelight" / vocabulary).read_bytes() == (ROOT / vocabulary).read_bytes()
    model = ROOT / "runtime" / "models" / "emoji"
    files = {path.relative_to(model): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    assert files
    for name, content in files.items():
        assert (installed / "safelight" / "runtime" / "models" / "emoji" / name).read_bytes() == content


def test_wheel_makes_a_picture_where_torch_is_not(installed: Path, tmp_path: Path) -> None:
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import safelight.runtime.cli as cli
assert cli.__file__.startswith({str(installed)!r}), cli.__file__
sys.exit(cli.main(["generate", "cat face on a blue background", "--num-inference-steps", "2", "--output", "cat.png"]))
"""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "cat.png").read_bytes().startswith(b"\x89PNG")


def test_checkpoint_and_bundled_model_stay_small() -> None:
    folders = (ROOT / "reference" / "emoji", ROOT / "runtime" / "models" / "emoji")
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    assert 20e6 < size < 40e6
