"""A network at its plateau: load what was trained, graft to every slot, and warm the schedule up again."""

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import esper
from esper.datasets import mnist1d

DATA = mnist1d(seed=0)
X, Y, HELD_X, HELD_Y = (torch.from_numpy(a) for p in (DATA.train, DATA.validation) for a in (p.inputs, p.labels))


def perceptron() -> nn.Module:
    """Return the network that has become too small."""
    return nn.Sequential(nn.Linear(40, 24), nn.GELU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 10))


def validate(model: nn.Module) -> Tensor:
    """Return one loss per held-out signal."""
    return cross_entropy(model(HELD_X), HELD_Y, reduction="none")


def train(model: nn.Module, steps: int, root: str, grafts: tuple[str, ...] = ()) -> None:
    """Graft, then train from warm-up to the end of a schedule; ``x1`` lets no controller add to what a hand grafts."""
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    run = {"every": steps // 20, "steps": steps, "scheduler": schedule, "root": root}
    with esper.attach(model, optimizer, validate=validate, budget="x1", **run) as growth:
        for slot in grafts:
            print(growth.graft(slot, "gated_mlp"))
        for _ in range(steps):
            rows = torch.randint(len(X), (100,))
            loss = cross_entropy(model(X[rows]), Y[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            for event in growth.step(loss):
                print(event)
    print(f"held-out loss {validate(model).mean().item():.3f}")


def main(steps: int = 1500, root: str = "./esper-runs", checkpoint: str = "./small.safetensors") -> nn.Module:
    """Train a small network and keep it; load it, and go on grown."""
    small, model = perceptron(), perceptron()
    train(esper.wrap(small, example=X[:2]), steps, root)
    save_file(small.state_dict(), checkpoint)  # what is wrapped keeps its own keys
    model.load_state_dict(load_file(checkpoint))
    train(esper.wrap(model, example=X[:2]), steps, root, grafts=("0", "2"))
    return model


if __name__ == "__main__":
    main()
