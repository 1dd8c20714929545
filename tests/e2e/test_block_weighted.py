"""Block-weighted merging of tiny diffusion models: the properties of its card, and other methods by block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cuvee.api.blend import Blend
from cuvee.errors import CuveeError
from cuvee.recipe.load import parse_recipe

pytestmark = [pytest.mark.transformers, pytest.mark.filterwarnings("ignore")]

COUNT = {"sd1": 25, "sdxl": 19, "sd3": 3, "flux": 5}
DENOISER = {"sd1": "unet.", "sdxl": "unet.", "sd3": "transformer.", "flux": "transformer."}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """Three tiny pipelines of a kind, built once."""
    from cuvee.testing.tiny_pipelines import tiny_pipeline

    done: dict[str, list[Path]] = {}

    def make(kind: str) -> list[Path]:
        if kind not in done:
            root = tmp_path_factory.mktemp(kind)
            done[kind] = [tiny_pipeline(kind, root / name, seed) for seed, name in enumerate("abc")]
        return done[kind]

    return make


def merged(paths: list[Path], merge: str, base: Path | None = None, rest: str = "") -> Tensors:
    listed = ", ".join(f"{path.name}: {path}" for path in paths)
    start = f"base: {base}\n" if base else ""
    return Blend(parse_recipe(f"version: 1\n{start}experts: {{{listed}}}\nmerge: {merge}\n{rest}")).load()


def read(path: Path) -> Tensors:
    return merged([path], "{method: passthrough}")


def weighted(paths: list[Path], alpha: Any, base_alpha: float) -> Tensors:
    return merged(paths[:2], f"{{method: block_weighted, alpha: {alpha}, base_alpha: {base_alpha}}}")


@pytest.mark.parametrize("kind", ["sd1", "flux"])
def test_equal_weights_are_a_plain_average_and_ends_are_the_models(kind: str, models) -> None:
    a, b, _ = models(kind)
    ones, others = read(a), read(b)
    half = weighted([a, b], [0.25] * COUNT[kind], 0.25)
    for name, tensor in half.items():
        torch.testing.assert_close(tensor, 0.75 * ones[name] + 0.25 * others[name], rtol=1e-6, atol=1e-7)
    for alpha, whole in ((0, ones), (1, others)):
        found = weighted([a, b], [alpha] * COUNT[kind], alpha)
        assert all(torch.equal(t, whole[n]) for n, t in found.items())


@pytest.mark.parametrize("kind", COUNT)
def test_every_tensor_takes_the_weight_of_one_block_or_that_of_the_rest(kind: str, models) -> None:
    """Each block has a weight of its own, so that a merged tensor tells which one it took."""
    a, b, _ = models(kind)
    ones, others, count = read(a), read(b), COUNT[kind]
    given = [(i + 1) / (count + 2) for i in range(count + 1)]
    taken: dict[int, set[str]] = {i: set() for i in range(count + 1)}
    for name, tensor in weighted([a, b], given[:count], given[count]).items():
        step = others[name].double() - ones[name].double()
        share = float((step * (tensor.double() - ones[name].double())).sum() / (step * step).sum())
        number = min(range(count + 1), key=lambda i: abs(given[i] - share))
        assert abs(given[number] - share) < 1e-4
        taken[number].add(name)
    assert all(taken.values())
    rest = {name for name in ones if not name.startswith(DENOISER[kind])}
    assert rest <= taken[count]
    assert taken[count] - rest <= {n for n in ones if "blocks." not in n and "mid_block." not in n}


def test_one_block_changes_its_own_tensors_alone(models) -> None:
    a, b, _ = models("sd1")
    ones = read(a)
    found = weighted([a, b], [float(i == 3) for i in range(25)], 0)  # IN03: the first way down
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, ones[name])}
    assert changed == {f"unet.down_blocks.0.downsamplers.0.conv.{leaf}" for leaf in ("weight", "bias")}


def test_a_difference_is_added_by_block(models) -> None:
    a, b, c = models("sd1")
    ones, others, start = read(a), read(b), read(c)
    alpha = [i / 24 for i in range(25)]
    text = f"{{method: block_weighted, mode: add_difference, alpha: {alpha}, base_alpha: 0.5}}"
    found = merged([a, b], text, base=c)
    name, share = "unet.mid_block.resnets.0.conv1.weight", 12 / 24
    for key, part in ((name, share), ("vae.quant_conv.weight", 0.5), ("unet.conv_in.weight", 0.0)):
        expected = ones[key].double() + part * (others[key].double() - start[key].double())
        torch.testing.assert_close(found[key].double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found["unet.conv_in.weight"], ones["unet.conv_in.weight"])


def test_other_spellings_of_the_same_weights(models) -> None:
    a, b, _ = models("sd1")
    listed = weighted([a, b], [abs(12 - i) / 12 for i in range(25)], 0.25)
    text = "'" + ",".join(str(abs(12 - i) / 12) for i in range(25)) + "'"
    curve = "{curve: linear, points: [1, 0, 1]}"
    for alpha in (text, curve):
        again = weighted([a, b], alpha, 0.25)
        assert all(torch.allclose(t, again[n], rtol=1e-6, atol=1e-7) for n, t in listed.items())


def test_any_method_takes_values_by_block(models) -> None:
    a, b, c = models("sdxl")
    values = "{blocks: [%s], base: 0}" % ", ".join("1" if i == 9 else "0" for i in range(19))  # noqa: UP031
    found = merged([a, b], f"{{method: task_arithmetic, weight: {values}}}", base=c)
    whole = merged([a, b], "{method: task_arithmetic, weight: 1}", base=c)
    start = read(c)
    for name, tensor in found.items():
        expected = whole if name.startswith("unet.mid_block.") else start
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
    rules = "[{block: M00, value: 1}, {block: 'OUT0[1-9]', value: 0}, {value: 0}]"
    again = merged([a, b], f"{{method: task_arithmetic, weight: {rules}}}", base=c)
    assert all(torch.equal(t, again[n]) for n, t in found.items())
    slerped = merged([a, b], "{method: slerp, t: {blocks: {points: [0, 1]}, base: 0}}")
    assert torch.equal(slerped["unet.conv_in.weight"], read(a)["unet.conv_in.weight"])
    torch.testing.assert_close(slerped["unet.conv_out.weight"], read(b)["unet.conv_out.weight"])


@pytest.mark.parametrize(
    ("merge", "code"),
    [
        ("{method: block_weighted, alpha: [1, 0], base_alpha: 0}", "CV-P154"),
        ("{method: block_weighted, alpha: x, base_alpha: 0}", "CV-R010"),
        ("{method: block_weighted, alpha: [1], base_alpha: .nan}", "CV-R010"),
        ("{method: block_weighted, alpha: [1], mode: sum}", "CV-R010"),
        ("{method: block_weighted}", "CV-P030"),
        ("{method: block_weighted, alpha: [1], mode: add_difference}", "CV-P035"),
        ("{method: linear, weight: {blocks: [1, 2]}}", "CV-R005"),
        ("{method: linear, weight: {blocks: 3, base: 1}}", "CV-R010"),
        ("{method: linear, weight: {blocks: [1, x], base: 1}}", "CV-R010"),
        ("{method: linear, weight: [{block: IN99, value: 1}, {value: 1}]}", "CV-P021"),
    ],
)
def test_mistakes(merge: str, code: str, models) -> None:
    a, b, _ = models("sd1")
    with pytest.raises(CuveeError) as caught:
        merged([a, b], merge)
    assert code in {d.code for d in caught.value.diagnostics}


def test_values_by_block_need_a_model_with_blocks(tmp_path: Path) -> None:
    from cuvee.testing.tiny_models import tiny

    folder = tiny("llama", folder=tmp_path / "llama")
    with pytest.raises(CuveeError) as caught:
        merged([folder], "{method: linear, weight: {blocks: [1, 1], base: 1}}")
    assert caught.value.diagnostics[0].code == "CV-P021"


def test_components_that_are_not_named_are_copied(models) -> None:
    a, b, _ = models("flux")
    found = merged([a, b], "{method: average}", rest="modules: {transformer: {}, text_encoder_2: {}}\n")
    ones, others = read(a), read(b)
    for name, tensor in found.items():
        mean = (ones[name].double() + others[name].double()).float() / 2
        touched = name.startswith(("transformer.", "text_encoder_2."))
        torch.testing.assert_close(tensor, mean if touched else ones[name], rtol=1e-6, atol=1e-7)


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from cuvee.testing.tiny_pipelines import tiny_pipeline

    files = []
    for seed in (0, 1):
        folder = tiny_pipeline("sd1", tmp_path / f"m{seed}", seed)
        single = merged([folder], "{method: passthrough}", rest="output: {form: single_file}\n")
        name = "cond_stage_model.transformer.text_model.embeddings.position_ids"
        single[name] = (
            torch.arange(16)[None] if seed else torch.arange(16.0)[None]
        )  # as some merged ones have it
        save_file(single, tmp_path / f"m{seed}.safetensors")
        files.append(tmp_path / f"m{seed}.safetensors")
    found = weighted(files, [0.5] * 25, 0.5)
    assert found[name].dtype == torch.int64
    assert torch.equal(found[name], torch.arange(16)[None])
