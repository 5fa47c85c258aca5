"""A network at its plateau: load what was trained, graft to every slot, and warm the schedule up again."""

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

import esper
from esper.datasets import mnist1d

DATA = mnist1d(seed=0)
X, Y, HELD_X, HELD_Y = (torch.from_numpy(a) for p in (DATA.train, DATA.validation) for a in (p.inputs, p.labels))


def network() -> nn.Module:
    """Return the network that has become too small."""
    narrow = (nn.Conv1d(1, 8, 5, padding=2), nn.GELU(), nn.Conv1d(8, 8, 3, stride=2, padding=1), nn.GELU())
    return nn.Sequential(nn.Unflatten(1, (1, -1)), *narrow, nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(32, 10))


def validate(model: nn.Module) -> Tensor:
    """Return one loss per held-out signal."""
    return cross_entropy(model(HELD_X), HELD_Y, reduction="none")


def train(model: nn.Module, schedule: OneCycleLR, growth: esper.Growth | None = None) -> None:
    """Train from warm-up to the end of a schedule."""
    for _ in range(schedule.total_steps):
        rows = torch.randint(len(X), (100,))
        loss = cross_entropy(model(X[rows]), Y[rows])
        loss.backward()
        schedule.optimizer.step()
        schedule.step()
        schedule.optimizer.zero_grad()
        for event in growth.step(loss) if growth else ():
            print(event)
    print(f"held-out loss {validate(model).mean().item():.3f}")


def main(steps: int = 1500, root: str = "./esper-runs", checkpoint: str = "./small.safetensors") -> nn.Module:
    """Train a small network and keep it; load it, and go on grown."""
    small, model = network(), network()
    train(small, OneCycleLR(torch.optim.AdamW(small.parameters()), max_lr=0.02, total_steps=steps))
    save_file(small.state_dict(), checkpoint)

    model.load_state_dict(load_file(checkpoint))
    esper.wrap(model, example=X[:2])
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)  # to the full peak again
    run = {"every": steps // 20, "steps": steps, "scheduler": schedule, "budget": "x8", "root": root}
    with esper.attach(model, optimizer, validate=validate, **run) as growth:
        print(*[growth.graft(place["slot"], "gated_conv") for place in model.esper.graph()], sep="\n")
        train(model, schedule, growth)
    return model


if __name__ == "__main__":
    main()
