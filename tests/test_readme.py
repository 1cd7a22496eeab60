# SPDX-License-Identifier: Apache-2.0
"""The README is true: its code runs, its flags and files exist, its tables are those of the code."""

import argparse
import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import readme
from supervised import Folder

import resilient
from resilient import cli, launch, torchrun
from resilient.core.policy import Terms
from resilient.core.rules import RULES
from resilient.settings import FIELDS, flag, variable
from resilient.toml_files import read_rules
from resilient.verbs import manifest, manifest_flags
from resilient.verbs.launching import DOCTOR_SWITCHES, DOCTOR_VALUES

ROOT = readme.PATH.parent
PACKAGE = ROOT / "resilient"
FOREIGN = ("kubectl", "torchrun", ".")
"""Programs of others, which the shell blocks may name."""


def sources() -> str:
    """The whole package as one text."""
    return "".join(path.read_text() for path in sorted(PACKAGE.rglob("*.py")))


def test_it_can_be_read_in_one_sitting() -> None:
    """The README is all the documentation there is, and it stays one page."""
    assert len(readme.PATH.read_text().splitlines()) <= 400


@pytest.mark.parametrize("name", readme.GENERATED)
def test_generated_parts_are_those_of_the_code(name: str) -> None:
    """Tables and the state diagram say what the code says."""
    assert readme.parts().get(name) == readme.GENERATED[name](), "run: python tests/readme.py"


def test_every_language_is_checked_somewhere() -> None:
    """A block in a language that no test here reads would be a claim of nobody's."""
    assert readme.languages() == {"python", "sh", "mermaid", "toml"}


def test_rules_can_be_copied(tmp_path: Path) -> None:
    """The example of a rule of one's own is one, and each example selects its rule."""
    for text in readme.blocks("toml"):
        path = tmp_path / "rules.toml"
        path.write_text(text)
        assert read_rules(path)


def test_python_uses_public_names_only() -> None:
    """Every name and keyword that a reader copies exists."""
    for text in readme.blocks("python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner, name = node.value.id, node.attr
                assert owner != "resilient" or name in resilient.__all__ or find_spec(f"resilient.{name}")
                assert owner != "run" or (not name.startswith("_") and hasattr(resilient.Run, name))
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("resilient.Run", "run.batches"):
                called = resilient.Run if ast.unparse(node.func) == "resilient.Run" else resilient.Run.batches
                known = set(inspect.signature(called).parameters)
                assert {keyword.arg for keyword in node.keywords} <= known


@pytest.mark.parametrize("line", dict.fromkeys(readme.commands()))
def test_shell_lines_can_be_typed(line: str) -> None:
    """Every command exists, takes the flags it is given, and names files that are there."""
    program, *words = shlex.split(line)
    while "=" in program:  # a variable for the command that follows
        assert program.partition("=")[0] in map(variable, FIELDS)
        program, *words = words
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "python":
        script = ROOT / words[0]
        assert words[0] == "train.py" or script.is_file()
        flags = {word for word in words if word.startswith("--")}
        assert all(f'"{name}"' in script.read_text() for name in flags)
    elif program == "resilient":
        can_be_parsed(words)
    else:
        assert program in FOREIGN
    assert all((ROOT / word).exists() for word in words if word.startswith("examples/"))


def can_be_parsed(words: list[str]) -> None:
    """Refused by nobody, where a wrong flag is a SettingsError."""
    if words[0] == "run":
        launch.parse(words[1:], {}, count=lambda kind: 1)
    elif words[0] == "config":
        launch.scan_run(words[1:])
    elif words[0] == "doctor":
        launch.scan_run(words[1:], more=DOCTOR_SWITCHES, more_values=DOCTOR_VALUES)
    elif words[0] == "manifest":
        flags, _ = manifest.split(words[1:])
        manifest_flags.parser().parse_args(flags)
    else:
        cli._parser().parse_args(words)


def flags_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Of it and of all commands below it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from flags_of(command)


def test_flags_in_the_text_exist() -> None:
    """No flag is spoken of that nobody takes."""
    known = {flag(name) for name in FIELDS} | {f"--{name}" for name in (*torchrun.HONOURED, *torchrun.IGNORED)}
    known |= {f"--{name}" for name in (*DOCTOR_SWITCHES, *DOCTOR_VALUES)}
    known |= {*flags_of(cli._parser()), *flags_of(manifest_flags.parser())}
    spoken = {word for span in re.findall(r"`([^`\n]+)`", readme.prose()) for word in re.findall(r"--[a-z-]+", span)}
    assert spoken
    assert spoken <= known


def test_links_lead_somewhere() -> None:
    """Files are there, and sections have the headings that links name."""
    headings = re.findall(r"^#+ (.+)$", readme.prose(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)]+)\)", readme.prose())
    assert links
    for link in links:
        assert link[1:] in anchors if link.startswith("#") else (ROOT / link).is_file()


def test_measured_figures_stand_below_their_command() -> None:
    """A paragraph with a measured figure begins with "Measured", and the command that prints it comes right before."""
    paragraphs = readme.PATH.read_text().split("\n\n")
    figure = re.compile(r"\d\.\d+ (s|ms|us|seconds|microseconds|times)\b|[0-9.]+ microseconds")
    found = [number for number, text in enumerate(paragraphs) if figure.search(text)]
    assert found
    for number in found:
        begin = next(n for n in range(number, -1, -1) if not paragraphs[n].startswith("|"))
        assert paragraphs[begin].startswith("Measured ")
        assert paragraphs[begin - 1].startswith("```sh\npython benchmarks/")


def test_budgets_are_those_of_the_policy() -> None:
    """The numbers in the ladder are the defaults of the code."""
    terms, text = Terms(), " ".join(readme.prose().split())
    assert f"in place {terms.restarts_per_fingerprint} times without progress" in text
    assert f"and {terms.restarts_between_commits} times in all between two checkpoints" in text
    assert terms.second_looks == 1
    assert "a mere guess once" in text


def test_kinds_of_the_journal_are_all_told() -> None:
    """The README names every kind that is written, and no other."""
    section = readme.prose().split("### Journal")[1].split("\n## ")[0]
    told = set(re.findall(r"`(\w+)`", section)) - {"t", "m", "kind"}
    written = re.findall(r"(?:journal\.write|journal|_told)\(\s*\"(\w+)\"", sources())
    assert told == set(written)


def test_tags_of_objects_are_all_told() -> None:
    """The table of the object encoding has every tag that is written, and no other."""
    told = set(re.findall(r"`(\$\w+)`", readme.prose()))
    assert told == set(re.findall(r"\"(\$\w+)\"", (PACKAGE / "checkpoint/objects.py").read_text()))


def test_every_rule_names_its_source() -> None:
    """What the README says of where faults are known from holds for each rule."""
    assert all(rule.source.startswith("https://") or (ROOT / rule.source).is_file() for rule in RULES)


def test_the_tutorial_runs(tmp_path: Path) -> None:
    """The script and the commands of the tutorial do what it says: killed, resumed, done, explained, done already."""
    script = next(text for text in readme.blocks("python") if text.startswith("# file: train.py\n"))
    typed = [shlex.split(line)[1:] for line in readme.commands() if line.startswith("resilient ")]
    run, explain = next(w for w in typed if w[0] == "run"), next(w for w in typed if w[0] == "explain")
    folder = Folder(tmp_path)
    folder.script(f"import light_torch\n{script}")  # nothing but quicker
    ended = folder.run(*run[1:])
    assert ended.code == 0, ended.stderr
    resumed = re.search(r"done: step 2000 resumed from (\d+)", ended.stdout)
    assert resumed is not None
    assert 0 < int(resumed[1]) <= 1500
    page = folder.ask(*explain).stdout
    assert "SIGKILL" in page
    assert f"resumed from step {resumed[1]} (memory)" in " ".join(page.split())
    assert "that nothing explains after step 1500" in " ".join(page.split())
    again = folder.run(*run[1:])
    assert (again.code, "done: step" in again.stdout) == (0, False), again.stderr
    page = folder.ask(*explain).stdout
    assert "was finished already, at step 2000: nothing was trained." in page
    command = shlex.split(
        next(line for line in page.splitlines() if ": finished, steps 1 to 2000, 2 attempts: " in line)
    )
    assert "SIGKILL" in folder.ask(*command[command.index("explain") :]).stdout
