"""What searches read is what blueprints and kernels are, in whatever order they came and whoever wrote them."""

import json
import random
from itertools import combinations

from sqlalchemy import text

from esper.contracts.kernel import KernelStatus
from esper.contracts.store import KernelQuery, Match
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.terms import bits_of, words_of
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on

TAGS = ("conv", "fast", "#odd", "~last", "größe")


async def rows(library: KernelManager, question: str) -> list[tuple[object, ...]]:
    async with library.database.reading() as session:
        return sorted(map(tuple, (await session.execute(text(question))).all()), key=str)


async def written(library: KernelManager, question: str) -> None:
    async with library.database.writing() as session:
        await session.execute(text(question))


async def built(library: KernelManager, content: bytes) -> None:
    job = await library.claim("w", lease_s=30.0)
    assert job is not None
    artifact = artifact_of(job.blueprint_id, content)
    await library.complete(job.job_id, "w", artifact, verdict_on(artifact, throughput=float(content[0])))


async def filled(library: KernelManager, seed: int) -> None:
    """Submit designs, build some, and give them more tags, in an order that is drawn."""
    dice = random.Random(seed)
    steps = [(step, width) for width in range(1, 6) for step in ("submit", "build", "tag", "tag")]
    dice.shuffle(steps)
    queued = 0
    for step, width in steps:
        if step == "build":
            if queued:
                queued -= 1
                await built(library, bytes([len(steps) + width]) * width)
            continue
        request = request_for(adapter(width), tags=dice.sample(TAGS, 2 if step == "tag" else 1))
        answer = await library.submit(request.model_copy(update={"name": f"Gated Conv {width}"}))
        queued = answer.queue_position if answer.queue_position is not None else queued


async def checked(library: KernelManager, *, exact: bool = True) -> None:
    """Compare what is searched with what it is made of."""
    terms: dict[str, set[str]] = {}
    for blueprint, term in await rows(library, "SELECT blueprint_id, term FROM blueprint_terms"):
        terms.setdefault(str(blueprint), set()).add(str(term))
    signatures = dict(await rows(library, "SELECT id, signature FROM blueprints"))
    for blueprint, found in terms.items():
        needed = sum(1 << bit for bit in range(62) if any(bits_of(term) >> bit & 1 for term in found))
        assert int(str(signatures[blueprint])) & needed == needed
        assert not exact or signatures[blueprint] == needed
    pairs = [(b, *sorted(pair)) for b, found in terms.items() for pair in combinations(found, 2)]
    assert await rows(library, "SELECT blueprint_id, first, second FROM blueprint_pairs") == sorted(pairs, key=str)
    kernels = await rows(library, "SELECT id, blueprint_id, status, rank, tags FROM kernels")
    expected = [
        (key, term, status, rank, signatures[str(of)])
        for key, of, status, rank, _ in kernels
        for term in terms.get(str(of), ())
    ]
    found_terms = await rows(library, "SELECT kernel_id, term, status, rank, signature FROM kernel_terms")
    assert found_terms == sorted(expected, key=str)
    assert kernels
    for _, of, _, _, tags in kernels:
        shown = json.loads(tags) if isinstance(tags, str) else tags
        assert shown == sorted(term[1:] for term in terms[str(of)] if term.startswith("#"))


async def test_terms_pairs_signatures_and_tags_follow_their_blueprints_in_any_order(library: KernelManager) -> None:
    await filled(library, 3)
    await checked(library)
    record = (await library.search(KernelQuery(limit=1))).kernels[0]
    await library.set_kernel_status(record.kernel_id, KernelStatus.RETIRED)
    await checked(library)


async def test_a_term_that_a_hand_wrote_or_took_away_is_followed_too(library: KernelManager) -> None:
    await filled(library, 4)
    (key,) = (await rows(library, "SELECT DISTINCT blueprint_id FROM kernels"))[0]
    await written(library, f"INSERT INTO blueprint_terms (blueprint_id, term) VALUES ('{key}', '#by hand')")
    await checked(library, exact=False)
    both = KernelQuery(tags=["by hand"], match=Match.ALL, name="gated")
    assert [one.blueprint_id for one in (await library.search(both)).kernels] == [key]
    await written(library, f"DELETE FROM blueprint_terms WHERE blueprint_id = '{key}' AND term = '#by hand'")
    await checked(library, exact=False)
    assert (await library.search(both)).kernels == []


def test_words_are_no_tags() -> None:
    for name in ("#conv", "größe 3", "a_b-c", "$", "0"):
        assert all("#" not in word and word > "$" for word in words_of(name))
