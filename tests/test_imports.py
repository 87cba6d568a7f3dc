"""Imports go down only, and three parts import less than that."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVELS = [  # from the top; a module imports only from its own level and from those below
    {"train", "evaluate", "cql", "cql.__main__", "cql.commands", "cql.explorable", "cql.notebook"},
    {"cql.deploy"},
    {"cql.analysis", "cql.exercises"},
    {"cql.training", "cql.device", "cql.ranks"},
    {"cql.engine"},
    {"cql.algorithm", "cql.run_folder", "cql.checkpoint", "cql.metrics", "cql.diagnostics", "cql.collect", "cql.world",
     "cql.cloned", "cql.snapshots"},
    {"cql.action_weights", "cql.policy", "cql.sampling", "cql.members", "cql.config", "cql.data_table", "cql.scales"},
    {"cql.dataset", "cql.model_file"},
    {"cql.losses", "cql.network", "cql.exact", "cql.files", "cql.text", "cql.errors",
     "envs"},
]
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
         for path in [*ROOT.glob("*.py"), *ROOT.glob("cql/**/*.py"), *ROOT.glob("envs/**/*.py")]}


def part_of(module: str) -> str:
    """The longest name of a part that the module lies in."""
    return max((part for level in LEVELS for part in level if module == part or module.startswith(f"{part}.")), key=len)


def level_of(module: str) -> int:
    return next(n for n, level in enumerate(LEVELS) if part_of(module) in level)


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def imports(module: str, path: Path) -> set[str]:
    """The modules of this project that a file names, wherever it imports them; type checkers' own ones left out."""
    found = set()
    hidden = {node for block in nodes(path) if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
              for node in ast.walk(block)}
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and node not in hidden:
            assert node.level == 0, f"{module} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in FILES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in FILES}


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module):
    for imported in imports(module, FILES[module]):
        assert level_of(imported) >= level_of(module), f"{module} imports {imported}, which is above it"


def test_no_module_imports_itself_through_others():
    graph = {module: imports(module, path) - {module} for module, path in FILES.items()}
    while leaves := {module for module, needed in graph.items() if not needed & graph.keys()}:
        graph = {module: needed for module, needed in graph.items() if module not in leaves}
    assert not graph, f"a circle among {sorted(graph)}"


def test_the_page_of_the_algorithm_imports_four_others():
    allowed = {"cql.losses", "cql.network", "cql.sampling", "cql.dataset"}
    assert imports("cql.algorithm", FILES["cql.algorithm"]) <= allowed


def test_what_is_exact_needs_numpy_alone():
    for module, path in FILES.items():
        if part_of(module) == "cql.exact":
            assert {part_of(name) for name in imports(module, path)} <= {"cql.exact"}
            top = {name.split(".")[0] for node in nodes(path)
                   for name in ([node.module] if isinstance(node, ast.ImportFrom) else
                                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])}
            assert top <= {"cql", "numpy", "collections", "dataclasses", "functools", "types", "typing", "math"}


def test_only_the_engine_looks_into_itself():
    for module, path in FILES.items():
        if part_of(module) != "cql.engine":
            assert not any(name.startswith("cql.engine.") for name in imports(module, path)), module


def test_nothing_private_is_imported():
    for module, path in FILES.items():
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom):
                assert not any(alias.name.startswith("_") for alias in node.names), module
