"""The training loop that all tracks share: AdamW, warm-up, decay, clipped gradients; it goes on where it was killed.

Owns what of a training has to be kept to go on to the same bytes. Knows no data and no models.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cuvee.core.digests import tensor_bytes
from cuvee.core.lazy import torch
from cuvee.errors import RunError
from cuvee.evaluate.tracks import state
from cuvee.evaluate.tracks.sources import training_digest

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[[], "Tensor"]
Shape = Callable[[float], float]
Schedule = Callable[[int, int], float]
EVERY = 60.0  # seconds of wall time between two states that are kept
_LEAST = 20.0  # and how many times as long as keeping one took
_WARM = 0.1


def linear(progress: float) -> float:
    """Warm-up over the first tenth, linear decay to zero; `progress` in [0, 1]."""
    return min(1.0, progress / _WARM) * (1 - progress)


def cosine(progress: float) -> float:
    """Warm-up over the first tenth, half a cosine to a tenth of the rate."""
    warm = min(1.0, progress / _WARM)
    return warm * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def constant(progress: float) -> float:
    """Warm-up over the first tenth, then constant."""
    return min(1.0, progress / _WARM)


def decayed(progress: float) -> float:
    """Warm-up, constant, and a linear decay to zero over the last fifth (warm-up, stable, decay)."""
    return constant(progress) * min(1.0, (1 - progress) / 0.2)


def along(shape: Shape) -> Schedule:
    """The factor of the rate for a step of many: the shape at places between 0 and 1, neither included."""
    return lambda step, steps: shape((step + 1) / (steps + 1))


def quick() -> bool:
    """Whether this processor multiplies bfloat16 itself; without that autocast only loses digits."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def learn(
    weights: Iterable[Tensor],
    losses: Sequence[Loss],
    *,
    rate: float,
    decay: float = 0.01,
    schedule: Schedule | None = None,
    after: Callable[[int], None] = lambda step: None,
    gathered: dict[str, Tensor] | None = None,
) -> None:
    """One step for each loss in turn, gradients clipped to norm 1; `after(steps done)` is called after each.

    `schedule(step, steps)` is the factor of the rate, steps from 0 (None: linear). Where `state.current()` says so the
    state is kept every minute or so, and a training that was killed goes on from there to the same bytes: losses may
    draw from torch's generator (dropout), from no other, and change nothing but the weights; what `after` collects
    belongs in `gathered`.
    """
    trained = [w for w in weights if w.requires_grad]
    factor = schedule or along(linear)
    rates = [rate * factor(step, len(losses)) for step in range(len(losses))]
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=decay, fused=True)
    course = _Course(trained, optimiser, {} if gathered is None else gathered)
    code = training_digest(_module(losses[0])) if course.place and losses else ""
    for step in range(course.begun(repr((rates, decay, code)), len(losses)), len(losses)):
        for group in optimiser.param_groups:
            group["lr"] = rates[step]
        losses[step]().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        after(step + 1)
        course.keep(step + 1)


def _module(loss: Loss) -> str:
    """The module of the function that gives a loss."""
    return str(getattr(getattr(loss, "func", loss), "__module__", None) or "")


@dataclass(slots=True)
class _Course:
    """All that a training is between two steps, and when it is kept next (where it has a place)."""

    trained: Sequence[Tensor]
    optimiser: Any
    gathered: dict[str, Tensor]
    place: state.Place | None = field(default_factory=state.current)
    facts: dict[str, str] = field(default_factory=dict)
    due: float = math.inf

    def begun(self, settings: str, steps: int) -> int:
        """How many steps are done already: those of a kept state of this very training, which is taken up."""
        if self.place is None:
            return 0
        self.facts, self.due = {"training": self._name(settings)}, time.monotonic() + EVERY
        if (found := state.read(self.place.path, self.facts)) is None:
            return 0
        tensors, facts = found
        self._take_up(tensors)
        self.place.tell(int(facts["step"]) / steps)
        return int(facts["step"])

    def keep(self, step: int) -> None:
        """Keep the state if it is time; on a full disk the training goes on without."""
        began = time.monotonic()
        if self.place is None or began < self.due:
            return
        with suppress(RunError):
            state.write(self.place.path, self._tensors(), {**self.facts, "step": str(step)})
        now = time.monotonic()
        self.due = now + max(EVERY, _LEAST * (now - began))

    def _name(self, settings: str) -> str:
        """A digest of settings, start, and what arithmetic depends on: with other threads it is another training."""
        processor = (platform.machine(), torch.backends.cpu.get_cpu_capability(), quick())
        machine = (torch.__version__, torch.get_num_threads(), processor)
        shapes = [(tuple(w.shape), w.stride(), str(w.dtype)) for w in self.trained]
        found = blake3(repr((settings, machine, shapes)).encode())
        for weight in self.trained:
            found.update(tensor_bytes(weight))
        return found.hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        out = {"random": torch.get_rng_state()}
        for number, weight in enumerate(self.trained):
            out[f"weight/{number}"] = weight.detach()
            known = self.optimiser.state.get(weight, {})
            out.update({f"{name}/{number}": tensor for name, tensor in known.items()})
        return out | {f"gathered/{name}": tensor for name, tensor in self.gathered.items()}

    def _take_up(self, tensors: dict[str, Tensor]) -> None:
        torch.set_rng_state(tensors.pop("random"))
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "gathered":
                self.gathered[rest] = tensor
                continue
            weight = self.trained[int(rest)]
            if kind == "weight":
                with torch.no_grad():
                    weight.copy_(tensor)
            else:  # moments lie in memory as the weight does, which the fused step counts on
                like = torch.empty_like(weight, requires_grad=False) if tensor.ndim else tensor
                self.optimiser.state[weight][kind] = like.copy_(tensor)
