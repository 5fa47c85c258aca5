"""The documentation is held to the code: snippets run, codes and tables agree, links lead somewhere."""

import re
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest

from esper.blueprints.catalog import CATALOG
from esper.contracts.topics import TOPICS
from esper.ir import REGISTRY, Layout, Site
from esper.kasmina import SeedState
from esper.kasmina.lifecycle import TRANSITIONS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "esper"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])

SNIPPET = re.compile(r"^<!-- run -->\n+```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
CODE = re.compile(r"ESP-\d{4}")


def rows(page: str) -> list[list[str]]:
    """Return the cells of every table row of a page."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


WITH_SNIPPETS = [page for page in PAGES if SNIPPET.search(page.read_text(encoding="utf-8"))]


def test_some_pages_have_snippets_that_run() -> None:
    assert DOCS / "index.md" in WITH_SNIPPETS


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name_of)
def test_the_snippets_of_a_page_run_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    code = "\n".join(SNIPPET.findall(page.read_text(encoding="utf-8")))
    (tmp_path / "page.py").write_text(f"import torch\ntorch.set_num_threads(1)\n{code}", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_every_error_code_is_explained_and_every_explained_code_exists() -> None:
    used = {code for path in SOURCE.rglob("*.py") for code in CODE.findall(path.read_text(encoding="utf-8"))}
    cells = [row[0] for row in rows("errors.md") if CODE.fullmatch(row[0])]
    assert sorted(used - set(cells)) == [], "used, but not in docs/errors.md"
    assert sorted(set(cells) - used) == [], "in docs/errors.md, but not used"
    assert len(cells) == len(set(cells)), "explained twice"


def test_every_explained_code_says_what_it_means_and_what_to_do() -> None:
    for row in rows("errors.md"):
        assert len(row) == 3, row
        assert all(row), row


def test_the_lifecycle_page_has_the_edges_of_the_table() -> None:
    found = {row[0]: {word.strip() for word in row[3].split(",")} for row in rows("lifecycle.md") if row[0].isupper()}
    table = {state.name: {target.name for target in TRANSITIONS[state]} for state in SeedState}
    assert found == table


def test_the_architecture_page_names_every_package_and_every_stream() -> None:
    names = {row[0].strip("`"): row for row in rows("architecture.md")}
    packages = {path.stem if path.suffix else path.name for path in SOURCE.iterdir() if is_source(path)}
    services = {f"services.{path.name}" for path in (SOURCE / "services").iterdir() if (path / "__init__.py").exists()}
    assert sorted((packages - {"services"} | services) - names.keys()) == []
    for topic in TOPICS.values():
        row = names[topic.stream]
        assert row[1:] == [f"`{topic.model.__name__}`", ", ".join(topic.writers), ", ".join(topic.readers)]


def is_source(path: Path) -> bool:
    return (path / "__init__.py").exists() or (path.suffix == ".py" and not path.stem.startswith("_"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_link_to_another_page_leads_somewhere(page: Path) -> None:
    targets = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in targets if not (page.parent / link).exists()] == []


def test_every_test_that_the_laws_name_is_there() -> None:
    named = re.findall(r"`(tests/[^`]+)`", (DOCS / "laws.md").read_text(encoding="utf-8"))
    assert len(named) >= 5
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_page_of_the_catalogue_has_every_design_with_its_parameters() -> None:
    sites = [Site(layout, 16, extent, entering=16) for layout, extent in PLACES]
    built = {
        name: next(REGISTRY.build(name, site) for site in sites if REGISTRY.refusal(name, site) is None)
        for name in CATALOG
    }
    designs = [row for row in rows("catalogue.md") if len(row) == 4 and row[0].strip("`") in built]
    told = {row[0].strip("`"): int(row[3].replace(",", "")) for row in designs}
    assert told == {name: sum(prod(spec.shape) for spec in ir.tensors.values()) for name, ir in built.items()}


PLACES = ((Layout.FEATURES, ()), (Layout.TOKENS, (9,)), (Layout.CHANNELS_1D, (9,)))
