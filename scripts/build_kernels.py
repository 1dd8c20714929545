"""Compile the kernels that go into a wheel, one library for each level of this machine's kind of processor.

    python scripts/build_kernels.py            beside their source, where a wheel built next takes them along
    python scripts/build_kernels.py --out DIR

A wheel without them is pure Python and builds them on demand. With them it is for one platform: `wheel_hook.py`
gives it the tag, CUVEE_WHEEL_PLATFORM says which (such as `manylinux_2_28_x86_64` in that image).
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from cuvee.engine.kernels.build import COMPILERS, FLAGS, HERE, LEVELS, SOURCE, WIDE


def targets() -> dict[str, tuple[str, ...]]:
    """Library name → what the compiler is told about the processor."""
    machine = platform.machine()
    plain = {f"{machine}-{platform.system().lower()}": ()}
    if machine != "x86_64":
        return plain
    return {level: (f"-march={level}", *(WIDE if level == "x86-64-v4" else ())) for level in LEVELS} | plain


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the kernels that go into a wheel")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the libraries")
    folder = parser.parse_args().out
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        sys.exit("no C compiler was found")
    for name, extra in targets().items():
        path = folder / f"cuvee_kernels-{name}.so"
        subprocess.run([compiler, *FLAGS, *extra, str(SOURCE), "-o", str(path)], check=True)
        print(path)


if __name__ == "__main__":
    main()
