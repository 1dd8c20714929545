"""Prefix stripping: the stated rule, both ways."""

import pytest

from cuvee.core.dtypes import BY_NAME, FLOAT32
from cuvee.core.tensors import TensorMeta
from cuvee.errors import CorruptFile
from cuvee.sources.prefixes import strip_prefixes


def metas(*names, ints=()):
    found = {n: TensorMeta(n, FLOAT32, (2,)) for n in names}
    return found | {n: TensorMeta(n, BY_NAME["int64"], (2,)) for n in ints}


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod.", "_orig_mod.module."]
)
def test_a_prefix_that_all_carry_is_left_off(prefix):
    names, notes = strip_prefixes(metas(f"{prefix}a", f"{prefix}b.c"), "x")
    assert names == {"a": f"{prefix}a", "b.c": f"{prefix}b.c"}
    assert [n.code for n in notes] == ["CV-S043"] and f"`{prefix}`" in notes[0].message
    assert notes[0].severity == "note"


@pytest.mark.parametrize("stored", [("module.a", "b"), ("a.module.b",), ("modules.a",), ()])
def test_otherwise_names_stay(stored):
    names, notes = strip_prefixes(metas(*stored), "x")
    assert names == {n: n for n in stored} and notes == ()


def test_integer_tensors_have_no_say():
    names, _ = strip_prefixes(metas("module.a", ints=("ids", "module.n")), "x")
    assert names == {"a": "module.a", "ids": "ids", "n": "module.n"}
    assert strip_prefixes(metas(ints=("module.n",)), "x")[0] == {"module.n": "module.n"}


@pytest.mark.parametrize("tensors", [metas("module.a", ints=("a",)), metas("module.a", "module.")])
def test_collisions_are_errors(tensors):
    with pytest.raises(CorruptFile) as caught:
        strip_prefixes(tensors, "x")
    assert caught.value.diagnostics[0].code == "CV-S042"
