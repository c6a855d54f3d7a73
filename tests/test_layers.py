"""Who may lean on whom: the imports of the package, walked."""

import ast
import subprocess
import sys
from pathlib import Path

import scoresde
from scoresde.cli.main import COMMANDS, module_of

ROOT = Path(scoresde.__file__).parent
THEORY = {"sde", "coordinates", "denoiser", "parameterization", "conditions"}
MAY_IMPORT = {
    "arguments": set(),
    "progress": set(),
    "sde": set(),
    "betas": {"sde"},
    "coordinates": {"sde"},
    "denoiser": {"sde"},
    "parameterization": {"sde", "coordinates", "denoiser", "conditions"},
    "samplers": THEORY,
    "guidance": THEORY,
    "posterior": THEORY | {"samplers"},
    "solvers": THEORY,
    "likelihood": THEORY | {"solvers", "samplers"},
    "codes": THEORY | {"solvers", "samplers"},
    "testing": THEORY | {"samplers", "solvers", "likelihood", "posterior", "latent"},
    "convergence": THEORY | {"samplers", "testing"},
    "training": THEORY | {"samplers", "solvers", "likelihood", "data", "nn", "atomic"},
    "latent": THEORY
    | {"likelihood", "nn", "data", "training", "posterior", "samplers", "evaluation"},
    "interop": THEORY
    | {"betas", "samplers", "guidance", "latent", "nn", "data", "training", "atomic"},
    "nn": set(),
    "conditions": {"atomic"},
    "atomic": set(),
    "data": {"atomic"},
    "evaluation": {"nn"},
    "registry": THEORY
    | {"betas", "samplers", "posterior", "solvers", "likelihood", "training", "nn", "data"}
    | {"latent", "interop"},
    "config": THEORY | {"samplers", "solvers", "training", "nn", "data", "registry", "latent"},
    "cli": None,  # anything
    "__main__": {"cli"},
}
MAY_IMPORT["runs"] = MAY_IMPORT.keys() - {"cli", "__main__"}
MAY_IMPORT["ui"] = {*MAY_IMPORT["runs"], "runs"}
TRAINING_CORE = {"losses", "times"}


def imports(path: Path) -> set[str]:
    """The modules of the package a file imports, as dotted names without the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.removeprefix("scoresde.") for n in names if n.startswith("scoresde.")}
    return found


def part(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def modules() -> list[Path]:
    return [p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"]


def test_every_part_leans_only_on_the_layers_below():
    for path in modules():
        allowed = MAY_IMPORT[part(path)]
        leaned_on = {name.split(".")[0] for name in imports(path)}
        leaned_on -= {part(path), "arguments", "progress"}
        # `from scoresde import samplers` reads the public face, which is lazy.
        if allowed is not None:
            assert leaned_on <= allowed, f"{path.name} imports {leaned_on - allowed}"


def test_losses_and_times_know_only_the_theory():
    for name in TRAINING_CORE:
        leaned_on = {n.split(".")[0] for n in imports(ROOT / "training" / f"{name}.py")}
        assert leaned_on <= THEORY | {"arguments"}


def test_no_command_imports_another():
    modules = set(map(module_of, COMMANDS))
    for name in modules:
        leaned_on = imports(ROOT / "cli" / f"{name}.py")
        assert not {f"cli.{other}" for other in modules - {name}} & {
            ".".join(n.split(".")[:2]) for n in leaned_on
        }


def test_there_are_no_import_cycles():
    files = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in modules()
    }
    graph = {
        name: {n if n in files else n.rpartition(".")[0] for n in imports(path)} & set(files)
        for name, path in files.items()
    }
    done: set[str] = set()
    while ready := {n for n in graph if n not in done and graph[n] <= done}:
        done |= ready
    assert done == set(graph), f"cycle among {sorted(set(graph) - done)}"


def test_no_module_is_called_utils():
    assert not [p for p in modules() if "utils" in p.name or "helpers" in p.name]


def test_importing_the_package_needs_torch_and_numpy_only():
    """Reach every public name but those of runs, and list the third-party packages that came."""
    script = (
        "import sys, scoresde; theory = (n for n in scoresde.__all__"
        " if not scoresde._HOME.get(n, '').startswith('runs.'));"
        "[getattr(scoresde, n) for n in theory];"
        "print(*{m.partition('.')[0] for m in sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    optional = {"torchsde", "torchdiffeq", "matplotlib", "PIL", "yaml", "rich"}
    optional |= {"safetensors", "sklearn", "scipy"}
    assert not optional & set(result.stdout.split())
