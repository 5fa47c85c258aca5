"""Growth in a real ``transformers.Trainer``: it grows, resumes by ``resume_from_checkpoint`` to the bit, and rolls back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

import esper
from esper.errors import ConfigError
from esper.kasmina import Plan, placement_of, plan, topology
from tests.frameworks.library import stock

transformers = pytest.importorskip("transformers")
from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from esper.integrations.held_out import held_out  # noqa: E402
from esper.integrations.transformers import GrowthCallback  # noqa: E402
from esper.testing.controllers import Silent  # noqa: E402

pytestmark = [
    # The trainer's own loader asks for pinned memory, which a machine without an accelerator has not.
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
]
TOKENS, LENGTH, STEPS, GRAFT_AT = 64, 8, 16, 5
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def llama() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=TOKENS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, attention_dropout=0.1, tie_word_embeddings=True, **IDS,
    )  # fmt: skip
    torch.manual_seed(3)
    return LlamaForCausalLM(config)


def gpt2() -> PreTrainedModel:
    torch.manual_seed(3)
    return GPT2LMHeadModel(GPT2Config(vocab_size=TOKENS, n_positions=32, n_embd=32, n_layer=2, n_head=4, **IDS))


def bert() -> PreTrainedModel:
    config = BertConfig(
        vocab_size=TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=32, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(3)
    return BertForSequenceClassification(config)


SLOTS = {llama: "model.layers.1", gpt2: "transformer.h.1", bert: "bert.encoder.layer.1"}
BATCH = {"input_ids": torch.arange(3 * LENGTH).reshape(3, LENGTH) % TOKENS}


class Sentences(Dataset[dict[str, Tensor]]):
    """Token ids that are fixed by their index; for a language model the labels are the ids."""

    def __init__(self, count: int = 40, *, classes: int = 0) -> None:
        generator = torch.Generator().manual_seed(count)
        self._ids = torch.randint(3, TOKENS, (count, LENGTH), generator=generator)
        self._labels = self._ids if not classes else self._ids[:, 0] % classes

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._ids[index], "labels": self._labels[index]}


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=batch["input_ids"]).logits
    if logits.ndim == 2:
        return F.cross_entropy(logits, batch["labels"], reduction="none")
    token_losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    return token_losses.mean(dim=1)


class Act(TrainerCallback):
    """Grafts by hand after one step, undoes it after another, and writes down the loss of every step."""

    def __init__(self, growth: GrowthCallback, slot: str, undo_at: int | None = None) -> None:
        self._growth, self._slot, self._undo_at = growth, slot, undo_at
        self.digests: dict[int, list[str]] = {}
        self.losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        run = self._growth.run
        assert run is not None
        self.digests[state.global_step] = [run.digest()]
        if state.global_step == GRAFT_AT:
            self._event = run.graft(self._slot, "mlp_adapter")
        if state.global_step == self._undo_at:
            run.rollback(self._event)
        self.digests[state.global_step].append(run.digest())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plans = [plan(make(), BATCH) for make in SLOTS]
    return stock(tmp_path_factory.mktemp("runs"), *plans)


def callback(root: Path, *, classes: int = 0, **changes: Any) -> GrowthCallback:
    examples = Sentences(12, classes=classes)
    batches = [{key: torch.stack([examples[i][key] for i in range(12)]) for key in examples[0]}]
    arguments: dict[str, Any] = {
        "validate": held_out(batches, losses), "every": 4, "budget": "x99", "controller": Silent(), "root": root, **changes,
    }  # fmt: skip
    return GrowthCallback(**arguments)


def train(
    model: PreTrainedModel, growth: GrowthCallback | None, folder: Path, *extra: TrainerCallback, classes: int = 0,
    resume: Path | bool | None = None, **changes: Any,
) -> Trainer:  # fmt: skip
    arguments: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 5e-3,
        "logging_steps": 1, "save_steps": 4, "report_to": [], "disable_tqdm": True, "use_cpu": True, "seed": 7,
        "lr_scheduler_type": "linear", "warmup_steps": 3, "logging_nan_inf_filter": False, "dataloader_pin_memory": False,
        **changes,
    }  # fmt: skip
    callbacks = [*([] if growth is None else [growth]), *extra]
    data = Sentences(classes=classes)
    trainer = Trainer(model, TrainingArguments(**arguments), train_dataset=data, eval_dataset=data, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


KINDS: dict[str, dict[str, Any]] = {
    "mid-epoch": {},
    "epoch": {"save_steps": 10},
    "accumulated": {"gradient_accumulation_steps": 3, "save_steps": 6},
    "checkpointed": {"activation_checkpointing": True},
    "bfloat16": {"bf16": True},
}
"""An epoch has ten batches."""


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        pytest.param(make, kind, marks=() if (make, kind) == (llama, "mid-epoch") else pytest.mark.slow)
        for make, kind in [*((llama, kind) for kind in KINDS), (gpt2, "mid-epoch"), (bert, "mid-epoch")]
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_training_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(
    make: Any, kind: str, root: Path, tmp_path: Path
) -> None:
    changes = KINDS[kind]
    save_at = changes.get("save_steps", 8)
    classes = 3 if make is bert else 0
    growth = callback(root, classes=classes)
    whole = Act(growth, SLOTS[make])
    model = make()
    train(model, growth, tmp_path, whole, classes=classes, **changes)
    assert [entry.blueprint for entry in topology(model)] == ["mlp_adapter"]
    assert len(whole.losses) == STEPS

    again = callback(root, classes=classes)
    rest = Act(again, SLOTS[make])
    resumed = make()
    train(resumed, again, tmp_path, rest, classes=classes, resume=tmp_path / f"checkpoint-{save_at}", **changes)
    assert rest.losses == whole.losses[save_at:]
    assert rest.digests == {step: digests for step, digests in whole.digests.items() if step > save_at}
    assert again.run is not None
    assert again.run.spent_steps == STEPS


def test_until_something_grows_a_training_computes_what_it_did_without_the_callback(root: Path, tmp_path: Path) -> None:
    plain, model = llama(), llama()
    without = train(plain, None, tmp_path / "plain", save_strategy="no")
    growth = callback(root)
    seen = train(model, growth, tmp_path / "grown", save_strategy="no")
    logged = [
        [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (without, seen)
    ]  # fmt: skip
    assert len(logged[0]) == STEPS
    assert logged[0] == logged[1]
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
    assert growth.run is not None
    assert all(point.train is not None for point in growth.run._engine.trials.position.history)


def test_a_rollback_within_a_training_puts_everything_back_and_training_goes_on(root: Path, tmp_path: Path) -> None:
    growth = callback(root)
    act = Act(growth, SLOTS[llama], undo_at=9)
    model = llama()
    trainer = train(model, growth, tmp_path, act, save_strategy="no")
    assert act.digests[9][1] == act.digests[GRAFT_AT][0]
    assert len({*act.digests[GRAFT_AT], act.digests[9][0]}) == 3
    assert topology(model) == ()
    assert len(act.losses) == STEPS
    assert len(trainer.optimizer.param_groups) == 2
    assert placement_of(model).grower is None


def test_the_best_model_is_loaded_with_the_grafts_that_it_had(root: Path, tmp_path: Path) -> None:
    class Worse(TrainerCallback):
        """Makes every evaluation worse than the one before, so that the first checkpoint is the best."""

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
            metrics["eval_loss"] = float(state.global_step)

    growth = callback(root)
    model = llama()
    trainer = train(
        model, growth, tmp_path, Act(growth, SLOTS[llama]), Worse(), load_best_model_at_end=True, eval_strategy="steps",
        eval_steps=4, metric_for_best_model="eval_loss", greater_is_better=False,
    )  # fmt: skip
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert topology(model) == ()
    best = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in best.items())


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    """A grown model, and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    growth = callback(root)
    model = llama()
    train(model, growth, folder, Act(growth, SLOTS[llama]))
    return model, folder


def test_a_checkpoint_has_the_hosts_part_for_the_trainer_and_the_whole_run_beside_it(
    finished: tuple[PreTrainedModel, Path],
) -> None:
    model, folder = finished
    checkpoint = folder / "checkpoint-8"
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert len(optimizer["param_groups"]) == 2
    host = {id(p) for name, p in model.named_parameters() if "esper_grafts" not in name}
    assert sum(len(group["params"]) for group in optimizer["param_groups"]) == len(host) == len(optimizer["state"])
    mark = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]["esper"]
    assert mark.keys() == {"token"}
    assert any((checkpoint / "esper").rglob("*.safetensors"))
    assert not [path for path in (checkpoint / "esper").rglob("*") if path.suffix in (".pt", ".pth", ".pkl", ".bin")]


def test_a_checkpoint_in_another_folder_is_resumed_where_the_callback_is_told(
    finished: tuple[PreTrainedModel, Path], root: Path, tmp_path: Path
) -> None:
    _, folder = finished
    with pytest.raises(ConfigError, match="ESP-2466"):
        train(llama(), callback(root), tmp_path, resume=folder / "checkpoint-12")
    growth = callback(root, resume_from=folder / "checkpoint-12")
    model = llama()
    train(model, growth, tmp_path, resume=folder / "checkpoint-12", save_strategy="no")
    assert growth.run is not None
    assert growth.run.spent_steps == STEPS
    assert [entry.blueprint for entry in topology(model)] == ["mlp_adapter"]
    with pytest.raises(ConfigError, match="is not the checkpoint that is resumed"):
        train(llama(), callback(root, resume_from=folder / "checkpoint-8"), tmp_path, resume=folder / "checkpoint-12")


def test_a_training_is_resumed_by_the_latest_checkpoint(root: Path, tmp_path: Path) -> None:
    first, second = callback(root), callback(root)
    train(llama(), first, tmp_path, Act(first, SLOTS[llama]))
    rest = Act(second, SLOTS[llama])
    train(llama(), second, tmp_path, rest, resume=True, max_steps=20)
    assert len(rest.losses) == 4


# -- decoding with a cache -----------------------------------------------------------------------------------------------


@torch.no_grad()
def shaken(model: nn.Module) -> nn.Module:
    """Give every graft weights that matter."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "esper_grafts" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


def decoded(model: Any, *, use_cache: bool) -> Tensor:
    made = model.generate(
        torch.tensor([[5, 9, 12]]), max_new_tokens=10, min_new_tokens=10, do_sample=False, use_cache=use_cache,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return torch.stack(made.logits)


def test_a_grown_model_decodes_the_same_with_and_without_its_cache(finished: tuple[PreTrainedModel, Path]) -> None:
    model = shaken(finished[0])
    with_cache, without = decoded(model, use_cache=True), decoded(model, use_cache=False)
    assert torch.allclose(with_cache, without, atol=1e-5)
    assert not torch.allclose(without, decoded(llama().eval(), use_cache=False), atol=1e-2)


@pytest.mark.parametrize("make", [llama, gpt2, bert], ids=lambda make: make.__name__)
def test_nothing_that_mixes_tokens_is_offered_where_a_model_decodes_with_a_cache(make: Any) -> None:
    found: Plan = plan(make(), BATCH)
    assert {graft.blueprint for graft in found.grafts} == {"gated_mlp", "low_rank", "mlp_adapter", "wider_mlp"}


def test_attention_that_is_forced_on_such_a_slot_would_decode_something_else(root: Path, tmp_path: Path) -> None:
    """The trap is real: a graft has no cache of its own."""
    slot = esper.Slot(SLOTS[llama], layout="tokens")
    stock(tmp_path, plan(llama(), BATCH, slot))
    growth = callback(tmp_path, slots=slot)

    class Attend(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1 and growth.run is not None:
                growth.run.graft(SLOTS[llama], "self_attention")

    model = llama()
    train(model, growth, tmp_path, Attend(), max_steps=4, save_strategy="no")
    shaken(model)
    assert not torch.allclose(decoded(model, use_cache=True), decoded(model, use_cache=False), atol=1e-2)
