# SPDX-License-Identifier: Apache-2.0
"""Writes WALK.md: for each exit code what one sees in the cluster, what it means and what to do.

Every ending is a real one: ``resilient run`` supervises a small training in the environment that ``job.yaml`` gives the
container, with its volumes in a temporary directory. The Job's status is what ``resilient simulate`` says that
Kubernetes makes of these exit codes. Run it again after a change of what is printed:

    python examples/kubernetes/walk.py
"""

from __future__ import annotations

import argparse
import itertools
import re
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from walk_pods import HERE, MANIFEST, Ended, Volumes, run
from walk_stories import STORIES, Pod, Story

from resilient.core.kube_simulation import simulate
from resilient.core.kube_timeline import Ending, Simulation
from resilient.kubernetes.documents import read_file
from resilient.kubernetes.simulated import find_workload
from resilient.report.as_kubectl import kubectl_lines
from resilient.supervisor.ending import meaning

HOUR_S: Final = 3600
"""Simulated, from the end of one pod to that of the next."""
FROM_MANIFEST: Final = re.compile(
    r"(Name|Namespace|Parallelism|Completions|Completion Mode|Suspend|Backoff Limit|Start Time|Completed At|Duration):"
)
"""Lines of ``describe job`` that tell nothing new."""


def simulated(codes: Sequence[int]) -> Simulation:
    """The Job once its pods have ended with these codes, one after the other."""
    workload = find_workload(read_file(str(MANIFEST)))
    return simulate(workload.spec, [Ending(at_s=HOUR_S * at, codes={"": code}) for at, code in enumerate(codes, 1)])


def play(story: Story) -> list[tuple[int, str]]:
    """The codes of a story, each with its section of the page."""
    sections: list[tuple[int, str]] = []
    codes = list(story.before)
    # Not in TMPDIR, which may be deep: the termination message keeps only the end of a long path.
    with tempfile.TemporaryDirectory(prefix="walk-", dir="/tmp") as root:
        volumes = Volumes(Path(root))
        for pod in story.pods:
            (job,) = simulated(codes).jobs
            ended = run(pod, volumes, job.pods[-1])
            if ended.code != pod.code:
                raise SystemExit(f"cannot show {pod.code}: it ended with {ended.code} instead:\n{ended.last_words}")
            codes.append(ended.code)
            if pod.told:
                sections.append((ended.code, "\n".join(_section(pod, ended, codes))))
            elif pod.looks_back:
                code, text = sections[-1]
                sections[-1] = code, "\n".join([text, *_block("The next pod begins with:", ended.first_words)])
    return sections


def _section(pod: Pod, ended: Ended, codes: Sequence[int]) -> Iterator[str]:
    yield from _head(ended.code, pod.told)
    if ended.message:
        yield from _block("The termination message (`kubectl describe pod`):", ended.message, "json")
        yield from _block("The last lines of the supervisor (`kubectl logs`):", ended.last_words)
    else:
        yield "There is no termination message and no last line of the supervisor: nobody was left to write them.\n"
    yield from _status(codes)


def _head(code: int, told: str) -> Iterator[str]:
    known = meaning(code)
    yield f"## {code} {known.name}\n"
    yield f"* **It means:** {known.means}."
    yield f"* **Kubernetes:** {known.platform.removeprefix('Kubernetes ')}."
    yield f"* **Do:** {known.do}."
    yield f"* **Here:** {told}\n"


def _status(codes: Sequence[int]) -> Iterator[str]:
    runs = [(code, len(list(same))) for code, same in itertools.groupby(codes[:-1])]
    before = ", ".join(f"{times} times {code}" if times > 1 else str(code) for code, times in runs)
    title = f"The Job then (simulated, after pods that ended with {before}):" if before else "The Job then (simulated):"
    yield from _block(title, "\n".join(_shortened(list(kubectl_lines(simulated(codes))))).rstrip())


def _shortened(kubectl: Sequence[str]) -> Iterator[str]:
    """Without what ``describe job`` repeats from the manifest, and the middle of a long list of pods."""
    for of_manifest, lines in itertools.groupby(kubectl, lambda line: bool(FROM_MANIFEST.match(line))):
        found = ["..."] if of_manifest else list(lines)
        for of_pod, group in itertools.groupby(found, lambda line: "-sim" in line):
            rows = list(group)
            yield from [*rows[:1], "...", *rows[-2:]] if of_pod and len(rows) > 4 else rows


def _block(title: str, text: str, language: str = "text") -> Iterator[str]:
    yield f"{title}\n\n```{language}\n{text}\n```\n"


HEAD: Final = """\
# What each exit code looks like, and what to do

Find the code by `kubectl describe pod` (State or Last State: Terminated, Exit Code), and go to its section. More of
what happened, of any code: `resilient explain /checkpoints/char-gpt`, wherever the claim is mounted.
"""
TAIL: Final = """\
## How this page is made

By `python examples/kubernetes/walk.py`; do not edit it. Endings, termination messages and last lines are those of real
supervisors, run in the environment of [job.yaml](job.yaml) with the small trainings of
[walk_stories.py](walk_stories.py) in the place of char_gpt.py. The Job's status is simulated, as by `resilient simulate
examples/kubernetes/job.yaml --ending 0=CODE@1h --as-kubectl`, with one hour for each pod; `...` stands for what
`describe job` repeats from the manifest, and for the middle of a long list of pods. Paths are those of the pod; what
differs each time reads `<run>` or `<step>`. How full memory and disks were of the machine that ran them is left out;
in a pod the next supervisor explains 137 by these as well.
"""


def page() -> str:
    """The whole of WALK.md."""
    with ThreadPoolExecutor(2) as pool:
        sections = [section for found in pool.map(play, STORIES) for section in found]
    sections.sort()
    rows = [
        f"| [{code}](#{_anchor(code)}) | {meaning(code).name} | {meaning(code).means} | {meaning(code).do} |"
        for code, _ in sections
    ]
    table = "\n".join(["| code | name | it means | do |", "|---|---|---|---|", *rows])
    return "\n".join([HEAD, table, "", *(text for _, text in sections), TAIL])


def _anchor(code: int) -> str:
    """As GitHub makes it of the section's title."""
    title = re.sub(r"[^\w\- ]", "", f"{code} {meaning(code).name}".lower())
    return title.replace(" ", "-")


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Write down what each exit code looks like.")
    parser.add_argument("output", nargs="?", type=Path, default=HERE / "WALK.md", help="default: %(default)s")
    output: Path = parser.parse_args().output
    output.write_text(page())


if __name__ == "__main__":
    main()
