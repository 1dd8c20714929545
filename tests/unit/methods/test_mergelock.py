"""MergeLock on attention written out here in float64: outputs stay, weights move, the inverse restores, its limits."""

from __future__ import annotations

import math

import pytest
import torch

from cuvee import privacy
from cuvee.errors import RunError
from cuvee.methods import registry
from cuvee.methods.contract import Heads, Place
from cuvee.methods.privacy import head_maps
from cuvee.methods.privacy.secret import VARIABLE, normals, uniforms
from cuvee.testing.stages import run_group

torch.set_num_threads(1)
SECRET = "5ec7e7" * 10
KEY = privacy.fingerprint(SECRET)
HIDDEN, LENGTH = 24, 5
CASES = {
    "plain": Heads(3, 3, 8),
    "grouped": Heads(4, 2, 6),
    "one key-value head": Heads(4, 1, 6),
    "rope half": Heads(4, 2, 8, "half", 8),
    "rope interleaved": Heads(2, 2, 8, "interleaved", 8),
    "rope in part": Heads(4, 2, 8, "half", 4),
    "rope in part, interleaved": Heads(2, 1, 8, "interleaved", 2),
    "norm": Heads(4, 2, 8, "half", 8, True),
    "norm, interleaved": Heads(4, 2, 8, "interleaved", 8, True),
}


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv(VARIABLE, SECRET)


def weights(heads, seed=0):
    """A layer's tensors in float64, by role; biases under `role.bias`."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64) / 3

    wide, narrow = heads.query * heads.size, heads.groups * heads.size
    found = {"q": normal(wide, HIDDEN), "k": normal(narrow, HIDDEN), "v": normal(narrow, HIDDEN)}
    found |= {f"{role}.bias": normal(len(found[role])) for role in "qkv"}
    found |= {"o": normal(HIDDEN, wide), "o.bias": normal(HIDDEN)}
    if heads.norm:
        found |= {"q_norm": 1 + normal(heads.size), "k_norm": 1 + normal(heads.size)}
    return found


def turned(x, heads):
    """Rotary positions of (length, size): complex numbers of dimension pairs times e^(i·position·frequency)."""
    half = heads.rotated // 2
    one = slice(0, heads.rotated, 2) if heads.rope == "interleaved" else slice(0, half)
    two = slice(1, heads.rotated, 2) if heads.rope == "interleaved" else slice(half, heads.rotated)
    angle = torch.arange(len(x), dtype=torch.float64)[:, None] * 10.0 ** -torch.arange(
        half, dtype=torch.float64
    )
    numbers = torch.complex(x[:, one].contiguous(), x[:, two].contiguous()) * torch.exp(1j * angle)
    out = x.clone()
    out[:, one], out[:, two] = numbers.real, numbers.imag
    return out


def attention(tensors, heads, x):
    """Softmax attention with grouped heads, as any textbook has it."""

    def head(role, number):
        run = slice(number * heads.size, (number + 1) * heads.size)
        out = x @ tensors[role][run].T + tensors[f"{role}.bias"][run]
        if heads.norm and role in "qk":
            out = out / out.square().mean(-1, keepdim=True).sqrt() * tensors[f"{role}_norm"]
        return turned(out, heads) if heads.rope != "none" and role in "qk" else out

    parts = []
    for number in range(heads.query):
        group = number // (heads.query // heads.groups)
        scores = head("q", number) @ head("k", group).T / math.sqrt(heads.size)
        parts.append(scores.softmax(-1) @ head("v", group))
    return torch.cat(parts, -1) @ tensors["o"].T + tensors["o.bias"]


def applied(tensors, heads, direction="lock", kappa=10.0, key=KEY, layer=3):
    """Each tensor through the stage on its own, as a merge does it."""
    values = {"key": key, "kappa": kappa, "direction": direction}
    out = {}
    for name, tensor in tensors.items():
        place = Place(f"model.layers.{layer}.{name}", name.removesuffix(".bias"), layer, 5, heads)
        (out[name],) = run_group(registry.stage("mergelock"), [[tensor]], values, places=[place])
    return out


@pytest.mark.parametrize("name", CASES)
def test_attention_gives_what_it_gave_and_the_inverse_restores(name):
    heads = CASES[name]
    before, x = weights(heads), torch.randn(LENGTH, HIDDEN, dtype=torch.float64)
    locked = applied(before, heads)
    assert torch.allclose(attention(locked, heads, x), attention(before, heads, x), rtol=0, atol=1e-12)
    assert torch.equal(locked["o.bias"], before["o.bias"])
    for role in "qkvo":
        assert (locked[role] - before[role]).norm() > 0.5 * before[role].norm(), role
    restored = applied(locked, heads, "unlock")
    for role, tensor in before.items():
        assert torch.allclose(restored[role], tensor, rtol=0, atol=1e-12), role


@pytest.mark.parametrize("name", ["plain", "grouped"])
def test_the_products_of_each_head_are_unchanged(name):
    heads = CASES[name]
    before = weights(heads)
    locked = applied(before, heads)
    for number in range(heads.query):
        own = slice(number * heads.size, (number + 1) * heads.size)
        group = number // (heads.query // heads.groups)
        shared = slice(group * heads.size, (group + 1) * heads.size)
        products = [
            (t["q"][own].T @ t["k"][shared], t["o"][:, own] @ t["v"][shared]) for t in (before, locked)
        ]
        for expected, found in zip(*products, strict=True):
            assert torch.allclose(found, expected, rtol=0, atol=1e-13)


def test_rows_of_one_fused_matrix_are_those_of_three():
    heads = CASES["rope half"]
    before = weights(heads)
    locked = applied(before, heads)
    fused = applied({"qkv": torch.cat([before[r] for r in "qkv"])}, heads)["qkv"]
    assert torch.equal(fused, torch.cat([locked[r] for r in "qkv"]))


def test_task_vectors_point_elsewhere_and_averages_break():
    heads = CASES["rope half"]
    base, x = weights(heads), torch.randn(LENGTH, HIDDEN, dtype=torch.float64)
    expert = {name: t + 0.01 * torch.randn_like(t) for name, t in base.items()}
    locked = applied(expert, heads)
    tau = torch.cat([(expert[r] - base[r]).flatten() for r in "qkvo"])
    moved = torch.cat([(locked[r] - base[r]).flatten() for r in "qkvo"])
    assert moved.norm() > 20 * tau.norm()
    assert abs(torch.cosine_similarity(tau, moved, dim=0)) < 0.1
    wanted = attention(expert, heads, x) - expert["o.bias"]

    def error(other):
        mean = {name: (t + base[name]) / 2 for name, t in other.items()}
        return (attention(mean, heads, x) - base["o.bias"] - wanted).norm() / wanted.norm()

    assert error(expert) < 0.1 < 0.5 < error(locked)


def test_the_condition_number_is_bounded_and_one_is_a_rotation():
    heads = CASES["rope in part"]
    for kappa in (1.0, 10.0, 500.0):
        maps = [head_maps.free(b"k" * 32, "a", 16, kappa), head_maps.commuting(b"k" * 32, "b", heads, kappa)]
        for one in maps:
            assert torch.linalg.cond(one.matrix) <= kappa * (1 + 1e-9)
            size = len(one.matrix)
            assert torch.allclose(one.matrix @ one.inverse, torch.eye(size).double(), rtol=0, atol=1e-10)
    assert torch.linalg.cond(head_maps.free(b"k" * 32, "a", 64, 500.0).matrix) > 100


def test_layers_heads_and_secrets_have_maps_of_their_own(monkeypatch):
    heads = CASES["grouped"]
    same = torch.ones(heads.groups * heads.size, HIDDEN, dtype=torch.float64)
    locked = applied({"v": same}, heads)["v"]
    assert not torch.allclose(locked[: heads.size], locked[heads.size :])
    assert not torch.allclose(locked, applied({"v": same}, heads, layer=4)["v"])
    other = privacy.new_secret()
    assert len(other) == 64 and other != privacy.new_secret()
    monkeypatch.setenv(VARIABLE, other)
    assert not torch.allclose(locked, applied({"v": same}, heads, key=privacy.fingerprint(other))["v"])


def test_the_numbers_behind_a_secret_never_change():
    """Models are locked with them: a change would lose what was locked."""
    assert KEY == "c9d70707bc36ea25"
    assert uniforms(bytes(range(32)), "model.layers/0/self/qk", 3).tolist() == [
        0.3329247783747415,
        0.18293691082154312,
        0.2359751798016831,
    ]
    drawn = normals(b"x" * 32, "label", 20000)
    assert abs(drawn.mean()) < 0.03 and abs(drawn.std() - 1) < 0.02


def test_whoever_canonicalises_heads_undoes_the_lock():
    """The limit of this protection, stated in the docs: singular vectors of the products know nothing of P and R."""
    heads = CASES["plain"]
    before = weights(heads)

    def canonical(tensors, number):
        run = slice(number * heads.size, (number + 1) * heads.size)
        left, sizes, right = torch.linalg.svd(tensors["q"][run].T @ tensors["k"][run], full_matrices=False)
        left, sizes, right = left[:, : heads.size], sizes[: heads.size], right[: heads.size]
        sign = left.gather(0, left.abs().argmax(0, keepdim=True)).sign()
        return (left * sign * sizes.sqrt()).T, right * sign.T * sizes.sqrt()[:, None]

    locked = applied(before, heads)
    for number in range(heads.query):
        for one, other in zip(canonical(before, number), canonical(locked, number), strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-10)


def test_a_missing_short_or_other_secret_is_refused(monkeypatch):
    heads, tensors = CASES["plain"], {"q": torch.ones(24, HIDDEN)}
    with pytest.raises(RunError, match="CV-E191") as caught:
        applied(tensors, heads, key="0" * 16)
    assert KEY in str(caught.value) and SECRET not in str(caught.value)
    for value, words in ((None, "is not set"), ("short", "has 5 characters")):
        monkeypatch.delenv(VARIABLE) if value is None else monkeypatch.setenv(VARIABLE, value)
        with pytest.raises(RunError, match="CV-E190") as caught:
            applied(tensors, heads)
        assert words in str(caught.value)


def test_a_tensor_that_does_not_fit_its_heads_is_refused():
    with pytest.raises(RunError, match="CV-E192"):
        applied({"k": torch.ones(24, HIDDEN)}, CASES["grouped"])


def test_other_tensors_stay_as_they_are(monkeypatch):
    monkeypatch.delenv(VARIABLE)
    heads, tensor = CASES["plain"], torch.randn(24, HIDDEN)
    for role in ("up", "norm", "embeddings", "q_norm"):
        assert torch.equal(applied({role: tensor}, heads)[role], tensor)
