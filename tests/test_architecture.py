"""The floors, the sizes, the banned calls and the recipes; each rule is first shown to catch a planted violation."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "posttrain").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))

FLOORS: list[set[str]] = [
    {
        "errors",
        "records",
        "seeds",
        "hub",
        "settings",
        "field_types",
        "foreign_keys",
        "config",
        "algorithms",
        "kernels",
        "nano",
    },
    {"data", "models", "runs"},
    {"engines"},
    {"rewards"},
    {"evals"},
    {"stages", "reports"},
    {"pipeline"},
    {"cli"},
]
FOUNDATION = {
    "errors",
    "records",
    "seeds",
    "hub",
    "settings",
    "field_types",
    "foreign_keys",
}  # of floor 0, for its neighbours
STAGES = {f"posttrain.stages.{stage}" for stage in ("pretrain", "sft", "rm", "dpo", "grpo", "ppo", "pairs", "frontier")}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_RECIPE_LINES = 400, 80, 60
VAGUE_NAMES = {"util", "utils", "common", "helper", "helpers", "misc"}
BANNED_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
BANNED_CALLS = {"eval", "exec", "torch.load", "yaml.load", "os.system", "__import__"}
BANNED_KEYWORDS = {("shell", True), ("allow_pickle", True), ("weights_only", False)}


def unit_of(module: str) -> str:
    """Return the folder or single file of a module: posttrain.models.lm -> models."""
    return module.split(".")[1]


def floor_of(module: str) -> int | None:
    return next((floor for floor, units in enumerate(FLOORS) if unit_of(module) in units), None)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and name of every import, at any depth; a string that names a module counts too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            folder = base in ("posttrain", *(f"posttrain.{unit}" for floor in FLOORS for unit in floor))
            names = [f"{base}.{alias.name}" for alias in node.names] if folder else [base]
            yield from ((node.lineno, name) for name in names)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"posttrain(\.\w+)+", str(node.value)):
            yield node.lineno, node.value


def floor_violations(module: str, source: str) -> Iterator[str]:
    """Yield every import that goes up, sideways or from one stage to another."""
    floor = floor_of(module)
    if floor is None:
        yield f"{module} stands on no floor: add its folder to ARCHITECTURE.md and to FLOORS"
        return
    for line, name in imports(ast.parse(source)):
        if name.startswith("."):
            yield f"{module}:{line} imports relatively"
        if not name.startswith("posttrain."):
            continue
        imported = floor_of(name)
        if imported is None:
            continue  # posttrain.__version__
        same_folder = unit_of(name) == unit_of(module)
        neighbour = floor == 0 and unit_of(name) in FOUNDATION
        allowed = imported < floor or same_folder or neighbour
        if not allowed:
            yield f"{module}:{line} (floor {floor}) imports {name} (floor {imported})"
        if unit_of(module) == "stages" and any(f"{name}.".startswith(f"{stage}.") for stage in STAGES - {module}):
            yield f"{module}:{line} imports the stage {name}"


def size_violations(module: str, source: str) -> Iterator[str]:
    if (lines := source.count("\n")) >= MAX_FILE_LINES:
        yield f"{module} has {lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length >= MAX_FUNCTION_LINES:
                yield f"{module}:{node.lineno} {node.name} has {length} lines"


def banned_violations(module: str, source: str) -> Iterator[str]:
    """Yield code that runs or unpickles what it reads."""
    if module.rsplit(".", 1)[-1] in VAGUE_NAMES:
        yield f"{module} is named after nothing"
    tree = ast.parse(source)
    for line, name in imports(tree):
        if name.split(".")[0] in BANNED_MODULES:
            yield f"{module}:{line} imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if (called := ast.unparse(node.func)) in BANNED_CALLS:
                yield f"{module}:{node.lineno} calls {called}"
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in BANNED_KEYWORDS:
                    yield f"{module}:{node.lineno} passes {ast.unparse(keyword)}"


RULES = [floor_violations, size_violations, banned_violations]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("rule", RULES)
def test_the_sources_keep_the_rule(rule):
    checked = [path for path in SOURCES if module_of(path) != "posttrain"]
    assert len(checked) > 10
    assert [violation for path in checked for violation in rule(module_of(path), path.read_text())] == []


@pytest.mark.parametrize(
    ("rule", "module", "source", "expected"),
    [
        (
            floor_violations,
            "posttrain.data.chat",
            "from posttrain.engines.native import X",
            "imports posttrain.engines",
        ),
        (floor_violations, "posttrain.data.chat", "from posttrain import cli", "imports posttrain.cli"),
        (floor_violations, "posttrain.data.chat", "import posttrain.runs.durable", "imports posttrain.runs.durable"),
        (floor_violations, "posttrain.data.chat", "def f():\n    import posttrain.cli", "posttrain.data.chat:2"),
        (floor_violations, "posttrain.data.chat", "load('posttrain.stages.sft')", "imports posttrain.stages.sft"),
        (floor_violations, "posttrain.data.chat", "from . import trees", "imports relatively"),
        (
            floor_violations,
            "posttrain.algorithms.losses",
            "import posttrain.config",
            "(floor 0) imports posttrain.config",
        ),
        (floor_violations, "posttrain.reports.tables", "import posttrain.stages.sft", "(floor 5)"),
        (floor_violations, "posttrain.stages.grpo", "from posttrain.stages.sft import sft", "imports the stage"),
        (floor_violations, "posttrain.stages.rollout", "from posttrain.stages import grpo", "imports the stage"),
        (floor_violations, "posttrain.extra.new", "", "stands on no floor"),
        (size_violations, "posttrain.data.chat", "x = 1\n" * 400, "has 400 lines"),
        (size_violations, "posttrain.data.chat", "def f():\n" + "    x = 1\n" * 79, "f has 80 lines"),
        (banned_violations, "posttrain.data.utils", "", "named after nothing"),
        (banned_violations, "posttrain.data.chat", "def f():\n    from pickle import loads", "imports pickle"),
        (banned_violations, "posttrain.data.chat", "torch.load(p)", "calls torch.load"),
        (banned_violations, "posttrain.data.chat", "eval('1')", "calls eval"),
        (banned_violations, "posttrain.data.chat", "exec('1')", "calls exec"),
        (banned_violations, "posttrain.data.chat", "yaml.load(f)", "calls yaml.load"),
        (banned_violations, "posttrain.data.chat", "run(c, shell=True)", "passes shell=True"),
    ],
)
def test_the_rule_catches_a_planted_violation(rule, module, source, expected):
    assert expected in "\n".join(rule(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("posttrain.stages.grpo", "from posttrain.stages.optimize import f\nimport posttrain.models.lm\nmodel.eval()"),
        ("posttrain.algorithms.losses", "from posttrain.records import Tree\nfrom posttrain import errors"),
        ("posttrain.config", "from posttrain.field_types import show"),
        ("posttrain.cli", "from posttrain import __version__"),
    ],
)
def test_the_rules_leave_honest_code_alone(module, source):
    assert [violation for rule in RULES for violation in rule(module, source)] == []


def test_architecture_names_every_floor():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for floor, units in enumerate(FLOORS):
        (lines,) = re.findall(rf"^floor {floor}  .*(?:\n +.*)*", text, flags=re.MULTILINE)
        assert all(re.search(rf"\b{unit}\b", lines) for unit in units), (
            f"floor {floor} of ARCHITECTURE.md lacks one of {units}"
        )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_is_short_and_opens_with_a_comment(path):
    from posttrain.pipeline.recipe import load_recipe

    lines = path.read_text().splitlines()
    assert lines[0].startswith("#")
    assert len(lines) < MAX_RECIPE_LINES
    assert load_recipe(path).stages
