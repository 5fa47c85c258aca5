"""The size is not known: one growing run in place of a sweep of sizes."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import esper
from esper.datasets import mnist1d


def main(steps: int = 2000, root: str = "./esper-runs") -> nn.Module:
    """Grow a narrow network as far as its budget and its data allow, and let leave what does not pay."""
    torch.manual_seed(0)
    splits = mnist1d(seed=0)
    parts = [
        torch.from_numpy(values) for part in (splits.train, splits.validation) for values in (part.inputs, part.labels)
    ]
    inputs, labels, held_inputs, held_labels = parts
    narrow = (nn.Conv1d(1, 8, 5, padding=2), nn.GELU(), nn.Conv1d(8, 8, 3, stride=2, padding=1), nn.GELU())
    model = nn.Sequential(nn.Unflatten(1, (1, -1)), *narrow, nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)

    def validate(model: nn.Module) -> Tensor:
        return cross_entropy(model(held_inputs), held_labels, reduction="none")

    print(esper.plan(model, inputs[:2]))  # what could grow where, and its price
    esper.wrap(model, example=inputs[:2])
    length = {"every": steps // 20, "steps": steps, "late": "wait"}  # a run of seconds waits for its first kernels
    with esper.attach(
        model, optimizer, validate=validate, scheduler=schedule, budget="x8", root=root, **length
    ) as growth:
        for _ in range(steps):
            rows = torch.randint(len(inputs), (100,))
            loss = cross_entropy(model(inputs[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            for event in growth.step(loss):
                print(event)
        for event in growth.shrink():  # what brings less than it costs leaves again
            print(event)
    return model


if __name__ == "__main__":
    print(main().esper.summary())
