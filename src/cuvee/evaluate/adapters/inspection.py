"""inspect-ai as an evaluation of a folder: its tasks run with the model behind its own transformers provider."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cuvee.core.disk import scratch
from cuvee.core.names import printable
from cuvee.errors import EvaluationError
from cuvee.evaluate.adapters.harness import accelerator, installed, module
from cuvee.evaluate.adapters.outcome import Outcome, checked, failing

_GRADES = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}  # inspect-ai's letters: correct, incorrect, partial, none


def evaluate(
    model: str | Path,
    tasks: Any,
    *,
    limit: int | None = None,
    provider: str = "hf/local",
    arguments: Mapping[str, Any] | None = None,
    tokens: int | None = None,
    greedy: bool = True,
) -> Outcome:
    """Score a model with inspect-ai.

    Args:
        model: a folder that transformers opens.
        tasks: task files, or tasks as inspect-ai takes them.
        limit: items of each task (None: all).
        provider: how inspect-ai opens the model; `arguments` replace what the provider is given.
        tokens: the longest answer (None: what the task says, or inspect-ai's own limit).
        greedy: take the likeliest token always, so that the same model has the same score again; otherwise tokens are
            drawn as the task says, with a seed that is always the same.

    Raises EvaluationError CV-B313 where inspect-ai is not installed, CV-B311 where a task fails, CV-B312 where there
    are no scores.
    """
    began = time.monotonic()
    program, models = module("inspect_ai", "inspect-ai"), module("inspect_ai.model", "inspect-ai")
    place, found_tasks = str(model), _reachable(tasks)
    _no_look_up(models, provider)
    with scratch() as logs:  # samples are read from it when they are first looked at
        with failing("inspect-ai"):
            found = program.eval(
                found_tasks,
                # made anew each time: a model of the same arguments would be taken from memory, whatever its files are
                model=models.get_model(
                    provider,
                    memoize=False,
                    config=models.GenerateConfig(seed=0),
                    **_arguments(place, arguments, greedy=greedy),
                ),
                log_dir=str(logs),
                display="none",
                limit=limit,
                max_tokens=tokens,
                seed=0,
                top_k=1 if greedy else None,  # for versions that draw even where nothing is to be drawn
                score_display=False,
            )
        settings = {"limit": limit, "provider": provider, "tokens": tokens, "greedy": greedy}
        return _outcome(found, place, settings, time.monotonic() - began)


def _arguments(place: str, given: Mapping[str, Any] | None, *, greedy: bool) -> dict[str, Any]:
    """What the provider is given: those of its own for a folder, unless others are named."""
    if given is not None:
        return dict(given)
    drawn = {"do_sample": False} if greedy else {}
    return {"model_path": place, "tokenizer_path": place, "device": accelerator(), **drawn}


def _no_look_up(models: Any, provider: str) -> None:
    """Say that nothing is known of a model: newer versions of inspect-ai would ask the hub for `local` otherwise."""
    if hasattr(models, "set_model_info"):
        models.set_model_info(provider, models.ModelInfo())


def _outcome(logs: Sequence[Any], model: str, settings: Mapping[str, Any], seconds: float) -> Outcome:
    failed = [log for log in logs if log.status != "success"]
    if failed:
        reason = getattr(failed[0].error, "message", failed[0].status)
        raise EvaluationError(
            "CV-B311", f"`inspect-ai` failed at `{failed[0].eval.task}`: {printable(str(reason))}"
        )
    scores = {log.eval.task: _metrics(log) for log in logs}
    checked("inspect-ai", scores)
    return Outcome(
        program="inspect-ai",
        model=model,
        scores=scores,
        items={log.eval.task: _items(log.samples or ()) for log in logs},
        versions={"inspect-ai": installed("inspect_ai"), **_versions(logs)},
        settings=settings,
        prompts={log.eval.task: _prompt(log.samples[0].input) for log in logs if log.samples},
        seconds=seconds,
    )


def _reachable(tasks: Any) -> Any:
    """Task files as paths from here: inspect-ai looks for no others.

    EvaluationError CV-B311 for a file that is not there or is no Python, of which it would say that it has no tasks.
    """
    if isinstance(tasks, (list, tuple)):
        return [_reachable(task) for task in tasks]
    if not isinstance(tasks, (str, Path)):
        return tasks
    path = Path(str(tasks).partition("@")[0])  # `file.py@task`
    if path.suffix == ".py":
        _demand_python(path)
    return os.path.relpath(path) + str(tasks)[len(str(path)) :] if path.exists() else tasks


def _demand_python(path: Path) -> None:
    try:
        compile(path.read_bytes(), str(path), "exec")
    except OSError as error:
        raise EvaluationError(
            "CV-B311", f"the task file `{printable(str(path))}` cannot be read: {error.strerror}"
        ) from error
    except (SyntaxError, ValueError) as error:
        raise EvaluationError(
            "CV-B311", f"the task file `{printable(str(path))}` is no Python: {printable(str(error))}"
        ) from error


def _metrics(log: Any) -> dict[str, float]:
    """Figures by scorer's metric; the scorer is named where there are several."""
    scorers = log.results.scores
    return {
        (name if len(scorers) == 1 else f"{scorer.name}/{name}"): float(metric.value)
        for scorer in scorers
        for name, metric in scorer.metrics.items()
        if name != "stderr"
    }


def _items(samples: Sequence[Any]) -> list[float]:
    """Each item's number of the first scorer, letters as inspect-ai counts them."""
    values = [next(iter(sample.scores.values())).value for sample in samples if sample.scores]
    numbers = [_GRADES.get(v, v) if isinstance(v, str) else v for v in values]
    return [float(v) for v in numbers if isinstance(v, (int, float))]


def _prompt(given: Any) -> str:
    return given if isinstance(given, str) else "\n".join(str(message.content) for message in given)


def _versions(logs: Sequence[Any]) -> dict[str, Any]:
    return {f"task {log.eval.task}": log.eval.task_version for log in logs}
