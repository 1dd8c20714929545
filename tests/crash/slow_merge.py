"""A child process that writes random tensors through a folder sink, slowly enough to be killed in the middle.

Usage: slow_merge.py OUT PAUSE. Prints `busy` (exit 3) when the output is refused.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from cuvee.bundle.manifest import Origin, build
from cuvee.core.dtypes import BY_NAME
from cuvee.core.tensors import TensorMeta
from cuvee.errors import OutputBusy
from cuvee.sinks.folder import FolderSink
from cuvee.sinks.layout import plan_layout

METAS = [TensorMeta(f"t{i}", BY_NAME["float32"], (i * 977,)) for i in range(12)]
LAYOUT = plan_layout(METAS, max_shard_bytes=60_000)
ORIGIN = Origin("base: x", "00" * 32, {}, {}, {}, "0")
SIDE_FILES = {"config.json": b"{}", "sub/notes.txt": b"n" * 5000}


def merge(out: Path, pause: float) -> None:
    with FolderSink(out).begin(LAYOUT, "plan", resume=True, overwrite=False) as session:
        for meta in METAS:
            if meta.name in session.done:
                continue
            data = random.Random(meta.name).randbytes(meta.nbytes)
            for start in range(0, len(data), 8192):
                session.write(meta.name, start, data[start : start + 8192])
                time.sleep(pause)
            session.finish(meta.name)
        session.commit(SIDE_FILES, lambda files: build(ORIGIN, LAYOUT, session.digests, files))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(out: str, pause: str) -> int:
    say("started")
    try:
        merge(Path(out), float(pause))
    except OutputBusy as busy:
        say(f"busy {busy.diagnostics[0].code}")
        return 3
    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
