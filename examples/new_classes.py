"""Data change: three classes come to seven. Go on with what was trained, grown, and see what is forgotten."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import esper
from esper.datasets import mnist1d

DATA = mnist1d(seed=0)
X, Y, HELD_X, HELD_Y = (torch.from_numpy(a) for p in (DATA.train, DATA.validation) for a in (p.inputs, p.labels))
OLD, HELD_OLD = Y < 7, HELD_Y < 7


def train(model: nn.Module, rows: Tensor, steps: int, root: str, grafts: tuple[str, ...], frozen: bool = False) -> None:
    """Graft, freeze the host where asked, and train on some rows from warm-up to the end of a schedule."""
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    run = {"every": steps // 20, "steps": steps, "scheduler": schedule, "root": root}

    def validate(model: nn.Module) -> Tensor:
        return cross_entropy(model(HELD_X), HELD_Y, reduction="none")

    with esper.attach(model, optimizer, validate=validate, budget="x1", **run) as growth:
        for slot in grafts:
            print(growth.graft(slot, "gated_mlp"))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not frozen or "esper_grafts" in name)
        for _ in range(steps):
            batch = rows[torch.randint(len(rows), (100,))]
            loss = cross_entropy(model(X[batch]), Y[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            for event in growth.step(loss):
                print(event)
    right = (model(HELD_X).argmax(dim=1) == HELD_Y).double()
    print(f"right: {right[HELD_OLD].mean():.1%} of the old classes, {right[~HELD_OLD].mean():.1%} of the new")


def main(steps: int = 1000, root: str = "./esper-runs", replay: bool = True, frozen: bool = False) -> nn.Module:
    """Train on seven classes, then on what came: with the old ones again or without, the whole network or the grafts alone."""
    perceptron = nn.Sequential(nn.Linear(40, 24), nn.GELU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 10))
    model, old = esper.wrap(perceptron, example=X[:2]), OLD.nonzero()[:, 0]
    train(model, old, steps, root, grafts=())
    came = torch.arange(len(Y)) if replay else (~OLD).nonzero()[:, 0]
    train(model, came, steps, root, grafts=("0", "2"), frozen=frozen)
    return model


if __name__ == "__main__":
    main()
