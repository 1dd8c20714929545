"""Chat templates: the built-in formats as documented, the choice among inputs, and what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from bundle_fixtures import Files, files, folder_of, trained
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cuvee.bundle.chat_template import BUILT_IN, built_in, check_syntax, choose, placed, template_of
from cuvee.errors import RecipeError, Where

TWO_TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
)
DOCUMENTED = {
    "chatml": (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
    ),
    "llama3": (
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n4<|eot_id|>"
    ),
    "mistral": "<s>[INST] Hi [/INST] Hello</s>[INST] 2+2? [/INST] 4</s>",
    "alpaca": (
        f"{ALPACA}### Instruction:\nHi\n\n### Response:\nHello</s>\n\n"
        "### Instruction:\n2+2?\n\n### Response:\n4</s>\n\n"
    ),
    "exaone": (
        "[|system|][|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
        "[|user|]2+2?\n[|assistant|]4[|endofturn|]\n"
    ),
}
PROMPT = {
    "chatml": "<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "",
    "alpaca": "### Response:\n",
    "exaone": "[|assistant|]",
}
SYSTEM = {
    "chatml": "<|im_start|>system\nBe brief<|im_end|>\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief<|eot_id|>",
    "mistral": "<s>[INST] Be brief\n\nHi [/INST] Hello</s>",
    "alpaca": "Be brief\n\n### Instruction:\nHi\n\n",
    "exaone": "[|system|]Be brief[|endofturn|]\n[|user|]Hi\n",
}


def rendered(name: str, messages: list[dict[str, str]], *, prompt: bool = False) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(built_in(name))
    return template.render(messages=messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=prompt)


@pytest.mark.parametrize("name", BUILT_IN)
def test_two_turns_are_the_documented_text(name: str) -> None:
    check_syntax(built_in(name))
    assert rendered(name, TWO_TURNS) == DOCUMENTED[name]
    assert rendered(name, TWO_TURNS, prompt=True) == DOCUMENTED[name] + PROMPT[name]
    told = [{"role": "system", "content": "Be brief"}, *TWO_TURNS]
    assert rendered(name, told).startswith(SYSTEM[name])


@pytest.mark.parametrize("name", ["alpaca", "mistral"])
def test_roles_a_format_does_not_have(name: str) -> None:
    class RefusedError(Exception):
        pass

    def refuse(message: str) -> None:
        raise RefusedError(message)

    environment = ImmutableSandboxedEnvironment()
    template = environment.from_string(built_in(name), globals={"raise_exception": refuse})
    with pytest.raises(RefusedError, match="tool"):
        template.render(messages=[*TWO_TURNS, {"role": "tool", "content": ""}], bos_token="", eos_token="")


@pytest.mark.transformers
def test_transformers_reads_and_renders_what_we_place(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = folder_of(trained("bpe", 50), chat_template="{{ 'old' }}")
    folder.files = placed(built_in("llama3"), folder.files)
    tokenizer = AutoTokenizer.from_pretrained(folder.save(tmp_path / "out"))
    assert tokenizer.chat_template == built_in("llama3")
    assert tokenizer.apply_chat_template(TWO_TURNS, tokenize=False) == DOCUMENTED["llama3"]
    assert json.loads(folder.files["tokenizer_config.json"])["chat_template"] == built_in("llama3")


def test_placing_replaces_what_readers_would_prefer() -> None:
    before = {
        "additional_chat_templates/tool_use.jinja": b"old",
        "chat_template.jinja": b"old",
        "chat_template.json": b'{"chat_template": "old"}',
        "tokenizer_config.json": b'{"model_max_length": 8}',
    }
    after = placed("new é", before)
    assert after["chat_template.jinja"] == "new é".encode()
    assert json.loads(after["chat_template.json"]) == {"chat_template": "new é"}
    assert after["tokenizer_config.json"] == before["tokenizer_config.json"]
    assert "additional_chat_templates/tool_use.jinja" not in after


def test_auto_takes_the_most_common_and_then_the_first() -> None:
    text, notes = choose("auto", {"base": "A", "x": "B", "y": " B\n", "z": None})
    assert text == "B"
    assert [d.message for d in notes] == ["the chat template is the one of `x` (2 of 3 models)"]
    assert choose("auto", {"base": None, "x": "B", "y": "A"})[0] == "B"
    assert choose("auto", {"x": "A", "y": "A", "z": "  "}) == ("A", [])
    text, notes = choose("auto", {"x": None})
    assert text is None
    assert [d.code for d in notes] == ["CV-T022"]


def test_names_and_text() -> None:
    assert choose("chatml", {})[0] == built_in("chatml")
    assert choose("{{ messages[0]['content'] }}", {}) == ("{{ messages[0]['content'] }}", [])
    with pytest.raises(RecipeError) as caught:
        choose("chatlm", {}, where=Where(file="r.yaml", line=3))
    (found,) = caught.value.diagnostics
    assert (found.code, found.hint) == ("CV-T020", "did you mean `chatml`?")
    assert found.where == Where(file="r.yaml", line=3)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{{ bos_token }}\n{% for m in messages %}\n{{ m.content }}", 3),
        ("ok\n{% endfor %}", 2),
        ("{{ 'unclosed }}", 1),
        ("a\nb\n{% frobnicate %}", 3),
        ("{{ a" + "(" * 5000, 1),
    ],
)
def test_text_that_is_not_jinja_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(RecipeError) as caught:
        choose(text, {})
    (found,) = caught.value.diagnostics
    assert found.code == "CV-T021"
    assert f"(line {line}: " in found.message


def test_checking_runs_nothing() -> None:
    """Jinja works out constant expressions when it compiles; a check that did so would never come back."""
    start = time.perf_counter()
    check_syntax(
        "{{ 10 ** 10 ** 10 }}{{ ''.__class__.__mro__ }}{% generation %}x{% endgeneration %}{% break %}"
    )
    assert time.perf_counter() - start < 1
    with pytest.raises(RecipeError):
        check_syntax("x" * (1 << 20) + "{{ a }}")


def test_where_a_models_template_is_found() -> None:
    assert template_of(Files({"chat_template.jinja": b"J", "tokenizer_config.json": b"{}"})) == "J"
    assert template_of(files(tokenizer_config={"chat_template": "C"})) == "C"
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert template_of(files(tokenizer_config={"chat_template": named})) == "D"
    assert template_of(files(tokenizer_config={"chat_template": {"default": "M"}})) == "M"
    assert template_of(files(tokenizer_config={}, chat_template={"chat_template": "P"})) == "P"
    assert template_of(files(tokenizer_config={"chat_template": 3})) is None
    assert template_of(Files({})) is None
