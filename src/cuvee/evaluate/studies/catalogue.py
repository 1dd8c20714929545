"""The studies by name."""

from __future__ import annotations

from collections.abc import Sequence

from cuvee.core.names import did_you_mean, printable
from cuvee.errors import UsageError
from cuvee.evaluate import report as reports
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.pages import Section
from cuvee.evaluate.paired import Results
from cuvee.evaluate.studies import answers
from cuvee.evaluate.studies.study import Study
from cuvee.evaluate.table import Board
from cuvee.evaluate.tracks.stressed import KINDS


def _contenders(*names: str) -> tuple[Contender, ...]:
    return tuple(Contender(name) for name in names)


_SCALE = _contenders("average", "task_arithmetic", "dare_ties", "ties")
_REALISTIC = _contenders(
    "average", "multislerp", "task_arithmetic", "dare_linear", "ties", "fisher", "regmean", "mats"
)
_MERGEBENCH = _contenders(
    "average",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "consensus",
    "localize_stitch_datafree",
    "fisher",
    "regmean",
)
_STRESS = _contenders("average", "task_arithmetic", "ties", "dare_linear", "model_stock", "tsv_m", "iso_c")
_ADDED = _contenders("average", "task_arithmetic", "ties", "tsv_m", "iso_c")


def _scale(results: Results, boards: Sequence[Board]) -> list[Section]:
    unseen = answers.against_experts(
        boards, "unseen", "Generalisation", "Score on unseen tasks minus the base's, in points."
    )
    found = (answers.growth(boards), answers.gaps(boards), unseen, answers.beyond_base(boards, results))
    return [*(part for part in found if part), *reports.sections(results, boards)]


def _realistic(results: Results, boards: Sequence[Board]) -> list[Section]:
    spread = answers.spread(results)
    needs = answers.prerequisites(STUDIES["realistic"].available())
    found = (
        answers.tradeoff(boards),
        answers.beyond_base(boards, results),
        needs,
        spread,
        answers.growth(boards),
    )
    return [*(part for part in found if part), *reports.sections(results, boards)]


def _mergebench(results: Results, boards: Sequence[Board]) -> list[Section]:
    found = (
        answers.kept(boards),
        answers.tradeoff(boards),
        answers.beyond_base(boards, results),
        answers.growth(boards),
    )
    return [*(part for part in found if part), *reports.sections(results, boards)]


STUDIES: dict[str, Study] = {
    "scale": Study(
        name="scale",
        title="What matters for model merging at scale",
        source="Yadav et al. 2024, arXiv:2410.03617",
        questions=(
            "Does the held-in score fall as more experts are merged?",
            "Does merging more experts generalise better than the base?",
            "Do the differences between methods vanish?",
        ),
        methods=_SCALE,
        counts=(2, 4, 6, 8, 0),
        answers=_scale,
        limits="the base's size and its instruction tuning; run the study on tracks of different bases and compare.",
    ),
    "realistic": Study(
        name="realistic",
        title="Realistic evaluation of model merging",
        source="Tam et al. 2024, arXiv:2409.18314",
        questions=(
            "Do methods that are better on held-in tasks generalise better?",
            "What does each method need, and what does choosing its parameters cost?",
            "How much does the score depend on hyper-parameters, and on the number of experts?",
        ),
        methods=_REALISTIC,
        counts=(2, 4, 0),
        transfer=True,
        answers=_realistic,
        limits="compositions of task and domain or language, which no track has as cells yet.",
    ),
    "mergebench": Study(
        name="mergebench",
        title="MergeBench's questions",
        source="He et al. 2025, arXiv:2505.10833",
        questions=(
            "Which share of the experts does each method keep, and is joint training better?",
            "What do merges forget of the base, beside joint training?",
            "What does a merge cost with its validation?",
        ),
        methods=_MERGEBENCH,
        counts=(0,),
        answers=_mergebench,
        limits="bases of 2 to 9 billion parameters, instruct against pretrained.",
        references=None,
    ),
    "multilingual": Study(
        name="multilingual",
        title="Experts of several languages in one model",
        source="the multilingual recipes of MergeBench and of LLM practice",
        questions=(
            "Which share of each language's expert does the merge keep?",
            "What does it forget of English and of following instructions?",
        ),
        methods=_ADDED,
        counts=(2, 0),
        answers=_mergebench,
        limits="languages that share little with the base's data; what skills whose experts are not merged lose; "
        "long-to-short recipes, which need models that reason at length.",
        track="language",
        tasks=("german", "russian", "spanish", "french", "italian", "chinese"),
    ),
    "spectral": Study(
        name="spectral",
        title="Do spectral methods gain on averaging as experts are added?",
        source="Gargiulo et al. 2024, arXiv:2412.00081, and Marczak et al. 2025, arXiv:2502.04959",
        questions=("Does the gap from averaging to spectral methods grow with the number of experts?",),
        methods=_ADDED,
        counts=(2, 4, 8, 0),
        answers=_scale,
        limits="fourteen and twenty tasks, and larger bases.",
    ),
    "stress": Study(
        name="stress",
        title="Which methods survive an expert that should not be there?",
        source="the stress cells that reviews of merging papers ask for, and arXiv:2508.01148 for unequal norms",
        questions=(
            "What does each method lose to a random, repeated, damaged or foreign expert?",
            "What does it lose where one expert's change is three times as large?",
        ),
        methods=_STRESS,
        counts=(0,),
        answers=reports.sections,
        limits="experts that were trained to do harm, and stress that is known and filtered out before merging.",
        variants=("", *(f"+{kind}" for kind in KINDS)),
        unseen=False,
    ),
}


def study(name: str) -> Study:
    """The study of this name; UsageError for an unknown one."""
    if name not in STUDIES:
        hint = did_you_mean(name, STUDIES) or "`cuvee bench study` lists them"
        raise UsageError("CV-U313", f"there is no study `{printable(name)}`", hint=hint)
    return STUDIES[name]
