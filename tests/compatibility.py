"""What works in which training setup, told by the tests that were run: ``make compatibility`` writes docs/compatibility.md.

A pytest plugin: it runs no test but those that prove something here, and writes down what came of them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

FEATURES = {
    "graft": "joins without changing an output, and learns",
    "cull": "is taken out, every surviving moment kept",
    "rollback": "everything back to the bit",
    "resume": "saved, loaded, gone on with, equal to the unbroken run to the bit",
    "apart": "a seed learns apart first, and cannot touch the host",
}
"""Columns of the table, and what each means."""
PASS, FAIL, UNTESTED = "pass", "**fail**", "untested"


@dataclass(frozen=True)
class Proof:
    """Tests that show features in a setup.

    Attributes:
        setup: Row of the table.
        features: Columns.
        tests: Pattern that the tests' ids contain.
    """

    setup: str
    features: tuple[str, ...]
    tests: str


ALL = ("graft", "cull", "rollback", "resume")
ORDER, COMPILED = r"laws_in_any_order\.py::", r"laws_in_any_order_compiled\.py::"
APART, COMPILING = r"law_3_isolated\.py::test_", r"law_6_compile_friendly\.py::test_"
KINDS, SCHEDULES = r"test_optimizer_kinds\.py::test_", r"test_schedule_kinds\.py::test_"
SETUPS, AVERAGE = r"test_training_setups\.py::test_", r"test_averaged_model\.py::test_"
RESUMED, TRAINED = r"test_resumed_setups\.py::test_", r"test_compiled_training\.py::test_"
LIVES, AHEAD = r"test_whole_lives\.py::test_", r"test_compiling_ahead\.py::test_"
CULLED, UNDONE = LIVES + r"a_cull_keeps.*", LIVES + r"a_rollback_takes.*"
GONE_ON, BESIDE = LIVES + r"a_grown_loop_goes_on.*", LIVES + r"a_loop_trains_to_the_bit.*"
DDP, LIGHTNING = r"distributed/test_", r"frameworks/test_lightning\.py::test_"
TRANSFORMERS = r"frameworks/test_transformers\.py::test_"
PROOFS: tuple[Proof, ...] = (
    Proof("SGD, float32", ALL, ORDER + r".*-sgd-float32-eager"),
    Proof("SGD, float32", ("apart",), APART + r"a_nan_stays_apart_under_every_optimizer.*sgd"),
    Proof("AdamW, float32", ALL, ORDER + r".*-adamw-float32-eager"),
    Proof("AdamW, float32", ("apart",), APART + r"a_nan_stays_apart_under_every_optimizer.*adamw"),
    Proof(
        "every other optimizer of torch, fused and foreach", ("graft", "cull", "rollback"), KINDS + r"after_any_surgery"
    ),
    Proof(
        "every schedule of torch, nested and chained", ("graft",), SCHEDULES + r"a_newborn_has_the_options_of_its_host"
    ),
    Proof(
        "every schedule of torch, nested and chained", ("cull", "rollback"), SCHEDULES + r"after_a_cull_or_a_rollback"
    ),
    Proof("every schedule of torch, nested and chained", ("resume",), SCHEDULES + r"a_fresh_schedule_goes_on"),
    Proof("bfloat16 weights", ALL, ORDER + r".*-bfloat16-eager"),
    Proof("autocast in bfloat16", ALL, ORDER + r".*-amp-eager"),
    Proof("autocast in bfloat16", ("apart",), APART + r"it_stays_apart_under_autocast"),
    Proof("GradScaler", ("rollback",), SETUPS + r"a_rollback_in_mixed_precision"),
    Proof("GradScaler", ("graft", "resume"), RESUMED + r"a_run_resumed_from_a_file"),
    Proof("GradScaler", ("rollback",), RESUMED + r"a_rollback_of_an_attached_run"),
    Proof("GradScaler", ("apart",), APART + r"gradients_are_unscaled"),
    Proof("gradient accumulation", ("graft",), SETUPS + r"a_graft_between_micro_batches"),
    Proof("gradient clipping", ("graft",), SETUPS + r"clipping_over_the_model"),
    Proof("gradient clipping", ("rollback",), r"law_4_reversible\.py::test_after_a_rollback_training_goes_on"),
    Proof("gradient clipping", ("resume",), r"law_5_resumable\.py::test_a_run_with_a_controller"),
    Proof("AveragedModel in state=", ("graft",), AVERAGE + r"a_newborn_is_averaged_from_its_birth"),
    Proof("AveragedModel in state=", ("cull",), AVERAGE + r"a_cull_a_later_graft"),
    Proof("AveragedModel in state=", ("rollback",), AVERAGE + r"a_rollback_puts_the_average_back"),
    Proof("AveragedModel in state=", ("resume",), AVERAGE + r"a_snapshot_brings_grafts_and_averages"),
    Proof("AveragedModel in state=", ("resume",), RESUMED + r"a_run_resumed_from_a_file"),
    Proof("channels last", ALL, ORDER + r".*\[channels_last-"),
    Proof("channels last", ("graft", "rollback"), SETUPS + r"channels_last_is_kept"),
    Proof("activation checkpointing", ("graft",), SETUPS + r"checkpointed_activations"),
    Proof("tied weights", ALL, ORDER + r".*\[tied_language_model-"),
    Proof("model.compile() in place", ALL, COMPILED),
    Proof("torch.compile(model)", ("graft",), COMPILING + r"a_newborn_is_neutral.*whole"),
    Proof("torch.compile(model)", ("graft", "cull"), COMPILING + r"the_life_of_a_graft.*whole"),
    Proof("blocks compiled one by one", ("graft", "cull"), COMPILING + r"the_life_of_a_graft.*block_by_block"),
    Proof("esper.compile, by slots", ("graft",), COMPILING + r"a_newborn_is_neutral.*by_slots"),
    Proof("esper.compile, by slots", ("graft", "cull"), COMPILING + r"the_life_of_a_graft.*by_slots"),
    Proof("esper.compile, by slots", ("rollback", "resume"), TRAINED + r"a_rollback_and_a_resume_are_exact"),
    Proof("DDP, two ranks", ("graft", "cull", "rollback"), DDP + r"law_7_distributed\.py::test_ranks_are_equal"),
    Proof("DDP, two ranks", ("graft",), DDP + r"newborn_gradients"),
    Proof("DDP, two ranks", ("apart",), DDP + r"apart\.py::test_what_learns_apart"),
    Proof("DDP, two ranks", ("resume",), DDP + r"resuming\.py::test_a_run_goes_on_to_the_bit"),
    Proof("DDP with ZeroRedundancyOptimizer", ALL, DDP + r"partitioned\.py::test_"),
    Proof("DDP with ZeroRedundancyOptimizer", ("apart",), DDP + r"partitioned\.py::test_.*apart"),
    Proof("FSDP2, two ranks", ALL, DDP + r"sharded\.py::test_a_sharded_model_grows"),
    Proof("esper.Trainer", ("graft", "resume"), r"trainer/test_keeping\.py::test_a_(growing_run_resumed|resumed_run)"),
    Proof("esper.Trainer, two ranks", ("graft",), DDP + r"trainer\.py::test_two_ranks_train_as_one"),
    Proof("esper.Trainer, two ranks", ("resume",), DDP + r"trainer\.py::test_a_run_of_the_trainer_goes_on"),
    Proof("Lightning", ("graft",), LIGHTNING + r"a_fit_goes_on_from_its_checkpoint"),
    Proof("Lightning", ("rollback",), LIGHTNING + r"a_rollback_within_a_fit"),
    Proof("Lightning", ("resume",), LIGHTNING + r"a_fit_(goes_on_from_its_checkpoint|with_accumulation)"),
    Proof("transformers.Trainer", ("graft",), TRANSFORMERS + r"a_training_goes_on_from_its_checkpoint"),
    Proof("transformers.Trainer", ("rollback",), TRANSFORMERS + r"a_rollback_within_a_training"),
    Proof("transformers.Trainer", ("resume",), TRANSFORMERS + r"a_training_(goes_on|is_resumed)"),
    Proof("Accelerate", ("graft", "resume"), r"frameworks/test_accelerate\.py::test_the_recipe_grows"),
    Proof("Accelerate", ("rollback",), r"frameworks/test_accelerate\.py::test_a_rollback_within"),
    Proof("Lightning, two ranks", ("graft", "rollback", "resume"), DDP + r"frameworks\.py::test_a_fit_of_lightning"),
    Proof(
        "transformers.Trainer, two ranks", ("graft", "rollback", "resume"), DDP + r"frameworks\.py::test_a_training_of"
    ),
    Proof("Accelerate, two ranks", ("graft", "rollback", "resume"), DDP + r"frameworks\.py::test_a_loop_of_accelerate"),
    Proof("every other optimizer of torch, fused and foreach", ("resume",), GONE_ON + r"\[optimizer "),
    Proof("every other optimizer of torch, fused and foreach", ("apart",), BESIDE + r"\[optimizer "),
    Proof("every schedule of torch, nested and chained", ("apart",), BESIDE + r"\[schedule "),
    Proof("bfloat16 weights", ("apart",), BESIDE + r"\[bfloat16"),
    Proof("GradScaler", ("cull",), CULLED + r"\[scaler"),
    Proof("gradient accumulation", ("cull",), CULLED + r"\[accumulation"),
    Proof("gradient accumulation", ("rollback",), UNDONE + r"\[accumulation"),
    Proof("gradient accumulation", ("resume",), GONE_ON + r"\[accumulation"),
    Proof("gradient accumulation", ("resume",), r"law_5_in_between\.py::test_a_run_saved_between_two_micro_batches"),
    Proof("gradient accumulation", ("apart",), BESIDE + r"\[accumulation"),
    Proof("gradient clipping", ("cull",), CULLED + r"\[clipping"),
    Proof("gradient clipping", ("apart",), BESIDE + r"\[clipping"),
    Proof("AveragedModel in state=", ("apart",), BESIDE + r"\[average"),
    Proof("channels last", ("apart",), APART + r"a_nan_stays_apart_under_every_optimizer.*channels_last"),
    Proof("activation checkpointing", ("cull",), CULLED + r"\[checkpointing"),
    Proof("activation checkpointing", ("rollback",), UNDONE + r"\[checkpointing"),
    Proof("activation checkpointing", ("resume",), GONE_ON + r"\[checkpointing"),
    Proof("activation checkpointing", ("apart",), BESIDE + r"\[checkpointing"),
    Proof("tied weights", ("apart",), APART + r"a_nan_stays_apart_under_every_optimizer.*tied_language_model"),
    Proof("torch.compile(model)", ("rollback",), UNDONE + r"\[around"),
    Proof("torch.compile(model)", ("resume",), GONE_ON + r"\[around"),
    Proof("blocks compiled one by one", ("rollback",), UNDONE + r"\[blocks"),
    Proof("blocks compiled one by one", ("resume",), GONE_ON + r"\[blocks"),
    Proof("blocks compiled one by one", ("apart",), AHEAD + r"a_compiled_host_trains.*block_by_block"),
    Proof("esper.compile, by slots", ("apart",), AHEAD + r"a_compiled_host_trains.*by_slots"),
    Proof("CUDA", ALL, r"gpu/test_laws_on_a_device\.py::test_the_laws_hold_in_any_order\["),
)
"""Which test shows what; a test that shows a feature in passing, such as a fit that grows, counts."""


def cells(proofs: Sequence[Proof], outcomes: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Return what became of every feature in every setup.

    Args:
        proofs: Which tests show what.
        outcomes: ``passed``, ``failed`` or ``skipped`` by test id.
    """
    found: dict[tuple[str, str], list[str]] = {(p.setup, feature): [] for p in proofs for feature in FEATURES}
    for proof in proofs:
        matching = [outcome for test, outcome in outcomes.items() if re.search(proof.tests, test)]
        for feature in proof.features:
            found[proof.setup, feature] += matching
    return {cell: _verdict(results) for cell, results in found.items()}


def _verdict(results: list[str]) -> str:
    if "failed" in results:
        return FAIL
    return PASS if "passed" in results else UNTESTED


def page(table: Mapping[tuple[str, str], str], *, count: int) -> str:
    """Return the page as Markdown."""
    setups = list(dict.fromkeys(setup for setup, _ in table))
    rows = [f"| {setup} | {' | '.join(table[setup, feature] for feature in FEATURES)} |" for setup in setups]
    return "\n".join(
        [
            "# What works where",
            "",
            f"Written by `make compatibility` from the outcomes of {count} tests; `tests/compatibility.py` says which test",
            "shows what. *pass*: every such test passed; *fail*: one did not; *untested*: no test shows it, or it was skipped",
            "for lack of the hardware.",
            "",
            *(f"- **{name}**: {meaning}" for name, meaning in FEATURES.items()),
            "",
            f"| setup | {' | '.join(FEATURES)} |",
            "|---" * (len(FEATURES) + 1) + "|",
            *rows,
            "",
        ]
    )


def unproven(proofs: Sequence[Proof], tests: Iterable[str]) -> list[str]:
    """Return the patterns that no test has."""
    names = list(tests)
    return [proof.tests for proof in proofs if not any(re.search(proof.tests, name) for name in names)]


OUTCOMES: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say where the page goes."""
    parser.addoption("--compatibility", type=Path, required=True, metavar="FILE", help="page to write")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what shows nothing here."""
    if dead := unproven(PROOFS, (item.nodeid for item in items)):
        raise pytest.UsageError(f"no test is named by {', '.join(dead)}")
    wanted = [item for item in items if any(re.search(proof.tests, item.nodeid) for proof in PROOFS)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(wanted)])
    items[:] = wanted


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what came of each test."""
    if report.when == "call" or report.outcome != "passed":
        OUTCOMES[report.nodeid] = report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the page; with several workers the one process that hears of all of them does."""
    if hasattr(session.config, "workerinput") or not OUTCOMES:
        return
    target: Path = session.config.getoption("--compatibility")
    target.write_text(page(cells(PROOFS, OUTCOMES), count=len(OUTCOMES)), encoding="utf-8")
