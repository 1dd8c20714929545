"""Pipelines and single files of diffusion models, merged and converted, against the diffusers library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.transformers, pytest.mark.filterwarnings("ignore")]

KINDS = ("sd1", "sd2", "sdxl", "sd3", "flux")
Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Two tiny pipelines of a kind, built once."""
    from cuvee.testing.tiny_pipelines import tiny_pipeline

    done: dict[str, Pair] = {}

    def make(kind: str) -> Pair:
        if kind not in done:
            root = tmp_path_factory.mktemp(kind)
            done[kind] = tiny_pipeline(kind, root / "a", 0), tiny_pipeline(kind, root / "b", 1)
        return done[kind]

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a pipeline's folder, `<component>/<name>`, read by the safetensors library."""
    from safetensors.torch import load_file

    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted(folder.glob("*/*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def recipe(path: Path, text: str) -> Path:
    path.write_text("version: 1\n" + text)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_pipeline_is_the_average_and_runs(kind: str, pair, cli, tmp_path: Path) -> None:
    from cuvee.testing.tiny_pipelines import run

    a, b = pair(kind)
    text = f"experts: {{a: {{source: {a}, weight: 0.25}}, b: {{source: {b}, weight: 0.75}}}}\n"
    made = cli("merge", recipe(tmp_path / "r.yaml", text + "merge: {method: linear}"), "-o", tmp_path / "out")
    assert made.code == 0, made.err
    ours, ones, others = weights(tmp_path / "out"), weights(a), weights(b)
    assert ours.keys() == ones.keys()
    for name, tensor in ours.items():
        mean = (ones[name].double() * 0.25 + others[name].double() * 0.75).float()
        torch.testing.assert_close(tensor, mean, rtol=1e-6, atol=1e-7)
    for path in a.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert json.loads((tmp_path / "out" / path.relative_to(a)).read_text()) == json.loads(
                path.read_text()
            )
    image = run(tmp_path / "out", steps=2)
    assert image.isfinite().all()
    assert not torch.equal(image, run(a, steps=2))
    assert cli("verify", tmp_path / "out").code == 0


def single(pipeline: Path, out: Path, cli) -> Path:
    made = cli("convert", pipeline, "-o", out)
    assert made.code == 0, made.err
    return out


def states(pipeline) -> dict[str, dict[str, torch.Tensor]]:
    found = {n: m.state_dict() for n, m in pipeline.components.items() if isinstance(m, torch.nn.Module)}
    if (
        type(pipeline).__name__ == "StableDiffusion3Pipeline"
    ):  # diffusers reads a unit matrix whatever the file holds
        found["text_encoder"].pop("text_projection.weight")
        found["text_encoder_3"].pop("encoder.embed_tokens.weight")  # tied to `shared`, which it does not see
    return found


@pytest.mark.parametrize("kind", KINDS[:4])
def test_diffusers_reads_the_single_file_as_the_pipeline_it_came_from(
    kind: str, pair, cli, tmp_path: Path
) -> None:
    from diffusers import DiffusionPipeline

    folder, _ = pair(kind)
    file = single(folder, tmp_path / "one.safetensors", cli)
    first = DiffusionPipeline.from_pretrained(folder)
    again = type(first).from_single_file(file, config=str(folder), local_files_only=True)
    ours, theirs = states(first), states(again)
    assert ours.keys() == theirs.keys()
    for part, tensors in ours.items():
        assert tensors.keys() == theirs[part].keys()
        assert [n for n, t in tensors.items() if not torch.equal(t, theirs[part][n])] == [], part


def test_diffusers_converts_flux_as_we_do(pair, cli, tmp_path: Path) -> None:
    """Its converter knows one width only, so it is made anew with that of the tiny model."""
    import inspect

    from diffusers.loaders import single_file_utils
    from safetensors.torch import load_file

    folder, _ = pair("flux")
    file = load_file(single(folder, tmp_path / "one.safetensors", cli))
    name = "convert_flux_transformer_checkpoint_to_diffusers"
    code = inspect.getsource(getattr(single_file_utils, name))
    assert code.count("inner_dim = 3072") == 1
    space = dict(vars(single_file_utils))
    exec(code.replace("inner_dim = 3072", "inner_dim = 16"), space)  # noqa: S102
    parts = {n: t for n, t in file.items() if n.startswith("model.diffusion_model.")}
    converted = space[name](parts)
    ours = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert converted.keys() == ours.keys()
    assert [n for n, t in ours.items() if not torch.equal(t, converted[n])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_gives_the_same_bytes(kind: str, pair, cli, tmp_path: Path) -> None:
    folder, _ = pair(kind)
    file = single(folder, tmp_path / "one.safetensors", cli)
    made = cli("convert", file, "--like", folder, "-o", tmp_path / "back")
    assert made.code == 0, made.err
    ours, back = weights(folder), weights(tmp_path / "back")
    assert ours.keys() == back.keys()
    assert all(torch.equal(t, back[n]) for n, t in ours.items())
    assert (tmp_path / "back" / "model_index.json").read_bytes() == (folder / "model_index.json").read_bytes()


@pytest.mark.parametrize("kind", ["sd2", "flux"])
def test_a_file_and_a_folder_merge_in_the_form_of_the_first(kind: str, pair, cli, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    a, b = pair(kind)
    one, two = (single(f, tmp_path / f"{f.name}.safetensors", cli) for f in (a, b))
    text = "experts: {{a: {{source: {}, weight: 0.25}}, b: {{source: {}, weight: 0.75}}}}\nmerge: {{method: linear}}"
    outs = []
    for number, (x, y) in enumerate([(a, b), (a, two), (one, two), (one, b)]):
        out = tmp_path / (f"out{number}" if x is a else f"out{number}.safetensors")
        made = cli("merge", recipe(tmp_path / f"{number}.yaml", text.format(x, y)), "-o", out)
        assert made.code == 0, made.err
        outs.append(out)
    folders, files = [weights(o) for o in outs[:2]], [load_file(o) for o in outs[2:]]
    for left, right in (folders, files):
        assert left.keys() == right.keys()
        assert all(torch.equal(t, right[n]) for n, t in left.items())
    back = cli("convert", outs[2], "--like", a, "-o", tmp_path / "back")
    assert back.code == 0, back.err
    found = weights(tmp_path / "back")
    assert all(torch.equal(t, found[n]) for n, t in folders[0].items())


def test_a_pipeline_does_not_become_one_file_by_its_name_alone(pair, cli, tmp_path: Path) -> None:
    a, b = pair("sd1")
    path = recipe(tmp_path / "r.yaml", f"experts: {{a: {a}, b: {b}}}\nmerge: {{method: average}}")
    made = cli("merge", path, "-o", tmp_path / "x.safetensors")
    assert made.code == 2
    assert "CV-P156" in made.err
    path.write_text(path.read_text() + "\noutput: {form: single_file}\n")
    assert cli("merge", path, "-o", tmp_path / "x.safetensors").code == 0


def test_a_component_alone_is_written_as_diffusers_looks_for_it(pair, cli, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    a, b = pair("sd1")
    text = f"experts: {{a: {a / 'unet'}, b: {b / 'unet'}}}\nmerge: {{method: average}}"
    made = cli("merge", recipe(tmp_path / "r.yaml", text), "-o", tmp_path / "out")
    assert made.code == 0, made.err
    assert (tmp_path / "out" / "diffusion_pytorch_model.safetensors").is_file()
    found, info = UNet2DConditionModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ones, others = (UNet2DConditionModel.from_pretrained(p / "unet").state_dict() for p in (a, b))
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, (ones[name] + others[name]) / 2, rtol=1e-6, atol=1e-7)


def test_steps_and_trees_of_pipelines_give_the_same_bytes(pair, cli, tmp_path: Path) -> None:
    a, b = pair("flux")
    inner = f"{{experts: {{a: {a}, b: {b}}}, merge: {{method: average}}}}"
    outer = (
        "experts: {{soup: {{{}, weight: 0.3}}, b: {{source: {}, weight: 0.7}}}}\nmerge: {{method: linear}}"
    )
    tree = outer.format(f"recipe: {inner}", b)
    assert cli("merge", recipe(tmp_path / "t.yaml", tree), "-o", tmp_path / "tree").code == 0
    step = f"experts: {{a: {a}, b: {b}}}\nmerge: {{method: average}}"
    assert cli("merge", recipe(tmp_path / "1.yaml", step), "-o", tmp_path / "step").code == 0
    last = outer.format(f"source: {tmp_path / 'step'}", b)
    assert cli("merge", recipe(tmp_path / "2.yaml", last), "-o", tmp_path / "after").code == 0
    one, two = weights(tmp_path / "tree"), weights(tmp_path / "after")
    assert one.keys() == two.keys() == weights(a).keys()
    assert all(torch.equal(t, two[n]) for n, t in one.items())
    assert (tmp_path / "tree" / "model_index.json").read_bytes() == (a / "model_index.json").read_bytes()


def test_shards_types_and_saved_plans(pair, cli, tmp_path: Path) -> None:
    from cuvee.sinks.layout import Layout
    from cuvee.testing.tiny_pipelines import run

    a, b = pair("sd3")
    text = f"experts: {{a: {a}, b: {b}}}\nmerge: {{method: average}}\noutput: {{dtype: float16, shard_size: 10kB}}"
    path = recipe(tmp_path / "r.yaml", text)
    made = cli("merge", path, "-o", tmp_path / "out")
    assert made.code == 0, made.err
    shards = list((tmp_path / "out" / "transformer").glob("*.safetensors"))
    assert len(shards) > 1
    assert (tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert json.loads((tmp_path / "out" / "text_encoder" / "config.json").read_text())["dtype"] == "float16"
    assert {t.dtype for t in weights(tmp_path / "out").values()} == {torch.float16}
    assert run(tmp_path / "out").isfinite().all()
    assert cli("verify", tmp_path / "out").code == 0
    from cuvee.api.blend import Blend
    from cuvee.recipe.load import parse_recipe

    layout = Blend(parse_recipe(path.read_text())).plan().value.layout
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))).digest == layout.digest


def test_an_interrupted_merge_of_pipelines_goes_on(pair, tmp_path: Path, monkeypatch) -> None:
    from cuvee.api import execute
    from cuvee.api.blend import Blend
    from cuvee.recipe.load import parse_recipe

    a, b = pair("sd1")
    blend = Blend(parse_recipe(f"version: 1\nexperts: {{a: {a}, b: {b}}}\nmerge: {{method: average}}"))
    monkeypatch.setattr(execute, "refuse_changed", lambda *_: (_ for _ in ()).throw(RuntimeError("stopped")))
    with pytest.raises(RuntimeError, match="stopped"):
        blend.save(tmp_path / "out")
    staged = tmp_path / ".out.cuvee-part" / "model"
    (staged / "vae" / "left.over").write_bytes(b"x")
    monkeypatch.undo()
    saved = blend.save(tmp_path / "out")
    assert saved.finished.written_bytes == 0  # everything was there
    assert not (tmp_path / "out" / "vae" / "left.over").exists()
    blend.save(tmp_path / "again")
    one, two = weights(tmp_path / "out"), weights(tmp_path / "again")
    assert one.keys() == two.keys() and all(torch.equal(t, two[n]) for n, t in one.items())


def test_a_component_that_one_model_lacks(pair, cli, tmp_path: Path) -> None:
    import shutil

    a, b = pair("sdxl")
    small = tmp_path / "small"
    shutil.copytree(b, small)
    shutil.rmtree(small / "text_encoder_2")
    text = f"experts: {{a: {a}, b: {small}}}\nmerge: {{method: average}}\n"
    made = cli("merge", recipe(tmp_path / "r.yaml", text), "-o", tmp_path / "out")
    assert made.code == 2
    assert "CV-P155" in made.err
    assert "`text_encoder_2`" in made.err
    path = recipe(tmp_path / "s.yaml", text + "modules: {unet: {}, vae: {}}\n")
    assert cli("merge", path, "-o", tmp_path / "out").code == 0
    found, ones = weights(tmp_path / "out"), weights(a)
    assert found.keys() == ones.keys()
    same = {n for n, t in found.items() if torch.equal(t, ones[n])}
    assert {n.partition("/")[0] for n in same} == {"text_encoder", "text_encoder_2"}


def test_half_precision_variants_are_read_where_they_are_alone(pair, cli, tmp_path: Path) -> None:
    import shutil

    a, b = pair("sd1")
    folder = tmp_path / "variant"
    shutil.copytree(a, folder)
    for path in list(folder.glob("*/*.safetensors")):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    text = "experts: {{a: {}, b: {}}}\nmerge: {{method: average}}\n"
    assert cli("merge", recipe(tmp_path / "1.yaml", text.format(folder, b)), "-o", tmp_path / "one").code == 0
    assert cli("merge", recipe(tmp_path / "2.yaml", text.format(a, b)), "-o", tmp_path / "two").code == 0
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys() and all(torch.equal(t, two[n]) for n, t in one.items())


def test_what_a_hub_repository_of_a_pipeline_is_asked_for() -> None:
    from cuvee.sources.hub import _wanted
    from cuvee.sources.reference import Reference

    class Repository:
        reference = Reference("hub", "owner/name")

    names = ["model_index.json", "README.md", "v1.ckpt", "v1.safetensors", "scheduler/scheduler_config.json"]
    names += [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.bin",
    ]
    names += ["unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"]
    assert sorted(_wanted(Repository(), names)) == sorted(  # type: ignore[arg-type]
        [
            "model_index.json",
            "README.md",
            "scheduler/scheduler_config.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "text_encoder/model.fp16.safetensors",
        ]
    )
