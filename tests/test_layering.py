"""Who may import whom: one rule a room, read from the source; no circles; sizes of functions."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bocb_jax
import bocb_jax.models

# The package as it is imported: a clone, an editable install or a wheel.
HOUSE = Path(bocb_jax.__file__).parent
BACKBONES = Path(bocb_jax.models.__file__).parent
STDLIB = set(sys.stdlib_module_names)

# room, or file at the top -> what it may import beside the standard library and itself.
# "ours:x" is bocb_jax.x with all that is in it. A room has one rule, whatever the file.
RULES = {
    "bocb_jax/errors.py": set(),
    "bocb_jax/compiler_options.py": set(),
    "bocb_jax/registry.py": {"ours:errors"},
    "bocb_jax/checked.py": {"pydantic", "ours:errors", "ours:storage"},
    "bocb_jax/command_line.py": {"pydantic", "tyro", "ours:errors", "ours:checked"},
    "bocb_jax/config.py": {"pydantic", "ours:errors", "ours:checked"},
    "bocb_jax/recipes.py": {"ours:errors"},
    "bocb_jax/console.py": {"rich"},
    "bocb_jax/run_files.py": {
        "pydantic", "typing_extensions", "ours:errors", "ours:checked", "ours:config",
        "ours:storage",
    },
    "bocb_jax/results.py": {
        "numpy", "pandas", "pyarrow", "ours:errors", "ours:config", "ours:storage",
        "ours:run_files",
    },
    "bocb_jax/paper": {"pandas", "ours:errors"},
    "bocb_jax/storage": {"fsspec", "ours:errors"},
    "models": {
        "jax", "flax", "numpy", "einops", "ours:errors", "ours:registry", "ours:paper",
        "ours:compiler_options",
    },
    "bocb_jax/optim": {"jax", "optax", "numpy", "ours:errors", "ours:registry", "ours:paper"},
    "bocb_jax/augment": {"jax", "numpy", "ours:errors"},
    "bocb_jax/detection": {"jax", "numpy", "ours:errors"},
    "bocb_jax/data": {
        "numpy", "jax", "grain", "tensorflow_datasets", "PIL", "simplejpeg", "cykooz_resizer",
        "scipy", "absl", "etils", "array_record", "ours:errors", "ours:registry", "ours:pose",
    },
    "bocb_jax/pose": {"jax", "numpy", "ours:errors"},
    "bocb_jax/evaluation": {"numpy", "faster_coco_eval", "ours:errors"},
    "bocb_jax/engine": {
        "jax", "flax", "optax", "orbax", "xxhash", "numpy", "tensorboardX", "wandb",
        "ours:errors", "ours:config", "ours:console", "ours:run_files", "ours:storage",
        "ours:compiler_options",
    },
    "bocb_jax/torch_weights.py": {
        "jax", "flax", "numpy", "ours:errors", "ours:models", "ours:weight_files",
    },
    "bocb_jax/weight_files": {"numpy", "ml_dtypes", "ours:errors", "ours:storage"},
    "bocb_jax/resolve.py": {
        "jax", "ours:errors", "ours:checked", "ours:config", "ours:recipes", "ours:paper",
        "ours:models", "ours:optim", "ours:data", "ours:run_files",
    },
    "bocb_jax/pictures.py": {"numpy", "PIL"},
    "bocb_jax/tasks": {
        "jax", "flax", "numpy", "PIL", "ours:errors", "ours:config", "ours:resolve", "ours:models",
        "ours:optim", "ours:data", "ours:augment", "ours:detection", "ours:pose",
        "ours:evaluation", "ours:engine", "ours:run_files", "ours:pictures",
    },
    "bocb_jax/build.py": {
        "jax", "flax", "optax", "numpy", "ours:errors", "ours:checked", "ours:config",
        "ours:resolve", "ours:models", "ours:optim", "ours:data", "ours:augment", "ours:engine",
        "ours:torch_weights", "ours:weight_files", "ours:tasks",
    },
    "bocb_jax/starting_weights.py": {
        "jax", "flax", "numpy", "ours:errors", "ours:models", "ours:engine", "ours:build",
        "ours:tasks", "ours:torch_weights", "ours:weight_files", "ours:compiler_options",
    },
    "bocb_jax/prediction": {
        "jax", "flax", "numpy", "pydantic", "ours:errors", "ours:checked", "ours:config",
        "ours:models", "ours:data", "ours:augment", "ours:detection", "ours:pose", "ours:engine",
        "ours:tasks", "ours:torch_weights", "ours:run_files",
    },
    "bocb_jax/coupling": {
        "numpy", "pandas", "pyarrow", "scipy", "statsmodels", "scikit_posthocs", "ours:errors",
        "ours:paper", "ours:storage",
    },
    "bocb_jax/patterns": {
        "numpy", "pandas", "scipy", "sklearn", "joblib", "threadpoolctl", "rich",
        "ours:errors", "ours:coupling", "ours:engine", "ours:run_files",
        "ours:storage", "ours:weight_files", "ours:models", "ours:prediction",
        "ours:starting_weights",
    },
    "bocb_jax/report": {
        "numpy", "pandas", "matplotlib", "PIL", "ours:errors", "ours:paper", "ours:storage",
        "ours:coupling", "ours:patterns", "ours:pictures",
    },
    "bocb_jax/roofline": {"jax", "numpy", "ours:errors"},
    # Its worker is a process of its own that trains as `bocb train` does.
    "bocb_jax/study": {
        "rich", "scipy", "ray", "jax", "flax", "pydantic", "ours:errors", "ours:checked",
        "ours:config", "ours:console", "ours:results", "ours:run_files", "ours:storage",
        "ours:paper", "ours:models", "ours:optim", "ours:data", "ours:engine", "ours:resolve",
        "ours:build", "ours:tasks", "ours:train", "ours:train_population",
    },
}  # fmt: skip
# What a person starts. They see what they need, and nothing sees them but one another.
DOORS = {
    "__main__", "train", "train_population", "sweep", "analyze", "transfer", "preflight",
    "commands", "bench",
}  # fmt: skip
REPORTS = {"analyze", "commands"}  # the doors that write reports
SMALL = re.compile(r"bocb_jax/(engine/.*|train|train_population|build|resolve)\.py")


def files() -> dict[str, Path]:
    """Every source file under the name that it has in a clone."""
    ours = {f"bocb_jax/{path.relative_to(HOUSE)}": path for path in HOUSE.rglob("*.py")}
    ours = {name: path for name, path in ours.items() if not name.startswith("bocb_jax/models/")}
    return ours | {f"models/{path.name}": path for path in BACKBONES.glob("*.py")}


FILES = files()
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def file_of(module: str) -> str | None:
    """The file of a dotted name, if it is one of ours."""
    path = module.replace(".", "/").replace("bocb_jax/models", "models", 1)
    return next((f for f in (f"{path}.py", f"{path}/__init__.py") if f in FILES), None)


def imports(name: str) -> set[str]:
    """Dotted names of what a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            # `from bocb_jax.models import layers` imports a module, not a name in one.
            names = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {whole if file_of(whole) else node.module for whole in names.values()}
    return found


def room(name: str) -> str:
    """The room of a file: its folder, or the file itself at the top of the package."""
    first, second, *_ = name.split("/")
    return first if first == "models" else f"{first}/{second}"


def door(module: str) -> str | None:
    """The door that a dotted name of ours belongs to."""
    parts = module.split(".")
    return parts[1] if parts[0] == "bocb_jax" and len(parts) > 1 and parts[1] in DOORS else None


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_what_its_room_may(name):
    here = room(name)
    if here == "bocb_jax/__init__.py":
        assert not {m for m in imports(name) if m.startswith("bocb_jax")}
        return
    allowed = RULES.get(here)
    if allowed is None:
        assert Path(here).stem in DOORS, f"{name} has no rule"
        return
    own = "bocb_jax." + Path(here).stem
    for module in imports(name):
        top, _, rest = module.partition(".")
        if top in STDLIB or module == own or module.startswith(own + "."):
            continue
        if top == "bocb_jax":
            assert f"ours:{rest.split('.')[0]}" in allowed, f"{name} imports {module}"
        else:
            assert top in allowed, f"{name} imports {module}"


def test_reports_are_for_doors():
    for name in FILES:
        if any(module.startswith("bocb_jax.report") for module in imports(name)):
            assert Path(room(name)).stem in {"report", *REPORTS}, name


def test_no_circle():
    graph = {name: {file_of(module) for module in imports(name)} - {None} for name in FILES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names them


def test_no_family_imports_another():
    families = {
        n for n in FILES if n.startswith("models/") and "register_family" in FILES[n].read_text()
    }
    families -= {"models/__init__.py", "models/factory.py"}
    assert len(families) >= 15
    for name in families:
        assert not families & {file_of(module) for module in imports(name)}, name


def test_only_the_engine_takes_models_apart():
    # Drawing weights, counting products, tracing maps and naming weights look inside as well, but
    # train nothing.
    for name in FILES:
        if not re.match(
            r"bocb_jax/(engine/.*|torch_weights)\.py|models/(factory|macs|maps)\.py", name
        ):
            source = re.sub(r'""".*?"""', "", FILES[name].read_text(), flags=re.DOTALL)
            assert not re.search(r"nnx\.(split|merge)\b", source), name


def test_only_platform_asks_what_is_traced_for():
    for name in FILES:
        if name.startswith("models/") and name != "models/platform.py":
            assert "default_backend" not in FILES[name].read_text(), name


def test_the_mathematics_of_optimizers_knows_nothing_of_what_surrounds_it():
    for name in FILES:
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("scale_by_"):
                arguments = ast.unparse(node.args)
                assert "Context" not in arguments, f"{name}: {node.name}({arguments})"


@pytest.mark.parametrize("name", sorted(FILES))
def test_sizes(name):
    assert len(FILES[name].read_text().splitlines()) <= 500
    if SMALL.fullmatch(name):
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 80, f"{node.name} has {lines} lines"


def test_no_drawer():
    assert not [name for name in FILES if name.endswith("/utils.py")]


def test_importing_the_package_starts_no_backend():
    code = "import sys, bocb_jax, bocb_jax.config; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "module", ["sweep", "analyze", "paper", "storage.mirror", "recipes", "weight_files.read"]
)
def test_needs_no_jax(module):
    code = (
        f"import sys, bocb_jax.{module}; assert not {{'jax', 'flax', 'optax'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
