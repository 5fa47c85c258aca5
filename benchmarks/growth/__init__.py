"""Does growth pay?  Uses × tasks × arms × seeds, each arm with its own tuned learning rate, all held against honest controls.

Rules: the same initial weights and batches within a seed; a rate for every arm, chosen with equal effort on other seeds; a
schedule that spans the arm's own FLOPs; FLOPs of forward, backward, evaluations at boundaries, statistics and probes; static
hosts that begin every residual branch at zero, as grown ones do; choices by the validation part, the test part read once; seeds
listed beforehand. Outcomes are kept by run, so that an interrupted study goes on where it was.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.growth import acceptance, catalogue, data_change, frozen_host, location, plateau, scratch, size_unknown
from benchmarks.growth.bench import Bench
from benchmarks.growth.changes import MORE_DATA, NEW_CLASSES, SHIFT
from benchmarks.growth.figures import mean_error
from benchmarks.growth.pictures import draw
from benchmarks.growth.study import Plan, Study, tests
from benchmarks.support.report import Answer

USES: dict[str, Callable[[Bench, Plan, str], Study]] = {
    "size-unknown": size_unknown.study,
    "plateau": plateau.study,
    "more-data": partial(data_change.study, MORE_DATA),
    "new-classes": partial(data_change.study, NEW_CLASSES),
    "shift": partial(data_change.study, SHIFT),
    "frozen-host": frozen_host.study,
    "scratch": scratch.study,
    "location": location.study,
    "acceptance": acceptance.study,
    "catalogue": catalogue.study,
}
"""The uses by name."""
TASKS_OF = {
    "size-unknown": (*(ALL := ("friedman", "mnist1d", "digits", "characters")), "narrow"),
    "plateau": (*ALL, "narrow"),
    "more-data": ALL,
    "new-classes": ("mnist1d", "digits"),
    "shift": ("friedman", "mnist1d", "digits"),
    "frozen-host": (frozen_host.NEAR, frozen_host.FAR),
    "scratch": (*ALL, "narrow"),
    "location": ("uneven",),
    "acceptance": ("mnist1d", "digits"),
    "catalogue": (*ALL, "narrow"),
}
"""On which tasks each is studied."""
QUICK_TASKS_OF = {
    "size-unknown": ("friedman",),
    "plateau": ("friedman",),
    "more-data": ("friedman",),
    "frozen-host": (frozen_host.FAR,),
    "scratch": ("friedman",),
    "location": ("uneven",),
    "acceptance": ("digits",),
    "catalogue": ("friedman",),
}
"""The same for ``--quick``."""


def answer(
    *,
    quick: bool,
    seed: int,
    texts: Path | None = None,
    work: Path | None = None,
    only: str = "",
    pictures: Path | None = None,
) -> Answer:
    """Study every use on its tasks.

    Args:
        quick: A tenth of the steps, two seeds, few rates: to see that it runs.
        seed: First reported seed.
        texts: Folder with ``tinyshakespeare.txt``; without it the characters are Python's help pages.
        work: Where outcomes are kept; a folder that is thrown away where it is left out.
        only: Studies to make, as ``use.task`` separated by commas; all of them where it is left out.
        pictures: Where a picture of each study goes; none are drawn where it is left out.

    Raises:
        SystemExit: If there is no such study.
    """
    studied = _chosen(only, quick=quick)
    plan = Plan.quick() if quick else Plan()
    plan = plan.from_seed(seed)
    with (
        tempfile.TemporaryDirectory(prefix="esper-growth-") as thrown_away,
        Bench(work or Path(thrown_away), texts=texts) as bench,
    ):
        studies = [USES[use](bench, plan, task) for use, task in studied]
    result = _answer(studies, plan)
    if pictures is not None:
        draw(result.tables, pictures)
    return result


def _chosen(only: str, *, quick: bool) -> list[tuple[str, str]]:
    """Return uses with their tasks."""
    tasks_of = QUICK_TASKS_OF if quick and not only else TASKS_OF
    known = [(use, task) for use, tasks in tasks_of.items() for task in tasks]
    if not only:
        return known
    wanted = only.split(",")
    unknown = set(wanted) - {f"{use}.{task}" for use, task in known}
    if unknown:
        raise SystemExit(f"no study {min(unknown)}: there are {', '.join(f'{use}.{task}' for use, task in known)}")
    return [(use, task) for use, task in known if f"{use}.{task}" in wanted]


def _answer(studies: list[Study], plan: Plan) -> Answer:
    result = Answer(
        method=f"{len(plan.seeds)} paired seeds ({plan.seeds[0]} to {plan.seeds[-1]}), rates tuned on "
        f"{len(plan.tuning_seeds)} others; test points: percent right, or percent of variance explained; ± is one standard error"
    )
    for study in studies:
        name = f"{study.name}.{study.task}"
        for arm, outcomes in study.arms.items():
            held = result.metrics if arm == study.reference else result.baselines
            held[f"{name}.{arm}"] = mean_error(tests(outcomes))[0]
        result.ratios |= {f"{name}.{fact}": value for fact, value in study.facts.items()}
        result.targets += study.targets
        result.tables.append(study.to_json())
    return result
