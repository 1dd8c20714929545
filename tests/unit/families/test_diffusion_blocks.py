"""Blocks of U-Nets and transformers of diffusion models: every name is in one block or in none."""

from __future__ import annotations

import pytest

from cuvee.families import identify
from cuvee.families.blocks import fitted
from cuvee.sources.key_map import DATA, key_map

SD = [f"IN{i:02}" for i in range(12)] + ["M00"] + [f"OUT{i:02}" for i in range(12)]
XL = [f"IN{i:02}" for i in range(9)] + ["M00"] + [f"OUT{i:02}" for i in range(9)]


def unet(levels: int) -> dict[str, tuple[int, ...]]:
    """Names of a U-Net in its original form, from the rule of the architecture."""
    names = ["time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2"]
    names += [f"middle_block.{i}.in_layers.2" for i in (0, 2)] + [
        "middle_block.1.transformer_blocks.0.attn2.to_k"
    ]
    for i in range(1, 3 * levels):
        names.append(f"input_blocks.{i}.0.op" if i % 3 == 0 else f"input_blocks.{i}.0.in_layers.2")
    for i in range(3 * levels):
        names.append(f"output_blocks.{i}.0.in_layers.2")
        names += [f"output_blocks.{i}.1.conv"] if i % 3 == 2 and i < 3 * levels - 1 else []
    if levels == 3:
        names += ["label_emb.0.0", "label_emb.0.2"]
    return {f"model.diffusion_model.{n}.weight": (4, 4) for n in names}


def rest(levels: int) -> dict[str, tuple[int, ...]]:
    vae = {"first_stage_model.encoder.conv_in.weight": (4, 4), "first_stage_model.quant_conv.weight": (4, 4)}
    layer = "text_model.encoder.layers.0.self_attn.q_proj.weight"
    if levels == 4:
        return {**vae, f"cond_stage_model.transformer.{layer}": (4, 4)}
    block = "transformer.resblocks.0.attn.in_proj_weight"
    return {
        **vae,
        f"conditioner.embedders.0.transformer.{layer}": (4, 4),
        f"conditioner.embedders.1.model.{block}": (12, 4),
    }


def expected(name: str, levels: int) -> str | None:
    """The card: index of input block, middle, output block; time and class embeddings first, `out` last."""
    short = name.removeprefix("model.diffusion_model.")
    if short == name:
        return None
    head, number = short.split(".")[:2]
    if head in ("time_embed", "label_emb"):
        return "IN00"
    if head == "out":
        return f"OUT{3 * levels - 1:02}"
    return {"input_blocks": f"IN{int(number):02}", "output_blocks": f"OUT{int(number):02}"}.get(head, "M00")


@pytest.mark.parametrize(("levels", "name", "labels"), [(4, "sd1", SD), (3, "sdxl", XL)])
def test_blocks_of_the_original_names_are_those_of_the_card(
    levels: int, name: str, labels: list[str]
) -> None:
    names = {**unet(levels), **rest(levels)}
    family = identify(None, names)
    assert (family.name, family.known) == (name, True)
    found = {n: family.place(n).block for n in names}
    assert {n: b and b.label for n, b in found.items()} == {n: expected(n, levels) for n in names}
    assert list(family.modules["unet"].blocks.labels) == labels
    assert {b.label for b in found.values() if b} == set(labels)
    assert all(b is None or (b.count, labels[b.number]) == (len(labels), b.label) for b in found.values())
    last = found["model.diffusion_model.out.2.weight"]
    assert last is not None and last.depth == 1.0


@pytest.mark.parametrize(
    ("levels", "table", "family"), [(4, "unet_sd", "sd_unet"), (3, "unet_sdxl", "sdxl_unet")]
)
def test_blocks_are_the_same_under_diffusers_names(levels: int, table: str, family: str) -> None:
    from cuvee.core.dtypes import FLOAT32
    from cuvee.core.tensors import TensorMeta

    names = {n.removeprefix("model.diffusion_model."): s for n, s in unet(levels).items()}
    made = key_map(table).to_diffusers({n: TensorMeta(n, FLOAT32, s) for n, s in names.items()})
    assert not made.strange
    theirs = {n: one.meta.shape for n, one in made.made.items()}
    found = identify(None, theirs)
    assert found.name == family
    for name, one in made.made.items():
        block = found.place(name).block
        assert block is not None
        assert block.label == expected(f"model.diffusion_model.{one.parts[0].name}", levels), name


def test_no_name_is_in_two_blocks() -> None:
    from cuvee.families.read import facts

    for family in ("sd1", "sdxl"):
        rows = facts(family)["modules"]["unet"]["blocks"]
        patterns = [(label, p) for label, listed in rows.items() for p in listed]
        assert len({p for _, p in patterns}) == len(patterns)
        for label, pattern in patterns:  # a prefix of another pattern would take its names
            assert [
                other for _, other in patterns if other != pattern and other.startswith(pattern[:-1])
            ] == [], label


def test_numbered_blocks_stand_one_stack_behind_the_other() -> None:
    rows = (("D#", ("double_blocks.#.*", "transformer_blocks.#.*")), ("S#", ("single_blocks.#.*",)))
    names = [f"double_blocks.{i}.a" for i in range(3)] + [f"single_blocks.{i}.a" for i in range(11)]
    blocks = fitted(rows, names)
    assert blocks.labels == ("D00", "D01", "D02", *(f"S{i:02}" for i in range(11)))
    of = blocks.of("single_blocks.10.a.b")
    assert of is not None and (of.label, of.number, of.count) == ("S10", 13, 14)
    assert blocks.of("double_blocks.1.x") is not None and blocks.of("final_layer.x") is None
    assert blocks.of("single_blocks.11.a") is None


def test_every_table_reads_and_its_entries_are_one_to_one() -> None:
    for path in DATA.glob("*.toml"):
        if path.stem in ("layouts", "lora"):
            continue
        table = key_map(path.stem)
        entries = {id(e): e for e in (*table.by_original.values(), *table.by_diffusers.values())}
        assert len(table.by_original) == len(entries), path.stem
        assert len(table.by_diffusers) == sum(len(e.diffusers) for e in entries.values()), path.stem
