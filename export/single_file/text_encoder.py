"""The text encoders of a single file: CLIP's in transformers' names, and OpenCLIP's in its own."""

from typing import Any

from .layout import Network, Piece, Pieces, Shapes, alike, count, layers, shape

#: of the 24 that Stable Diffusion 2.x has: it takes what the last layer but one gives
PENULTIMATE_LAYERS = 23

_HEAD_WIDTH = 64  # of both encoders' heads, at any width
_BOS_TOKEN_ID, _EOS_TOKEN_ID = 49406, 49407

_CLIP_LAYER = (
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
    *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
)
_OPENCLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def clip(shapes: Shapes, prefix: str) -> Network:
    """OpenAI's text encoder, which has transformers' names; some files leave out `text_model.`.

    Args:
        shapes: of the file's tensors.
        prefix: of the encoder's.

    Raises:
        ValueError: a tensor without which nothing can be told is missing.
    """
    if f"{prefix}text_model.embeddings.token_embedding.weight" in shapes:
        prefix += "text_model."
    depth = count(shapes, f"{prefix}encoder.layers.{{}}.layer_norm1.weight")
    vocabulary, width = shape(shapes, f"{prefix}embeddings.token_embedding.weight")
    embeddings = ("embeddings.token_embedding", "embeddings.position_embedding")
    pieces = layers(prefix, "text_model.", alike(embeddings), ["weight"])
    pieces |= layers(prefix, "text_model.", alike(["final_layer_norm"]))
    for layer in range(depth):
        place = f"encoder.layers.{layer}."
        pieces |= layers(f"{prefix}{place}", f"text_model.{place}", alike(_CLIP_LAYER))
    config = _config(
        "CLIPTextModel",
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shape(shapes, f"{prefix}encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=depth,
        max_position_embeddings=shape(shapes, f"{prefix}embeddings.position_embedding.weight")[0],
        hidden_act="quick_gelu",
        projection_dim=width,
        pad_token_id=_EOS_TOKEN_ID,
    )
    return Network("text_encoder", "CLIPTextModel", config, pieces)


def openclip(shapes: Shapes, prefix: str, *, name: str, projects: bool) -> Network:
    """OpenCLIP's text encoder.

    Args:
        shapes: of the file's tensors.
        prefix: of the encoder's.
        name: of its folder.
        projects: whether the whole of it is used, with the projection of its last state (SDXL), or all but the last
            layer (Stable Diffusion 2.x).

    Raises:
        ValueError: a tensor without which nothing can be told is missing.
    """
    resblocks = f"{prefix}transformer.resblocks."
    depth = count(shapes, f"{resblocks}{{}}.ln_1.weight")
    depth = depth if projects else min(depth, PENULTIMATE_LAYERS)
    vocabulary, width = shape(shapes, f"{prefix}token_embedding.weight")
    pieces: Pieces = {
        "text_model.embeddings.token_embedding.weight": Piece(f"{prefix}token_embedding.weight"),
        "text_model.embeddings.position_embedding.weight": Piece(f"{prefix}positional_embedding"),
        **layers(prefix, "text_model.", {"ln_final": "final_layer_norm"}),
    }
    for layer in range(depth):
        ours = f"text_model.encoder.layers.{layer}."
        pieces |= layers(f"{resblocks}{layer}.", ours, _OPENCLIP_LAYER)
        for third, projection in enumerate(("q_proj", "k_proj", "v_proj")):
            for parameter in ("weight", "bias"):
                key = f"{resblocks}{layer}.attn.in_proj_{parameter}"
                pieces[f"{ours}self_attn.{projection}.{parameter}"] = Piece(key, third=third)
    class_name, projection_dim = "CLIPTextModel", width
    if projects:
        class_name = "CLIPTextModelWithProjection"
        projection_dim = shape(shapes, f"{prefix}text_projection")[1]
        pieces["text_projection.weight"] = Piece(f"{prefix}text_projection", transposed=True)
    config = _config(
        class_name,
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shape(shapes, f"{resblocks}0.mlp.c_fc.weight")[0],
        num_hidden_layers=depth,
        max_position_embeddings=shape(shapes, f"{prefix}positional_embedding")[0],
        hidden_act="gelu",
        projection_dim=projection_dim,
        pad_token_id=0,
    )
    return Network(name, class_name, config, pieces)


def _config(class_name: str, **values: Any) -> dict[str, Any]:
    return {
        "architectures": [class_name],
        "model_type": "clip_text_model",
        "num_attention_heads": values["hidden_size"] // _HEAD_WIDTH,
        "layer_norm_eps": 1e-5,
        "bos_token_id": _BOS_TOKEN_ID,
        "eos_token_id": _EOS_TOKEN_ID,
        **values,
    }
