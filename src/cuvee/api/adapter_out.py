"""A merge written as a LoRA adapter of its base: matrices recompressed, the rest saved whole or dropped.

Ranks are decided before the layout, since a file's header comes first; factors are kept while there is room for them
and computed again where there is not. Names and configuration are the business of `bundle.adapter_files`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cuvee
from cuvee.api.inputs import refuse_changed, refuse_inputs, resume_key, stamps
from cuvee.api.lock import lock_of, lock_text
from cuvee.api.record import libraries
from cuvee.bundle.adapter_files import STEM, Form, Target, configuration, saved_name
from cuvee.bundle.json_files import dump_json
from cuvee.bundle.manifest_form import Origin, build
from cuvee.core.digests import tensor_bytes
from cuvee.core.dtypes import BY_NAME, FLOAT32, DType
from cuvee.core.names import printable
from cuvee.core.tensors import TensorMeta
from cuvee.engine.adapter_reads import adapted_form, savable
from cuvee.engine.decompositions import decomposer
from cuvee.engine.deltas import Change, adds_to_base, changes, whole
from cuvee.engine.evaluate import Evaluator
from cuvee.engine.events import Finished, Listener, Progress, Started, ignore, peak_memory
from cuvee.engine.guard import Guard
from cuvee.engine.options import RunOptions
from cuvee.engine.run import serialised
from cuvee.engine.threads import Mapped, threads
from cuvee.errors import Diagnostic, PlanError, RunError, Where
from cuvee.methods.contract import rows_of
from cuvee.methods.recompression import Bound, Compressed, compress, compress_product
from cuvee.plan.plan import Plan
from cuvee.recipe.model import AdapterOutput, Reference
from cuvee.sinks.folder import FolderSink
from cuvee.sinks.layout import Layout, plan_layout

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.sinks.staging import StagedSession


@dataclass(frozen=True, slots=True)
class Part:
    """One adapted matrix: its target and how far its product is from the change."""

    target: Target
    norm: float
    missing: float

    @property
    def error(self) -> float:
        return self.missing / self.norm if self.norm else 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the changes: matrices, tensors saved whole, and those dropped, with the norm of their change."""

    parts: tuple[Part, ...]
    saved: tuple[str, ...]
    dropped: Mapping[str, float]

    @property
    def error(self) -> float:
        """‖what is missing‖ / ‖all changes‖ over adapted and dropped tensors (Frobenius)."""
        lost = sum(p.missing**2 for p in self.parts) + sum(n**2 for n in self.dropped.values())
        total = sum(p.norm**2 for p in self.parts) + sum(n**2 for n in self.dropped.values())
        return math.sqrt(lost / total) if total else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data: the manifest's `adapter`, and `--json`."""
        return {
            "error": self.error,
            "modules": {p.target.module: {"rank": p.target.rank, "error": p.error} for p in self.parts},
            "saved": list(self.saved),
            "dropped": dict(self.dropped),
        }


@dataclass(frozen=True, slots=True)
class AdapterSaved:
    """Where the adapter is, what it took, and how far it is from the merge."""

    path: Path
    finished: Finished
    report: Report
    notes: tuple[Diagnostic, ...]
    nbytes: int


def save_adapter(
    plan: Plan,
    out: Path,
    form: AdapterOutput,
    options: RunOptions | None = None,
    *,
    overwrite: bool = False,
    resume: bool = True,
    listener: Listener = ignore,
) -> AdapterSaved:
    """Run a plan and write what it adds to its base as a folder that PEFT loads; all or nothing.

    What an interrupted run wrote is not written again; ranks are found anew, from decompositions that were kept.

    Raises:
        PlanError: CV-P174, the method does not add to a base.
        RunError: CV-E170, nothing changes, so there is no adapter.
    """
    began = time.monotonic()
    chosen = options or RunOptions.from_settings()
    refuse_inputs(plan, out)
    if out.suffix == ".safetensors" or not adds_to_base(plan):
        raise _unfit(plan, out)
    before = stamps(plan)
    tell = serialised(listener)
    work = _Work(plan, form, chosen, tell)
    with threads(plan, work.evaluator) as mapped:
        entries, report = work.measured(mapped)
        metas = [meta for entry in entries for meta in entry.metas]
        layout = plan_layout(metas, max_shard_bytes=None, stem=STEM)
        arithmetic = {"cuvee": cuvee.__version__, "device": chosen.device, **asdict(form), **libraries()}
        key = resume_key(plan, before, arithmetic)
        with FolderSink(out, paranoid=chosen.paranoid).begin(
            layout, key, resume=resume, overwrite=overwrite
        ) as session:
            left = _write(entries, session, layout, tell, mapped)
            refuse_changed(plan, before)
            files = _files(plan, report)
            session.commit(
                files, lambda records: build(_origin(plan, report, chosen), layout, session.digests, records)
            )
    total = layout.total_bytes
    done = Finished(time.monotonic() - began, 0, left, peak_memory(), total - left)
    listener(done)
    return AdapterSaved(out, done, report, tuple(_notes(report)), _size(layout))


def _write(
    entries: list[_Entry], session: StagedSession, layout: Layout, tell: Listener, mapped: Mapped
) -> int:
    """Compute and write what the session does not hold yet; how many bytes that was."""
    missing = [entry for entry in entries if any(meta.name not in session.done for meta in entry.metas)]
    metas = [meta for entry in entries for meta in entry.metas]
    left = sum(meta.nbytes for meta in metas if meta.name not in session.done)
    tell(Started(len(metas), layout.total_bytes, layout.total_bytes - left))

    def make(entry: _Entry) -> None:
        for meta, tensor in zip(entry.metas, entry.tensors(), strict=True):
            if meta.name not in session.done:
                data = tensor_bytes(tensor.to(meta.dtype.torch))
                session.write(meta.name, 0, data)
                session.finish(meta.name)
                tell(Progress(meta.name, len(data)))

    mapped(make, [(entry.change.tensor.meta.name, entry) for entry in missing])
    return left


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor of the merge in the file: two factors or the whole; `work` computes them."""

    work: _Work
    change: Change
    metas: tuple[TensorMeta, ...]
    target: Target | None

    def tensors(self) -> tuple[Tensor, ...]:
        if self.target is None:
            return (whole(self.change.tensor.node, self.work.evaluator),)
        found = self.work.compressed(self.change, self.target.form).factors
        first, second = self.target.shapes
        left, right = found.left[:, : self.target.rank], found.right[: self.target.rank]
        if self.target.form in ("embedding", "transposed"):
            return left.T.reshape(first), right.T.reshape(second)
        return right.reshape(first), left.reshape(second)


class _Work:
    """The changes of a plan, compressed."""

    def __init__(self, plan: Plan, form: AdapterOutput, options: RunOptions, listener: Listener) -> None:
        self.plan = plan
        self.form = form
        self.bound = Bound(form.rank, form.energy, form.error)
        self.sources = {key: opened.source for key, opened in plan.sources.items()}
        groups = {name: [node for _, node in members] for name, members in plan.groups().items()}
        guard = Guard(options, self.sources, listener)
        self.evaluator = Evaluator(self.sources, groups, options, guard, decompose=decomposer(options))
        self.room = options.memory
        self.kept: dict[str, Compressed] = {}
        self._lock = threading.Lock()

    def measured(self, mapped: Mapped) -> tuple[list[_Entry], Report]:
        """Every entry of the file with its rank; reads all changes once."""
        found: dict[int, Part | float] = {}

        def measure(item: tuple[int, Change]) -> None:
            found[item[0]] = self._measure(item[1])

        every = list(changes(self.plan))
        mapped(measure, [(change.tensor.meta.name, item) for item in enumerate(every) for change in item[1:]])
        measures = [(change, found[number]) for number, change in enumerate(every)]
        parts = [(change, one) for change, one in measures if isinstance(one, Part)]
        whole_ones = [(change, one) for change, one in measures if isinstance(one, float) and one]
        if not parts:
            raise RunError(
                "CV-E170", "the merge changes no matrix of its base, so there is no adapter to write"
            )
        return self._entries(parts, whole_ones)

    def _measure(self, change: Change) -> Part | float:
        """A matrix's target and error; of what is no matrix to adapt, the norm of its change."""
        meta = change.tensor.meta
        form = adapted_form(change, self.plan)
        if form is None:
            return float(change.value(self.evaluator).double().norm())
        found = self.compressed(change, form)
        if not found.norm:
            return 0.0
        target = Target(meta.name.removesuffix(".weight"), form, meta.shape, found.rank)
        return Part(target, found.norm, found.missing)

    def compressed(self, change: Change, form: Form) -> Compressed:
        """The change as a product; kept while there is room."""
        name = change.tensor.meta.name
        if name in self.kept:
            return self.kept[name]
        product = change.product(self.sources)
        rows = rows_of(change.tensor.meta.shape)
        if product is not None and product.right.shape[0] < min(rows):
            found = compress_product(product, self.bound, self.evaluator.decompose)
        else:
            matrix = change.value(self.evaluator).reshape(rows)
            found = compress(matrix, self.bound, self.evaluator.decompose)
        size = sum(t.numel() * t.element_size() for t in (found.factors.left, found.factors.right))
        with self._lock:
            if size <= self.room:
                self.room -= size
                self.kept[name] = found
        return found

    def _entries(
        self, parts: list[tuple[Change, Part]], others: list[tuple[Change, float]]
    ) -> tuple[list[_Entry], Report]:
        modules = [part.target.module for _, part in parts]
        dtype = self._dtype()
        entries = []
        for change, part in parts:
            metas = [
                TensorMeta(n, dtype, s) for n, s in zip(part.target.names, part.target.shapes, strict=True)
            ]
            entries.append(_Entry(self, change, tuple(metas), part.target))
        saved, dropped = [], {}
        for change, norm in others:
            meta = change.tensor.meta
            if self.form.rest == "drop" or not savable(change, modules):
                dropped[meta.name] = norm
                continue
            saved.append(meta.name)
            entries.append(_Entry(self, change, (replace(meta, name=saved_name(meta.name, modules)),), None))
        return entries, Report(tuple(part for _, part in parts), tuple(saved), dropped)

    def _dtype(self) -> DType:
        wanted = self.plan.recipe.output.dtype
        return BY_NAME[wanted] if wanted else FLOAT32


def _files(plan: Plan, report: Report) -> dict[str, bytes]:
    targets = [part.target for part in report.parts]
    config = configuration(targets, report.saved, _base_name(plan), plan.config)
    files = {"adapter_config.json": dump_json(config), "cuvee.lock": lock_text(plan)}
    if plan.recipe.text:
        files["cuvee.yaml"] = plan.recipe.text.encode()
    return files


def _base_name(plan: Plan) -> str | None:
    spec = plan.recipe.sources.get(plan.recipe.base or "")
    return spec.text if isinstance(spec, Reference) else None


def _origin(plan: Plan, report: Report, options: RunOptions) -> Origin:
    numerics = {
        "compute": sorted({t.compute.name for t in plan.tensors}),
        "device": options.device,
        "libraries": libraries(),
        "adapter": report.as_dict(),
    }
    methods = {plan.method_label: cuvee.__version__}
    return Origin(plan.recipe.text, plan.digest, lock_of(plan), methods, numerics, cuvee.__version__)


def _notes(report: Report) -> Iterator[Diagnostic]:
    ranks = sorted({part.target.rank for part in report.parts})
    shown = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    message = f"{len(report.parts)} matrices at {shown}, relative error {report.error:.2e}"
    worst = max(report.parts, key=lambda part: part.error)
    message += f" (largest {worst.error:.2e}, `{printable(worst.target.module)}`)"
    yield Diagnostic("CV-P175", message, severity="note")
    if report.dropped:
        most = sorted(report.dropped.items(), key=lambda item: -item[1])
        named = ", ".join(f"`{printable(name)}` (norm {norm:.3g})" for name, norm in most[:4])
        more = f" and {len(most) - 4} more" if len(most) > 4 else ""
        message = f"changes of {len(most)} tensors are not in the adapter: {named}{more}"
        yield Diagnostic("CV-P176", message, severity="warning")


def _size(layout: Layout) -> int:
    return layout.total_bytes


def _unfit(plan: Plan, out: Path) -> PlanError:
    if out.suffix == ".safetensors":
        message, hint = f"an adapter is a folder, and `{printable(out.name)}` names a file", "name a folder"
    else:
        message = f"`{plan.method_label}` does not add to a base, so it has no change to write as an adapter"
        hint = "use a method of task vectors, such as `task_arithmetic`, with a `base`"
    return PlanError("CV-P174", message, where=Where(file=plan.recipe.file), hint=hint)


__all__ = ["AdapterSaved", "Report", "save_adapter"]
