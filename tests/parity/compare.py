"""Compare two folders of merges tensor by tensor: `python compare.py INPUTS THEIRS OURS [NAME ...]`.

Prints a row for each recipe and a summary; the exit code is 1 when anything differs that differences.toml does not
list, or when something listed there no longer differs as it says. Imports neither program.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from allowances import Allowances, Case
from outputs import TOLERANCE, differences, facts, tensors_of, token_ids
from recipe_files import RecipeFile, recipe_files


def compared(recipe: RecipeFile, inputs: Path, theirs: Path, ours: Path, allowed: Allowances) -> Case:
    """What became of one recipe on both sides."""
    case = Case(recipe.name, inputs)
    for side, root in (("theirs", theirs), ("ours", ours)):
        error = root / f"{recipe.name}.error"
        if error.exists():
            case.refusals[side] = error.read_text()
    if recipe.refused:
        both_refuse(case)
        return case
    if case.refusals:
        allowed.refusal(case)
        return case
    case.ours, case.theirs = tensors_of(ours / recipe.name), tensors_of(theirs / recipe.name)
    mine, yours = token_ids(ours / recipe.name), token_ids(theirs / recipe.name)
    if mine:  # without tokenizer files in the donor MergeKit writes one of the class the config names
        if mine.keys() != yours.keys():
            case.problems.append(f"tokens: {sorted(mine.keys() ^ yours.keys())[:5]}")
        else:
            case.sort_rows(mine, yours)
    allowed.prepare(case)
    found, case.worst = differences(case.ours, case.theirs)
    allowed.judge(case, found)
    allowed.facts(case, facts(ours / recipe.name), facts(theirs / recipe.name))
    return case


def both_refuse(case: Case) -> None:
    """Both sides must refuse, and ours must say what is wrong (exit code 1 or 2, a message, no traceback)."""
    for side in ("theirs", "ours"):
        if side not in case.refusals:
            case.problems.append(f"{side} merged what should be refused")
    said = case.refusals.get("ours", "exit code 1\nerror[")
    if not re.match(r"exit code [12]\n", said) or "error[" not in said or "Traceback" in said:
        case.problems.append(f"ours: {said[:300]}")


def main(inputs: Path, theirs: Path, ours: Path, only: tuple[str, ...]) -> int:
    allowed = Allowances.read(Path(__file__).parent / "differences.toml")
    cases = [compared(r, inputs, theirs, ours, allowed) for r in recipe_files(only)]
    for case in cases:
        worst = "  ".join(
            f"{kind} {error:.1e}" for kind, error in sorted(case.worst.items()) if kind in TOLERANCE
        )
        say(f"{case.verdict:9} {case.name:45} {len(case.theirs):4} tensors  {worst}")
        for line in case.problems[:10]:
            say(f"          {line}")
        for line in case.excused:
            say(f"          {line}")
    count = {v: sum(c.verdict == v for c in cases) for v in ("agrees", "intended", "DIFFERS")}
    listed = f"{count['agrees']} agree, {count['intended']} differ as listed, {count['DIFFERS']} differ"
    say(f"\n{len(cases)} recipes: {listed}")
    for kind, limit in TOLERANCE.items():
        errors = [c.worst[kind] for c in cases if kind in c.worst]
        if errors:
            say(
                f"worst error of {kind}: {max(errors):.1e} of a tensor's largest entry (tolerance {limit:.0e})"
            )
    return 1 if count["DIFFERS"] else 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main(*(Path(a) for a in sys.argv[1:4]), only=tuple(sys.argv[4:])))
