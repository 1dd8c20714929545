"""Averages along one training run, and of reward models and policies: names and defaults, as data.

Models are checkpoints in the order of the recipe, the oldest first. The mathematics is in `combine/trajectory.py`.
"""

from __future__ import annotations

from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

_ONE_PASS = """
Checkpoints are read once, block by block, however many there are. Batch-norm statistics must be estimated anew
afterwards."""

_PMA = arxiv(
    "li2025pma",
    title="Model Merging in Pre-training of Large Language Models",
    authors="Li, Yunshui and Ma, Yiyuan and Yan, Shen and others",
    year=2025,
    number="2505.12082",
)

SWA = Method(
    name="swa",
    steps=(Step("window_mean", fixed={"last": None}),),
    base="ordinary",
    inputs=(1, None),
    summary="average the checkpoints of a run from some point on",
    doc=f"""Mean of every `every`-th checkpoint from the `start`-th on: the running average of SWA, taken afterwards.

Use it on checkpoints of a constant or cyclic learning rate. All weigh the same; `ema` and `lawa` look more at the
newest.{_ONE_PASS}""",
    paper="arXiv:1803.05407",
    status="exact-math",
    missing="error",
    bibtex=arxiv(
        "izmailov2018swa",
        title="Averaging Weights Leads to Wider Optima and Better Generalization",
        authors="Izmailov, Pavel and Podoprikhin, Dmitrii and Garipov, Timur and Vetrov, Dmitry and Wilson, Andrew "
        "Gordon",
        year=2018,
        number="1803.05407",
    ),
)

LAWA = Method(
    name="lawa",
    steps=(Step("window_mean", defaults={"last": 6}, fixed={"start": 0}),),
    base="ordinary",
    inputs=(1, None),
    summary="average the latest checkpoints of a run",
    doc=f"""Mean of the `last` newest checkpoints (of every `every`-th): the window of LAWA where it stands at the end.

Use it during training, to see early what a decayed learning rate would give. k = 6 is the paper's; fewer where
checkpoints are far apart. `last: 1` is the last checkpoint.{_ONE_PASS}""",
    paper="arXiv:2209.14981",
    status="exact-math",
    missing="error",
    bibtex=arxiv(
        "kaddour2022lawa",
        title="Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight Averaging",
        authors="Kaddour, Jean",
        year=2022,
        number="2209.14981",
    ),
)

EMA = Method(
    name="ema",
    steps=(Step("exponential_mean"),),
    base="ordinary",
    inputs=(1, None),
    summary="exponential moving average of the checkpoints of a run",
    doc=f"""ē ← β ē + (1 − β) θ from the first checkpoint to the last, taken afterwards as one weighted sum.

The first checkpoint weighs β^(N−1), the j-th (1 − β) β^(N−j). `start: zero` starts at 0 and divides by 1 − β^N, so
that the first is not favoured. β = 0 gives the last checkpoint. A training run keeps β near 1 because it averages
after every step; between saved checkpoints 0.5 to 0.9 is meant.{_ONE_PASS}""",
    status="exact-math",
    missing="error",
)

PMA_SMA = Method(
    name="pma_sma",
    steps=(Step("window_mean", fixed={"start": 0, "every": 1, "last": None}),),
    base="ordinary",
    inputs=(1, None),
    summary="plain average of pre-training checkpoints",
    doc=f"""Mean of all checkpoints: the simple moving average of pre-trained model averaging.

Take about ten checkpoints at equal distances from the phase of constant learning rate. The average foretells the
annealed model, and a run that continues from it has fewer loss spikes. The paper finds that the weighting matters
little late in training, so that this is its default.{_ONE_PASS}""",
    paper="arXiv:2505.12082",
    status="exact-math",
    missing="error",
    bibtex=_PMA,
)

PMA_EMA = Method(
    name="pma_ema",
    steps=(Step("newest_mean"),),
    base="ordinary",
    inputs=(1, None),
    summary="exponential average of pre-training checkpoints, by the weight of the newest",
    doc=f"""M₁ = θ₁, Mᵢ = α θᵢ + (1 − α) Mᵢ₋₁: `ema` with β = 1 − α.

α weighs the NEWEST checkpoint; the paper uses 0.1 and 0.2. α = 1 gives the last.{_ONE_PASS}""",
    paper="arXiv:2505.12082",
    status="exact-math",
    missing="error",
    bibtex=_PMA,
)

PMA_WMA = Method(
    name="pma_wma",
    steps=(Step("recency_mean"),),
    base="ordinary",
    inputs=(1, None),
    summary="average of pre-training checkpoints with weights 1, 2, …, N",
    doc=f"""cᵢ = i / Σ i: later checkpoints weigh more, linearly.

For checkpoints of a model that still improves quickly; otherwise `pma_sma` does as well.{_ONE_PASS}""",
    paper="arXiv:2505.12082",
    status="exact-math",
    missing="error",
    bibtex=_PMA,
)

WSM = Method(
    name="wsm",
    steps=(Step("decay_mean"),),
    base="ordinary",
    inputs=(1, None),
    summary="average checkpoints of a constant learning rate as if the rate had decayed",
    doc=f"""θ₀ + Σ wᵢ gᵢ, where gᵢ is the update between two checkpoints and wᵢ the decay at x = i / N.

Train with a constant rate, save often, and choose the decay afterwards: `1 - x` (linear, which is equal weights),
`0.5 * (1 + cos(pi * x))`, `1 - sqrt(x)`, any formula that falls, or the list of the wᵢ. Equivalent weights are
c₀ = 1 − w₁, cⱼ = wⱼ − wⱼ₊₁, …, the last w. How long a stretch of training is merged matters more than how many
checkpoints it has. The decay acts on whole stretches between checkpoints, not on single steps, and optimizer states
are not merged.{_ONE_PASS}""",
    paper="arXiv:2507.17634",
    status="exact",
    missing="error",
    bibtex=arxiv(
        "tian2025wsm",
        title="WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging for LLM Pre-training",
        authors="Tian, Changxin and Wang, Jiapeng and others",
        year=2025,
        number="2507.17634",
    ),
)

MWA = Method(
    name="mwa",
    steps=(Step("metric_mean"),),
    base="ordinary",
    inputs=(1, None),
    summary="average checkpoints by a metric logged for each",
    doc=f"""cⱼ = sⱼᵖ / Σ sᵖ with s = 1 / loss or the step, or a softmax of the standardised metric times p.

Give each expert its `metric`. The penalty p = 0 is the plain average; larger ones lean towards the best checkpoint.
Smooth a training loss over a window first.

RECONSTRUCTED: the paper's abstract says that weights come from loss or steps with one penalty factor, whatever the
number of checkpoints; both formulas here are ours, and the softmax form is an alternative.{_ONE_PASS}""",
    paper="arXiv:2504.18580",
    status="reconstructed",
    missing="error",
    bibtex=arxiv(
        "yu2025mwa",
        title="Parameter-Efficient Checkpoint Merging via Metrics-Weighted Averaging",
        authors="Yu, Shi Jie and Choi, Sehyun",
        year=2025,
        number="2504.18580",
    ),
)

WARM = Method(
    name="warm",
    steps=(Step("linear", fixed={"weight": 1.0, "normalize": True}),),
    base="ordinary",
    inputs=(1, None),
    summary="plain average of reward models",
    doc="""Mean of reward models fine-tuned from one pre-trained model with different seeds, data orders and settings.

More robust to shifts and to noisy labels than one model. Their heads must start from one linear probe, or averaging
them means nothing; starting them from different checkpoints of one supervised run makes them more diverse. The same
arithmetic as `average`.""",
    paper="arXiv:2401.12187",
    status="exact-math",
    missing="error",
    bibtex=arxiv(
        "rame2024warm",
        title="WARM: On the Benefits of Weight Averaged Reward Models",
        authors="Ram\\'e, Alexandre and Vieillard, Nino and Hussenot, L\\'eonard and Dadashi, Robert and Cideron, "
        "Geoffrey and Bachem, Olivier and Ferret, Johan",
        year=2024,
        number="2401.12187",
    ),
)

WARP = Method(
    name="warp",
    steps=(
        Step("slerp_fold", fixed={"steps": "share", "axis": "whole"}),
        Step("scale", defaults={"lambda": 0.3}, names={"lambda": "eta"}),
    ),
    base="required",
    inputs=(1, None),
    summary="fold policies by spherical interpolation of task vectors, then go part of the way from the start",
    doc="""δ = slerp of the task vectors, tensor by tensor, the m-th with step 1/m; θ = θ₀ + η δ.

The second and third stage of WARP, on finished policies: the base is the common start of their training. η = 0 is the
start, η = 1 the fold; the paper takes 0.3 as the next start and chooses the last one on the front of reward and
divergence. Unlike a mean, the fold keeps the length of task vectors that stand at right angles. It depends on the
order from three policies on. The moving average that anchors training (its first stage) is `ema`.""",
    paper="arXiv:2406.16768",
    status="exact-math",
    bibtex=arxiv(
        "rame2024warp",
        title="WARP: On the Benefits of Weight Averaged Rewarded Policies",
        authors="Ram\\'e, Alexandre and Ferret, Johan and Vieillard, Nino and Dadashi, Robert and Hussenot, L\\'eonard "
        "and others",
        year=2024,
        number="2406.16768",
    ),
)

ORBIT = Method(
    name="orbit",
    steps=(Step("weighted_sum", fixed={"weight": 1.0, "normalize": False}), Step("keep_near")),
    base="required",
    inputs=(1, 1),
    summary="pull a fine-tuned model back to within a distance of its base",
    doc="""θ = θ₀ + a τ with a = 1 where ‖τ‖ ≤ radius, else radius / ‖τ‖ (or `share`).

What ORBIT does again and again during fine-tuning, done once to a finished model, which is interpolation with the
base: forgetting grows with the distance. The stage `keep_near` does it after any merge of task vectors.

RECONSTRUCTED: the paper averages with the start when a threshold is exceeded; which weights it averages with is not
known. Going to the radius exactly is ours.""",
    paper="arXiv:2605.12419",
    status="reconstructed",
    bibtex=arxiv(
        "verma2026orbit",
        title="ORBIT: Preserving Foundational Language Capabilities in GenRetrieval via Origin-Regulated Merging",
        authors="Verma, Neha and Mehta, Nikhil and Wang, Shao-Chuan and Zhang, Naijing and Tsai, Alicia and others",
        year=2026,
        number="2605.12419",
    ),
)
