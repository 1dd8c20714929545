"""What an analysis found, as a value: figures by tensor, layer, role and model, forecast, advice; JSON and HTML."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cuvee.analyze.advice import Advice, Evidence, advise
from cuvee.analyze.figures import Measured, joined, total
from cuvee.analyze.forecast import Forecast, forecast
from cuvee.analyze.interference import Kept, Remains
from cuvee.analyze.reading import Skipped
from cuvee.analyze.spectra import Spectrum
from cuvee.analyze.sums import SHARES, Sums
from cuvee.core.names import printable
from cuvee.core.plain import plain
from cuvee.errors import UsageError


@dataclass(frozen=True)  # without slots: figures of the whole model are joined once and kept
class Analysis:
    """The figures of a base and its experts. Arrays are indexed in the order of `experts`."""

    base: str
    experts: tuple[str, ...]
    tensors: tuple[Measured, ...]
    skipped: tuple[Skipped, ...]
    coverage: tuple[float, ...]
    spectra: tuple[Spectrum, ...] | None = None
    merge: tuple[Kept, ...] | None = None

    @cached_property
    def figures(self) -> Sums:
        """Over the whole model."""
        return total([one.sums for one in self.tensors])

    @cached_property
    def layers(self) -> dict[str, Sums]:
        """By layer, in order; `before` and `after` are what is outside the layers."""
        return joined(self.tensors, lambda spot: spot.layer)

    @cached_property
    def roles(self) -> dict[str, Sums]:
        """By role."""
        return joined(self.tensors, lambda spot: spot.role)

    @cached_property
    def forecast(self) -> Forecast:
        """How badly the experts will merge (experimental)."""
        return forecast(self.figures)

    @cached_property
    def advice(self) -> tuple[Advice, ...]:
        """Whether to merge and how, the gravest first."""
        return advise(Evidence(self.experts, self.figures, self.coverage, self.forecast, self.spectra))

    @cached_property
    def remains(self) -> Remains | None:
        """What the merge leaves of each expert, over the whole model; None without a merge."""
        if self.merge is None:
            return None
        parts = [one.remains for one in self.merge]
        found = parts[0]
        for part in parts[1:]:
            found = found + part
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain data (schema `cuvee.analysis/1`); figures that do not exist are null."""
        content: dict[str, Any] = {
            "schema": "cuvee.analysis/1",
            "base": printable(self.base),
            "experts": [printable(name) for name in self.experts],
            "coverage": self.coverage,
            "model": _figures(self.figures),
            "layers": {name: _figures(sums) for name, sums in self.layers.items()},
            "roles": {name: _figures(sums) for name, sums in self.roles.items()},
            "tensors": [
                {
                    "name": printable(t.spot.name),
                    "layer": t.spot.layer,
                    "role": t.spot.role,
                    **_figures(t.sums),
                }
                for t in self.tensors
            ],
            "forecast": asdict(self.forecast),
            "advice": [asdict(one) for one in self.advice],
            "skipped": [{"name": printable(s.name), "reason": printable(s.reason)} for s in self.skipped],
        }
        if self.spectra is not None:
            content["spectra"] = [_spectrum(one) for one in self.spectra]
        if self.remains is not None:
            content["merge"] = _remains(self.remains)
        found: dict[str, Any] = plain(content)
        return found

    def html(self) -> str:
        """The report: one self-contained HTML document."""
        from cuvee.analyze.report import report

        return report(self)

    def save(self, path: str | Path) -> Path:
        """Write the report; UsageError CV-B237 unless the file is called `.html`, as it is replaced."""
        from cuvee.core.disk import write_file

        place = Path(path)
        if place.suffix != ".html":
            raise UsageError(
                "CV-B237", f"a report is an HTML file, but `{printable(str(path))}` is not called `.html`"
            )
        write_file(place, self.html().encode())
        return place

    def _repr_html_(self) -> str:
        from cuvee.analyze.report import notebook

        return notebook(self)


def _figures(sums: Sums) -> dict[str, Any]:
    return {
        "parameters": sums.numel,
        "norm": sums.norms,
        "relative_norm": sums.relative,
        "base_cosine": sums.base_cosines,
        "cosine": sums.cosines,
        "sign_conflict": sums.conflict,
        "sign_conflict_pairs": sums.conflicts,
        "opposition": sums.opposition,
        "top_jaccard": {f"{share:g}": sums.jaccard[i] for i, share in enumerate(SHARES)},
    }


def _spectrum(one: Spectrum) -> dict[str, Any]:
    return {
        "name": printable(one.spot.name),
        "singular_values": one.values,
        "stable_rank": one.stable_ranks,
        "directions_of_90_percent": one.directions,
        "left_overlap": one.left,
        "right_overlap": one.right,
    }


def _remains(found: Remains) -> dict[str, Any]:
    names = ("opposed_before", "opposed", "kept", "distance")
    return {name: getattr(found, name) for name in names}
