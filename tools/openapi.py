"""Write the OpenAPI documents of the services into ``contracts/openapi``.

python -m tools.openapi          write them
python -m tools.openapi --check  exit with 1 where one is not what the service gives
"""

import argparse
import json
import sys
from pathlib import Path

from esper.services.tezzeret.main import app as tezzeret
from esper.services.urza.main import app as urza

FOLDER = Path(__file__).resolve().parents[1] / "contracts" / "openapi"
SERVICES = {"tezzeret": tezzeret, "urza": urza}


def made() -> dict[Path, str]:
    """Return every document by where it belongs."""
    return {
        FOLDER / f"{name}.json": json.dumps(app.openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        for name, app in SERVICES.items()
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the documents, or say which are stale."""
    parser = argparse.ArgumentParser(prog="python -m tools.openapi", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(arguments).check
    stale = {path: text for path, text in made().items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        print(f"{'stale' if check else 'written'}: {path}", file=sys.stderr)
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
