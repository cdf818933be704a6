"""Overrides of a backbone's config: checked one by one and against each other."""

import jax
import numpy as np
import pytest
from flax import nnx

import bocb_jax
from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.layers import NORMS, DropPath

# name, overrides, pattern of the message
CASES = [
    ("resnet_mini", {"depths": (2, 2)}, "depths has 2 and widths has 4 entries"),
    ("resnet_mini", {"depths": ()}, "depths has 0"),
    ("resnet_mini", {"depths": 3}, r"depths of resnet_mini is 3, not tuple\[int, ...\]"),
    ("resnet_mini", {"depths": (2, 2, 2, "2")}, r"not tuple\[int, ...\]"),
    ("resnet_mini", {"depths": (2, 2, -2, 2)}, "must be positive"),
    ("resnet_mini", {"widths": (8, 16, 0, 64)}, "must be positive"),
    ("resnet_mini", {"drop_path": "much"}, "drop_path of resnet_mini is 'much', not float"),
    ("resnet_mini", {"drop_path": 1.5}, r"it must be in \[0, 1\]"),
    ("resnet_mini", {"dropout": True}, "dropout of resnet_mini is True, not float"),
    ("resnet_mini", {"stem": "large"}, "stem is 'auto', 'imagenet' or 'cifar', not 'large'"),
    ("resnet_mini", {"block": "wide"}, "block is 'basic' or 'bottleneck', not 'wide'"),
    ("resnet_mini", {"num_classes": 0}, "num_classes is 0"),
    ("resnet_mini", {"image_size": 32.0}, "image_size is 32.0; it must be a whole number"),
    ("densenet_mini", {"growth": 0}, "growth of densenet_mini is 0; it must be positive"),
    ("densenet_mini", {"stem": "none"}, "not 'none'"),
    ("alexnet_mini", {"widths": (8, 8)}, "AlexNet has 5 convolutions"),
    ("alexnet_mini", {"init": "zeros"}, "init is 'he' or 'torch', not 'zeros'"),
    ("alexnet", {"image_size": 32}, "Images of 32 pixels are too small"),
    ("vgg_mini", {"depths": (1, 1)}, "depths has 2 and widths has 5"),
    ("mobilenetv2_mini", {"stages": ((1, 16, 1, 1),)}, r"taps is .*; there are stages 0 to 0\."),
    ("mobilenetv2_mini", {"stages": ((1, 16, 1),)}, "stages of mobilenetv2_mini"),
    ("efficientnet_mini", {"taps": (9,)}, r"taps is \(9,\); there are stages 0 to 3\."),
    ("efficientnet_mini", {"init": "he_normal"}, "init is 'he' or 'torch'"),
    ("repvgg_mini", {"groups": 3}, "groups is 3; it must divide the widths"),
    ("vit_mini", {"heads": 5}, "heads 5 do not divide the width 64"),
    ("vit_mini", {"heads": 0}, "heads of vit_mini is 0; it must be positive"),
    ("vit_mini", {"patch_size": 5}, "32 pixels cannot be cut into patches of 5"),
    ("vit_mini", {"variant": "timm"}, "'official' and 'bocb', not 'timm'"),
    ("mixer_mini", {"patch_size": 5}, "32 pixels cannot be cut into patches of 5"),
    ("swin_mini", {"window": 0}, "window of swin_mini is 0; it must be positive"),
    ("swin_mini", {"window": 2.5}, "window of swin_mini is 2.5, not int"),
    ("swin_mini", {"heads": (2, 5, 8)}, "heads 5 do not divide the width 48 of stage 2"),
    ("swin_mini", {"heads": (2, 4)}, "depths has 3 and heads has 2"),
    ("convnext_mini", {"widths": (16,)}, "depths has 4 and widths has 1"),
    ("convnext_mini", {"stem": "mini"}, "not 'mini'"),
    ("convnext_mini", {"layer_scale": "no"}, r"is 'no', not float \| None"),
    ("moganet_mini", {"widths": (16, 20, 48, 96)}, "8 must divide every one"),
    ("moganet_mini", {"mlp_ratios": (4,)}, "mlp_ratios has 1"),
    ("unireplknet_mini", {"large_kernel": 8}, "large_kernel is one of 7, 9, 11, 13, 15, 17, not 8"),
    ("unireplknet_mini", {"depths": (1,), "widths": (8,)}, "UniRepLKNet has four stages"),
    ("transnext_mini", {"heads": (3, 4, 4, 8)}, "heads 3 do not divide the width 16"),
    ("transnext_mini", {"image_size": 40}, "a multiple of 16 pixels, not 40"),
    ("caformer_mini", {"mixers": ("conv",) * 3}, "mixers has 3 entries for 4 stages"),
    ("caformer_mini", {"mixers": ("conv", "fft", "conv", "conv")}, "not 'fft'"),
    ("caformer_mini", {"head": "none"}, "head is 'mlp' or 'linear', not 'none'"),
    ("caformer_mini", {"block_norm": "batch"}, "block_norm is 'channel' or 'map', not 'batch'"),
    ("caformer_mini", {"stem": (7, 0, 2)}, "kernel size and stride must be positive"),
    ("resnet_mini", {"norm": "instance"}, "norm is 'batch', 'layer', 'group', 'none', not"),
    ("caformer_mini", {"depth": 3}, "caformer_mini has no setting depth. It has: depths, widths"),
]


def create(name, settings):
    settings = {"num_classes": 10, "image_size": 32, **settings}
    return nnx.eval_shape(lambda: bocb_jax.create_model(name, rngs=nnx.Rngs(0), **settings))


@pytest.mark.parametrize(("name", "settings", "message"), CASES)
def test_overrides_that_do_not_fit_are_refused(name, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        create(name, settings)
    assert "\n" not in str(caught.value)


def test_a_list_is_accepted_for_a_tuple_and_an_int_for_a_float():
    model = create("resnet_mini", {"depths": [1, 1], "widths": [8, 16], "dropout": 0})
    assert model.config.depths == (1, 1)


@pytest.mark.parametrize("name", bocb_jax.list_models("*_mini"))
def test_stochastic_depth_is_off_by_default(name):
    for _, module in nnx.iter_modules(create(name, {})):
        assert not isinstance(module, DropPath) or module.rate == 0


def test_published_rates_are_on_the_card():
    assert bocb_jax.model_card("swin_t").drop_path == 0.2
    assert bocb_jax.model_card("convnext_t").cifar_drop_path == 0.3
    assert bocb_jax.model_card("resnet50").drop_path is None


@pytest.mark.parametrize("name", ["resnet_mini", "convnext_mini"])
def test_swapping_the_norm_changes_no_parameter(name):
    def shapes(norm):
        state = nnx.to_pure_dict(nnx.state(create(name, {"norm": norm}), nnx.Param))
        return jax.tree.map(lambda leaf: leaf.shape, state)

    assert all(shapes(norm) == shapes("batch") for norm in NORMS)


@pytest.mark.parametrize("norm", NORMS)
def test_axes_of_each_norms_statistics(norm):
    layer = layers.norm(norm, 16, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(2.0, 3.0, (4, 6, 6, 16)).astype(np.float32)
    axes = {"batch": (0, 1, 2), "layer": (3,), "group": (1, 2, 4), "none": ()}[norm]
    parts = x.reshape(4, 6, 6, 4, 4) if norm == "group" else x
    expected = x
    if norm != "none":
        mean, std = (f(parts, axis=axes, keepdims=True) for f in (np.mean, np.std))
        expected = ((parts - mean) / std).reshape(x.shape)
    # Off by the epsilon of 1e-5, relative to a variance of about 9.
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
