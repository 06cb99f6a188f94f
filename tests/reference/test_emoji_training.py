"""The bundled checkpoint is what its card says, and the script beside it makes such a checkpoint."""

import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.numpy import load_file

EMOJI = Path(__file__).parents[2] / "reference" / "emoji"
CHECKPOINT = EMOJI / "checkpoint"
COMPONENTS = ("text_encoder", "unet", "vae")
ARGUMENTS = ["--steps", "2", "--images", "2", "--seed", "7"]

# diffusers 0.42 gives NumPy 2 a torch tensor where it expects an array
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def read(folder: Path, name: str) -> dict[str, object]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module, with its neighbours; all of them are forgotten afterwards."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EMOJI))
        yield importlib.import_module("train")
    for name in set(sys.modules) - before:
        if str(EMOJI) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the command writes, and what it prints."""
    folder = tmp_path_factory.mktemp("trained")
    done = subprocess.run(
        [sys.executable, EMOJI / "train.py", "--output", folder, *ARGUMENTS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(next(folder.glob("*.safetensors")))


def draw(folder: Path) -> np.ndarray:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    call = pipeline("cat face on a blue background", num_inference_steps=3, generator=generator, output_type="np")
    return call.images[0]


def test_what_the_script_writes_opens_in_diffusers(trained: tuple[Path, str]) -> None:
    image = draw(trained[0])
    assert image.shape == (64, 64, 3)
    assert np.isfinite(image).all()


def test_the_script_reports_finite_losses(trained: tuple[Path, str]) -> None:
    losses = [float(line.rpartition("loss ")[2]) for line in trained[1].splitlines() if "loss " in line]
    assert len(losses) == 3  # the VAE's first step, the UNet's first step, its last
    assert np.isfinite(losses).all()


def test_the_script_writes_the_configuration_of_the_bundled_checkpoint(trained: tuple[Path, str]) -> None:
    learned = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "scaling_factor"}
    names = ["model_index.json", "scheduler/scheduler_config.json", *(f"{name}/config.json" for name in COMPONENTS)]
    for name in names:
        written, bundled = read(trained[0], name), read(CHECKPOINT, name)
        assert written.keys() <= bundled.keys() | {"_class_name"}
        assert {key: written[key] for key in written.keys() - learned} == {
            key: bundled[key] for key in written.keys() - learned
        }
    assert learned <= {key for name in ("vae", "text_encoder") for key in read(trained[0], f"{name}/config.json")}


def test_the_script_writes_the_tensors_of_the_bundled_checkpoint(trained: tuple[Path, str]) -> None:
    for component in COMPONENTS:
        written, bundled = (
            load_file(next((root / component).glob("*.safetensors"))) for root in (trained[0], CHECKPOINT)
        )
        assert {value.dtype for value in written.values()} == {np.dtype(np.float16)}
        assert all(np.isfinite(value).all() for value in written.values())
        shapes = {name.removeprefix("text_model."): value.shape for name, value in written.items()}
        expected = {name.removeprefix("text_model."): value.shape for name, value in bundled.items()}
        shapes.pop("embeddings.token_embedding.weight", None)  # of the vocabulary of three captions
        expected.pop("embeddings.token_embedding.weight", None)
        assert shapes == expected


def test_the_same_seed_and_steps_train_the_same_weights(
    script: ModuleType, trained: tuple[Path, str], tmp_path: Path
) -> None:
    with torch.enable_grad():
        assert script.main(["--output", str(tmp_path), *ARGUMENTS]) == 0
    for path in trained[0].rglob("*"):
        if path.is_file():
            assert (tmp_path / path.relative_to(trained[0])).read_bytes() == path.read_bytes(), path.name


def test_minutes_end_the_training_and_samples_are_drawn(
    script: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(script, "sample", functools.partial(script.sample, prompts=["", "cat"], steps=2))
    options = ["--minutes", "0.0005", "--images", "1", "--samples", str(tmp_path / "samples")]
    with torch.enable_grad():
        assert script.main(["--output", str(tmp_path / "checkpoint"), *options]) == 0
    with Image.open(tmp_path / "samples" / "100.png") as grid:
        assert grid.size == (8 * 64, 64)
    assert "VAE: " in caplog.text


def test_the_tokenizer_is_trained_the_same_every_time(script: ModuleType, tmp_path: Path) -> None:
    for name in ("first", "second"):
        script.train_tokenizer(script.load_subjects(), tmp_path / name)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second")
    )
    assert first == second
    vocabulary = json.loads(first["vocab.json"])
    assert len(vocabulary) == 2265
    assert sorted(vocabulary.values()) == list(range(2265))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "must be more than 0, got 0"),
        (["--steps", "1"], "--steps must be at least 2"),
        (["--images", "0"], "--images must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.main(["--output", str(tmp_path / "none"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_bundled_checkpoint_opens_in_diffusers() -> None:
    image = draw(CHECKPOINT)
    assert image.shape == (64, 64, 3)
    red, _, blue = image[:4].mean((0, 1))  # the background is blue after three steps already
    assert blue > red + 0.2


def test_the_bundled_checkpoint_is_as_its_card_says() -> None:
    text_encoder, unet, vae = (read(CHECKPOINT, f"{component}/config.json") for component in COMPONENTS)
    assert (text_encoder["hidden_size"], text_encoder["num_hidden_layers"], text_encoder["vocab_size"]) == (96, 2, 2265)
    assert text_encoder["max_position_embeddings"] == 32
    assert read(CHECKPOINT, "tokenizer/tokenizer_config.json")["model_max_length"] == 32
    assert (vae["block_out_channels"], vae["latent_channels"], vae["norm_num_groups"]) == ([32, 48, 64], 4, 8)
    assert vae["scaling_factor"] == pytest.approx(0.46724, abs=1e-5)
    assert (unet["block_out_channels"], unet["cross_attention_dim"], unet["sample_size"]) == ([48, 96, 160], 96, 16)
    assert read(CHECKPOINT, "scheduler/scheduler_config.json")["_class_name"] == "EulerDiscreteScheduler"
    sizes = {}
    for component in COMPONENTS:
        tensors = weights(CHECKPOINT / component)
        assert {value.dtype for value in tensors.values()} == {np.dtype(np.float16)}
        sizes[component] = round(sum(value.size for value in tensors.values()) / 1e6, 2)
    assert sizes == {"text_encoder": 0.44, "unet": 7.08, "vae": 0.80}


def test_the_data_is_what_the_card_lists() -> None:
    captions = [
        json.loads(line) for line in (EMOJI / "data" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    with np.load(EMOJI / "data" / "noto_64.npz") as arrays:
        assert arrays["rgba"].shape == (len(captions), 64, 64, 4)
        assert arrays["rgba"].dtype == np.uint8
    assert len(captions) == 462
    assert {(row["license"], row["source"].partition("#")[0]) for row in captions} == {
        ("Apache-2.0", "npm:@iconify-json/noto@1.2.9")
    }
