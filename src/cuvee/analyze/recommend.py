"""Which methods to try first for these experts: what the rules found, beside where methods stood elsewhere.

Standings are handed in (leaderboards of one's own, published tables); this module joins them with the advice from the
weights and gives a reason for every line. No score is promised: a method that stood first elsewhere is where to begin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuvee.analyze.advice import Advice

FITTING = 0.15  # what a method gains in standing by each rule that suggests it
UNPROVEN = (
    "low_opposition",
    "moderate_opposition",
    "high_opposition",
    "weak_at_half",
)  # forecasts that failed a test: no bonus
SHOWN = 5  # methods that are recommended


@dataclass(frozen=True, slots=True)
class Standing:
    """An ordering from elsewhere: methods from best to worst, and whether its differences were tested."""

    source: str
    methods: tuple[str, ...]

    def share(self, method: str) -> float | None:
        """1 for the first, 0 for the last, None for a method that was not there."""
        if method not in self.methods or len(self.methods) < 2:
            return None
        return 1 - self.methods.index(method) / (len(self.methods) - 1)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A method to try, how it stands (0 last … 1 first, rules included), and why."""

    method: str
    standing: float
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to merge these experts, which methods to try in which order, and which to leave.

    `reasons`: what stops or warns; `notes`: what was suggested that is about no method.
    """

    merge: bool
    reasons: tuple[str, ...]
    recommended: tuple[Recommendation, ...]
    avoided: Mapping[str, str]
    notes: tuple[str, ...] = ()


def recommend(advice: Sequence[Advice], standings: Sequence[Standing], known: Sequence[str]) -> Verdict:
    """Join advice and standings over the `known` methods; no method is recommended where a rule says stop.

    A method's standing is its mean share over the orderings that have it (half where none has), plus a bonus for each
    rule that suggests it; rules by the forecast are given as reasons but lift nothing. Methods that nothing proven
    speaks for, or that a rule warns of, are left out.
    """
    stops = tuple(f"{one.text}: {one.reason}" for one in advice if one.kind == "stop")
    avoided = {method: one.reason for one in advice for method in one.avoid}
    if stops:
        return Verdict(False, stops, (), avoided)
    warnings = tuple(f"{one.text}: {one.reason}" for one in advice if one.kind == "warn")
    found = [one for method in known if method not in avoided and (one := _judged(method, advice, standings))]
    ordered = sorted(found, key=lambda one: (-one.standing, one.method))
    notes = tuple(f"{one.text}: {one.reason}" for one in advice if one.kind == "suggest" and not one.methods)
    return Verdict(True, warnings, tuple(ordered[:SHOWN]), avoided, notes)


def _judged(method: str, advice: Sequence[Advice], standings: Sequence[Standing]) -> Recommendation | None:
    shares = [
        (one.source, one.methods.index(method) + 1, len(one.methods), share)
        for one in standings
        if (share := one.share(method)) is not None
    ]
    fitting = [one for one in advice if method in one.methods]
    proven = [one for one in fitting if one.rule not in UNPROVEN]
    if not shares and not proven:
        return None
    mean = sum(share for *_, share in shares) / len(shares) if shares else 0.5
    reasons = [f"{one.rule}: {one.reason}" for one in fitting]
    reasons += [f"place {place} of {count} in {source}" for source, place, count, _ in shares]
    return Recommendation(method, min(1.0, mean + FITTING * len(proven)), tuple(reasons))
