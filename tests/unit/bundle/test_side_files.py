"""Which files travel, from whom, and which names are refused."""

from __future__ import annotations

import contextlib

import pytest

from cuvee.bundle.side_files import SideFile, checked_name, group_of, travelling
from cuvee.errors import UnsafeFile

STAY = [
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "config.json",
    "README.md",
    "training_args.bin",
    "optimizer.pt",
    "trainer_state.json",
    "adapter_config.json",
    ".gitattributes",
    "LICENSE.safetensors",
    "NOTICE.exe",
    "original/tokenizer.model",
    "sub/LICENSE",
    "tokenizer.json.part",
    "cuvee-manifest.json",
]


@pytest.mark.parametrize("name", STAY)
def test_what_stays_behind(name: str) -> None:
    assert group_of(name) is None
    assert travelling({"base": [name]}) == []


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("tokenizer.model", "tokenizer"),
        ("qwen.tiktoken", "tokenizer"),
        ("chat_template.jinja", "template"),
        ("additional_chat_templates/tool_use.jinja", "template"),
        ("generation_config.json", "generation"),
        ("preprocessor_config.json", "processor"),
        ("video_preprocessor_config.json", "processor"),
        ("LICENSE", "licence"),
        ("LICENSE-APACHE-2.0", "licence"),
        ("USE_POLICY.md", "licence"),
        ("modeling_own.py", "code"),
    ],
)
def test_groups(name: str, group: str) -> None:
    assert group_of(name) == group


def test_groups_come_whole_from_the_donor_else_from_the_first_that_has_them() -> None:
    models = {
        "a": ["processor_config.json", "preprocessor_config.json", "LICENSE", "tokenizer.json", "custom.py"],
        "base": ["LICENSE.md", "NOTICE", "generation_config.json"],
        "b": ["video_processor_config.json", "generation_config.json"],
    }
    expected = [
        SideFile("LICENSE.md", "base", "licence"),
        SideFile("NOTICE", "base", "licence"),
        SideFile("generation_config.json", "base", "generation"),
        SideFile("preprocessor_config.json", "a", "processor"),
        SideFile("processor_config.json", "a", "processor"),
    ]
    assert travelling(models, "base") == expected
    assert travelling(dict(reversed(models.items())), "base") != expected  # the recipe's order decides
    first = [f.name for f in travelling(models)]
    assert "tokenizer.json" in first
    assert "custom.py" not in first
    assert "custom.py" in [f.name for f in travelling(models, code=True)]


HOSTILE = [
    "../LICENSE",
    "LICENSE/../../x",
    "/etc/LICENSE",
    "C:LICENSE",
    "LICENSE\x00.txt",
    "LICENSE\n.md",
    "LICENSE\u202e.txt",
    "LICENSE..md",
    "LICENSE.",
    "LICENSE ",
    "LICENSE\\x.md",
    "additional_chat_templates/../x.jinja",
    "additional_chat_templates/a/b.jinja",
    "additional_chat_templates/.jinja",
    "con.tiktoken",
    "LPT1.py",
    "NOTICE" + "x" * 300,
    "-rf.py",
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(name: str) -> None:
    with pytest.raises(UnsafeFile) as caught:
        checked_name(name, "model")
    (found,) = caught.value.diagnostics
    assert found.code == "CV-T030"
    assert not any(ord(letter) < 32 or letter == "\u202e" for letter in found.message)
    with contextlib.suppress(UnsafeFile):
        assert name not in [f.name for f in travelling({"m": [name]}, code=True)]
