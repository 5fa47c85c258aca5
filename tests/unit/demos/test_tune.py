"""The tuner tries every arm alike, extends a grid whose edge is best, and hands on what esper spent."""

from collections.abc import Callable, Iterable, Iterator

from esper.demos.arms import Arm
from esper.demos.messages import Job, Message, Place, Score, Trained
from esper.demos.tasks import TASKS
from esper.demos.tune import Tuner

PLACES = (Place("block1", 0, "gated_mlp"),)


class Bench:
    """Stands in for the training processes: the validation accuracy is a known function of the rate."""

    def __init__(self, accuracy: Callable[[float], float]) -> None:
        self.jobs: list[Job] = []
        self._accuracy = accuracy
        self._waiting: list[Job] = []

    def add(self, jobs: Iterable[Job]) -> None:
        self._waiting.extend(jobs)

    def messages(self) -> Iterator[Message]:
        while self._waiting:
            job = self._waiting.pop(0)
            self.jobs.append(job)
            yield Trained(
                arm=job.arm, seed=job.seed, steps=1, params=1, train_flops=1000 + job.seed, places=PLACES,
                validation=Score(self._accuracy(job.rate), loss=0.0), test=None,
            )  # fmt: skip


def tuned(accuracy: Callable[[float], float]) -> tuple[Bench, dict[Arm, float]]:
    bench = Bench(accuracy)
    tuning = Tuner("spirals", (1000, 1001), bench, "nowhere").tune()  # type: ignore[arg-type]
    return bench, {arm: choice.rate for arm, choice in tuning.arms.items()}


def test_a_peak_beyond_the_grid_is_found_by_extending_it() -> None:
    _, rates = tuned(lambda rate: -abs(rate - 0.16))
    assert set(rates.values()) == {0.16}


def test_a_peak_within_the_grid_needs_no_extension() -> None:
    bench, rates = tuned(lambda rate: -abs(rate - 0.02))
    assert set(rates.values()) == {0.02}
    assert {job.rate for job in bench.jobs} == set(TASKS["spirals"].rates)


def test_every_arm_is_tried_on_the_same_rates_and_seeds_and_never_on_the_test_part() -> None:
    bench, _ = tuned(lambda rate: -abs(rate - 0.02))
    tried = {arm: {(job.rate, job.seed) for job in bench.jobs if job.arm is arm} for arm in Arm}
    assert len({frozenset(pairs) for pairs in tried.values()}) == 1
    assert not any(job.read_test for job in bench.jobs)


def test_controls_get_what_esper_spent_and_grew_on_the_same_seed() -> None:
    bench, _ = tuned(lambda rate: -abs(rate - 0.02))
    for job in bench.jobs:
        assert job.flops == (1000 + job.seed if job.arm.spends_as_esper else None)
        assert job.places == (PLACES if job.arm.is_final else ())
