"""What is refused on several ranks."""

import asyncio
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import esper
from tests.distributed.training import Rank, Scripted, code_of


def refused(task: SimpleNamespace) -> Any:
    """Everything that is refused, with its code."""
    rank = Rank(task)
    net, optimizer, validate = rank.net, rank.optimizer, rank.validate
    found: dict[str, Any] = {"wrapped": code_of(lambda: esper.wrap(net))}
    rank.net = rank.model
    found["bare"] = code_of(rank.attach)
    found["ddp of another"] = code_of(lambda: rank.attach(ddp=DistributedDataParallel(torch.nn.Linear(2, 2))))
    rank.net = net
    rank.optimizer = ZeroRedundancyOptimizer(rank.model.parameters(), torch.optim.SGD, lr=0.1, overlap_with_ddp=True)
    found["zero"] = code_of(rank.attach)
    rank.optimizer = optimizer
    with rank.attach(controller=Scripted({})) as growth:
        found["load_kernel"] = code_of(lambda: asyncio.run(rank.model.load_kernel(rank.slots[0], 0, "sha256:0")))
        found["no such blueprint"] = code_of(lambda: growth.graft(rank.slots[0], "nonsense"))
        state = growth.state_dict()
        found["fewer ranks"] = code_of(lambda: growth.load_state_dict({**state, "ranks": 3}))
        rank.validate = lambda model: validate(model).mean() if task.rank == 1 else validate(model)
        growth._engine.observer.held_out._validate = rank.validate
        seen = code_of(lambda: growth.graft(rank.slots[0], "mlp_adapter"))
        found["bad validate"] = sorted([code.decode() for code in growth._subject.team.gather_bytes(seen.encode())])[
            ::-1
        ]
    return found
