"""The grammar of references, form by form."""

import pytest

from cuvee.errors import SourceError
from cuvee.sources.reference import Reference, parse_reference


@pytest.fixture
def anchor(tmp_path):
    for name in ("base", "adapter", "my+base", "owner/local", "models"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def hub(name, revision=None, subfolder=None, **more):
    return Reference("hub", name, revision, subfolder, **more)


SIMPLE = {
    "base": Reference("path", "base"),
    "./nowhere": Reference("path", "./nowhere"),
    "/abs/olute": Reference("path", "/abs/olute"),
    "~/model": Reference("path", "~/model"),
    "a/b/c": Reference("path", "a/b/c"),
    "owner/local": Reference("path", "owner/local"),
    "owner/remote": hub("owner/remote", assumed=True),
    "owner/remote@v1.0": hub("owner/remote", "v1.0", assumed=True),
    "models/file.safetensors": Reference("path", "models/file.safetensors"),
    "hf://owner/local": hub("owner/local"),
    "hf://owner/name@main": hub("owner/name", "main"),
    "hf://owner/name@main/sub/folder": hub("owner/name", "main", "sub/folder"),
    "hf://owner/name/sub/": hub("owner/name", None, "sub"),
    "hf://owner/name@refs/pr/12": hub("owner/name", "refs/pr/12"),
    "hf://owner/name@refs/pr/12/sub": hub("owner/name", "refs/pr/12", "sub"),
    "hf://owner/name@feature%2Fx/sub": hub("owner/name", "feature/x", "sub"),
}


@pytest.mark.parametrize("text", SIMPLE)
def test_short_forms(text, anchor):
    assert parse_reference(text, anchor) == SIMPLE[text]


@pytest.mark.parametrize("text", [t for t in SIMPLE if not t.endswith("/")])
def test_display_reads_back_as_the_same(text, anchor):
    reference = parse_reference(text, anchor)
    assert reference.display == text
    assert parse_reference(reference.display, anchor) == reference


@pytest.mark.parametrize("text", ["base+adapter", "base + adapter", " base +adapter "])
def test_adapters(text, anchor):
    reference = parse_reference(text, anchor)
    assert reference == Reference("path", "base", adapters=(Reference("path", "adapter"),))
    assert reference.display == "base + adapter"


def test_several_adapters_from_the_hub(anchor):
    reference = parse_reference("hf://o/n@r+o/a@v2 + adapter", anchor)
    assert reference.adapters == (hub("o/a", "v2", assumed=True), Reference("path", "adapter"))
    assert (reference.name, reference.revision) == ("o/n", "r")


def test_an_existing_path_with_a_plus_wins(anchor):
    assert parse_reference("my+base", anchor) == Reference("path", "my+base")
    assert parse_reference("my+base + adapter", anchor).name == "my+base"


def test_long_form(anchor):
    written = {"path": "owner/remote", "revision": "feature/x", "adapters": ["no+plus", {"path": "o/a"}]}
    reference = parse_reference(written, anchor)
    assert reference.revision == "feature/x"
    assert reference.adapters == (Reference("path", "no+plus"), hub("o/a", assumed=True))
    assert parse_reference({"path": "a+b", "adapter": "adapter"}, anchor).adapters == (
        Reference("path", "adapter"),
    )


BAD = [
    "",
    "base +",
    "+ a",
    "hf://owner",
    "hf://owner/",
    "hf://owner/name@",
    "ftp://bucket/x",
    "a\0b",
    "hf://o/n/../x",
]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_reference(text, anchor):
    with pytest.raises(SourceError) as caught:
        parse_reference(text, anchor)
    assert caught.value.diagnostics[0].code == "CV-S044"


@pytest.mark.parametrize(
    "written",
    [
        {"pth": "base"},
        {"path": 3},
        {"path": "base", "revision": "main"},
        {"path": "o/n@a", "revision": "b"},
        {"path": "o/n", "revision": 3},
        {"path": "base", "adapter": 4},
        {"path": "base", "adapter": {"path": "x", "adapter": "y"}},
    ],
)
def test_long_forms_that_contradict_themselves(written, anchor):
    with pytest.raises(SourceError) as caught:
        parse_reference(written, anchor)
    assert "`" in caught.value.diagnostics[0].message


def test_a_misspelt_key_is_answered_with_the_right_one(anchor):
    with pytest.raises(SourceError) as caught:
        parse_reference({"path": "base", "revison": "x"}, anchor)
    assert caught.value.diagnostics[0].hint == "did you mean `revision`?"
