import dataclasses
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from safelight.reference.depth_backbone import pad_same
from safelight.reference.depth_estimator import DPTConfig, DPTForDepthEstimation

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
    "backbone_out_indices": [0, 1, 3, 4],
    "neck_hidden_sizes": [8, 10, 12, 14],
    "fusion_hidden_size": 16,
}

CONVOLUTIONS = {
    "layer_type": "bottleneck",
    "global_padding": "SAME",
    "embedding_dynamic_padding": True,
    "embedding_size": 16,
    "num_groups": 4,
    "hidden_sizes": [32, 64, 96],
    "depths": [1, 2, 3],
    "out_features": ["stage1", "stage2", "stage3"],
}

HYBRID = {
    **SMALL,
    "is_hybrid": True,
    "image_size": 64,
    "patch_size": 16,
    "backbone_config": CONVOLUTIONS,
    "backbone_featmap_shape": [1, 96, 4, 4],
    "neck_hidden_sizes": [32, 64, 12, 14],
    "reassemble_factors": [1, 1, 1, 0.5],
}

CONFIGS = {
    "project": SMALL,
    "add, batch norm": {**SMALL, "readout_type": "add", "use_batch_norm_in_fusion_residual": True},
    "ignore, no bias": {**SMALL, "readout_type": "ignore", "use_bias_in_fusion_residual": False, "qkv_bias": False},
    "batch norm and bias": {**SMALL, "use_batch_norm_in_fusion_residual": True, "use_bias_in_fusion_residual": True},
    "projection, three stages, one channel, large epsilon": {
        **SMALL,
        "add_projection": True,
        "fusion_hidden_size": 256,
        "backbone_out_indices": [1, 2, 4],
        "neck_hidden_sizes": [8, 10, 12],
        "reassemble_factors": [2, 1, 0.25],
        "num_channels": 1,
        "layer_norm_eps": 1e-2,
    },
    "hybrid": HYBRID,
    "hybrid, batch norm, four stages named": {
        **HYBRID,
        "use_batch_norm_in_fusion_residual": True,
        "backbone_config": {**CONVOLUTIONS, "hidden_sizes": [32, 64, 96, 128], "depths": [2, 1, 1]},
    },
}

#: as published; what is not named has transformers' default
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "backbone_out_indices": [5, 11, 17, 23],
    "neck_hidden_sizes": [256, 512, 1024, 1024],
}
PUBLISHED_HYBRID = {"is_hybrid": True, "neck_hidden_sizes": [256, 512, 768, 768], "reassemble_factors": [1, 1, 1, 0.5]}


@pytest.fixture
def make(randomize):
    """The oracle with random weights, all of which show in an output that is above 0, mostly."""

    def oracle(**config):
        module = randomize(transformers.DPTForDepthEstimation(transformers.DPTConfig(**config)))
        generator = torch.Generator().manual_seed(1)
        module.dpt.embeddings.position_embeddings.normal_(generator=generator)
        module.dpt.embeddings.cls_token.normal_(generator=generator)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2, generator=generator)
        module.head.head[4].weight.abs_()  # of what is not negative
        return module

    return oracle


@pytest.fixture(params=CONFIGS)
def oracle(request, make):
    return make(**CONFIGS[request.param])


def in_parts(oracle, pixel_values):
    """The oracle's own parts in its order, told the patches' grid: as a whole it takes every picture for a square."""
    config = oracle.config
    grid = [size // config.patch_size for size in pixel_values.shape[-2:]]
    embedded = oracle.dpt.embeddings(pixel_values, **({"interpolate_pos_encoding": True} if config.is_hybrid else {}))
    states = list(embedded.intermediate_activations or [])
    hidden, wanted = embedded.last_hidden_states, config.backbone_out_indices[len(states) :]
    for index, layer in enumerate(oracle.dpt.encoder.layer):
        hidden = layer(hidden)
        states += [hidden] if index in wanted else []
    return oracle.head(oracle.neck(states, *grid))


def shapes(state_dict):
    named = {DPTForDepthEstimation.parameter_name(name): tuple(value.shape) for name, value in state_dict.items()}
    return {name: shape for name, shape in named.items() if name not in DPTForDepthEstimation.ignored}


def test_equals_transformers(oracle, saved, noise, assert_equal):
    config = oracle.config
    pixel_values = noise(2, config.num_channels, config.image_size, config.image_size)
    result = DPTForDepthEstimation.from_pretrained(saved(oracle))(pixel_values).predicted_depth
    expected = oracle(pixel_values).predicted_depth
    assert (expected > 0).float().mean() > 0.5
    assert expected.std() > 0.05 * expected.max()
    assert_equal(result, expected)


@pytest.mark.parametrize("size", [16, 40, 64, 53], ids=lambda size: f"{size}x{size}")
def test_equals_transformers_at_other_sizes(make, saved, noise, assert_equal, size):
    oracle = make(**SMALL)
    pixel_values = noise(1, 3, size, size)
    result = DPTForDepthEstimation.from_pretrained(saved(oracle)).predict(pixel_values)
    assert_equal(result, oracle(pixel_values).predicted_depth)


@pytest.mark.parametrize("config", [SMALL, HYBRID], ids=["plain", "hybrid"])
@pytest.mark.parametrize("size", [(64, 64), (32, 96), (112, 48)], ids=str)
def test_equals_the_parts_of_transformers_at_oblong_sizes(make, saved, noise, assert_equal, config, size):
    oracle = make(**config)
    pixel_values = noise(2, 3, *size)
    result = DPTForDepthEstimation.from_pretrained(saved(oracle)).predict(pixel_values)
    assert_equal(result, in_parts(oracle, pixel_values))


def test_equals_transformers_for_faint_pictures(make, saved, noise, assert_equal):
    """Which the epsilon of the convolutions' norms shows in."""
    oracle = make(**HYBRID)
    pixel_values = 1e-3 * noise(1, 3, HYBRID["image_size"], HYBRID["image_size"])
    result = DPTForDepthEstimation.from_pretrained(saved(oracle)).predict(pixel_values)
    assert_equal(result, oracle(pixel_values).predicted_depth)


def test_has_the_parameters_of_transformers(oracle):
    with torch.device("meta"):
        estimator = DPTForDepthEstimation.from_config(oracle.config.to_dict())
    assert shapes(estimator.state_dict()) == shapes(oracle.state_dict())
    assert not DPTForDepthEstimation.ignored & estimator.state_dict().keys()


@pytest.mark.parametrize(
    ("config", "parameters", "unused"),
    [(LARGE, 341_848_257, 1_182_208), (PUBLISHED_HYBRID, 121_196_289, 1_181_696)],
    ids=["dpt-large", "dpt-hybrid-midas"],
)
def test_has_the_parameters_of_transformers_at_the_published_shape(config, parameters, unused):
    with torch.device("meta"):
        oracle = transformers.DPTForDepthEstimation(transformers.DPTConfig(**config))
        estimator = DPTForDepthEstimation.from_config(config)
    assert shapes(estimator.state_dict()) == shapes(oracle.state_dict())
    assert sum(parameter.numel() for parameter in estimator.parameters()) == parameters
    assert sum(parameter.numel() for parameter in oracle.parameters()) == parameters + unused


def test_loads_what_lacks_the_first_fusion_s_residual(make, saved, noise, assert_equal):
    """As Intel/dpt-large does: transformers makes up the weights, and nothing reads them."""
    oracle = make(**SMALL)
    folder = saved(oracle)
    weights = load_file(folder / "model.safetensors")
    left = {name: value for name, value in weights.items() if "layers.0.residual_layer1" not in name}
    assert len(left) == len(weights) - 4
    save_file(left, folder / "model.safetensors")
    pixel_values = noise(1, 3, 32, 32)
    result = DPTForDepthEstimation.from_pretrained(folder).predict(pixel_values)
    assert_equal(result, oracle(pixel_values).predicted_depth)


@pytest.mark.parametrize(
    "name",
    [
        "dpt.embeddings.position_embeddings",
        "neck.fusion_stage.layers.1.residual_layer1.convolution1.bias",
        "neck.fusion_stage.layers.1.residual_layer1.batch_norm2.running_var",
    ],
)
def test_weights_must_be_complete(make, saved, name):
    folder = saved(make(**CONFIGS["batch norm and bias"]))
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"1 missing: {name}"):
        DPTForDepthEstimation.from_pretrained(folder)


@pytest.mark.parametrize("config", [SMALL, HYBRID], ids=["plain", "hybrid"])
def test_can_be_exported_with_a_free_batch(make, saved, noise, assert_equal, config):
    estimator = DPTForDepthEstimation.from_pretrained(saved(make(**config)))
    size = config["image_size"]
    estimator.forward = estimator.predict
    free = ({0: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(estimator, (noise(2, 3, size, size),), dynamic_shapes=free, strict=False).module()
    pixel_values = noise(5, 3, size, size, seed=1)
    assert_equal(exported(pixel_values), estimator.predict(pixel_values))


@pytest.mark.parametrize("config", [SMALL, HYBRID, LARGE, PUBLISHED_HYBRID], ids=["plain", "hybrid", "large", "midas"])
def test_configuration_has_the_defaults_of_transformers_and_survives_its_dictionary(config):
    complete = DPTConfig.from_dict(transformers.DPTConfig(**config).to_dict())
    assert DPTConfig.from_dict(json.loads(json.dumps(complete.to_dict()))) == complete
    sparse = DPTConfig.from_dict(config)
    transformers_own = {key: getattr(complete, key) for key in ("backbone_config", "neck_ignore_stages")}  # filled in
    assert sparse.convolutions == complete.convolutions
    assert dataclasses.replace(sparse, **transformers_own) == complete


def test_padding_may_be_spelled_small():
    convolutions = {**CONVOLUTIONS, "global_padding": "same"}
    assert DPTConfig.from_dict({**HYBRID, "backbone_config": convolutions}).convolutions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not implemented, only hidden_act = 'gelu'"),
        ({"head_in_index": 0}, "head_in_index = 0 is not implemented, only head_in_index = -1"),
        ({"backbone": "resnet50"}, "backbone = 'resnet50' is not implemented"),
        ({"readout_type": "mean"}, r"readout_type must be one of \['ignore', 'add', 'project'\], got 'mean'"),
        ({**HYBRID, "readout_type": "add"}, r"readout_type must be one of \['project'\], got 'add'"),
        ({**HYBRID, "neck_ignore_stages": []}, r"neck_ignore_stages = \[\] is not implemented, only \[0, 1\]"),
        ({"hidden_size": 25}, "hidden_size 25 is no multiple of num_attention_heads 3"),
        ({"backbone_config": CONVOLUTIONS}, "is_hybrid = true only"),
        ({"backbone_config": {"model_type": "dinov2"}}, "model_type 'bit', got 'dinov2'"),
        ({"backbone_out_indices": [0, 1, 2]}, "must be of one length, got 3, 4 and 4"),
        ({"backbone_out_indices": [0, 1, 3, 5]}, r"must increase and lie in \[0, 5\), got \[0, 1, 3, 5\]"),
        ({"backbone_out_indices": [1, 0, 3, 4]}, r"must increase .* got \[1, 0, 3, 4\]"),
        ({"backbone_out_indices": [], "reassemble_factors": [], "neck_hidden_sizes": []}, r"must increase .* got \[\]"),
        ({**HYBRID, "neck_hidden_sizes": [8, 8, 8, 8]}, r"begin with the backbone's, \[32, 64\], got \[8, 8, 8, 8\]"),
        ({"reassemble_factors": [4, 2, 1, 0.75]}, r"whole numbers or one divided by them, got \[4, 2, 1, 0.75\]"),
        ({"reassemble_factors": [4, 2, 1, 0]}, "whole numbers or one divided by them"),
        ({"image_size": [32, 32]}, r"image_size must be int, got \[32, 32\]"),
        ({"model_type": "vit"}, "got model_type 'vit'"),
    ],
    ids=lambda value: None if isinstance(value, str) else ", ".join(list(value)[-1:]),
)
def test_refuses_what_is_not_implemented(change, message):
    with pytest.raises(ValueError, match=message):
        DPTForDepthEstimation.from_config({**SMALL, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_type": "preactivation"}, "layer_type = 'preactivation' is not implemented, only .* 'bottleneck'"),
        ({"global_padding": None}, "global_padding = None is not implemented, only global_padding = 'SAME'"),
        ({"embedding_dynamic_padding": False}, "embedding_dynamic_padding = False is not implemented"),
        ({"out_features": ["stage3"]}, r"out_features = \['stage3'\] is not implemented"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not implemented, only hidden_act = 'relu'"),
        ({"output_stride": 8}, "output_stride = 8 is not implemented"),
        ({"depths": [1, 1, 1, 1]}, "must describe 3 stages"),
        ({"hidden_sizes": [32, 64, 100]}, "hidden_sizes must be multiples of 32"),
    ],
    ids=lambda value: None if isinstance(value, str) else ", ".join(value),
)
def test_refuses_other_convolutions(change, message):
    with pytest.raises(ValueError, match=message):
        DPTForDepthEstimation.from_config({**HYBRID, "backbone_config": {**CONVOLUTIONS, **change}})


@pytest.mark.parametrize(("kernel_size", "stride"), [(7, 2), (3, 2), (1, 2), (3, 3)])
@pytest.mark.parametrize("size", [(8, 9), (11, 6), (1, 2)], ids=str)
def test_same_padding_divides_sizes_by_the_stride_rounding_up(kernel_size, stride, size):
    padded = pad_same(torch.ones(1, 1, *size), kernel_size=kernel_size, stride=stride)
    convolved = torch.nn.functional.conv2d(padded, torch.ones(1, 1, kernel_size, kernel_size), stride=stride)
    assert convolved.shape[2:] == tuple(-(-each // stride) for each in size)
    assert padded.sum() == size[0] * size[1]


@pytest.mark.full_shape
@pytest.mark.parametrize("config", [LARGE, PUBLISHED_HYBRID], ids=["dpt-large", "dpt-hybrid-midas"])
def test_equals_transformers_at_the_published_shape(make, noise, assert_equal, config):
    oracle = make(**config)
    with torch.device("meta"):
        estimator = DPTForDepthEstimation.from_config(config)
    weights = {DPTForDepthEstimation.parameter_name(name): value for name, value in oracle.state_dict().items()}
    weights.pop("unused")
    estimator.load_state_dict(weights, assign=True)
    pixel_values = noise(1, 3, 384, 384)
    assert_equal(estimator.predict(pixel_values), oracle(pixel_values).predicted_depth)
