# SPDX-License-Identifier: Apache-2.0
"""``examples/kubernetes``: the page of exit codes is what its script writes, and the image fits the manifest."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resilient.core.exit_codes import OBSERVED_FAILURE
from resilient.kubernetes.documents import read_file
from resilient.supervisor.ending import MEANINGS

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples/kubernetes"
LIMIT_S = 580.0


# The walk.


def sections() -> dict[int, str]:
    """The page as it was committed, by exit code."""
    found = re.split(r"^## (?=\d)", (FOLDER / "WALK.md").read_text(), flags=re.MULTILINE)[1:]
    return {int(text.split()[0]): text for text in found}


def walk(*arguments: str) -> str:
    """What Python prints, started in the folder of the script."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=FOLDER,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_page_is_what_the_script_writes(tmp_path: Path) -> None:
    """Every ending is brought about again, and nothing on the page was typed by hand."""
    walk("walk.py", str(tmp_path / "WALK.md"))
    written = (tmp_path / "WALK.md").read_text()
    assert written == (FOLDER / "WALK.md").read_text(), "run: python examples/kubernetes/walk.py"


SOME = (115, 194, 195)
"""A stop, a node that is left and then refused (198), and a preemption: of each kind of ending one."""
PLAY = f"""
import json, walk
told = [walk.play(story) for story in walk.STORIES if story.pods[0].code in {SOME} and not story.before]
print(json.dumps([section for sections in told for section in sections]))
"""


def test_some_sections_are_what_the_script_writes() -> None:
    """The others are held against the script with the slow tests."""
    page = (FOLDER / "WALK.md").read_text()
    written = dict(json.loads(walk("-c", PLAY)))
    assert written.keys() == {*SOME, 198}
    assert [code for code, text in written.items() if text not in page] == [], "run: python examples/kubernetes/walk.py"


def test_every_code_has_its_section() -> None:
    """In order, and with what the README's table says of it; 1, as torchrun fails, is no code of the contract."""
    assert list(sections()) == sorted(set(MEANINGS) - {OBSERVED_FAILURE})
    for code, text in sections().items():
        known = MEANINGS[code]
        assert text.startswith(f"{code} {known.name}\n")
        assert f"* **Do:** {known.do}.\n" in text
        assert "$ kubectl get pods   (simulated)\n" in text


@pytest.mark.parametrize("code", sorted(set(MEANINGS) - {OBSERVED_FAILURE, 137}))
def test_a_section_shows_the_ending_that_it_names(code: int) -> None:
    """All but 137, after which nobody is left to say anything."""
    text = sections()[code]
    [line] = re.findall(r"^```json\n(.*)\n```$", text, re.MULTILINE)
    message = json.loads(line.replace("<step>", "1000"))
    assert (message["code"], list(message)[:2]) == (code, ["why", "do"])
    assert ("resilient: finished: " if code == 0 else f"resilient: ended with exit code {code} ") in text


def test_nothing_of_the_machine_that_wrote_it_is_on_the_page() -> None:
    """Its paths, its time and its processes say nothing to a reader, and would be others in the next run."""
    text = (FOLDER / "WALK.md").read_text()
    assert str(ROOT) not in text
    assert not re.search(r"/tmp|\b20\d\d-\d\d-\d\d\b|python3?\.\d", text)


# The image.


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile without comments, each instruction in one piece."""
    lines = [line for line in (FOLDER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in whole if line]


def every(name: str) -> list[str]:
    """What follows this instruction, wherever it stands."""
    return [rest for instruction, rest in instructions() if instruction == name]


def pod() -> Any:
    """The pod that job.yaml describes."""
    (document,) = read_file(str(FOLDER / "job.yaml"))
    return document.data["spec"]["template"]["spec"]


def test_the_supervisor_is_the_first_process() -> None:
    """In exec form, so that no shell stands before it: the same program that the manifest starts."""
    assert [json.loads(rest) for rest in every("ENTRYPOINT")] == [pod()["containers"][0]["command"]]
    [arguments] = [json.loads(rest) for rest in every("CMD")]
    assert arguments[0] == "--"
    assert arguments[1] in pod()["containers"][0]["args"]


def test_it_runs_as_the_user_of_the_manifest() -> None:
    """By number, after everything that root has to do."""
    security = pod()["securityContext"]
    assert every("USER") == [f"{security['runAsUser']}:{security['runAsGroup']}"]
    names = [name for name, _ in instructions()]
    assert set(names[names.index("USER") + 1 :]) == {"ENTRYPOINT", "CMD"}


def test_what_it_copies_exists_and_is_all_that_is_needed() -> None:
    """Everything that the build of the package names, and the script that the manifest starts."""
    copies = [shlex.split(rest) for rest in every("COPY") if not rest.startswith("--from=build ")]
    sources = [source for *found, _ in copies for source in found]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    settings = (ROOT / "pyproject.toml").read_text()
    for line in ('readme = "README.md"', 'license-files = ["LICENSE"]', 'packages = ["resilient"]'):
        assert line in settings
    assert {"pyproject.toml", "README.md", "LICENSE", "resilient", "constraints.txt"} <= set(sources)
    placed = [f"{target}{Path(source).name}" for *found, target in copies for source in found if target == "/app/"]
    assert set(placed) & set(pod()["containers"][0]["args"])


def test_torch_is_pinned_in_it() -> None:
    """By the constraints that ``make test`` takes; the Python is one that these are for."""
    [install] = [json.loads(rest) for rest in every("RUN") if "pip" in rest]
    assert "--constraint constraints.txt" in " ".join(install)
    constraints = (ROOT / "constraints.txt").read_text()
    assert len(re.findall(r"^torch==\d", constraints, re.MULTILINE)) == 1
    versions = {re.fullmatch(r"python:3\.(\d+)-slim( AS build)?", rest) for rest in every("FROM")}
    assert None not in versions
    minors = {int(version[1]) for version in versions if version}
    assert len(minors) == 1, "an environment belongs to the Python that it was made with"
    assert min(minors) >= 11, "the pins of numpy and others are for 3.11 and newer"
