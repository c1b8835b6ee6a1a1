"""The cost of the package to a program before its first connection."""

import statistics
import subprocess
from collections.abc import Mapping

from benchmarks import instructions
from benchmarks.peers import PEERS
from benchmarks.processes import PYTHON, environment, memory, running
from benchmarks.table import Bench, Figures, Group, Row, Step

BARE = [PYTHON, "-c", "import ctypes, socket; print(0, flush=True); input()"]
IMPORT = """
import ctypes, socket
from time import perf_counter
before = perf_counter()
import danga_raw
print(perf_counter() - before)
"""


def plan(bench: Bench) -> list[Step]:
    env = environment(bench.package)

    def resident(figures: Figures) -> None:
        server = PEERS["danga_raw"].command(bench.scratch)
        differences = []
        for _ in range(bench.count(11, 3)):
            with running(BARE, env) as bare, running(server, env) as idle:
                differences.append(memory(idle.pid, "VmRSS") - memory(bare.pid, "VmRSS"))
        figures["startup.memory"] = (statistics.median(differences) / 2**20,)

    def importing(figures: Figures) -> None:
        command = [PYTHON, "-c", IMPORT]
        subprocess.run(command, env=env, capture_output=True, check=True)  # compiles new modules
        seconds = [
            float(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
            for _ in range(bench.count(60, 10))
        ]
        # The fastest: other load on the machine can only add time.
        figures["startup.import"] = (min(seconds) * 1000,)
        figures["startup.import.median"] = (statistics.median(seconds) * 1000,)

    def counted(env: Mapping[str, str]) -> float:
        bare, whole = (
            instructions.of_program([PYTHON, "-c", f"import ctypes, socket{more}"], env)
            for more in ("", ", danga_raw")
        )
        return (whole - bare) / 1e6

    return [
        Step("resident memory", resident),
        Step("import time", importing),
        instructions.step(
            bench, "instructions of the import", "startup.import.instructions", counted
        ),
    ]


GROUP = Group(
    "startup",
    'resident memory of an idle server and import time, over `python3 -c "import ctypes, socket"`',
    (
        Row(
            "resident memory of an idle server over a bare Python",
            "startup.memory",
            must=2,
            aim=1,
            unit="MiB",
        ),
        Row(
            "import time over a bare Python, fastest of many",
            "startup.import",
            must=5,
            aim=3,
            unit="ms",
        ),
        Row(
            "instructions of the import over a bare Python",
            "startup.import.instructions",
            unit="million",
        ),
    ),
    plan,
)
