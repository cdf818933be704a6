"""Transfers and traffic of programs: written by hand, with sizes that are easy to count."""

# ruff: noqa: E501  (lines of XLA)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bocb_jax.roofline import hlo

SYNCHRONOUS = """\
HloModule step

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

ENTRY %main (p: bf16[256,4]) -> f32[10] {
  %p = bf16[256,4]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = (f32[10]{0:T(256)}, bf16[3,5]{1,0:T(8,128)(2,1)S(1)}) all-reduce(%a, %b), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add, metadata={op_name="jit(f)/transpose(jvp(block/reduce_sum))" stack_frame_id=3}
  %all-gather.1 = bf16[1024,4]{1,0} all-gather(%p), channel_id=2, replica_groups=[1,4]<=[4], dimensions={0}, metadata={op_name="jit(f)/jvp(A)/dot_general"}
  %reduce-scatter.1 = f32[16]{0} reduce-scatter(%c), channel_id=3, replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}, to_apply=%add, dimensions={0}
  ROOT %r = f32[10]{0} get-tuple-element(%all-reduce.1), index=0
}
"""

ASYNCHRONOUS = """\
HloModule step

%start (q: f32[8]) -> (f32[8], f32[32]) {
  %q = f32[8]{0} parameter(0)
  %all-gather.7 = f32[32]{0} all-gather(%q), channel_id=9, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %t = (f32[8]{0}, f32[32]{0}) custom-call(%all-gather.7), custom_call_target="AsyncCollectiveStart"
}

%done (t: (f32[8], f32[32])) -> f32[32] {
  %t.1 = (f32[8]{0}, f32[32]{0}) parameter(0)
  ROOT %all-gather.8 = f32[32]{0} all-gather(%t.1), channel_id=9, replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (p: f32[8]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  %collective-permute-start.1 = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), channel_id=1, source_target_pairs={{0,1},{1,0}}, metadata={op_name="jit(f)/rev"}
  %collective-permute-done.1 = f32[8]{0} collective-permute-done(%collective-permute-start.1)
  %fusion.1 = (f32[8]{0}, f32[32]{0}) fusion(%collective-permute-done.1), kind=kCustom, calls=%start
  ROOT %fusion.2 = f32[32]{0} fusion(%fusion.1), kind=kCustom, calls=%done
}
"""

# A ring in steps of two: the counter runs to 8 by 2.
LOOP = """\
HloModule step

%body (s: (u32[], f32[6])) -> (u32[], f32[6]) {
  %s = (u32[], f32[6]{0}) parameter(0)
  %i = u32[] get-tuple-element(%s), index=0
  %v = f32[6]{0} get-tuple-element(%s), index=1
  %two = u32[] constant(2)
  %next = u32[] add(%i, %two)
  %collective-permute.1 = f32[6]{0} collective-permute(%v), channel_id=4, source_target_pairs={{0,1},{1,0}}
  ROOT %out = (u32[], f32[6]{0}) tuple(%next, %collective-permute.1)
}

%condition (s: (u32[], f32[6])) -> pred[] {
  %eight = u32[] constant(8)
  %s.1 = (u32[], f32[6]{0}) parameter(0)
  %i.1 = u32[] get-tuple-element(%s.1), index=0
  ROOT %less = pred[] compare(%i.1, %eight), direction=LT
}

ENTRY %main (p: (u32[], f32[6])) -> (u32[], f32[6]) {
  %p = (u32[], f32[6]{0}) parameter(0)
  ROOT %while.1 = (u32[], f32[6]{0}) while(%p), condition=%condition, body=%body
}
"""

TRAFFIC = """\
HloModule step

%sliced (a: f32[100,8], i: s32[]) -> f32[1,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %d = f32[1,8]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={1,8}
}

%updated (a: f32[100,8], u: f32[1,8], i: s32[]) -> f32[100,8] {
  %a.1 = f32[100,8]{1,0} parameter(0)
  %u = f32[1,8]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  ROOT %d.1 = f32[100,8]{1,0} dynamic-update-slice(%a.1, %u, %i.1, %i.1)
}

ENTRY %main (p: f32[100,8], q: bf16[50], i: s32[]) -> f32[100,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %q = bf16[50]{0:T(8)S(1)} parameter(1)
  %i.2 = s32[]{:S(1)} parameter(2)
  %fusion.1 = f32[1,8]{1,0} fusion(%p, %i.2), kind=kLoop, calls=%sliced
  %negate.1 = bf16[50]{0} negate(%q)
  ROOT %fusion.2 = f32[100,8]{1,0} fusion(%p, %fusion.1, %i.2), kind=kLoop, calls=%updated
}
"""


def test_synchronous_transfers():
    found = hlo.collectives(SYNCHRONOUS)
    assert [(c.kind, c.bytes, c.devices) for c in found] == [
        ("all-reduce", 10 * 4 + 15 * 2, 4),
        ("all-gather", 1024 * 4 * 2, 4),
        ("reduce-scatter", 16 * 4 * 4, 4),
    ]
    assert [(c.stage, c.operation) for c in found[:2]] == [
        ("backward", "reduce_sum"),
        ("forward", "dot_general"),
    ]
    assert found[0].received == pytest.approx(2 * 3 / 4 * 70)
    assert found[1].received == pytest.approx(3 / 4 * 8192)
    assert found[2].received == pytest.approx(3 / 4 * 256)


def test_a_transfer_that_starts_and_ends_apart_is_one():
    found = hlo.collectives(ASYNCHRONOUS)
    assert sorted((c.kind, c.bytes, c.operation) for c in found) == [
        ("all-gather", 128, ""),
        ("collective-permute", 32, "rev"),
    ]


def test_transfers_in_a_loop_count_its_trips():
    (found,) = hlo.collectives(LOOP)
    assert (found.times, found.received) == (4, 4 * 24)


def test_traffic_counts_what_slices_touch_and_main_memory_alone():
    sliced = 32 + 32  # read, written
    negated = 100  # its operand is in the cores' memory
    updated = 32 + 32  # the row read, and written in place
    assert hlo.memory_bytes(TRAFFIC) == sliced + negated + updated


def test_a_compiled_program_sums_its_gradient_once():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    gradient = jax.jit(
        jax.grad(lambda w, x: jnp.square(x @ w).mean()),
        in_shardings=(everywhere, split),
        out_shardings=everywhere,
    )
    text = gradient.lower(jnp.zeros((6, 5)), jnp.zeros((8, 6))).compile().as_text()
    (found,) = hlo.collectives(text)
    assert (found.kind, found.bytes, found.devices) == ("all-reduce", 6 * 5 * 4, 4)
    assert found.stage == "backward"


@pytest.mark.parametrize("text", ["", "HloModule empty", "ENTRY %main () -> f32[] {\n}\n"])
def test_an_empty_program_moves_nothing(text):
    assert (hlo.collectives(text), hlo.memory_bytes(text)) == ([], 0)
