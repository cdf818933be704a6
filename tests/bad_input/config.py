"""Settings and command lines."""

from bad_input.row import Row

ROWS = [
    Row("no-command", ["trian"], "There is no command 'trian'", script=True),
    Row("config-missing", ["train", "--config", "x.toml"], r"config x\.toml cannot be read: No"),
    Row(
        "config-not-toml", ["train", "--config", "x.toml"], r"config x\.toml is not valid TOML",
        files={"x.toml": "lr = "},
    ),
]  # fmt: skip
