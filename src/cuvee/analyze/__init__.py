"""What fine-tuned models changed, how far they would get in each other's way, and what the loss does between them.

Figures of task vectors are gathered tensor by tensor in memory that does not grow with the model. Reads checkpoints
through the façade; knows nothing of tracks: what scores a model is a function somebody passes in.

    from cuvee import analyze
    found = analyze.models("./base", ["./math", "./code"])
    found.save("report.html")
"""

from cuvee.analyze.landscape import Path, Plane, path, plane
from cuvee.analyze.models import models
from cuvee.analyze.probes import Probes, probe
from cuvee.analyze.result import Analysis

__all__ = ["Analysis", "Path", "Plane", "Probes", "models", "path", "plane", "probe"]
