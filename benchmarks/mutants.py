"""Do the tests notice a wrong line? One operator, comparison or number of the evaluation code changed at a time.

    python benchmarks/mutants.py [NUMBER] [SEED]     # default 40 changes, seed 0; about 15 s of CPU each

Each mutant is made in a copy of the sources, and the tests of its file run there until one fails. What survives is
either a line that no test needs (write one, or delete it) or a change without a meaning. Messages, annotations and
docstrings are left alone. Writes the section `mutants` of docs/benchmarks.md.
"""

from __future__ import annotations

import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from experiment import write_section  # noqa: E402

TESTS = {
    "models/estimators.py": "test_estimators test_evaluation",
    "models/evaluation.py": "test_evaluation test_evaluation_inputs test_estimators",
    "models/intervals.py": "test_intervals test_evaluation",
    "models/certification.py": "test_choice test_report",
    "models/own_cut.py": "test_choice test_report",
    "models/choice.py": "test_choice test_evaluation_inputs",
    "models/curves.py": "test_curves",
    "models/policy.py": "test_policy test_evaluation",
    "models/propensities.py": "test_propensities test_frame",
}
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


def places(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that can be changed: not in messages, annotations, docstrings or defaults of arguments."""
    skipped = {id(inner) for node in ast.walk(tree) for part in _left_alone(node) for inner in ast.walk(part)}
    for node in ast.walk(tree):
        number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
        if id(node) not in skipped and (number or type(_operator(node)) in SWAPS):
            yield node


def _left_alone(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.Raise | ast.JoinedStr):
        return [node]
    if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
        return [node.annotation]
    if isinstance(node, ast.FunctionDef):
        return [*([node.returns] if node.returns else []), *node.decorator_list]
    return []


def _operator(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
        return node.op
    return node.ops[0] if isinstance(node, ast.Compare) and len(node.ops) == 1 else None


def change(node: ast.AST) -> None:
    """Swap the operator, or move the number by one."""
    if isinstance(node, ast.Constant):
        node.value += 1
    elif isinstance(node, ast.Compare):
        node.ops = [SWAPS[type(node.ops[0])]()]
    else:
        node.op = SWAPS[type(node.op)]()


def mutant(file: str, index: int) -> tuple[str, str]:
    """Source of a file with its change number `index`, and the change in words."""
    source = (ROOT / file).read_text(encoding="utf-8")
    tree = ast.parse(source)
    node = list(places(tree))[index]
    before, line = ast.unparse(node), node.lineno
    change(node)
    told = f"{file}:{line}: `{before}` became `{ast.unparse(node)}` in `{source.splitlines()[line - 1].strip()}`"
    return ast.unparse(tree), told


def survives(file: str, source: str) -> bool:
    """Whether the tests of a file pass when it reads `source`."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name in ("benchmarks", "bentos", "docs", "feature_repo", "models", "monitoring", "simulator", "tests"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("data", "__pycache__"))
        for name in ("campaign.py", "campaign.toml", "pipeline.py", "pyproject.toml"):
            shutil.copy(ROOT / name, root / name)
        (root / file).write_text(source, encoding="utf-8")
        tests = [f"tests/models/{name}.py" for name in TESTS[file].split()]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests]
        environ = os.environ | {"PYTHONPATH": scratch, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1, 2):
            raise RuntimeError(f"{file}: pytest ended with {done.returncode}: {done.stdout[-2000:]}")
    return done.returncode == 0


def main(number: int, seed: int) -> None:
    """Draw the changes, try each, and write down what survived."""
    counts = {file: len(list(places(ast.parse((ROOT / file).read_text(encoding="utf-8"))))) for file in TESTS}
    every = [(file, index) for file, count in counts.items() for index in range(count)]
    drawn = random.Random(seed).sample(every, number)
    for file in sorted({file for file, _ in drawn}):
        if not survives(file, ast.unparse(ast.parse((ROOT / file).read_text(encoding="utf-8")))):
            raise RuntimeError(f"{file}: its tests fail on the code as it is, so they would notice anything")
    left = []
    for file, index in drawn:
        source, told = mutant(file, index)
        alive = survives(file, source)
        print(f"{'SURVIVED' if alive else 'killed'} {told}", flush=True)
        left += [told] if alive else []
    lines = [
        "## Do the tests notice a wrong line?",
        "",
        f"{number} of {len(every)} possible changes of one operator, comparison or number in {len(TESTS)} files of the",
        f"evaluation and the choice of a policy, drawn at random (seed {seed}); noticed: {number - len(left)}.",
        f"`python benchmarks/mutants.py {number} {seed}`, {datetime.now(UTC):%d %B %Y}.",
        *(["", "Survived:", "", *(f"- {told}" for told in left)] if left else []),
    ]
    write_section(ROOT / "docs" / "benchmarks.md", "mutants", "\n".join(lines))


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:3] + ["40", "0"][len(sys.argv[1:3]) :])))
