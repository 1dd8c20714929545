"""Every parity recipe is read; with any key of its text misspelt by one letter it is refused, at that line.

Works on the text, through the YAML reader; tests/unit/recipe/test_typos.py tries every key of the languages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from recipe_files import RecipeFile, recipe_files

from cuvee.errors import RecipeError
from cuvee.recipe.load import parse_recipe

RECIPES = recipe_files(folders=("recipes",))
_KEY = re.compile(r"(?:^|[{,] *|- +)([A-Za-z_][A-Za-z_0-9]*)(?=:)", re.MULTILINE)
NAMES_OF_USERS = re.compile(r"^ +(default|encoder|decoder|shared|th):|tokens:", re.MULTILINE)


def misspelt(text: str) -> Iterator[tuple[str, str, int]]:
    """The text with one key misspelt (its middle letter doubled), the key, and its line."""
    free = {match.group(1) for match in NAMES_OF_USERS.finditer(text)}
    for match in _KEY.finditer(text):
        key, start, end = match.group(1), match.start(1), match.end(1)
        line_start = text.rfind("\n", 0, start) + 1
        if key in free or text[line_start:start].lstrip().startswith("#"):
            continue
        middle = len(key) // 2
        wrong = key[: middle + 1] + key[middle:]
        yield text[:start] + wrong + text[end:], key, text.count("\n", 0, start) + 1


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_key_of_a_recipe_misspelt(recipe: RecipeFile) -> None:
    parse_recipe(recipe.text)
    tried = 0
    for text, key, line in misspelt(recipe.text):
        with pytest.raises(RecipeError) as caught:
            parse_recipe(text)
        diagnostics = caught.value.diagnostics
        told = [d for d in diagnostics if d.hint and f"`{key}`" in d.hint]
        assert told, f"line {line}, `{key}`: {[(d.message, d.hint) for d in diagnostics]}"
        tried += 1
    assert tried > 2
