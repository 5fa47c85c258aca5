"""Blueprints by name, and the decorator that puts them there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from esper.errors import ConfigError, InvalidBlueprint, NotFound, VersionTaken
from esper.ir import ops
from esper.ir.builder import Design, build
from esper.ir.cost import check_extent
from esper.ir.lint import check_birth
from esper.ir.names import NAME_RULE, is_blueprint_name
from esper.ir.representation import BlueprintIR
from esper.ir.types import Layout, Reads, Site


class Kind(StrEnum):
    """What a design can do that a plain layer cannot."""

    PLAIN = "plain"
    MIXING = "mixing"
    GATED = "gated"
    GATED_MIXING = "gated_mixing"
    WIDENING = "widening"
    """More hidden units beside those of the module, which reads what they read."""
    RECALIBRATING = "recalibrating"
    """Rescales what is there, and has no capacity for more."""
    BLOCK = "block"
    """A whole block of its architecture, to be appended behind the last one."""

    @property
    def is_mixing(self) -> bool:
        """Whether it mixes positions."""
        return self in (Kind.MIXING, Kind.GATED_MIXING, Kind.BLOCK)

    @property
    def is_gated(self) -> bool:
        """Whether it multiplies a value with a learned gate."""
        return self in (Kind.GATED, Kind.GATED_MIXING)


@dataclass(frozen=True)
class Entry:
    """One blueprint of a registry.

    Attributes:
        name: Its name.
        design: The function that draws it for a site.
        layouts: Layouts for which it is meant.
        kind: What it can do.
        reads: What it is given at a slot.
    """

    name: str
    design: Design
    layouts: frozenset[Layout]
    kind: Kind
    reads: Reads = Reads.OUTPUT

    def kind_at(self, site: Site) -> Kind:
        """Return what it can do at a site.

        A widening design is one where it reads what a layer loses: positions are independent, and more channels enter the module
        than leave it, so that no residual stream runs past it either. Elsewhere it is a plain one.
        """
        widens = site.layout is Layout.FEATURES and (site.entering or 0) > site.channels
        return Kind.PLAIN if self.kind is Kind.WIDENING and not widens else self.kind

    @property
    def source(self) -> str:
        """Where the design was written, so that running a notebook cell again replaces it."""
        return f"{self.design.__module__}.{getattr(self.design, '__qualname__', self.design)}"


class BlueprintRegistry:
    """Blueprints by name, in the order in which they were registered."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def register(
        self,
        name: str,
        design: Design,
        *,
        layouts: Iterable[Layout] | None = None,
        kind: Kind = Kind.PLAIN,
        reads: Reads | str = Reads.OUTPUT,
    ) -> Entry:
        """Add a blueprint.

        Args:
            name: Its name.
            design: Function from a graph and a site to the value that is F(x).
            layouts: Layouts for which it is meant; None means all on which it can be built.
            kind: What it can do; controllers prefer gated and mixing designs.
            reads: What it is given: what leaves a slot's module, or what enters it.

        Returns:
            The entry.

        Raises:
            ConfigError: If it is a torch module, or not a function, or the name is not usable.
            VersionTaken: If another design has the name.
        """
        _check_design(name, design)
        entry = Entry(name, design, frozenset(Layout if layouts is None else layouts), kind, _reads(name, reads))
        before = self._entries.get(name)
        if before is not None and before.source != entry.source:
            raise VersionTaken(
                f"blueprint {name!r} is registered already",
                why=f"{before.source} has that name",
                todo="Give this one another name.",
            )
        self._entries[name] = entry
        return entry

    def names(self) -> list[str]:
        """Return all names, the earliest first."""
        return list(self._entries)

    def get(self, name: str) -> Entry:
        """Return an entry.

        Raises:
            NotFound: If there is none; the advice has near matches.
        """
        if name not in self._entries:
            raise NotFound(f"no blueprint {name!r}", todo=ops.near(name, self._entries))
        return self._entries[name]

    def build(self, name: str, site: Site) -> BlueprintIR:
        """Draw a blueprint for a site, and check that it can be grafted there.

        Args:
            name: Its name.
            site: The place.

        Returns:
            A blueprint that is neutral and alive at birth.

        Raises:
            NotFound: If there is none of that name.
            InvalidBlueprint: If it does not fit the site, or breaks law 2.
        """
        entry = self.get(name)
        if site.layout not in entry.layouts:
            raise InvalidBlueprint(
                f"blueprint {name!r} is not meant for {site.layout}",
                path="$.layout",
                why=f"it is meant for {', '.join(sorted(entry.layouts))}",
            )
        ir = build(entry.design, site, name, entry.reads)
        check_birth(ir)
        check_site(ir, site)
        return ir

    def refusal(self, name: str, site: Site) -> InvalidBlueprint | None:
        """Return why a blueprint cannot be grafted at a site, or None if it can.

        Raises:
            NotFound: If there is none of that name.
        """
        try:
            self.build(name, site)
        except InvalidBlueprint as refused:
            return refused
        return None

    def eligible(self, site: Site) -> list[str]:
        """Return the names of the blueprints that can be grafted at a site."""
        return [name for name in self._entries if self.refusal(name, site) is None]


def check_site(ir: BlueprintIR, site: Site) -> None:
    """Refuse a blueprint that does not fit a site.

    Raises:
        InvalidBlueprint: If layout, width or extent do not fit, or if it looks ahead where the site is causal.
    """
    if difference := unlike(ir, site):
        raise InvalidBlueprint(
            "blueprint and site differ",
            path="$.layout" if ir.layout != site.layout else "$.channels",
            why=difference,
        )
    if site.extent:
        check_extent(ir, site.extent)
    for index, node in enumerate(ir.nodes):
        if site.layout is Layout.TOKENS and site.causal and node.attrs.get("causal") is False:
            raise InvalidBlueprint(
                f"{node.op} {node.id!r} looks ahead",
                path=f"$.nodes[{index}].attrs.causal",
                why="the site is causal: a token must not see later ones",
                todo="Set causal to true, or declare the site with causal=False.",
            )


def unlike(ir: BlueprintIR, site: Site) -> str | None:
    """Say how a blueprint's layout and widths differ from a site's, or return None where they fit."""
    if (ir.layout, ir.channels, ir.out_channels) == (site.layout, site.width_for(ir.reads), site.channels):
        return None
    if ir.reads is Reads.OUTPUT:
        return f"it is made for {ir.channels} channels in {ir.layout}; the site has {site.channels} in {site.layout}"
    enter = "an unknown number" if site.entering is None else site.entering
    return (
        f"it is made to read {ir.channels} channels and to add to {ir.out_channels} in {ir.layout}; "
        f"{enter} enter and {site.channels} leave the site in {site.layout}"
    )


def _check_design(name: str, design: object) -> None:
    if not is_blueprint_name(name):
        raise ConfigError(f"bad blueprint name {name!r}", why=f"a name is {NAME_RULE}")
    if _is_torch_module(design):
        raise ConfigError(
            f"blueprint {name!r} is a torch module",
            why="a blueprint is data that is validated, compiled and stored; a module is code, which is not",
            todo="Decorate a function f(g, site) that draws it: g.linear(...), g.conv(...), g.gelu(...).",
        )
    if isinstance(design, type) or not callable(design):
        raise ConfigError(
            f"blueprint {name!r} is not a function", todo="Decorate a function f(g, site) that returns a value of g."
        )


def _reads(name: str, reads: Reads | str) -> Reads:
    known = [each.value for each in Reads]
    if reads not in known:
        raise ConfigError(f"blueprint {name!r} reads {reads!r}", why=f"it may read {' or '.join(known)}")
    return Reads(reads)


def _is_torch_module(thing: object) -> bool:
    """Recognise a module, class or instance, without importing torch."""
    kind = thing if isinstance(thing, type) else type(thing)
    return any(base.__name__ == "Module" and base.__module__.startswith("torch.nn.") for base in kind.__mro__)


REGISTRY = BlueprintRegistry()
"""The default registry: the catalogue and what ``@esper.blueprint`` added."""


def blueprint(
    name: str,
    *,
    layouts: Iterable[Layout] | None = None,
    kind: Kind = Kind.PLAIN,
    reads: Reads | str = Reads.OUTPUT,
) -> Callable[[Design], Design]:
    """Register a function as a blueprint.

    ```python
    @esper.blueprint("my_block")
    def my_block(g, site):
        h = g.gelu(g.pointwise(g.input, out=4 * site.channels))
        return g.pointwise(h, out=site.channels, init="zero")
    ```

    Args:
        name: Its name.
        layouts: Layouts for which it is meant; None means all on which it can be built.
        kind: What it can do; controllers prefer gated and mixing designs.
        reads: What it is given: what leaves a slot's module, or what enters it.

    Returns:
        A decorator that gives the function back unchanged.

    Raises:
        ConfigError: If it is handed a torch module, or something else that is not a function.
        VersionTaken: If another design has the name.
    """
    given: object = name
    if not isinstance(given, str):
        _check_design("unnamed", given)
        raise ConfigError("blueprint has no name", todo="Write @esper.blueprint('my_block').")

    def registered(design: Design) -> Design:
        REGISTRY.register(name, design, layouts=layouts, kind=kind, reads=reads)
        return design

    return registered
