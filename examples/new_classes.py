"""Data change: three classes come to seven. Go on with what was trained, grown, and see what is forgotten."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

import esper
from esper.datasets import mnist1d

DATA = mnist1d(seed=0)
X, Y, HELD_X, HELD_Y = (torch.from_numpy(a) for p in (DATA.train, DATA.validation) for a in (p.inputs, p.labels))
OLD, HELD_OLD = Y < 7, HELD_Y < 7


def validate(model: nn.Module) -> Tensor:
    """Return one loss per held-out signal."""
    return cross_entropy(model(HELD_X), HELD_Y, reduction="none")


def train(model: nn.Module, rows: Tensor, schedule: OneCycleLR, growth: esper.Growth | None = None) -> None:
    """Train on some of the signals, from warm-up to the end of a schedule."""
    for _ in range(schedule.total_steps):
        batch = rows[torch.randint(len(rows), (100,))]
        loss = cross_entropy(model(X[batch]), Y[batch])
        loss.backward()
        schedule.optimizer.step()
        schedule.step()
        schedule.optimizer.zero_grad()
        for event in growth.step(loss) if growth else ():
            print(event)
    right = (model(HELD_X).argmax(dim=1) == HELD_Y).double()
    print(f"right: {right[HELD_OLD].mean():.1%} of the old classes, {right[~HELD_OLD].mean():.1%} of the new")


def main(steps: int = 1000, root: str = "./esper-runs", replay: bool = True, frozen: bool = False) -> nn.Module:
    """Train on seven classes, then on what came: with the old ones again or without, the whole network or the grafts alone."""
    narrow = (nn.Conv1d(1, 8, 5, padding=2), nn.GELU(), nn.Conv1d(8, 8, 3, stride=2, padding=1), nn.GELU())
    head = (nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(32, 10))
    model = esper.wrap(nn.Sequential(nn.Unflatten(1, (1, -1)), *narrow, *head), example=X[:2])
    train(model, OLD.nonzero()[:, 0], OneCycleLR(torch.optim.AdamW(model.parameters()), max_lr=0.02, total_steps=steps))

    came = torch.arange(len(Y)) if replay else (~OLD).nonzero()[:, 0]
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)
    run = {"every": steps // 20, "steps": steps, "scheduler": schedule, "budget": "x8", "root": root}
    with esper.attach(model, optimizer, validate=validate, **run) as growth:
        print(*[growth.graft(place["slot"], "gated_conv") for place in model.esper.graph()], sep="\n")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not frozen or "esper_grafts" in name)
        train(model, came, schedule, growth)
    return model


if __name__ == "__main__":
    main()
