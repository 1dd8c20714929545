"""Passthrough: the same bits, or a multiple of them."""

import pytest
import torch
from cases_geometry import SHAPES, hostile, normal

from cuvee.methods import registry
from cuvee.testing.stages import run_method, run_stage

PASSTHROUGH = registry.stage("passthrough")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_copies_bit_for_bit(shape):
    (tensor,) = normal(shape, 1)
    assert torch.equal(run_stage(PASSTHROUGH, [tensor], {}), tensor)


def test_bits_that_arithmetic_would_change_are_kept():
    odd = torch.tensor([-0.0, float("nan"), float("inf"), 1e-45]).view(torch.int32)
    found = run_stage(PASSTHROUGH, [odd.view(torch.float32)], {})
    assert torch.equal(found.view(torch.int32), odd)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    tensor = normal((40,), 1)[0].to(dtype)
    found = run_stage(PASSTHROUGH, [tensor], {})
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


@pytest.mark.parametrize("scale", [0.0, -1.0, 0.3, [0.3]])
def test_scale_multiplies(scale):
    (tensor,) = normal((40,), 1)
    factor = scale[0] if isinstance(scale, list) else scale
    assert torch.equal(run_stage(PASSTHROUGH, [tensor], {"scale": scale}), tensor * factor)


def test_scale_of_zero_silences_a_projection():
    (tensor,) = normal((40,), 1)
    assert not run_stage(PASSTHROUGH, [tensor], {"scale": 0.0}).any()


@pytest.mark.parametrize("name", hostile(1))
def test_hostile_inputs(name):
    assert torch.equal(run_stage(PASSTHROUGH, hostile(1)[name], {"scale": None}), hostile(1)[name][0])


def test_takes_exactly_one_model():
    assert PASSTHROUGH.inputs == (1, 1)
    with pytest.raises(ValueError, match="unpack"):
        run_stage(PASSTHROUGH, normal((3,), 2), {})


def test_differentiable_in_scale():
    tensor = normal((5,), 1)[0].double().requires_grad_()
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, s: PASSTHROUGH.function([t], scale=[s]), (tensor, scale))


def test_mergekit_spelling():
    spoken = registry.get("passthrough").dialects["mergekit"]
    assert [(s.name, s.scope, s.required, s.default) for s in spoken.parameters] == [
        ("scale", "input", False, None)
    ]
    assert (spoken.base, spoken.inputs) == ("ordinary", (1, 1))
    (tensor,) = normal((40,), 1)
    assert torch.equal(run_method("passthrough", [tensor], None, {}, dialect="mergekit"), tensor)
    half = run_method("passthrough", [tensor], None, {"scale": [0.5]}, dialect="mergekit")
    assert torch.equal(half, tensor / 2)
