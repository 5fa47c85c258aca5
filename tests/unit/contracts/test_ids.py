"""Identifiers are never given twice, by no process."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from esper.contracts.ids import new_message_id


def test_ids_of_messages_differ_also_between_threads() -> None:
    with ThreadPoolExecutor(4) as threads:
        drawn = [
            one for many in threads.map(lambda _: [new_message_id() for _ in range(2_000)], range(4)) for one in many
        ]
    assert len(set(drawn)) == len(drawn) == 8_000
    assert all(one.startswith("message-") and len(one) == 32 for one in drawn)


FORKS = """
import os
from esper.contracts.ids import new_message_id
new_message_id()  # Leaves a block behind that a child must not use.
child = os.fork()
os.write(1, (" ".join(new_message_id() for _ in range(100)) + "\\n").encode())
if child:
    os.waitpid(child, 0)
"""


def test_a_forked_process_draws_ids_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60, check=True)
    drawn = done.stdout.split()
    assert len(set(drawn)) == len(drawn) == 200
