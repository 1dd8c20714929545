"""The differences that differences.toml lists, each held to what it says. Imports neither program."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from outputs import TOLERANCE, Difference, error_of, kind, tensors_of

Tensors = dict[str, torch.Tensor]
_CLOSE = TOLERANCE["float32"]


@dataclass
class Case:
    """One recipe: tensors of both sides, what is wrong, and what is wrong as listed."""

    name: str
    inputs: Path
    ours: Tensors = field(default_factory=dict)
    theirs: Tensors = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return "DIFFERS" if self.problems else "intended" if self.excused else "agrees"

    def sort_rows(self, mine: Mapping[str, int], yours: Mapping[str, int]) -> None:
        """Bring rows of our tables into their order: a union's order of plain tokens is a hash map's there."""
        for name, tensor in self.ours.items():
            other = self.theirs.get(name)
            table = "embed_tokens" in name or "lm_head" in name
            if (
                table
                and other is not None
                and other.shape == tensor.shape
                and tensor.shape[0] > max(mine.values())
            ):
                order = list(range(tensor.shape[0]))
                for token, row in mine.items():
                    order[yours[token]] = row
                self.ours[name] = tensor[order]

    def input(self, name: str) -> Tensors:
        """The tensors of an input, float64."""
        path = self.inputs / name
        content = torch.load(path, weights_only=True) if path.suffix == ".pt" else tensors_of(path)
        return {n: t.double() for n, t in content.items()}


@dataclass
class Allowances:
    """The list of intended differences."""

    entries: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Allowances:
        return cls(tomllib.loads(path.read_text())["difference"])

    def of(self, case: Case, *kinds: str) -> list[dict[str, Any]]:
        """The entries of these kinds for a recipe."""
        return [e for e in self.entries if case.name in e["recipes"] and e["kind"] in kinds]

    def refusal(self, case: Case) -> None:
        """One side did not merge."""
        for entry in self.of(case, "refused"):
            if "ours" not in case.refusals and re.search(entry["message"], case.refusals["theirs"]):
                case.excused.append(f"refused there: {entry['reason']}")
                return
        for side, text in case.refusals.items():
            case.problems.append(f"{side} refused: {' '.join(text.split())[-300:]}")

    def prepare(self, case: Case) -> None:
        """Bring our tensors under their names."""
        for entry in self.of(case, "names"):
            case.ours = {_renamed(n, entry["rename"]): t for n, t in case.ours.items()}
            case.excused.append(f"names: {entry['reason']}")
        for entry in self.of(case, "fused"):
            case.ours = fused(case.ours)
            case.excused.append(f"names: {entry['reason']}")

    def judge(self, case: Case, found: list[Difference]) -> None:
        """Sort differences into listed ones and others; a listed one that is not there is a problem too."""
        rest = {d.tensor: d for d in found}
        for entry in self.of(case, "random", "ties", "extra", "mix"):
            if not rest:
                case.problems.append(f"no longer differs: {entry['reason']}")
                continue
            broken = _CHECKS[entry["kind"]](case, entry, rest)
            case.problems += broken
            if not broken:
                case.worst = _worst_without(case, rest, found)
                case.excused.append(f"{entry['kind']}: {entry['reason']}")
        case.problems += [f"{d.tensor}: {d.what} {d.error:.2e}" for d in rest.values()]

    def facts(self, case: Case, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        """Compare the facts of config.json."""
        if case.refusals or not theirs:
            return
        allowed = {k: v for e in self.of(case, "config") for k, v in e["facts"].items()}
        for key in sorted(ours.keys() | theirs.keys()):
            mine, yours = ours.get(key), theirs.get(key)
            if mine == yours or (key == "dtype" and str(yours).removeprefix("torch.") == mine):
                continue
            if key in allowed and mine == allowed[key]:
                reason = next(e["reason"] for e in self.of(case, "config") if key in e["facts"])
                case.excused.append(f"config.json: {reason}")
            else:
                case.problems.append(f"config.json: {key} is {mine} for {yours}")


def _worst_without(case: Case, rest: Mapping[str, Difference], found: list[Difference]) -> dict[str, float]:
    """The worst errors over the tensors that were not excused."""
    excused = {d.tensor for d in found} - rest.keys()
    worst: dict[str, float] = {}
    for name in case.ours.keys() & case.theirs.keys() - excused:
        a, b = case.ours[name], case.theirs[name]
        if a.shape == b.shape:
            worst[kind(b)] = max(worst.get(kind(b), 0.0), error_of(a, b))
    return worst


def _renamed(name: str, rules: list[list[str]]) -> str:
    for pattern, new in rules:
        changed = re.sub(pattern, new, name, count=1)
        if changed != name:
            return changed
    return name


def fused(tensors: Tensors) -> Tensors:
    """Experts of each layer stacked into `gate_up_proj` and `down_proj`, as the live models hold them."""
    out: Tensors = {}
    experts: dict[str, dict[str, dict[int, torch.Tensor]]] = {}
    word = {"w1": "gate", "w2": "down", "w3": "up", "gate_proj": "gate", "down_proj": "down", "up_proj": "up"}
    for name, tensor in tensors.items():
        hit = re.fullmatch(r"(.*)\.(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(\w+)\.weight", name)
        if hit is None:
            out[name.replace(".block_sparse_moe.", ".mlp.")] = tensor
            continue
        layer, number, part = hit.groups()
        experts.setdefault(layer, {}).setdefault(word[part], {})[int(number)] = tensor
    for layer, parts in experts.items():
        gate, up, down = ([parts[p][i] for i in sorted(parts[p])] for p in ("gate", "up", "down"))
        both = [torch.cat(pair) for pair in zip(gate, up, strict=True)]
        out[f"{layer}.mlp.experts.gate_up_proj"] = torch.stack(both)
        out[f"{layer}.mlp.experts.down_proj"] = torch.stack(down)
    return out


def _check_random(case: Case, entry: dict[str, Any], rest: dict[str, Difference]) -> list[str]:
    """Every entry of the change is 0 or the expert's, scaled by one factor; shares and norms are as they must be."""
    base, expert = case.input(entry["base"]), case.input(entry["expert"])
    density = entry["density"][case.name]
    problems = []
    for side, result in (("ours", case.ours), ("theirs", case.theirs)):
        kept = total = 0
        for name, tensor in result.items():
            delta, change = expert[name] - base[name], tensor.double() - base[name]
            room = 4e-7 * float(base[name].abs().max() + delta.abs().max() / density)
            here = change.abs() > room
            kept, total = kept + int(here.sum()), total + int((delta.abs() > 2 * room).sum())
            factor = float(change[here].abs().sum() / delta[here].abs().sum()) if here.any() else 1.0
            gap = (change - torch.where(here, delta * factor, 0.0)).abs().max()
            norm = float(change.abs().sum() / delta.abs().sum())
            if float(gap) > 4 * room or (not entry["norm"] and abs(factor - 1) > 1e-4):
                problems.append(f"{side} {name}: an entry is neither 0 nor the change scaled by {factor:.3f}")
            if entry["norm"] and here.any() and abs(norm - 1) > 1e-4:
                problems.append(f"{side} {name}: the sum of absolute changes is {norm:.4f} of the expert's")
        spread = math.sqrt(density * (1 - density) / total)
        if abs(kept / total - density) > 5 * spread:
            problems.append(f"{side} keeps {kept / total:.4f} of the entries, not {density}")
    rest.clear()
    return problems


def _check_ties(case: Case, entry: dict[str, Any], rest: dict[str, Difference]) -> list[str]:
    """Only entries whose size is that of the threshold may differ."""
    base = case.input(entry["base"])
    experts = [(case.input(name), density) for name, density in entry["experts"].items()]
    problems = []
    for name in list(rest):
        tied = torch.zeros_like(base[name], dtype=torch.bool)
        for expert, density in experts:
            size = (expert[name] - base[name]).float().abs()
            count = max(1, int(density * size.numel()))
            tied |= size == size.flatten().sort(descending=True).values[count - 1]
        gap = (case.ours[name].double() - case.theirs[name].double()).abs()
        if float(gap[~tied].max()) > _CLOSE * float(case.theirs[name].double().abs().max()):
            problems.append(f"{name}: differs off the threshold by {float(gap[~tied].max()):.2e}")
        del rest[name]
    return problems


def _check_extra(case: Case, entry: dict[str, Any], rest: dict[str, Difference]) -> list[str]:
    """The tensors are only in ours."""
    for name in [n for n, d in rest.items() if d.what == "only in ours" and re.search(entry["tensors"], n)]:
        del rest[name]
    return []


def _check_mix(case: Case, entry: dict[str, Any], rest: dict[str, Difference]) -> list[str]:
    """Ours are the weighted means that the entry says."""
    parts = [(case.input(name), weight) for name, weight in entry["of"].items()]
    problems = []
    for name in entry["tensors"]:
        wanted = sum(part[name] * weight for part, weight in parts)
        if error_of(case.ours[name], wanted) > _CLOSE:
            problems.append(f"{name}: is not the mean that differences.toml says")
        rest.pop(name, None)
    return problems


_CHECKS = {"random": _check_random, "ties": _check_ties, "extra": _check_extra, "mix": _check_mix}
