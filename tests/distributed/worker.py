"""One rank of a test: ``python -m tests.distributed.worker '{"scenario": "module.function", "rank": ...}'``."""

import gc
import importlib
import json
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before the group exists, or its defaults keep the group

from tests.distributed.training import gloo_threads


def main() -> None:
    task = SimpleNamespace(**json.loads(sys.argv[1]))
    module, function = task.scenario.split(".")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(task.rank)
    if task.size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{task.place}/rendezvous", rank=task.rank, world_size=task.size,
            timeout=timedelta(seconds=getattr(task, "timeout_s", 30)),
        )  # fmt: skip
    result = getattr(importlib.import_module(f"tests.distributed.{module}"), function)(task)
    (Path(task.place) / f"rank{task.rank}.json").write_text(json.dumps(result))
    if task.size > 1:
        gc.collect()  # a DDP that is still there would keep the group, and with it gloo's threads
        dist.barrier()
        dist.destroy_process_group()
        (Path(task.place) / f"threads{task.rank}.json").write_text(json.dumps(gloo_threads()))


if __name__ == "__main__":
    main()
