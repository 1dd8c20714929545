"""lm-eval as an evaluation of a folder or of a live model; local task files make it work without a connection."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cuvee.errors import EvaluationError
from cuvee.evaluate.adapters.outcome import Outcome, checked, failing


def evaluate(
    model: Any,
    tasks: Sequence[str],
    *,
    tokenizer: Any = None,
    include: str | Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    batch: int = 8,
    chat: bool = False,
) -> Outcome:
    """Score a language model with lm-eval.

    Args:
        model: a folder that transformers opens, or a live model, which needs its `tokenizer`.
        tasks: names of tasks.
        include: a folder of task files; then the tasks that lm-eval ships are not searched.
        limit: items of each task (None: all).
        shots: examples in the prompt (None: what the task says).
        batch: items in one pass.
        chat: use the model's chat template.

    Raises EvaluationError CV-B313 where lm-eval is not installed, CV-B311 where it fails, CV-B312 where it gives
    no scores.
    """
    began = time.monotonic()
    evaluator, manager = module("lm_eval.evaluator", "lm-eval"), module("lm_eval.tasks", "lm-eval")
    with _uncounted(), failing("lm-eval"):
        live = module("lm_eval.models.huggingface", "lm-eval").HFLM(
            pretrained=str(model) if isinstance(model, (str, Path)) else model,
            tokenizer=tokenizer,
            batch_size=batch,
            device=accelerator() if isinstance(model, (str, Path)) else None,
        )
        known = manager.TaskManager(
            include_path=str(include) if include else None, include_defaults=include is None
        )
        found = evaluator.simple_evaluate(
            model=live,
            tasks=list(tasks),
            task_manager=known,
            limit=limit,
            num_fewshot=shots,
            bootstrap_iters=0,
            apply_chat_template=chat,
            log_samples=True,
        )
    settings = {"tasks": list(tasks), "limit": limit, "shots": shots, "chat": chat, "batch": batch}
    return _outcome(found or {}, _named(model), settings, time.monotonic() - began)


@contextmanager
def _uncounted() -> Iterator[None]:
    """Without the word that `datasets` sends to its makers for each data set opened, local files too."""
    settings = module("datasets.config", "datasets")
    before = settings.HF_UPDATE_DOWNLOAD_COUNTS
    settings.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        settings.HF_UPDATE_DOWNLOAD_COUNTS = before


def _named(model: Any) -> str:
    return str(model) if isinstance(model, (str, Path)) else type(model).__name__


def _outcome(found: Mapping[str, Any], model: str, settings: Mapping[str, Any], seconds: float) -> Outcome:
    scores = {task: _metrics(values) for task, values in found.get("results", {}).items()}
    scores = {task: values for task, values in scores.items() if values}
    checked("lm-eval", scores)
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = found.get("samples", {})
    return Outcome(
        program="lm-eval",
        model=model,
        scores=scores,
        items={task: _items(samples.get(task, ()), next(iter(values))) for task, values in scores.items()},
        versions={
            "lm-eval": installed("lm_eval"),
            **{f"task {t}": v for t, v in found.get("versions", {}).items()},
        },
        settings=settings,
        prompts={task: _prompt(rows[0]) for task, rows in samples.items() if rows},
        seconds=seconds,
    )


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Figures by metric (`acc`, or `exact_match,strict` where a filter made it); standard errors are left out."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and "," in key and "_stderr" not in key
    }


def _items(rows: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """Each item's number of a metric, in the order of the data."""
    name = metric.split(",")[0]
    ordered = sorted(rows, key=lambda row: row.get("doc_id", 0))
    return [float(row[name]) for row in ordered if isinstance(row.get(name), (int, float))]


def _prompt(row: Mapping[str, Any]) -> str:
    """What the model was given for one item."""
    arguments = row.get("arguments")
    while isinstance(arguments, (Mapping, list, tuple)) and arguments:
        arguments = next(iter(arguments.values())) if isinstance(arguments, Mapping) else arguments[0]
    return str(arguments)


def module(name: str, package: str) -> Any:
    """A module of an optional program; EvaluationError CV-B313 where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EvaluationError(
            "CV-B313", f"`{package}` cannot be imported: {error}", hint=f"pip install {package}"
        ) from error


def accelerator() -> str:
    """Where a model of a folder is put: the first CUDA device if there is one."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def installed(name: str) -> str:
    """The version of an installed package."""
    from importlib import metadata

    return metadata.version(name)
