"""Which base tensor each module of an adapter belongs to.

Names match as they are, or, when none does, after one leading part is dropped or added for all of them
(`transformer.` of a GPT-2 head model and its headless base); that is noted. What finds no place is
remembered and refused together. Must not read tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from cuvee.core.names import did_you_mean, printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import Diagnostic, SourceError, Where
from cuvee.sources.source import Source, note

_SHOWN = 4
_HEADS = ("lm_head", "embed_out")


class Places:
    """The way from names in an adapter to names in a base."""

    def __init__(self, base: Source, label: str, modules: Sequence[str]) -> None:
        self._base = base
        self._label = label
        self._unmatched: list[str] = []
        self.notes: list[Diagnostic] = []
        self._rename = self._renaming({m.removeprefix("base_model.model.") for m in modules})

    def weight(self, module: str, names: Iterable[str], shapes: Mapping[str, TensorMeta]) -> str | None:
        """The base tensor that a module's factors change."""
        return self._find(f"{module}.weight", names, shapes)

    def bias(self, module: str, name: str, shapes: Mapping[str, TensorMeta]) -> str | None:
        """The base bias that a module's trained bias is added to."""
        return self._find(f"{module}.bias", [name], shapes)

    def whole(self, plain: str, name: str, *, new: bool) -> str | None:
        """The base tensor that a whole tensor replaces; `new` ones may be added to the base."""
        target = self._renamed(plain)
        if target not in self._base.tensors and new:
            message = f"`{printable(target)}` comes from the adapter alone: the base has no such tensor"
            self.notes.append(note("CV-S021", message, self._label))
            return target
        return self._find(plain, [name], self._base.tensors)

    def refuse_unmatched(self) -> None:
        """SourceError that names what found no place in the base."""
        if not self._unmatched:
            return
        shown = ", ".join(f"`{printable(name)}`" for name in self._unmatched[:_SHOWN])
        more = f" and {len(self._unmatched) - _SHOWN} more" if len(self._unmatched) > _SHOWN else ""
        raise SourceError(
            "CV-S023",
            f"no tensor of `{printable(self._base.label)}` belongs to these of the adapter"
            f" `{printable(self._label)}`: {shown}{more}",
            where=Where(source=self._label, tensor=printable(self._unmatched[0])),
            hint=self._hint(self._unmatched[0]),
        )

    def _find(self, plain: str, names: Iterable[str], shapes: Mapping[str, TensorMeta]) -> str | None:
        target = self._renamed(plain)
        if target in shapes:
            return target
        self._unmatched += sorted(names)
        return None

    def _renamed(self, plain: str) -> str:
        return self._rename(plain.removeprefix("base_model.model."))

    def _renaming(self, modules: set[str]) -> Callable[[str], str]:
        """Identity when anything fits as it is, else the change of a leading part under which all fits."""
        tensors = self._base.tensors
        fits = [m for m in modules if f"{m}.weight" in tensors or f"{m}.bias" in tensors]
        if fits or not modules:
            return lambda name: name
        heads = sorted({m.partition(".")[0] for m in modules})
        dropped = f"{heads[0]}." if len(heads) == 1 else ""
        added = ["", *sorted({f"{name.partition('.')[0]}." for name in tensors if "." in name})]
        for prefix in added:
            for drop in (dropped, ""):
                if all(f"{prefix}{m.removeprefix(drop)}.weight" in tensors for m in modules):
                    self.notes.append(self._moved(drop, prefix))
                    return lambda name, drop=drop, prefix=prefix: prefix + name.removeprefix(drop)  # type: ignore[misc]
        return lambda name: name

    def _moved(self, dropped: str, added: str) -> Diagnostic:
        what = f"without `{dropped}`" if dropped else "as they are"
        message = f"names of the adapter are taken {what}" + (f" and with `{added}`" if added else "")
        return note("CV-S020", f"{message}, since the base has them so", self._label)

    def _hint(self, name: str) -> str | None:
        if any(f".{head}." in f".{name}" for head in _HEADS) and not any(
            n.startswith(_HEADS) for n in self._base.tensors
        ):
            return "the base ties its output head to the embedding; untie it before applying this adapter"
        module = self._renamed(name).rpartition(".lora_")[0]
        known = [n.removesuffix(".weight") for n in self._base.tensors if n.endswith(".weight")]
        near = did_you_mean(module, known) if len(known) <= 5_000 else None
        return near or "is the adapter from this base?"
