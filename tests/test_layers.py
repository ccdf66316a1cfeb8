"""Design, section 2: who may import whom, and what no source file may contain. By ``ast``: nothing runs.

A module is named as it is imported from the root: ``data.augment.plan``, ``train``. Folders of programs
(benchmarks, scripts, examples) are entry points: each of their modules is started by ``python -m``.
"""

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data", "models", "utils")
PROGRAMS = ("benchmarks", "scripts", "examples")
SKIPPED = ("tests", "datasets", "runs", "docs", "configs")  # and hidden folders
ENTRY_POINTS = ("train", "run_setup", "val", "detect", "export", "compare", "inference", "hubconf")
LEAVES = {  # what each of these may import of ours, beside itself
    "utils.geometry": (),
    "utils.structures": (),
    "utils.wording": (),
    "utils.config": ("utils.errors", "utils.wording"),
    "utils.config_text": ("utils.config", "utils.errors"),
    "utils.config_files": (
        "utils.config",
        "utils.errors",
        "utils.files",
        "utils.wording",
        "utils.yolov5_names",
    ),
    "utils.files": ("utils.errors", "utils.wording"),
    "utils.yolov5_names": (),
    "utils.training": (
        "utils.command",
        "utils.config",
        "utils.config_files",
        "utils.errors",
        "utils.files",
        "utils.structures",
        "utils.wording",
    ),
    "utils.command": (),
    "utils.errors": ("utils.command", "utils.wording"),
    "models": ("utils.config", "utils.geometry", "utils.structures", "utils.errors"),
}
FORBIDDEN_NAMES = ("general", "misc", "common", "helpers", "torch_utils")
FORBIDDEN_IMPORTS = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
MAX_FUNCTION, MAX_MODULE = 60, 300  # lines; of a module, lines of code: see code_lines
LONG_MODULES: dict[str, str] = {}  # module -> why it may be longer than MAX_MODULE
LONG_FUNCTIONS: dict[str, str] = {}  # "module.function" -> why it may be longer than MAX_FUNCTION


def source_files() -> list[Path]:
    top = [path for path in ROOT.iterdir() if not path.name.startswith(".") and path.name not in SKIPPED]
    found = [path for path in top if path.suffix == ".py"]
    return sorted(found + [file for folder in top if folder.is_dir() for file in folder.rglob("*.py")])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(), str(path)) for path in source_files()}
PATHS = {module_name(path): path for path in source_files()}


def below(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def imported(tree: ast.Module, module: str) -> set[str]:
    """Our modules that a module imports anywhere in it, inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parent, *filter(None, [node.module])])
            names.update(f"{base}.{alias.name}".strip(".") for alias in node.names)
    ours = set()
    for name in names:
        while name and name not in TREES:
            name = name.rpartition(".")[0]
        ours.add(name)
    return ours - {""}


IMPORTS = {module: imported(tree, module) for module, tree in TREES.items()}


def offenders(modules, forbidden) -> list[str]:
    """Lines ``a imports b`` of the modules of which ``modules(a)`` and ``forbidden(b)`` hold."""
    return sorted(f"{a} imports {b}" for a in filter(modules, IMPORTS) for b in filter(forbidden, IMPORTS[a]))


def test_the_files_are_found():
    assert {
        "train",
        "val",
        "inference",
        "data.augment.plan",
        "models.detector",
        "utils.structures",
    } <= TREES.keys()
    assert len(TREES) >= 45
    assert "utils.structures" in IMPORTS["data.letterbox"]
    assert "val" in IMPORTS["train"]


def test_imports_of_every_form_are_seen():
    text = (
        "import models.head as h\nfrom data.augment import plan\ndef f():\n"
        "    from utils.errors import UserError\nimport json\nfrom . import render\n"
        "from .colour import colour_matrix"
    )
    found = imported(ast.parse(text), "data.augment.x")
    here = {f"data.augment.{name}" for name in ("plan", "render", "colour")}
    assert found == here | {"models.head", "utils.errors"}


@pytest.mark.parametrize(
    ("package", "barred"), [("data", "models"), ("models", "data"), ("utils", "data"), ("utils", "models")]
)
def test_siblings_do_not_import_each_other(package, barred):
    assert not offenders(lambda a: below(a, package), lambda b: below(b, barred))


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_import_only_what_lies_below_them(leaf):
    assert any(below(module, leaf) for module in TREES)
    allowed = (leaf, *LEAVES[leaf])
    assert not offenders(lambda a: below(a, leaf), lambda b: not any(below(b, name) for name in allowed))


def test_no_package_imports_an_entry_point():
    barred = (*ENTRY_POINTS, *PROGRAMS)
    assert not offenders(lambda a: a.split(".")[0] in PACKAGES, lambda b: b.split(".")[0] in barred)


def test_no_cycles():
    graph = {module: set(targets) - {module} for module, targets in IMPORTS.items()}
    while free := {module for module, targets in graph.items() if not targets & graph.keys()}:
        graph = {module: targets for module, targets in graph.items() if module not in free}
    assert not graph, f"in cycles, or above one: {sorted(graph)}"


def test_all_init_files_are_empty():
    files = [path for path in source_files() if path.name == "__init__.py"]
    assert len(files) >= 8
    assert [str(path) for path in files if path.read_text().strip()] == []
    packages = {path.parent for path in source_files() if path.parent != ROOT}
    folders = {folder for folder in packages if folder.relative_to(ROOT).parts[0] not in ("examples",)}
    assert sorted(map(str, folders - {path.parent for path in files})) == []


def test_no_module_has_a_name_that_says_nothing():
    assert not [m for m in TREES if set(m.split(".")) & set(FORBIDDEN_NAMES)]


def test_every_top_level_module_is_a_known_entry_point():
    top = {module.split(".")[0] for module in TREES}
    assert top <= {*ENTRY_POINTS, *PACKAGES, *PROGRAMS}, (
        "a new program or package belongs into the design too"
    )


def faults(tree: ast.Module) -> list[str]:
    """What no source file of ours may contain, with its line."""
    found = []
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("eval", "exec")
        ):
            found.append(f"{node.lineno}: {node.func.id}()")
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
            found.append(f"{node.lineno}: sys.path")
        if (
            isinstance(node, ast.ImportFrom)
            and node.module == "sys"
            and "path" in [a.name for a in node.names]
        ):
            found.append(f"{node.lineno}: sys.path")
        if isinstance(node, ast.ExceptHandler) and (
            node.type is None or ast.unparse(node.type) == "BaseException"
        ):
            found.append(f"{node.lineno}: bare except")
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: import {m}" for m in modules if m.split(".")[0] in FORBIDDEN_IMPORTS]
        if isinstance(node, ast.Call):
            found += [
                f"{node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}"
                for keyword in node.keywords
                if (keyword.arg == "weights_only" and ast.unparse(keyword.value) != "True")
                or (keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False")
            ]
            if ast.unparse(node.func) == "torch.load" and "weights_only" not in [
                k.arg for k in node.keywords
            ]:
                found.append(f"{node.lineno}: torch.load without weights_only=True")
            if reads_or_writes_text(node) and "encoding" not in [k.arg for k in node.keywords]:
                found.append(f"{node.lineno}: {ast.unparse(node.func)} without encoding=")
    return found


def reads_or_writes_text(call: ast.Call) -> bool:
    """Whether it opens a file as text: without a named encoding, that of the machine would decide."""
    if isinstance(call.func, ast.Attribute):
        text = [k for k in call.keywords if k.arg == "text" and ast.unparse(k.value) == "True"]
        return call.func.attr in ("read_text", "write_text") or bool(text)
    if ast.unparse(call.func) != "open":
        return False
    mode = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
    return not (mode and isinstance(mode[0], ast.Constant) and "b" in mode[0].value)


@pytest.mark.parametrize("module", sorted(TREES))
def test_no_dangerous_construct(module):
    assert faults(TREES[module]) == []


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "exec('1')",
        "import pickle",
        "from pickle import loads",
        "import sys\nsys.path.insert(0, '.')",
        "from sys import path",
        "try:\n    pass\nexcept:\n    pass",
        "try:\n    pass\nexcept BaseException:\n    pass",
        "torch.load(f, weights_only=False)",
        "torch.load(f)",
        "torch.load(f, weights_only=flag)",
        "numpy.load(f, allow_pickle=True)",
        "open(f)",
        "open(f, 'w')",
        "open(f, mode)",
        "path.read_text()",
        "path.write_text(text)",
        "subprocess.run(command, text=True)",
    ],
)
def test_dangerous_constructs_are_seen(text):
    assert len(faults(ast.parse(text))) == 1


def test_harmless_constructs_pass():
    text = "model.eval()\ntorch.load(f, weights_only=True)\nsys.exit(0)\nimport json\n"
    text += "open(f, 'rb')\nopen(f, mode='wb')\nopen(f, encoding='utf-8')\npath.read_text(encoding='utf-8')"
    assert faults(ast.parse(text)) == []


def code_lines(text: str) -> int:
    """Lines that hold code. Docstrings, comments and blank lines do not count: a limit that counts them is
    met most easily by leaving the why out."""
    tree, lines = ast.parse(text), set()
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (*skipped, tokenize.ENDMARKER):
            lines.update(range(token.start[0], token.end[0] + 1))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in (node for node in ast.walk(tree) if isinstance(node, documented)):
        if ast.get_docstring(node, clean=False) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_code_lines_are_counted():
    code = 'x = [\n    1,  # one\n]\n\n\ndef f():\n    """Doc."""\n    return """a\nb"""\n'
    assert code_lines(f'"""Doc\nstring."""\n\n# why\n{code}') == 6


def test_modules_are_short():
    lengths = {module: code_lines(path.read_text()) for module, path in PATHS.items()}
    long = {module for module, length in lengths.items() if length > MAX_MODULE}
    assert long == LONG_MODULES.keys(), {module: lengths.get(module) for module in long ^ LONG_MODULES.keys()}


def test_functions_are_short():
    lengths = {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert len(lengths) > 200
    long = {name for name, length in lengths.items() if length > MAX_FUNCTION}
    assert long == LONG_FUNCTIONS.keys(), {name: lengths.get(name) for name in long ^ LONG_FUNCTIONS.keys()}


STEP = (
    "models",
    "utils.geometry",
    "utils.losses",
    "utils.assigners",
    "utils.step",
    "utils.epoch",
    "utils.training.ema",
    "utils.training.snapshot",
    "utils.training.state",
    "utils.training.step_watch",
)
SYNCHRONISES = (
    "item",
    "tolist",
    "nonzero",
    "cpu",
    "numpy",
    "new_tensor",
    "tensor",
    "as_tensor",
    "masked_select",
    "synchronize",
)
HARMLESS = {  # function -> why it may read a value
    "models.detector.count_flops": "runs outside of training",
    "utils.assigners.statistics.row": "runs once an epoch",
    "utils.losses.anatomy.rows": "runs once an epoch",
    "utils.losses.anatomy.to_plain": "runs when a checkpoint is written",
    "utils.losses.anatomy.restore": "runs when a run is resumed",
    "utils.epoch.to_plain": "runs when a checkpoint is written",
    "utils.training.step_watch._read": "reads what was copied a step ago",
}


def test_nothing_in_a_training_step_reads_from_the_device():
    """By name, so it sees calls only; a GPU run of benchmarks.precision sees them all."""
    found, seen = [], 0
    for module, tree in TREES.items():
        if not any(below(module, part) for part in STEP):
            continue
        seen += 1
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
            names = [call.attr for call in calls if isinstance(call, ast.Attribute)]
            place = f"{module}.{function.name}"
            found += [
                f"{place}: {name}()" for name in names if name in SYNCHRONISES and place not in HARMLESS
            ]
    assert seen >= 14 and found == []
