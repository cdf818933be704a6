"""Who may import whom: the rules of the house, read from the source."""

import ast
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

# folder or file -> what it may import beside the standard library. "ours:x" is bocb_jax.x.
RULES = {
    "bocb_jax/registry.py": {"ours:errors"},
    "bocb_jax/config.py": {"ours:errors"},
    "bocb_jax/recipes.py": {"ours:errors"},
    "bocb_jax/errors.py": set(),
    "bocb_jax/categories.py": set(),
    "bocb_jax/console.py": {"rich"},
    "bocb_jax/interop.py": {
        "jax", "flax", "numpy", "safetensors", "ours:errors", "ours:models",
    },
    "bocb_jax/data": {
        "numpy", "grain", "ours:errors", "ours:registry", "ours:data",
        "tensorflow_datasets", "sklearn", "PIL", "simplejpeg", "cykooz_resizer", "absl", "etils",
        "array_record",
    },
    "bocb_jax/data/augment.py": {"jax", "numpy", "ours:errors", "ours:data"},
    "bocb_jax/data/color.py": {"jax", "numpy"},
    "bocb_jax/data/erasing.py": {"jax", "numpy", "ours:data.geometry"},
    "bocb_jax/data/geometry.py": {"jax", "numpy"},
    "bocb_jax/data/mixing.py": {"jax", "ours:errors"},
    "bocb_jax/data/operations.py": {
        "jax", "numpy", "ours:errors", "ours:data.color", "ours:data.geometry",
    },
    "bocb_jax/data/on_device.py": {"jax", "numpy", "ours:data", "ours:errors"},
    "bocb_jax/data/speed.py": {"jax", "numpy", "ours:data", "ours:errors"},
    "bocb_jax/data/pipeline.py": {"jax", "grain", "numpy", "absl", "ours:data", "ours:errors"},
    "bocb_jax/coupling": {
        "numpy", "pandas", "scipy", "statsmodels", "scikit_posthocs",
        "ours:categories", "ours:coupling", "ours:errors",
    },
    "bocb_jax/coupling/patterns.py": {"numpy", "threadpoolctl", "ours:coupling"},
    "bocb_jax/coupling/checkpoints.py": {
        "numpy", "pandas", "joblib", "safetensors", "rich", "ours:coupling", "ours:errors",
        # Imported where they are used, in worker processes: reading a run and drawing the random
        # weights that it began with need JAX and the models.
        "ours:engine.checkpoint", "ours:interop", "ours:program",
    },
    "bocb_jax/coupling/tridiagonal.py": {"numpy", "scipy"},
    "bocb_jax/coupling/ridges.py": {
        "numpy", "pandas", "matplotlib", "ours:coupling", "ours:errors",
    },
    "bocb_jax/coupling/prediction.py": {
        "numpy", "pandas", "scipy", "sklearn", "ours:coupling",
    },
    "bocb_jax/coupling/plots.py": {"numpy", "pandas", "matplotlib", "ours:coupling"},
    "bocb_jax/coupling/plots_tuning.py": {"numpy", "pandas", "matplotlib", "ours:coupling"},
    "bocb_jax/coupling/style.py": {"numpy", "matplotlib"},
    "bocb_jax/coupling/report.py": {"pandas", "matplotlib", "ours:coupling", "ours:errors"},
    "bocb_jax/optim": {
        "jax", "optax", "numpy", "matplotlib", "ours:categories", "ours:registry", "ours:errors",
        "ours:optim",
    },
    "bocb_jax/engine": {
        "jax", "numpy", "optax", "ours:engine", "ours:errors", "ours:config",
        "tensorboardX", "wandb",
    },
    "bocb_jax/engine/step.py": {"jax", "flax", "optax", "ours:engine"},
    "bocb_jax/engine/checkpoint.py": {"jax", "numpy", "orbax", "ours:errors"},
    "bocb_jax/engine/lease.py": {"ours:errors", "ours:remote"},
    "bocb_jax/engine/mirror.py": {"ours:config", "ours:engine", "ours:errors", "ours:remote"},
    "bocb_jax/remote.py": {"fsspec", "ours:errors"},
    "bocb_jax/results.py": {"pandas", "ours:errors"},
    "bocb_jax/study": {
        "rich", "ours:study", "ours:config", "ours:console", "ours:errors", "ours:results",
        "ours:engine.metrics", "ours:remote",
    },
    "bocb_jax/engine/lock.py": {"ours:errors"},
    "bocb_jax/study/search.py": {"scipy", "ours:study"},
    "bocb_jax/study/cluster.py": {"ray", "ours:study", "ours:errors"},
    # Processes of their own, which load JAX where they use it.
    "bocb_jax/study/catalog.py": {
        "jax", "flax", "ours:study", "ours:config", "ours:errors", "ours:coupling", "ours:data",
        "ours:models", "ours:optim", "ours:program", "ours:settings",
    },
    "bocb_jax/study/worker.py": {
        "jax", "ours:config", "ours:errors", "ours:engine", "ours:data", "ours:program",
        "ours:settings", "ours:train", "ours:population", "ours:remote",
    },
    "models": {
        "jax", "flax", "numpy", "einops",
        "ours:errors", "ours:registry", "ours:models.layers", "ours:models.factory",
    },
    "models/parameters.py": {"jax", "flax", "ours:models.layers"},
    "models/layers.py": {
        "jax", "flax", "ours:errors", "ours:models.convolution", "ours:models.resampling",
    },
    "models/resampling.py": {"jax", "numpy"},
    "models/__init__.py": {"ours:models.factory"},
}  # fmt: skip
# Where model, optimizer, data and engine meet.
ASSEMBLY = ("bocb_jax/program.py", "bocb_jax/settings.py", "bocb_jax/model_cost.py")
DOORS = {"train", "sweep", "analyze", "transfer", "preflight", "bench", "listing", "weights"}
DOORS |= {"__main__", "recommend", "probe", "patterns", "population"}


def is_ours(module: str, name: str) -> bool:
    path = f"{module}.{name}".replace(".", "/").replace("bocb_jax/models", "models", 1)
    return f"{path}.py" in FILES or f"{path}/__init__.py" in FILES


def imports(path: Path):
    """Top names of foreign modules, and dotted names inside ours as "ours:x.y"."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from bocb_jax.models import layers` imports a module, not a name in one.
            names = {
                f"{node.module}.{alias.name}" if is_ours(node.module, alias.name) else node.module
                for alias in node.names
            }
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "bocb_jax":
                yield f"ours:{rest}"
            elif top not in STDLIB:
                yield top


def rule_for(path: str):
    matching = [rule for rule in RULES if path == rule or path.startswith(rule + "/")]
    return max(matching, key=len, default=None)


def files() -> dict[str, Path]:
    """Every source file under the name that it has in a clone."""
    ours = {f"bocb_jax/{path.relative_to(HOUSE)}": path for path in HOUSE.rglob("*.py")}
    ours = {name: path for name, path in ours.items() if not name.startswith("bocb_jax/models/")}
    return ours | {f"models/{path.name}": path for path in BACKBONES.glob("*.py")}


FILES = files()


@pytest.mark.parametrize("path", sorted(FILES))
def test_imports_what_its_room_may(path):
    found = set(imports(FILES[path]))
    ours = {name.removeprefix("ours:") for name in found if name.startswith("ours:")}
    is_door = Path(path).stem in DOORS and Path(path).parent.name == "bocb_jax"
    if not is_door:
        entered = {name for name in ours if name.split(".")[0] in DOORS}
        # A worker's run is the run of `bocb train`.
        entered -= {"train", "population"} if path == "bocb_jax/study/worker.py" else set()
        assert not entered, f"{path} imports a door: {entered}"
    rule = rule_for(path)
    if rule is None:
        assert is_door or path in (*ASSEMBLY, "bocb_jax/__init__.py"), f"{path} has no rule"
        return

    def allowed(name):
        return any(
            name == item or (item.startswith("ours:") and name.startswith(item + "."))
            for item in RULES[rule]
        )

    assert not {name for name in found if not allowed(name)}


def test_only_step_takes_models_apart():
    # Counting products and naming weights look inside as well, but run nothing.
    for path in FILES:
        if path not in ("bocb_jax/engine/step.py", "bocb_jax/interop.py", "models/macs.py"):
            source = re.sub(r'""".*?"""', "", FILES[path].read_text(), flags=re.DOTALL)
            assert not re.search(r"nnx\.(split|merge)\b", source), path


def test_no_drawer():
    assert not [path for path in FILES if path.endswith("/utils.py")]


def test_importing_the_package_starts_no_backend():
    code = "import sys, bocb_jax, bocb_jax.config; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_sweep_leaves_jax_to_its_workers():
    code = "import sys, bocb_jax.sweep; assert not {'jax', 'flax', 'optax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
