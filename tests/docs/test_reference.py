"""The reference says what the code says, and links lead somewhere."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from doc_snippets import ROOT, pages

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.M)


@pytest.fixture(scope="module")
def reference(request: pytest.FixtureRequest) -> dict:
    sys.path.insert(0, str(ROOT / "scripts"))
    request.addfinalizer(lambda: sys.path.remove(str(ROOT / "scripts")))
    return runpy.run_path(str(ROOT / "scripts" / "make_reference.py"), run_name="reference")


def test_the_checked_in_reference_is_what_the_code_says(reference, capsys) -> None:
    code = reference["main"](["--check"])
    assert code == 0, capsys.readouterr().out


def test_a_stale_missing_or_left_over_page_is_found(reference, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("old")
    (tmp_path / "left.md").write_text("over")
    (tmp_path / "good.md").write_text("good")
    assert reference["stale"](tmp_path, {"a.md": "new", "b.md": "", "good.md": "good"}) == [
        "a.md",
        "b.md",
        "left.md",
    ]


def test_every_method_stage_command_and_code_has_its_place(reference) -> None:
    from cuvee.cli.app import COMMANDS
    from cuvee.cli.codes import codes
    from cuvee.methods import registry

    written = reference["pages"]()
    assert {f"methods/{name}.md" for name in registry.names()} <= written.keys()
    for names, page, form in (
        (registry.stages(), "stages.md", "### {}\n"),
        (COMMANDS, "commands.md", "## cuvee {}\n"),
        (codes(), "codes.md", "### {}: "),
    ):
        assert [n for n in names if form.format(n) not in written[page]] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for link in _LINK.findall(text):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert target.is_relative_to(ROOT), f"{page.name} links outside: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in _anchors(target), f"{page.name} links to {link}"


def _anchors(page: Path) -> set[str]:
    headings = _HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_the_navigation_has_every_page_once() -> None:
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    every = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    methods = {name for name in every if name.startswith("reference/methods/")} - {
        "reference/methods/index.md"
    }
    assert sorted(listed) == sorted(every - methods)
