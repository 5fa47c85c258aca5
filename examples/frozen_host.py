"""A frozen pretrained host: adapters behind its layers, begun at 1.5 times their budget and pruned by use."""

from collections import Counter

import torch
from torch import Tensor, nn

import esper
from esper.datasets import mnist1d
from esper.ir import Graph, Handle, Site
from esper.kasmina import detach

DATA = mnist1d(seed=0).train
X, Y = torch.from_numpy(DATA.inputs), torch.from_numpy(DATA.labels)


@esper.blueprint("adapter")
def adapter(g: Graph, site: Site) -> Handle:
    """Draw B (V x · silu(G x)), gated; B V x would be low-rank, B gelu(V x) a bottleneck."""
    value, gate = (g.pointwise(g.input, out=4, bias=False) for _ in range(2))
    return g.pointwise(g.mul(value, g.silu(gate)), out=site.channels, bias=False, init="zero")


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int, budget: int = 0) -> None:
    """Train; with a budget, the adapter that is used least leaves, at ten times at most, while they have more parameters."""
    use = Counter[str]()
    for step in range(1, steps + 1):
        rows = torch.randint(len(x), (100,))
        nn.functional.cross_entropy(model(x[rows]), Y[rows]).backward()
        optimizer.step()
        learning = {name: parameter for name, parameter in model.named_parameters() if parameter.grad is not None}
        for name, p in learning.items():  # |w · dL/dw|: to first order, what the loss would change without it
            use[name.partition(".esper_grafts")[0]] += (p * p.grad).abs().sum().item()
        optimizer.zero_grad()
        if budget and step % (steps // 10) == 0 and sum(p.numel() for p in learning.values()) > budget:
            detach(model, least := min(use, key=use.__getitem__), 0)
            print(f"step {step}: {least} lost its adapter, of use {use.pop(least):.2g}")


def main(steps: int = 1000, root: str = "./esper-runs") -> nn.Module:
    """Pretrain on signals, freeze, and adapt to signals that run backwards."""
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(40, 40), nn.GELU())), nn.Linear(40, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    train(model, optimizer, X, steps)

    esper.wrap(model, example=X[:2])
    run = {"validate": lambda model: nn.CrossEntropyLoss(reduction="none")(model(X), Y), "every": steps}
    with esper.attach(model, optimizer, budget="x1", root=root, **run) as growth:
        print(*[growth.graft(place["slot"], "adapter") for place in model.esper.graph()], sep="\n")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("esper_grafts" in name)
    train(model, optimizer, X.flip(1), steps, budget=4 * 480)  # of six adapters with 480 parameters each
    return model


if __name__ == "__main__":
    print(main().esper.summary())
