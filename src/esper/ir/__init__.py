"""IR: blueprints as data, validated, priced and content-addressed, without torch."""

from esper.ir.birth import Use
from esper.ir.builder import Design, Graph, Handle, build
from esper.ir.caps import CAPS, Caps
from esper.ir.cost import Cost, check_extent, cost
from esper.ir.digest import digest_of, is_digest
from esper.ir.lint import Finding, Severity, check_birth, lint
from esper.ir.liveness import Liveness, liveness
from esper.ir.registry import REGISTRY, BlueprintRegistry, Entry, Kind, blueprint, check_site, unlike
from esper.ir.representation import VERSION, BlueprintIR, check_caps
from esper.ir.spec import OpSpec, TensorSpec
from esper.ir.types import INPUT, Attr, Attrs, Layout, Node, Reads, Site

__all__ = [
    "CAPS",
    "INPUT",
    "REGISTRY",
    "VERSION",
    "Attr",
    "Attrs",
    "BlueprintIR",
    "BlueprintRegistry",
    "Caps",
    "Cost",
    "Design",
    "Entry",
    "Finding",
    "Graph",
    "Handle",
    "Kind",
    "Layout",
    "Liveness",
    "Node",
    "OpSpec",
    "Reads",
    "Severity",
    "Site",
    "TensorSpec",
    "Use",
    "blueprint",
    "build",
    "check_birth",
    "check_caps",
    "check_extent",
    "check_site",
    "cost",
    "digest_of",
    "is_digest",
    "lint",
    "liveness",
    "unlike",
]
