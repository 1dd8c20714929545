"""Papers that several methods cite: one entry each."""

from __future__ import annotations

from cuvee.methods.citation import arxiv

DRM = arxiv(
    "chaichana2025decom",
    title="Decom-Renorm-Merge: Model Merging on the Right Space Improves Multitasking",
    authors="Chaichana, Yuatyong and others",
    year=2025,
    number="2505.23117",
)

ISO = arxiv(
    "marczak2025no",
    title="No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
    authors="Marczak, Daniel and Magistri, Simone and Cygert, Sebastian and Twardowski, "
    "Bart{\\l}omiej and Bagdanov, Andrew D. and van de Weijer, Joost",
    year=2025,
    number="2502.04959",
)

ONE_BIT = arxiv(
    "liu2025onebit",
    title="1bit-Merging: Dynamic Quantized Merging for Large Language Models",
    authors="Liu, Shuqi and others",
    year=2025,
    number="2502.10743",
)

TALL_MASKS = arxiv(
    "wang2024tall",
    title="Localizing Task Information for Improved Model Merging and Compression",
    authors="Wang, Ke and Dimitriadis, Nikolaos and Ortiz-Jimenez, Guillermo and Fleuret, Fran\\c{c}ois and "
    "Frossard, Pascal",
    year=2024,
    number="2405.07813",
)

TASK_SINGULAR_VECTORS = arxiv(
    "gargiulo2024task",
    title="Task Singular Vectors: Reducing Task Interference in Model Merging",
    authors="Gargiulo, Antonio Andrea and Crisostomi, Donato and Bucarelli, Maria Sofia and "
    "Scardapane, Simone and Silvestri, Fabrizio and Rodol{\\`a}, Emanuele",
    year=2024,
    number="2412.00081",
)
