# SPDX-License-Identifier: Apache-2.0
"""The architecture, as a test: which way imports point, who owns what, and how large a thing may grow.

It reads the sources and runs none of them. The tables below are the architecture diagram; a change of theirs is a
change of the design.
"""

import ast
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "resilient").rglob("*.py"))
EVERYTHING = [path for top in ("resilient", "tests", "examples", "benchmarks") for path in (ROOT / top).rglob("*.py")]

# Lower knows nothing of higher. The longest prefix decides.
LAYERS = {
    # words and decisions
    "resilient.core": 0,
    "resilient.errors": 0,
    # what everybody may ask
    "resilient.settings": 1,
    "resilient.facts": 1,
    "resilient.kinds": 1,
    "resilient.torchrun": 1,
    "resilient.launch": 1,
    "resilient.durations": 1,
    "resilient.retry": 1,
    "resilient.toml_files": 1,
    "resilient.version": 1,
    # effects, one outside thing each
    "resilient.link": 2,
    "resilient.devices": 2,
    "resilient.cloud": 2,
    "resilient.checkpoint": 3,
    "resilient.kubernetes": 3,
    "resilient.supervisor": 4,
    "resilient.preflight": 5,
    "resilient.training": 5,
    "resilient.report": 5,
    "resilient.dcp": 6,
    # shells, which wire them
    "resilient.supervisor.loop": 6,
    "resilient.supervisor.main": 7,
    "resilient.training.run": 6,
    "resilient.verbs": 7,
    "resilient.cli": 8,
    "resilient": 8,
    "resilient.__main__": 9,
}

# Who may import what is neither the standard library nor ours. Paths below resilient/; a folder stands for all in it.
OWNERS = {
    "amdsmi": {"devices/amd.py"},
    "filelock": {"checkpoint/lock.py"},
    "fsspec": {"checkpoint/store.py"},
    "kubernetes": {"kubernetes/"},
    "numpy": {"training/", "checkpoint/"},
    "pynvml": {"devices/nvml.py"},
    "rich": {"report/"},
    "ruamel": {"kubernetes/documents.py", "kubernetes/building.py"},
    "safetensors": {"checkpoint/export.py"},
    "tenacity": {"retry.py"},
    "tomli": {"toml_files.py"},
    "tomllib": {"toml_files.py"},  # in the standard library from Python 3.11 on
    "torch": {"training/", "dcp/", "checkpoint/tensors", "checkpoint/image.py", "checkpoint/pair.py"}
    | {"checkpoint/export.py", "preflight/torch_probes.py", "supervisor/mailbox.py"},
    "urllib3": {"kubernetes/own_pod.py"},
    "xxhash": {"checkpoint/digest.py"},
}

# The core decides from what it is told. Here even the standard library would let the world in.
WORLD = {"os", "time", "random", "threading", "logging", "socket", "subprocess", "asyncio", "signal", "io", "secrets"}
WORLD |= {"pathlib", "shutil", "tempfile", "selectors", "multiprocessing", "ctypes", "uuid", "urllib.request"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv"}
SAVES_WITH_TORCH = {"dcp/reader.py", "checkpoint/export.py"}
"""DCP's planner takes objects as pickled bytes only; it is given bytes that were made a moment before. An export is
written for others, in the format that they ask for, and never read here."""
MOVES_PICKLES = ("load", "save", "_object", "_object_list")
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
BANNED = {"manager", "handler", "engine", "context", "helper", "helpers", "util", "utils", "info", "agent"}
FILE_LINES = 400
FUNCTION_LINES = 60


def each(paths: Sequence[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """Make one test of a check of a file: to set up a test for each file takes longer than to look at it."""

    def test_of(check: Callable[[Path], None]) -> Callable[[], None]:
        def test() -> None:
            wrong = []
            for path in paths:
                try:
                    check(path)
                except AssertionError as error:
                    wrong.append(f"{path.relative_to(ROOT)}: {error}")
            assert not wrong, "\n".join(wrong)

        test.__doc__ = check.__doc__
        return test

    return test_of


sources = each(EVERYTHING)
package = each(PACKAGE)
core = each(sorted((ROOT / "resilient/core").glob("*.py")))


@functools.cache
def parse(path: Path) -> ast.Module:
    """The file as a tree."""
    return ast.parse(path.read_text(), filename=str(path))


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PACKAGE}


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever in it, with the line; `from a import b` gives a.b if that is ours."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(path, node)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in MODULES else base), node.lineno


def _absolute(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package_parts = list(path.relative_to(ROOT).parent.parts)
    parts = package_parts[: len(package_parts) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def own_imports(path: Path) -> Iterator[tuple[str, int]]:
    """What a file imports of ours."""
    return ((name, line) for name, line in imported(path) if name.split(".")[0] == "resilient")


def layer(module: str) -> int:
    """The layer of a module, by the longest prefix."""
    return LAYERS[max((name for name in LAYERS if f"{module}.".startswith(f"{name}.")), key=len)]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions of a file, the nested ones too."""
    return (node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@package
def test_imports_point_downwards(path: Path) -> None:
    """No module imports from a layer above its own."""
    module = module_of(path)
    upwards = [f"line {line}: {name}" for name, line in own_imports(path) if layer(name) > layer(module)]
    if module != "resilient":  # the public names: the one place that shows what lies below, lazily
        assert not upwards, f"{module} (layer {layer(module)}) imports from above: {upwards}"


def test_no_circle_of_imports() -> None:
    """No module needs itself, by whatever way round."""
    graph = {name: {target for target, _ in own_imports(path)} - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_part_has_its_layer() -> None:
    """A new part of the package must be given a place here; only the package itself is the rest."""
    homeless = {name for name in MODULES if name.count(".") == 1} - set(LAYERS)
    assert not homeless, f"cannot place {sorted(homeless)}: no layer is named for them; add them to LAYERS"


@core
def test_the_core_is_pure(path: Path) -> None:
    """The core imports words of its own and the standard library, and of that nothing that reaches outside."""
    names = {name for name, _ in imported(path)}
    ours = {name for name in names if name.split(".")[0] == "resilient"}
    assert ours <= {name for name in MODULES if layer(name) == 0}
    assert {name.split(".")[0] for name in names - ours} <= sys.stdlib_module_names
    assert not names & WORLD, f"{path.name} lets the world in: {sorted(names & WORLD)}"
    calls = {ast.unparse(node.func) for node in ast.walk(parse(path)) if isinstance(node, ast.Call)}
    assert not calls & {"open", "print", "input", "exec", "eval", "__import__"}


@package
def test_each_third_party_package_has_one_owner(path: Path) -> None:
    """What is not ours is imported where its owner is, and nowhere else."""
    own = path.relative_to(ROOT / "resilient").as_posix()
    for name, line in imported(path):
        top = name.split(".")[0]
        if top == "resilient" or top in sys.stdlib_module_names or name == "__future__":
            continue
        assert top in OWNERS, f"{own}:{line} imports {top}, which nobody owns"
        assert own.startswith(tuple(OWNERS[top])), f"{own}:{line} imports {top}, which belongs to {OWNERS[top]}"


@package
def test_the_environment_is_read_in_one_place(path: Path) -> None:
    """Only the settings read environment variables; everybody else is handed them."""
    if module_of(path) == "resilient.settings":
        return
    for node in ast.walk(parse(path)):
        names = {node.attr} if isinstance(node, ast.Attribute) else set()
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            names = {alias.name for alias in node.names}
        assert not names & ENVIRONMENT, f"{path.name}:{getattr(node, 'lineno', 0)} reads the environment"


@package
def test_nothing_is_pickled(path: Path) -> None:
    """No unpickling module, no torch.load or torch.save, no collective that moves pickled objects."""
    own = path.relative_to(ROOT / "resilient").as_posix()
    assert not {name.split(".")[0] for name, _ in imported(path)} & UNPICKLERS
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute) and node.attr.endswith(MOVES_PICKLES):
            whole = ast.unparse(node)
            assert whole != "torch.load", f"{path.name}:{node.lineno}: {whole}"
            assert whole != "torch.save" or own in SAVES_WITH_TORCH, f"{path.name}:{node.lineno}: {whole}"
            assert not re.search(r"_object(_list)?$", node.attr), f"{path.name}:{node.lineno}: {whole}"


@package
def test_no_error_is_dropped(path: Path) -> None:
    """Nobody catches everything and does nothing."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ExceptHandler):
            everything = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
            nothing = all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)
            assert not (everything and nothing), f"{path.name}:{node.lineno} drops every error"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            dropped = {ast.unparse(argument) for argument in node.args}
            assert not dropped & {"Exception", "BaseException"}, f"{path.name}:{node.lineno} drops every error"


@sources
def test_files_and_functions_stay_small(path: Path) -> None:
    """A file fits into one sitting, a function on one screen."""
    lines = len(path.read_text().splitlines())
    assert lines <= FILE_LINES, f"{path.name} has {lines} lines; what second idea in it wants a file of its own?"
    for function in functions(path):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        assert length <= FUNCTION_LINES, f"{path.name}:{function.lineno} {function.name} has {length} lines"


@sources
def test_what_is_ignored_says_why(path: Path) -> None:
    """A check that is switched off for a line is owed a reason; that it is needed at all ruff and mypy see to."""
    without = re.compile(r"# (?:type: ignore\[[^\]]+\]|noqa: [A-Z0-9, ]+)$", re.MULTILINE)
    assert not without.findall(path.read_text())


@sources
def test_each_file_says_its_licence_and_what_it_owns(path: Path) -> None:
    """The SPDX line comes first, then the module's docstring; an empty file needs neither."""
    text = path.read_text()
    if text:
        lines = text.splitlines()
        first = lines[1] if lines[0].startswith("#!") else lines[0]
        assert first == "# SPDX-License-Identifier: Apache-2.0"
        assert ast.get_docstring(parse(path)), f"{path.name} does not say what it owns"


@package
def test_names_are_from_the_vocabulary(path: Path) -> None:
    """No module, class, function, argument or variable has a name that says nothing."""
    names = {path.stem}
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    bad = {name for name in names if words(name) & BANNED}
    assert not bad, f"{path.name} uses {sorted(bad)}"


def words(name: str) -> set[str]:
    """The words of a name in either case style."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)}


def test_words_are_told_apart() -> None:
    """Both case styles are read, and a word inside a word is none."""
    assert words("JobManager") == {"job", "manager"}
    assert words("_on_signal_handler") == {"on", "signal", "handler"}
    assert words("HTTPContext") == {"http", "context"}
    assert words("contextlib") == {"contextlib"}
    assert not words("reinforce") & BANNED
