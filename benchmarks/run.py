"""Everything the docs say about speed, measured side by side in one go.

python benchmarks/run.py                  all of it: the table, results.json, the plots
python benchmarks/run.py requests timers  only these groups of rows: the table, no files
python benchmarks/run.py --keep requests  these groups, and the files updated with them
python benchmarks/run.py --quick          smaller counts, no files: a rough check that it works
python benchmarks/run.py --docs           docs/performance.md again from results.json
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

# The folder of this file is on the path when it is run; its modules are found from the root.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import docs, peers
from benchmarks.groups import (
    budget,
    cpu,
    extras,
    fair,
    idle,
    memory,
    perlbal,
    pythons,
    queue,
    requests,
    short,
    slow,
    startup,
    stream,
    subclasses,
    threads,
    timers,
)
from benchmarks.processes import HERE, ROOT
from benchmarks.progress import Progress
from benchmarks.table import Bench, Group, as_text, measure

GROUPS: dict[str, Group] = {
    group.name: group
    for group in (
        fair.GROUP,
        budget.GROUP,
        requests.GROUP,
        pythons.GROUP,
        subclasses.GROUP,
        extras.PENDING,
        extras.RENEWED,
        extras.SWEPT,
        extras.CALLBACK,
        extras.CALLBACKS,
        extras.PARKED_OBJECTS,
        extras.PROFILED,
        short.GROUP,
        slow.GROUP,
        cpu.GROUP,
        memory.GROUP,
        startup.GROUP,
        timers.GROUP,
        stream.GROUP,
        idle.GROUP,
        queue.GROUP,
        threads.GROUP,
        perlbal.GROUP,
    )
}
RESULTS = HERE / "results.json"
Results = dict[str, Any]
"""As results.json has it: machine, left out, groups by their name, figures by theirs."""


def machine() -> dict[str, str]:
    """Where the figures come from."""
    versions = {}
    for package in "uvloop", "gevent":
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release().split('-')[0]}, {platform.machine()}",
        "processors": str(os.cpu_count()),
        **versions,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="groups of rows; if none, all but those on demand"
    )
    parser.add_argument("--list", action="store_true", help="say what the groups are")
    parser.add_argument("--quick", action="store_true", help="smaller counts")
    parser.add_argument("--keep", action="store_true", help="write what a part of the groups gives")
    parser.add_argument("--docs", action="store_true", help="only write the docs again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument(
        "--package",
        type=Path,
        default=ROOT,
        metavar="FOLDER",
        help="measure the danga_raw in this folder instead (writes no docs)",
    )
    chosen = parser.parse_args()
    unknown = [name for name in chosen.names if name not in GROUPS]
    if unknown:
        parser.error(f"no group {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    return chosen


def merged(old: Results, new: Results) -> Results:
    """The results of a run of some groups, with the rest from an older run."""
    groups: dict[str, Any] = old["groups"] | new["groups"]
    return {
        **new,
        "groups": {name: groups[name] for name in GROUPS if name in groups},
        "figures": dict(sorted((old["figures"] | new["figures"]).items())),
    }


def as_json(results: Results) -> str:
    return json.dumps(results, indent=1) + "\n"


def main() -> int:
    chosen = arguments()
    if chosen.list:
        for group in GROUPS.values():
            print(f"{group.name:10} {group.what}{', on demand' if group.on_demand else ''}")
        return 0
    if chosen.docs:
        docs.write(json.loads(RESULTS.read_text()))
        return 0
    groups = [
        group
        for group in GROUPS.values()
        if (group.name in chosen.names if chosen.names else not group.on_demand)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(chosen.package.resolve(), Path(scratch), chosen.quick)
        steps = (step for group in groups for step in group.plan(bench))
        figures = measure(steps, Progress())
    left_out = peers.left_out() | pythons.left_out() | threads.left_out()
    results: Results = {
        "machine": machine(),
        "left out": left_out,
        "groups": {
            group.name: {"what": group.what, "rows": [row.cells(figures) for row in group.rows]}
            for group in groups
        },
        "figures": figures,
    }
    print(as_text([row.cells(figures) for group in groups for row in group.rows]))
    if chosen.quick:
        print("quick: smaller counts than the rows name, and more noise in their figures")
    for title, remedy in left_out.items():
        print(f"left out: {title} ({remedy})")
    if chosen.json:
        chosen.json.write_text(as_json(results))
    if bench.package == ROOT and not chosen.quick and (chosen.keep or not chosen.names):
        results = merged(json.loads(RESULTS.read_text()), results)
        RESULTS.write_text(as_json(results))
        docs.write(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
