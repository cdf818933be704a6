"""Properties of the Swin Transformers alone; outputs of the reference are in test_golden.py."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled
from helpers.filled import images, run

import bocb_jax
from bocb_jax.models.parameters import parameter_kinds
from bocb_jax.models.swin import PatchMerging, relative_position_index, shift_mask

build = functools.partial(filled.build, "swin_mini")

# Parameter counts at 100 and 1000 classes, from timm.
COUNTS = {
    "swin_t": (27_596_254, 28_288_354),
    "swin_s": (48_914_158, 49_606_258),
    "swin_b": (86_845_724, 87_768_224),
    "swin_l": (195_149_176, 196_532_476),
}


@pytest.mark.parametrize(("name", "at_100", "at_1000"), filled.count_cases(COUNTS, fast=[]))
def test_parameter_counts_equal_the_references(name, at_100, at_1000):
    assert filled.counts(name) == (at_100, at_1000)
    assert bocb_jax.model_card(name).num_params == at_1000


def test_initial_weights():
    model = bocb_jax.create_model(
        "swin_mini",
        num_classes=10,
        image_size=32,
        rngs=nnx.Rngs(0),
        width=48,
        depths=(1,),
        heads=(2,),
    )
    [block] = model.layers[0].blocks
    for weights in (
        block.attn.relative_position_bias_table,
        block.attn.qkv.kernel,
        block.attn.proj.kernel,
        block.mlp.fc1.kernel,
        block.mlp.fc2.kernel,
        PatchMerging(24, dtype=None, rngs=nnx.Rngs(0)).reduction.kernel,
        model.head.fc.kernel,
    ):
        error = 4 / np.sqrt(weights.size)
        assert abs(float(weights[...].mean())) < 0.02 * error
        assert float(weights[...].std()) == pytest.approx(0.02, rel=error)
    assert not block.attn.qkv.bias[...].any()
    patch, bound = model.patch_embed.proj, (3 * 2 * 2) ** -0.5
    for values in (patch.kernel[...], patch.bias[...]):
        assert 0.8 * bound < float(jnp.abs(values).max()) <= bound


def test_relative_position_index_by_its_definition():
    index = relative_position_index(3)
    for query in range(9):
        for key in range(9):
            down, right = query // 3 - key // 3, query % 3 - key % 3
            assert index[query, key] == (down + 2) * 5 + (right + 2)
    assert set(index.flat) == set(range(25))


def test_shift_mask_separates_opposite_borders():
    size, window, shift = 8, 4, 2
    mask = shift_mask(size, size, window, shift)
    assert mask.shape == (4, 16, 16)
    # Where each shifted position came from; in one window, those of one unshifted patch of the
    # map are contiguous, and the others are a map's width away.
    origin = (np.arange(size) + shift) % size
    for w in range(4):
        rows = origin[(w // 2) * window :][:window].repeat(window)
        columns = np.tile(origin[(w % 2) * window :][:window], window)
        near = (np.abs(rows[:, None] - rows[None]) < window) & (
            np.abs(columns[:, None] - columns[None]) < window
        )
        np.testing.assert_array_equal(mask[w] == 0, near)


def test_windows_do_not_interact_until_they_shift():
    model = build(depths=(2,), heads=(2,))
    x = images(1)
    changed = x.at[:, :2, :2].add(1.0)  # one patch, in the first of 4x4 windows

    def reach(model):
        [before], [after] = run(model, x, method="features"), run(model, changed, method="features")
        return np.abs(after - before).max((0, 3)) > 1e-6

    both = reach(model)
    model.layers[0].blocks = nnx.List([model.layers[0].blocks[0]])
    first = reach(model)
    assert first[:4, :4].all()
    assert first.sum() == 16
    assert both[:6, :6].all()
    assert (
        both.sum() == 36
    )  # windows shifted by two reach two patches further, none around the edge


def test_a_map_as_small_as_a_window_is_not_shifted():
    model = build()
    assert [[b.shift for b in stage.blocks] for stage in model.layers] == [[0, 2], [0, 2], [0, 0]]
    small = filled.abstract("swin_t", 10, 32)
    assert [stage.blocks[1].window for stage in small.layers] == [7, 4, 2, 1]
    assert [stage.blocks[1].shift for stage in small.layers] == [3, 0, 0, 0]


def test_stochastic_depth_rises_linearly_over_all_stages():
    model = build(drop_path=0.5)
    rates = [block.drop_path.rate for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_stochastic_depth_draws_independently_per_sample_and_branch():
    model = build(depths=(1, 1), heads=(2, 4), drop_path=0.5)
    same = jnp.repeat(images(1), 64, axis=0)
    assert len(np.unique(run(model, same, dropout=0).round(3), axis=0)) == 4


def test_feature_maps_of_images_that_windows_do_not_divide():
    assert filled.feature_shapes("swin_mini", 32) == [(2, 16, 16, 24), (2, 8, 8, 48), (2, 4, 4, 96)]
    model = build(depths=(2, 2), heads=(2, 4))
    maps = run(model, images(size=38)[:, :, :21], method="features")
    assert [m.shape for m in maps] == [(2, 19, 11, 24), (2, 10, 6, 48)]
    assert all(np.isfinite(m).all() for m in maps)


def test_the_bias_table_declares_its_kind():
    kinds = parameter_kinds(build())
    assert kinds["layers"][0]["blocks"][0]["attn"]["relative_position_bias_table"] == "embedding"
