"""Mutation testing: break one place of a package at a time and see whether its tests fail.

    python utils/mutate.py lfmmi --number 50 --seed 0 --results lfmmi.jsonl

draws 50 mutants of distill/lfmmi, runs the tests of that package on each, and prints the share that was caught and
every survivor as a diff. A mutant changes a comparison, an arithmetic or logical operator, a constant, a sign or the
condition of a branch, returns None, drops an argument, or removes a call or an assignment. Messages, logging, type
annotations and docstrings are left alone.

Each line of ``--results`` is one mutant; those that are in the file are not run again, so a run that was cut off goes
on. ``--again`` runs the survivors in the file again, after tests were added. ``--list`` prints mutants without running
them.

Tests run in a copy of the tree, in a child forked from a process that has imported PyTorch and the other libraries.
Only those that execute the changed line run, the quickest first, until one fails; all of them where no test executes
the line, as it may run on import. A mutant that takes three times the processor time of all tests counts as caught.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import difflib
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "lfmmi": ["test/lfmmi"],
    "models": ["test/models", "test/streaming/test_stream.py"],
    "training": ["test/training"],
    "streaming": ["test/streaming"],
    "targets": ["test/targets", "test/training/test_training.py"],
    "decode": ["test/decode", "test/recognition"],
}
LIBRARIES = (
    "torch", "numpy", "pytest", "hypothesis", "soundfile", "soxr", "yaml", "scipy.signal", "transformers",
    "transformers.models.wav2vec2.modeling_wav2vec2", "espnet2.tasks.asr", "espnet2.train.trainer", "tensorboardX",
    "torch.utils.tensorboard", "editdistance", "kaldi_decoder", "onnxruntime", "kaldiio", "omniio",
)  # fmt: skip

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
ELSEWHERE = ("k2_backend.py",)  # tested in an environment of its own
PLACES = ("device",)  # arguments without effect on a machine that has only its CPU
MESSAGES = ("logging", "warnings", "print", "log", "say")  # calls that only tell


class Mutant(NamedTuple):
    """One change: ``file`` from the root, 1-based ``line``, the kind of change, and the whole changed source."""

    file: str
    line: int
    kind: str
    source: str

    def diff(self, original: str) -> str:
        lines = difflib.unified_diff(original.splitlines(), self.source.splitlines(), lineterm="", n=0)
        return "\n".join(line for line in lines if line[:3] not in ("---", "+++") and line[:2] != "@@")

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.file}\n{self.source}".encode()).hexdigest()[:16]


def without_messages(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes whose change could matter to a caller: not annotations, docstrings, messages and imports for types."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] in MESSAGES:
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            continue
        yield node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            waiting += [
                child for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST)
            ]


def replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(kind, node in its place) for every change of one node."""

    def changed(**fields: Any) -> Any:
        other = copy.copy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return other

    match node:
        case ast.Compare(ops=[op, *rest]) if type(op) in COMPARISONS:
            yield "comparison", changed(ops=[COMPARISONS[type(op)](), *rest])
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            yield "arithmetic", changed(op=ARITHMETIC[type(op)]())
        case ast.AugAssign(op=op) if type(op) in ARITHMETIC:
            yield "arithmetic", changed(op=ARITHMETIC[type(op)]())
        case ast.UnaryOp(operand=operand):
            yield "negation", operand
        case ast.BoolOp(op=op):
            yield "logic", changed(op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.Constant(value=bool(value)):
            yield "constant", changed(value=not value)
        case ast.Constant(value=int(value)):
            yield "constant", changed(value=value + 1)
        case ast.Constant(value=float(value)):
            yield "constant", changed(value=2 * value if value else 1.0)
        case ast.IfExp(test=test):
            yield "condition", changed(test=ast.UnaryOp(ast.Not(), test))
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "return value", changed(value=ast.Constant(None))
        case ast.Call(args=args, keywords=keywords):
            if len(args) > 1 and not isinstance(args[-1], ast.Starred):
                yield "argument", changed(args=args[:-1])
            for number, keyword in enumerate(keywords):
                if keyword.arg not in (None, *PLACES):
                    yield "argument", changed(keywords=keywords[:number] + keywords[number + 1 :])
        case ast.Expr(value=ast.Call()) | ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "statement", ast.Pass()


def mutants(file: str) -> Iterator[Mutant]:
    """Every mutant of a source file that still compiles."""
    source = (ROOT / file).read_text(encoding="utf-8")
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for row in lines:
        starts.append(starts[-1] + len(row))

    def put(node: ast.AST, text: str) -> str:
        first = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        last = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        content = source.encode()
        return (content[:first] + text.encode() + content[last:]).decode()

    for node in without_messages(ast.parse(source)):
        options = [(kind, node, f"({ast.unparse(other)})" if isinstance(other, ast.expr) else ast.unparse(other))
                   for kind, other in replacements(node)]  # fmt: skip
        if isinstance(node, ast.If | ast.While):
            options.append(("condition", node.test, f"not ({ast.unparse(node.test)})"))
        if isinstance(node, ast.comprehension):
            options += [("condition", test, f"not ({ast.unparse(test)})") for test in node.ifs]
        for kind, place, text in options:
            changed = put(place, text)
            with contextlib.suppress(SyntaxError):
                if ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source)):
                    yield Mutant(file, place.lineno, kind, changed)  # type: ignore[attr-defined]


class Coverage:
    """A pytest plugin that notes which lines of the package each test executes, by file relative to the tree."""

    def __init__(self, tree: Path, package: str, output: Path) -> None:
        self.tree, self.output = f"{tree}/", output
        self.prefix = f"{tree}/distill/{package}/"
        self.tests: dict[str, dict[str, set[int]]] = {}
        self.seconds: Counter[str] = Counter()
        self.now: dict[str, set[int]] = defaultdict(set)
        monitoring = sys.monitoring
        monitoring.use_tool_id(monitoring.COVERAGE_ID, "mutate")
        monitoring.register_callback(monitoring.COVERAGE_ID, monitoring.events.LINE, self.line)
        monitoring.set_events(monitoring.COVERAGE_ID, monitoring.events.LINE)

    def line(self, code: Any, number: int) -> Any:
        if code.co_filename.startswith(self.prefix):
            self.now[code.co_filename.removeprefix(self.tree)].add(number)
        return sys.monitoring.DISABLE

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.now = self.tests[nodeid] = defaultdict(set)
        sys.monitoring.restart_events()

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        lines = {test: {file: sorted(found) for file, found in files.items()} for test, files in self.tests.items()}
        in_order = sorted(lines, key=lambda test: self.seconds[test])
        self.output.write_text(json.dumps({test: lines[test] for test in in_order}))


class Selection:
    """A pytest plugin that runs these tests in this order (none: all) and writes the name of one that fails."""

    def __init__(self, tests: list[str], output: Path) -> None:
        self.rank, self.output = {test: number for number, test in enumerate(tests)}, output

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self.rank:
            items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda item: self.rank[item.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.output.write_text(report.nodeid)


class Bench:
    """Runs pytest on a copy of the tree, each time in a forked child."""

    def __init__(self, tree: Path, package: str, tests: list[str], pytest_options: list[str]) -> None:
        self.tree, self.package, self.tests, self.options = tree, package, tests, pytest_options
        self.output, self.failed = tree.parent / "output", tree.parent / "failed"
        self.limit = 3600  # seconds of processor time of a child
        self.lines: dict[str, dict[str, list[int]]] = {}

    def run(self, kind: type[Coverage] | type[Selection], *arguments: Any) -> tuple[int | None, float]:
        """Exit status of pytest (None: out of time) and seconds."""
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            self._child(kind, *arguments)
        while time.monotonic() - started < 20 * self.limit:  # a busy machine may need longer; a deadlock never ends
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)  # what the tests left running
                code = os.waitstatus_to_exitcode(status)
                return None if code == -signal.SIGXCPU else code, time.monotonic() - started
            time.sleep(0.05)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None, time.monotonic() - started

    def _child(self, kind: type[Coverage] | type[Selection], *arguments: Any) -> None:
        status = 99
        try:
            os.setsid()
            used = int(sum(os.times()[:2]))
            resource.setrlimit(resource.RLIMIT_CPU, (used + self.limit, used + self.limit + 60))
            with open(self.output, "w") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            os.chdir(self.tree)
            os.environ["PYTHONPATH"] = str(self.tree)
            sys.path[:] = [
                str(self.tree),
                *(path for path in sys.path if path not in ("", str(ROOT), str(ROOT / "utils"))),
            ]
            import pytest

            base = tempfile.mkdtemp(dir=self.tree.parent)
            options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={base}/t", *self.options]
            status = int(pytest.main([*options, *self.tests], plugins=[kind(*arguments)]))
            shutil.rmtree(base, ignore_errors=True)
        finally:
            os._exit(status)

    def baseline(self) -> float:
        """Seconds of all tests on the unchanged tree, whose lines are noted; an error if they fail."""
        notes = self.tree.parent / "lines.json"
        status, seconds = self.run(Coverage, self.tree, self.package, notes)
        if status != 0:
            sys.exit(f"error: the tests fail on the unchanged tree:\n{self.output.read_text()[-3000:]}")
        self.lines = json.loads(notes.read_text())
        self.limit = int(3 * (os.times().children_user + os.times().children_system)) + 30
        return seconds

    def test(self, mutant: Mutant) -> dict[str, Any]:
        """The line of the results for a mutant."""
        path = self.tree / mutant.file
        original = path.read_text(encoding="utf-8")
        reached = [test for test, files in self.lines.items() if mutant.line in files.get(mutant.file, ())]
        self.failed.unlink(missing_ok=True)
        path.write_text(mutant.source, encoding="utf-8")
        try:
            status, seconds = self.run(Selection, reached, self.failed)
        finally:
            path.write_text(original, encoding="utf-8")
        outcome = "timeout" if status is None else "survived" if status == 0 else "killed"
        return {
            "key": mutant.key,
            "file": mutant.file,
            "line": mutant.line,
            "kind": mutant.kind,
            "outcome": outcome,
            "by": self.failed.read_text() if self.failed.exists() else None,
            "reached_by": len(reached),
            "seconds": round(seconds, 1),
            "diff": mutant.diff(original),
        }


def copy_tree(destination: Path) -> None:
    """The files git knows or would add, and ESPnet's scripts as a link."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, destination / name, follow_symlinks=False)
    if (ROOT / "tools/espnet").exists():
        (destination / "tools").mkdir(exist_ok=True)
        (destination / "tools/espnet").symlink_to(ROOT / "tools/espnet")


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Last result of each mutant by key."""
    if not path.exists():
        return {}
    return {row["key"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def summary(rows: list[dict[str, Any]]) -> str:
    """Score and survivors."""
    counts = Counter(row["outcome"] for row in rows)
    caught = counts["killed"] + counts["timeout"]
    lines = []
    for row in sorted(rows, key=lambda row: (row["file"], row["line"])):
        if row["outcome"] == "survived":
            reach = "" if row["reached_by"] else ", no test executes the line"
            lines.append(f"{row['file']}:{row['line']}: {row['kind']}{reach}\n{row['diff']}\n")
    share = 100 * caught / max(1, len(rows))
    lines.append(
        f"{caught} of {len(rows)} mutants caught ({share:.0f} %), {counts['timeout']} of them by the time limit"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", choices=TESTS, help="folder of distill/")
    parser.add_argument("--file", help="mutants of this file of the package alone, such as loss.py")
    parser.add_argument("--number", type=int, default=50, help="mutants to draw; 0 for all (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--tests", nargs="+", help="test files or folders (default: the package's own)")
    parser.add_argument("--results", type=Path, help="(default: mutants_PACKAGE.jsonl)")
    parser.add_argument("--again", action="store_true", help="run the survivors among these mutants again")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--pytest_options", nargs="*", default=["-m", "not slow"], help='(default: -m "not slow")')
    args = parser.parse_args()

    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "distill" / args.package).glob(args.file or "*.py"))
    files = [file for file in files if Path(file).name not in ELSEWHERE]
    drawn = [mutant for file in files for mutant in mutants(file)]
    total = len(drawn)
    random.Random(args.seed).shuffle(drawn)
    drawn = drawn[: args.number or None]
    if args.list:
        for mutant in drawn:
            print(f"{mutant.file}:{mutant.line}: {mutant.kind}\n{mutant.diff((ROOT / mutant.file).read_text())}\n")
        return
    path = args.results or Path(f"mutants_{args.package}.jsonl")
    before = read_results(path)
    waiting = [m for m in drawn if m.key not in before or (args.again and before[m.key]["outcome"] == "survived")]
    print(f"{total} mutants of {args.package}, {len(drawn)} drawn, {len(waiting)} to run", flush=True)
    if waiting:
        for library in LIBRARIES:
            with contextlib.suppress(ImportError):
                importlib.import_module(library)
        with tempfile.TemporaryDirectory(prefix="mutate_") as folder:
            tree = Path(folder) / "tree"
            copy_tree(tree)
            bench = Bench(tree, args.package, args.tests or TESTS[args.package], args.pytest_options)
            print(f"tests pass on the unchanged tree in {bench.baseline():.0f} s", flush=True)
            for number, mutant in enumerate(waiting, 1):
                row = bench.test(mutant)
                with open(path, "a", encoding="utf-8") as stream:
                    print(json.dumps(row), file=stream)
                place = f"{mutant.file}:{mutant.line}"
                print(f"{number}/{len(waiting)} {place}: {row['outcome']} in {row['seconds']} s", flush=True)
    after = read_results(path)
    print(summary([after[mutant.key] for mutant in drawn]))


if __name__ == "__main__":
    main()
