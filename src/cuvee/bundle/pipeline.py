"""What travels with the weights of a diffusers pipeline: index, configurations, schedulers, tokenizers; all from one.

Owns the list of such files and the edits they need. Everything is copied from the donor, an allow-list of plain names
in the folders of its components. Must not know plans.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cuvee.bundle.json_files import dump_json, load_object
from cuvee.bundle.side_files import checked_name, group_of

INDEX = "model_index.json"
COMPONENTS = "components"  # the components' configurations, in a source's config
_CONFIG = "config.json"
_SIDE = re.compile(r"[A-Za-z0-9_.-]+\.(json|txt|model|jinja)", re.ASCII)
_DROPPED = ("_name_or_path", "_commit_hash")


def is_pipeline(config: Mapping[str, Any] | None) -> bool:
    """Whether a source's config is the index of a pipeline with its components' configurations."""
    return config is not None and "_class_name" in config and isinstance(config.get(COMPONENTS), Mapping)


def is_component(config: Mapping[str, Any] | None) -> bool:
    """Whether a config is that of one component of diffusers, in a folder of its own."""
    return config is not None and "_class_name" in config and "architectures" not in config


def stem_of(config: Mapping[str, Any]) -> str:
    """How the weight file of a component with this configuration is called, without its ending."""
    return "diffusion_pytorch_model" if is_component(config) else "model"


def pipeline_files(
    names: Iterable[str],
    read: Callable[[str], bytes | None],
    components: Mapping[str, Mapping[str, Any]],
    dtypes: Mapping[str, str],
) -> dict[str, bytes]:
    """The side files of a pipeline, from the donor's `names`.

    Args:
        names: side files of the donor, `<component>/<name>` in its components.
        read: gives the bytes of one of them.
        components: configuration of each component with weights.
        dtypes: the type that most bytes of each component are written in; configurations that state one follow.
    """
    out: dict[str, bytes] = {}
    for name in names:
        part, _, last = name.rpartition("/")
        data = read(name) if _travels(name) else None
        if data is None:
            continue
        checked_name(last)
        if last == _CONFIG and part in components:
            data = dump_json(component_config(load_object(data, name), dtypes.get(part)))
        out[name] = data
    return out


def component_config(config: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """The configuration of a component that is written in `dtype`: no local paths, no quantisation."""
    out = {k: v for k, v in config.items() if k not in (*_DROPPED, "quantization_config")}
    for key in ("dtype", "torch_dtype"):
        if dtype is not None and isinstance(out.get(key), str):
            out[key] = dtype
    return out


def _travels(name: str) -> bool:
    """The index, licences, and whatever small files stand in a component's folder."""
    part, _, last = name.rpartition("/")
    if not part:
        return name == INDEX or group_of(name) == "licence"
    return "/" not in part and _SIDE.fullmatch(last) is not None and not last.endswith(".index.json")
