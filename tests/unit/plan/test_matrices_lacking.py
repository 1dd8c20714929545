"""A method of matrices on a model that has none for it says so; it says nothing where some are, or none are wanted."""

from __future__ import annotations

import pytest
import torch

import cuvee

AROUND = ("model.embed_tokens.weight", "lm_head.weight")
LAYERS = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight")


def warned(method, names, **parameters):
    base = {name: torch.zeros(6, 4) for name in names} | {"head.bias": torch.zeros(4)}
    experts = [{name: tensor + k for name, tensor in base.items()} for k in (1, 2)]
    plan = cuvee.merge(experts, base=base, method=method, **parameters).plan().value
    return [note for note in plan.notes if note.code == "CV-P161"]


@pytest.mark.parametrize("method", ["wudi", "swudi"])
def test_layers_asked_for_where_there_are_none(method):
    (note,) = warned(method, AROUND, tensors="layers")
    assert note.severity == "warning" and f"`{method}`" in note.message and "elsewhere: " in note.message
    assert note.hint is not None and "tensors: matrices" in note.hint


def test_convolutions_are_no_matrices():
    base = {"stem.weight": torch.zeros(6, 3, 3, 3)}
    experts = [{"stem.weight": torch.ones(6, 3, 3, 3) * k} for k in (1, 2)]
    found = [
        cuvee.merge(experts, base=base, method="wudi", flatten=flat).plan().value for flat in (False, True)
    ]
    assert [any(note.code == "CV-P161" for note in plan.notes) for plan in found] == [True, False]


def test_nothing_of_two_axes_at_all():
    (note,) = warned("tsv_m", ())
    assert "elsewhere: mean" in note.message or "elsewhere: sum" in note.message
    assert note.hint is None


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "knots_ties", "ties", "model_stock"])
def test_silence_where_some_tensor_is_one_or_the_method_asks_for_none(method):
    assert warned(method, ("first.weight",)) == []


def test_silence_where_layers_are_there_or_none_are_wanted():
    assert warned("wudi", LAYERS) == []
    assert warned("tsv_m", ("first.weight",), spectral=False) == []


@pytest.mark.parametrize("method", ["wudi", "doge_ta", "swudi"])
@pytest.mark.parametrize("flat", [False, True])
def test_a_network_of_convolutions_that_would_stay_as_it_is(method, flat):
    """Whatever a method needs whole tensors or figures of the model for, it says that it finds no matrix."""
    base = {"stem.weight": torch.zeros(6, 3, 3, 3), "stem.bias": torch.zeros(6)}
    experts = [{name: tensor + k for name, tensor in base.items()} for k in (1, 2)]
    plan = cuvee.merge(experts, base=base, method=method, flatten=flat).plan().value
    notes = [note for note in plan.notes if note.code == "CV-P161"]
    assert len(notes) == 1 - flat
    for note in notes:
        assert note.severity == "warning" and f"`{method}`" in note.message
        assert "flatten: true" in (note.hint or "")
