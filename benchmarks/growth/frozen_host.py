"""Use 4, a frozen pretrained host: adapters that are grafted, beside Hugging Face's PEFT, all within one budget of parameters.

A small transformer is pretrained on Python's help pages, frozen, and adapted to another text: docstrings are near, code is far.
The budget is what a uniform LoRA of rank 8 on every linear layer of the blocks has. Arms, for equally many steps: low-rank,
bottleneck and gated grafts, uniform or begun at 1.5 times the budget and pruned by use; PEFT's LoRA and AdaLoRA; the whole host
fine-tuned, which has no such budget.
"""

from benchmarks.growth.adapters import DESIGNS, PRUNED, lora_params
from benchmarks.growth.bench import Bench
from benchmarks.growth.runs import Outcome, Run
from benchmarks.growth.study import Plan, Study, mean, tune
from benchmarks.growth.tasks import task_named
from benchmarks.growth.tuning import Make
from benchmarks.support.report import Target

HOST = "help-pages"
LORA, ADALORA, FINE_TUNED = "PEFT LoRA", "PEFT AdaLoRA", "host fine-tuned"
ESPER = f"low-rank, {PRUNED}"
RANK = 8
NEAR, FAR = "docstrings", "code"
MARGIN_NATS = 0.003


def study(bench: Bench, plan: Plan, name: str) -> Study:
    """Pretrain, freeze and adapt, on one text."""
    task = task_named(name)
    steps, pretraining = (max(1, round(plan.share * count)) for count in (task.steps, 2 * task_named(HOST).steps))
    width = task.widths[0]

    def pretrain(rate: float, seed: int) -> Run:
        return Run(task=HOST, arm="pretrained", seed=seed, rate=rate, width=width, steps=pretraining, keep=True)

    tuning = tune(bench, plan, HOST, {"pretrained": pretrain})
    hosts = bench.outcomes([pretrain(tuning["pretrained"].rate, seed) for seed in plan.all_seeds])
    arms = _arms(name, {outcome.run.seed: outcome for outcome in hosts}, steps)
    tuning |= tune(bench, plan, name, arms)
    found = {arm: bench.outcomes([make(tuning[arm].rate, seed) for seed in plan.seeds]) for arm, make in arms.items()}
    result = Study("frozen host", name, found, tuning, ESPER)
    budget = lora_params(task.small(0, width=width), RANK)
    _judge(result, budget)
    return result


def _arms(name: str, hosts: dict[int, Outcome], steps: int) -> dict[str, Make]:
    """Return every arm; all begin with the same host and see the same batches."""

    def make(adapters: str) -> Make:
        return lambda rate, seed: Run(
            task=name, arm=adapters or FINE_TUNED, seed=seed, rate=rate, width=hosts[seed].run.width, steps=steps,
            begin=hosts[seed].run.key, adapters=adapters, rank=RANK if adapters else 0,
        )  # fmt: skip

    grafts = [f"{design}{how}" for design in DESIGNS for how in ("", f", {PRUNED}")]
    return {adapters or FINE_TUNED: make(adapters) for adapters in (*grafts, LORA, ADALORA, "")}


def _judge(result: Study, budget: int) -> None:
    over_lora, over_adalora = (result.loss_less(ESPER, peer) for peer in (LORA, ADALORA))
    host = min(outcome.params for outcome in result.arms[FINE_TUNED])
    births = max(o.birth for outcomes in result.arms.values() for o in outcomes if o.birth is not None)
    tuned_less = result.loss_less(FINE_TUNED, LORA)
    result.facts = {
        "budget_params": budget,
        **{
            f"added_params.{arm}": mean(outcome.params - host for outcome in outcomes)
            for arm, outcomes in result.arms.items()
            if arm != FINE_TUNED
        },
        **{f"nats_less_lora.{arm}": result.loss_less(arm, LORA).mean for arm in result.arms if arm != LORA},
        **{f"nats_less_lora_error.{arm}": result.loss_less(arm, LORA).error for arm in result.arms if arm != LORA},
        "pruned_less_adalora_nats": over_adalora.mean,
        "pruned_less_adalora_nats_error": over_adalora.error,
        "counts": float(tuned_less.mean + 2 * tuned_less.error <= 0),
    }
    about = f"frozen host, {result.task}"
    bar, held = (MARGIN_NATS, over_lora.mean) if result.task == NEAR else (0.0, over_lora.mean + 2 * over_lora.error)
    said = "nats less PEFT LoRA" if result.task == NEAR else "nats less PEFT LoRA, two errors above"
    result.targets = [
        Target(f"{about}: largest change at birth", "==", 0.0, births),
        Target(f"{about}: pruned grafts, {said}", "<=", bar, held),
    ]
