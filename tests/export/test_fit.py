"""Networks of a checkpoint that do not fit together are refused before any work."""

import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import pytest

from safelight.export.checkpoint import open_checkpoint
from safelight.export.fit import check_fit

UNET = {
    "cross_attention_dim": 44,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}
ENCODERS = [
    ("text_encoder", "CLIPTextModel", {"hidden_size": 24, "projection_dim": 16}),
    ("text_encoder_2", "CLIPTextModelWithProjection", {"hidden_size": 20, "projection_dim": 16}),
]


def networks(encoders: Any = ENCODERS, **unet: Any) -> list[Any]:
    return [*encoders, ("unet", "UNet2DConditionModel", {**UNET, **unet})]


def test_those_that_fit_pass() -> None:
    check_fit(networks(), {})
    check_fit(networks(projection_class_embeddings_input_dim=56), {"requires_aesthetics_score": True})
    check_fit(networks(ENCODERS[:1], cross_attention_dim=24, addition_embed_type=None), {})
    check_fit(networks([]), {})  # a UNet alone
    check_fit(ENCODERS, {})  # no UNet


@pytest.mark.parametrize(
    ("components", "pipeline", "message"),
    [
        (
            networks(cross_attention_dim=45),
            {},
            r"embeddings are 44 wide \(text_encoder 24 and text_encoder_2 20\), cross_attention_dim is 45",
        ),
        (networks(ENCODERS[:1]), {}, r"embeddings are 24 wide \(text_encoder 24\), cross_attention_dim is 44"),
        (networks(ENCODERS[:1], cross_attention_dim=24), {}, "no text encoder has a projection"),
        (networks(projection_class_embeddings_input_dim=65), {}, "pooled text is 16 wide, 6 sizes are 48"),
        (networks(), {"requires_aesthetics_score": True}, "pooled text is 16 wide, 5 sizes are 40"),
    ],
)
def test_those_that_do_not_are_refused(components: Any, pipeline: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_fit(components, pipeline)


def test_a_checkpoint_with_another_models_text_encoder_is_refused(tmp_path: Path, odd_checkpoint: Path) -> None:
    mixed = Path(shutil.copytree(checkpoints.make_checkpoint(checkpoints.SD2), tmp_path / "mixed"))
    shutil.rmtree(mixed / "text_encoder")
    shutil.copytree(odd_checkpoint / "text_encoder", mixed / "text_encoder")
    with pytest.raises(ValueError, match=r"embeddings are 36 wide \(text_encoder 36\), cross_attention_dim is 24"):
        open_checkpoint(mixed)


def test_a_refiner_that_says_it_is_none_is_refused(tmp_path: Path) -> None:
    refiner = Path(shutil.copytree(checkpoints.make_checkpoint(checkpoints.REFINER), tmp_path / "refiner"))
    index = json.loads((refiner / "model_index.json").read_text())
    (refiner / "model_index.json").write_text(json.dumps({**index, "requires_aesthetics_score": False}))
    with pytest.raises(ValueError, match=r"requires_aesthetics_score in model_index\.json is wrong"):
        open_checkpoint(refiner)
