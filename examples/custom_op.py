"""An operation of one's own: its shape rule, its cost, its torch body and its formula in numpy, installed on the forge."""

import asyncio
import tempfile
from math import log

import numpy as np
from torch.nn.functional import softplus

from esper.assembly import advisor_named, embedded
from esper.blueprints.bodies import register_body
from esper.contracts.kernel import BlueprintSubmissionRequest, BuildSpec
from esper.ir import Graph, Layout, OpSpec, ops
from esper.ir.spec import no_flops, same_width
from esper.reference import register_formula

NAME = "acme.softplus"  # with a dot: plain names belong to the closed set
ops.register(OpSpec(NAME, width=same_width, flops=no_flops))
register_body(NAME, lambda use, own: lambda x: softplus(x) - log(2))
register_formula(NAME, lambda use, own, inputs, training: np.logaddexp(0.0, inputs[0]) - log(2))


async def main() -> None:
    """Have a forge whose children import this module build a design with the operation."""
    g = Graph(Layout.FEATURES, 8)
    ir = g.finish(g.linear(g.apply(NAME, g.linear(g.input, out=16)), out=8, init="zero"), name="softplus_adapter")
    with tempfile.TemporaryDirectory() as root:
        async with embedded(root, advisor_named("plateau"), extensions=["custom_op"]) as services:
            await services.library.submit(BlueprintSubmissionRequest(name=ir.name, architecture_ir=ir.to_json()))
            while (kernel := await services.library.find(ir.digest, BuildSpec())) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    print(
        f"{ir.name}: trusted {ir.is_trusted}, {kernel.status}, error {kernel.validation_metrics['error_float64']:.0e}"
    )


if __name__ == "__main__":
    asyncio.run(main())
