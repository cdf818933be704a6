"""Bad input in what is read: folders of runs, their files, tables of results."""

import json
import os
import re
from pathlib import Path

from bad_input.row import Row

CONFIG = {
    "config": {
        "model": "vit_mini", "opt": "sgd", "dataset": "digits", "recipe": "auto", "seed": 0,
        "epochs": None, "lr": 0.1, "weight_decay": 0.0, "model_args": {},
    },
    "resolved": {
        "recipe": "digits", "learning_rate": 0.1, "weight_decay": 0.0, "epochs": 2,
        "num_classes": 10, "image_size": 32, "precision": "float32", "drop_path": 0.1,
    },
    "label": "vit_mini",
    "study": None,
    "device": {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1},
}  # fmt: skip
RESULT = {
    "status": "finished", "validation_accuracy": 0.5, "test_accuracy": 0.5, "train_loss": 1.0,
    "steps": 10, "evaluations": [[10, 0.5]], "evaluation_seconds": [1.0], "wall_seconds": 3.0,
}  # fmt: skip

# Commands that read a folder of runs, and one of run `a` in it.
READ = {
    "analyze": ("analyze", "runs", "--no-report", "--resamples", "10"),
    "recommend": ("recommend", "--model", "vit_mini", "--runs", "runs"),
    "patterns": ("patterns", "runs"),
    "export": ("export-weights", "runs/a"),
}
TABLES = ("analyze", "recommend")


def changed(content: dict, field: str, value: object) -> str:
    """Return JSON in which the field at a dotted path has another value."""
    content = json.loads(json.dumps(content))
    *parents, name = field.split(".")
    table = content
    for parent in parents:
        table = table[parent]
    table[name] = value
    return json.dumps(content)


def run(**files: str | bytes) -> dict[str, str | bytes]:
    """Return the files of a folder of runs with one run in it, `a`."""
    whole: dict[str, str | bytes] = {
        "config.json": json.dumps(CONFIG), "result.json": json.dumps(RESULT),
        "checkpoints/best/1/_METADATA": "{}",
    }  # fmt: skip
    whole |= {f"{name}.json": content for name, content in files.items()}
    return {f"runs/a/{name}": content for name, content in whole.items()}


def begun(config: str) -> dict[str, str | bytes]:
    """Return the files of a folder of runs whose run `a` has saved nothing yet."""
    return {"runs/a/config.json": config}


WRONG_CONFIG = {
    "config.seed": ["x", 1.5, None, [], "0", True, 10**30],
    "config.epochs": ["ten", 2.5, {}],
    "config.lr": ["0.1", True, []],
    "config.model": [3, None, ["vit_mini"], "\x1b[2Jvit"],
    "config.opt": [3, None],
    "config.model_args": [3, [], "x"],
    "config.data": [3, []],
    "config.augment": ["none"],
    "config": [None, [], "x", 3],
    "resolved": [[], "x", 3],
    "resolved.num_classes": ["ten", 1.5, 2**63],
    "resolved.epochs": ["2"],
    "resolved.learning_rate": ["fast", []],
    "label": [3, [], "a\u0007b"],
    "study": [3],
    "device": ["cpu", []],
    "device.kind": [3],
}
WRONG_RESULT = {
    "status": [None, 3, []],
    "validation_accuracy": ["high", [], True],
    "test_accuracy": ["0.5", {}],
    "steps": ["ten", 1.5],
    "evaluations": [3, ["x"], [[1]], [[1, "x"]], [[1, 2, 3]], [[2**63, 1]], [[1e308, 1]]],
    "evaluation_seconds": [1.0, ["x"]],
    "wall_seconds": ["long"],
    "error": [3],
    "population": ["two"],
}
NOT_JSON: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "cannot be read"),
    "cut": ('{"config": {"mod', "cannot be read"),
    "null": ("null", "holds no object"),
    "list": ("[]", "holds no object"),
    "text": ('"a"', "holds no object"),
    "nan": ('{"config": NaN}', "JSON has no NaN"),
    "infinity": ('{"config": -Infinity}', "JSON has no -Infinity"),
    "utf16": (json.dumps(CONFIG).encode("utf-16"), "not text in UTF-8"),
    "latin1": ('{"label": "é"}'.encode("latin-1"), "not text in UTF-8"),
    "zeros": (bytes(1000), "cannot be read"),
    "deep": ('{"config": ' + "[" * 100_000, "nested too deeply"),
    "digits": ('{"config": ' + "1" * 5000 + "}", "cannot be read"),
    "two": ("{}{}", "cannot be read"),
}


def _wrong(where: str, faults: dict, whole: dict) -> list[Row]:
    rows = []
    for field, values in faults.items():
        for number, value in enumerate(values):
            command = TABLES[number % 2]
            rows.append(
                Row(
                    f"{where}-{field}-{number}",
                    READ[command],
                    rf"runs/a/{where}\.json: {re.escape(field)}\b.* not .*Was it edited",
                    files=run(**{where: changed(whole, field, value)}),
                )
            )
    return rows


def _not_json() -> list[Row]:
    rows = []
    for name, (content, says) in NOT_JSON.items():
        for command in READ:
            rows.append(
                Row(
                    f"config-{name}-{command}",
                    READ[command],
                    rf"runs/a/config\.json .*{says}",
                    files=run(config=content),
                )
            )
        rows.append(
            Row(
                f"result-{name}",
                READ["analyze"],
                rf"runs/a/result\.json .*{says}",
                files=run(result=content),
            )
        )
    return rows


def fifo(path: str):
    """Return a function that makes a FIFO in place of a file."""

    def make(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(folder / path)

    return make


def link(path: str, target: str):
    """Return a function that makes a symbolic link in place of a file."""

    def make(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(target)

    return make


def directory(path: str):
    """Return a function that makes a folder in place of a file."""

    def make(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        (folder / path).mkdir(parents=True)

    return make


def large(path: str, size: int):
    """Return a function that makes a file of so many bytes, with a hole for content."""

    def make(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / path, "wb") as file:
            file.truncate(size)

    return make


def _not_regular() -> list[Row]:
    rows = []
    for name in ("config", "result"):
        file = f"runs/a/{name}.json"
        for kind, make, says in (
            ("fifo", fifo(file), "no regular file"),
            ("device", link(file, "/dev/zero"), "no regular file"),
            ("folder", directory(file), "is a folder"),
            ("large", large(file, 2**30), "larger than 64 MiB"),
        ):
            for command in ("analyze", "patterns"):
                rows.append(
                    Row(f"{name}-{kind}-{command}", READ[command], rf"{name}\.json .*{says}",
                        files=run(), prepare=make)
                )  # fmt: skip
    study = "runs/study.json"
    rows += [
        Row("study-fifo", READ["analyze"], r"study\.json .*no regular file", files=run(),
            prepare=fifo(study), script=True),
        Row("study-target", READ["analyze"], r"study\.json: target is 'x', not a number",
            files=run() | {study: '{"target": "x"}'}),
        Row("study-null", READ["analyze"], r"study\.json holds no object",
            files=run() | {study: "null"}),
    ]  # fmt: skip
    for command in TABLES:
        words = [*READ[command]]
        at = words.index("runs")
        for kind, path, make, says in (
            ("device", "/dev/zero", None, "no regular file"),
            ("fifo", "t.parquet", fifo("t.parquet"), "no regular file"),
            ("large", "t.parquet", large("t.parquet", 2**31), "larger than 1,024 MiB"),
            ("zeros", "t.parquet", large("t.parquet", 1000), "not a Parquet file"),
            ("missing", "t.parquet", None, "There is no"),
            ("loop", "t.parquet", link("t.parquet", "t.parquet"), "There is no"),
            ("empty-folder", "empty", directory("empty"), "no runs in"),
            ("fifo-csv", "t.csv", fifo("t.csv"), "no regular file"),
            ("device-csv", "t.csv", link("t.csv", "/dev/zero"), "no regular file"),
        ):
            arguments = [*words[:at], path, *words[at + 1 :]]
            rows.append(Row(f"{command}-{kind}", arguments, says, prepare=make))
    return rows


def _patterns() -> list[Row]:
    return [
        Row("patterns-device", ["patterns", "/dev/zero"], "no regular file"),
        Row("patterns-fifo", ["patterns", "w.safetensors"], "no regular file",
            prepare=fifo("w.safetensors"), script=True),
        Row("patterns-loop", ["patterns", "a"], "does not exist", prepare=link("a", "a")),
        Row("patterns-no-weights", ["patterns", "runs"], "cannot be read", files=run()),
        Row("export-no-run", ["export-weights", "runs"], "no config.json in it", files=run(),
            script=True),
        Row("export-import-path", ["export-weights", "runs/a"],
            r"nothing that a run names is imported.*--model logging:basicConfig",
            files=run(config=changed(CONFIG, "config.model", "logging:basicConfig"))),
        Row("export-other-model", ["export-weights", "runs/a", "--model", "resnet50"],
            "--model is resnet50, but the run is one of vit_mini", files=run()),
        Row("export-device", ["export-weights", "/dev/zero"], "no config.json|Not a directory"),
    ]  # fmt: skip


def _train() -> list[Row]:
    """Return rows of resuming a run whose files say something else."""
    start = ("train", "--model", "vit_mini", "--epochs", "1", "--log.progress", "none")
    rows = [
        Row(f"train-{field}-{value}", [*start, "--workdir", "runs/a"],
            rf"runs/a/config\.json: {field} is {re.escape(repr(value))}, not .*Was it edited",
            files=begun(changed(CONFIG, field, value)))
        for field, value in (
            *(("config", value) for value in (None, [], "", 0, 3)),
            *(("resolved", value) for value in ([], "", 0, 3)),
            *(("versions", value) for value in (None, [], [1], 0)),
            ("config.seed", "x"), ("resolved.epochs", "2"),
        )
    ]  # fmt: skip
    named = [*start, "--workdir", "runs", "--run-id", "a"]
    says = r"runs/a/config\.json: there is no config\. Was it edited"
    rows += [
        Row("train-no-config", [*start, "--workdir", "runs/a"], says, files=begun("{}")),
        Row("train-no-config-named", named, says, files=begun("{}")),
        Row("train-other-seed", [*start, "--workdir", "runs/a", "--seed", "1"],
            "seed: 0 there, 1 here", files=begun(json.dumps(CONFIG))),
    ]  # fmt: skip
    return rows


ROWS = [
    *_train(),
    *(
        Row(
            f"no-classes-{command}",
            READ[command],
            "num_classes of the runs is 0; it must be",
            files=run(config=changed(CONFIG, "resolved.num_classes", 0)),
        )
        for command in TABLES
    ),
    *_wrong("config", WRONG_CONFIG, CONFIG),
    *_wrong("result", WRONG_RESULT, RESULT),
    *_not_json(),
    *_not_regular(),
    *_patterns(),
]
